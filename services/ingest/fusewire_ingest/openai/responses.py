"""OpenAI's Responses: a request written anew as a chat completion, and an outcome as a response. Pure.

Fields as in OpenAI's reference ("Create a model response", "The response object").
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fusewire import replies
from fusewire.contracts import Message, Outcome, Prompt
from fusewire_ingest.admission.refusal import RefusedError, unsupported, wrong
from fusewire_ingest.openai import chat_reply
from fusewire_ingest.openai.rewrite import RewrittenBody, as_list, as_text

PREVIOUS = "previous_response_id"
RESPONSE = "resp_"
"""Before the fusion's id."""
_SAME = (
    "model",
    "temperature",
    "top_p",
    "metadata",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "service_tier",
    "parallel_tool_calls",
    "store",
    "stream",
    "plugins",
    "fusewire",
)
_READ = (
    *_SAME,
    "input",
    "instructions",
    "max_output_tokens",
    "reasoning",
    "text",
    "tools",
    "tool_choice",
    "truncation",
    PREVIOUS,
    "include",
)
_RENAMED = ((".function.", "."),)
_STATEFUL = ("conversation", "background", "prompt")
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXTS = ("input_text", "output_text", "text")
_CHOICES = ("auto", "none", "required")


def chat_body(body: dict[str, Any], before: Sequence[Message] | None = None) -> RewrittenBody:
    """Write a request anew.

    Args:
        body: it.
        before: the conversation that `previous_response_id` names; None where there is none to be had.

    Raises:
        RefusedError: a part of it has no place in a chat completion; `param` says where it stands.
    """
    given = {name: value for name, value in body.items() if value is not None}
    _check(given, can_go_on=before is not None)
    written = RewrittenBody(
        {name: given[name] for name in _SAME if name in given}, _RENAMED, {"messages": "input"}
    )
    if "max_output_tokens" in given:
        written.put("max_completion_tokens", given["max_output_tokens"], "max_output_tokens")
    if "reasoning" in given:
        written.put("reasoning", given["reasoning"], "reasoning")
    if "instructions" in given:
        written.add(
            {"role": "system", "content": as_text(given["instructions"], "instructions")},
            "instructions",
        )
    for message in _without_instructions(before or (), is_instructed="instructions" in given):
        written.add(_as_chat(message), PREVIOUS)
    _input(written, given.get("input"))
    if "text" in given:
        _format(written, given["text"])
    if "tools" in given:
        tools = [
            _tool(tool, f"tools.{number}")
            for number, tool in enumerate(as_list(given["tools"], "tools"))
        ]
        written.put("tools", tools, "tools")
    if "tool_choice" in given:
        written.put("tool_choice", _choice(given["tool_choice"]), "tool_choice")
    return written


def _check(given: Mapping[str, Any], *, can_go_on: bool) -> None:
    """Refuse what has no place here."""
    if not can_go_on and PREVIOUS in given:
        raise unsupported(PREVIOUS, "no conversation goes on here; send the whole of it as `input`")
    for name in given:
        if name in _STATEFUL:
            raise unsupported(
                name, "go on with `previous_response_id`, or send the whole conversation as `input`"
            )
        if name not in _READ:
            raise unsupported(name, "it has no place here; remove it")
    if given.get("truncation", "disabled") != "disabled":
        raise unsupported("truncation", "nothing is cut; shorten the input")


def _without_instructions(before: Sequence[Message], *, is_instructed: bool) -> Sequence[Message]:
    """A conversation without the instructions of the request before, where this one has its own."""
    return before[1:] if is_instructed and before and before[0].role == "system" else before


def _as_chat(message: Message) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    at = 0
    for image in message.images:
        parts += [{"type": "text", "text": message.content[at : image.at]}] if image.at > at else []
        parts.append({"type": "image_url", "image_url": {"url": image.url, "detail": image.detail}})
        at = image.at
    parts += (
        [{"type": "text", "text": message.content[at:]}]
        if parts and at < len(message.content)
        else []
    )
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in message.tool_calls
    ]
    told = {"name": message.name, "tool_call_id": message.tool_call_id, "tool_calls": calls or None}
    return {
        "role": message.role,
        "content": parts or message.content,
        **{k: v for k, v in told.items() if v},
    }


def conversation(prompt: Prompt, outcome: Outcome) -> tuple[Message, ...]:
    """What was said up to an outcome, with it."""
    said = Message(role="assistant", content=outcome.content or "", tool_calls=outcome.tool_calls)
    return (*prompt.messages, said)


def message_id(response_id: str) -> str:
    """The id of a response's message."""
    return f"msg_{response_id.removeprefix(RESPONSE)}"


def _input(written: RewrittenBody, given: object) -> None:
    if isinstance(given, str):
        written.add({"role": "user", "content": given}, "input")
        return
    for number, item in enumerate(as_list(given, "input")):
        path = f"input.{number}"
        if not isinstance(item, dict):
            raise wrong(path, "it must be an object")
        kind = item.get("type", "message")
        if kind == "message":
            written.add(_message(item, path), path)
        elif kind == "function_call":
            _call(written, item, path)
        elif kind == "function_call_output":
            output = as_text(item.get("output"), f"{path}.output")
            call_id = as_text(item.get("call_id"), f"{path}.call_id")
            written.add({"role": "tool", "tool_call_id": call_id, "content": output}, path)
        elif kind != "reasoning":  # only the model that wrote it can read it
            raise unsupported(path, "send messages, function_call and function_call_output")


def _message(item: dict[str, Any], path: str) -> dict[str, Any]:
    role = _ROLES.get(str(item.get("role")))
    if role is None:
        raise wrong(f"{path}.role", "it must be user, assistant, system or developer")
    content = item.get("content")
    if isinstance(content, str):
        return {"role": role, "content": content}
    parts = [
        _part(part, f"{path}.content.{n}")
        for n, part in enumerate(as_list(content, f"{path}.content"))
    ]
    return {"role": role, "content": parts}


def _part(part: object, path: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise wrong(path, 'it must be a part such as {"type": "input_text", "text": "…"}')
    if kind in _TEXTS:
        return {"type": "text", "text": as_text(part.get("text"), f"{path}.text")}
    if kind == "input_image":
        return {
            "type": "image_url",
            "image_url": {"url": as_text(part.get("image_url"), f"{path}.image_url")},
        }
    raise unsupported(path, "only text and images by URL can stand here")


def _call(written: RewrittenBody, item: dict[str, Any], path: str) -> None:
    """Add a call to the assistant's message before it, or as a message of its own."""
    function = {
        "name": as_text(item.get("name"), f"{path}.name"),
        "arguments": as_text(item.get("arguments"), f"{path}.arguments"),
    }
    call = {
        "id": as_text(item.get("call_id"), f"{path}.call_id"),
        "type": "function",
        "function": function,
    }
    last = written.last()
    if last and last["role"] == "assistant":
        last.setdefault("tool_calls", []).append(call)
    else:
        written.add({"role": "assistant", "content": None, "tool_calls": [call]}, path)


def _format(written: RewrittenBody, text: object) -> None:
    if not isinstance(text, dict):
        raise wrong("text", "it must be an object")
    for name in text:
        if name not in ("format", "verbosity"):
            raise unsupported(f"text.{name}", "it has no place here; remove it")
    if "verbosity" in text:
        written.put("verbosity", text["verbosity"], "text.verbosity")
    form = text.get("format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        named = {name: value for name, value in form.items() if name != "type"}
        form = {"type": "json_schema", "json_schema": named}
    if form is not None:
        written.put("response_format", form, "text.format")


def _tool(tool: object, path: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise wrong(path, "it must be an object")
    kind = tool.get("type")
    if isinstance(kind, str) and kind.startswith("openrouter:"):
        return tool
    if kind != "function":
        raise RefusedError(
            "unsupported_tool", f"'{path}': tools of the server are not supported; remove it", path
        )
    return {
        "type": "function",
        "function": {name: value for name, value in tool.items() if name != "type"},
    }


def _choice(choice: object) -> object:
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {
            "type": "function",
            "function": {"name": as_text(choice.get("name"), "tool_choice.name")},
        }
    if choice not in _CHOICES:
        raise wrong("tool_choice", "it must be auto, none, required or a function")
    return choice


def response_of(
    body: chat_reply.Body, *, model: str, created: int, warnings: Sequence[str] = ()
) -> replies.responses.Response:
    """The response object of an outcome that has an answer.

    Args:
        body: the outcome, as JSON has it.
        model: as the client asked.
        created: seconds since 1970.
        warnings: for `fusion.warnings`.
    """
    chat = chat_reply.completion_of(body, model=model, created=created, warnings=warnings)
    choice = chat["choices"][0]
    name = body["fusion_id"]
    is_cut = choice["finish_reason"] in ("length", "content_filter")
    why: replies.responses.IncompleteDetails = {
        "reason": "max_output_tokens" if choice["finish_reason"] == "length" else "content_filter"
    }
    return {
        **shell(name, model=model, created=created),
        "status": "incomplete" if is_cut else "completed",
        "incomplete_details": why if is_cut else None,
        "output": _output(choice["message"], name),
        "usage": _usage(chat.get("usage")),
        "fusion": chat["fusion"],
    }


def shell(fusion_id: str, *, model: str, created: int) -> replies.responses.Response:
    """A response that is in progress."""
    return {
        "id": RESPONSE + fusion_id,
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": model,
        "output": [],
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": None,
    }


def _output(
    message: replies.chat.ChatMessage, name: str
) -> list[replies.responses.OutputMessage | replies.responses.OutputCall]:
    found: list[replies.responses.OutputMessage | replies.responses.OutputCall] = []
    if message["content"]:
        text: replies.responses.OutputText = {
            "type": "output_text",
            "text": message["content"],
            "annotations": [],
            "logprobs": [],
        }
        found.append(
            {
                "type": "message",
                "id": message_id(name),
                "status": "completed",
                "role": "assistant",
                "content": [text],
            }
        )
    for number, call in enumerate(message.get("tool_calls", ())):
        found.append(
            {
                "type": "function_call",
                "id": f"fc_{name}_{number}",
                "call_id": call["id"],
                "status": "completed",
                "name": call["function"]["name"],
                "arguments": call["function"]["arguments"],
            }
        )
    return found


def _usage(usage: replies.chat.Usage | None) -> replies.responses.ResponseUsage | None:
    if usage is None:
        return None
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"],
        # The SDK wants both; what was written into a provider's cache is not told apart.
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": usage["completion_tokens_details"],
        "total_tokens": usage["total_tokens"],
        "cost": usage.get("cost"),
        "cost_details": usage["cost_details"],
    }
