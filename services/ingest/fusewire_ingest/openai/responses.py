"""OpenAI's Responses API: translate a request, and build a response of an outcome. Pure.

Fields as in OpenAI's reference ("Create a model response", "The response object").
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fusewire import replies
from fusewire.contracts import Message, Outcome, Prompt
from fusewire_ingest.admission.refusal import RefusedError, invalid_error, unsupported_error
from fusewire_ingest.openai import chat_reply
from fusewire_ingest.openai.failures import Body
from fusewire_ingest.openai.rewrite import RewrittenBody, as_list, as_text

PREVIOUS = "previous_response_id"
RESPONSE = "resp_"
"""Prefix of the fusion's id in a response's id."""
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
"""Parameters that are copied unchanged."""
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
"""All parameters that are supported."""
_RENAMED = ((".function.", "."),)
"""See `RewrittenBody.renamed`."""
_STATEFUL = ("conversation", "background", "prompt")
"""Parameters of conversations and prompts that OpenAI's server stores."""
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXTS = ("input_text", "output_text", "text")
_CHOICES = ("auto", "none", "required")


def chat_body(
    body: dict[str, Any], earlier_messages: Sequence[Message] | None = None
) -> RewrittenBody:
    """Translate a request into a chat completion.

    Args:
        body: the request.
        earlier_messages: the conversation that `previous_response_id` names; None if requests
            cannot continue one here.

    Raises:
        RefusedError: a part of it does not exist in a chat completion; `param` is its path.
    """
    params = {name: value for name, value in body.items() if value is not None}
    _check(params, can_go_on=earlier_messages is not None)
    rewritten = RewrittenBody(
        {name: params[name] for name in _SAME if name in params}, _RENAMED, {"messages": "input"}
    )
    if "max_output_tokens" in params:
        rewritten.put("max_completion_tokens", params["max_output_tokens"], "max_output_tokens")
    if "reasoning" in params:
        rewritten.put("reasoning", params["reasoning"], "reasoning")
    _rewrite_messages(rewritten, params, earlier_messages or ())
    if "text" in params:
        _rewrite_text_options(rewritten, params["text"])
    _rewrite_tools(rewritten, params)
    return rewritten


def _rewrite_tools(rewritten: RewrittenBody, params: Mapping[str, Any]) -> None:
    if "tools" in params:
        tools = [
            _tool(tool, f"tools.{number}")
            for number, tool in enumerate(as_list(params["tools"], "tools"))
        ]
        rewritten.put("tools", tools, "tools")
    if "tool_choice" in params:
        rewritten.put("tool_choice", _choice(params["tool_choice"]), "tool_choice")


def _check(params: Mapping[str, Any], *, can_go_on: bool) -> None:
    """Refuse parameters that are not supported."""
    if not can_go_on and PREVIOUS in params:
        raise unsupported_error(
            PREVIOUS, "no conversation goes on here; send the whole of it as `input`"
        )
    for name in params:
        if name in _STATEFUL:
            raise unsupported_error(
                name, "go on with `previous_response_id`, or send the whole conversation as `input`"
            )
        if name not in _READ:
            raise unsupported_error(name, "it has no place here; remove it")
    if params.get("truncation", "disabled") != "disabled":
        raise unsupported_error("truncation", "nothing is cut; shorten the input")


def _rewrite_messages(
    rewritten: RewrittenBody, params: Mapping[str, Any], earlier_messages: Sequence[Message]
) -> None:
    """Add instructions, the earlier conversation, and the input, in this order."""
    has_instructions = "instructions" in params
    if has_instructions:
        instructions = as_text(params["instructions"], "instructions")
        rewritten.add({"role": "system", "content": instructions}, "instructions")
    # New instructions replace those of the earlier request.
    if has_instructions and earlier_messages and earlier_messages[0].role == "system":
        earlier_messages = earlier_messages[1:]
    for message in earlier_messages:
        rewritten.add(_chat_message(message), PREVIOUS)
    _rewrite_input(rewritten, params.get("input"))


def _chat_message(message: Message) -> dict[str, Any]:
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in message.tool_calls
    ]
    chat_message: dict[str, Any] = {
        "role": message.role,
        "content": _image_parts(message) or message.content,
    }
    if message.name:
        chat_message["name"] = message.name
    if message.tool_call_id:
        chat_message["tool_call_id"] = message.tool_call_id
    if calls:
        chat_message["tool_calls"] = calls
    return chat_message


def _image_parts(message: Message) -> list[dict[str, Any]]:
    """The images of a message with the texts around them; empty if it has no images."""
    parts: list[dict[str, Any]] = []
    start = 0
    for image in message.images:
        if image.at > start:
            parts.append({"type": "text", "text": message.content[start : image.at]})
        parts.append({"type": "image_url", "image_url": {"url": image.url, "detail": image.detail}})
        start = image.at
    if parts and start < len(message.content):
        parts.append({"type": "text", "text": message.content[start:]})
    return parts


def conversation(prompt: Prompt, outcome: Outcome) -> tuple[Message, ...]:
    """The messages of a prompt, and its answer."""
    answer = Message(role="assistant", content=outcome.content or "", tool_calls=outcome.tool_calls)
    return (*prompt.messages, answer)


def message_id(response_id: str) -> str:
    """The id of a response's message."""
    return f"msg_{response_id.removeprefix(RESPONSE)}"


def _rewrite_input(rewritten: RewrittenBody, content: object) -> None:
    if isinstance(content, str):
        rewritten.add({"role": "user", "content": content}, "input")
        return
    for number, item in enumerate(as_list(content, "input")):
        _rewrite_item(rewritten, item, f"input.{number}")


def _rewrite_item(rewritten: RewrittenBody, item: object, path: str) -> None:
    """Add one item of the input: OpenAI's term for a message, a call, or the result of one."""
    if not isinstance(item, dict):
        raise invalid_error(path, "it must be an object")
    kind = item.get("type", "message")
    if kind == "message":
        rewritten.add(_message(item, path), path)
    elif kind == "function_call":
        _rewrite_call(rewritten, item, path)
    elif kind == "function_call_output":
        output = as_text(item.get("output"), f"{path}.output")
        call_id = as_text(item.get("call_id"), f"{path}.call_id")
        rewritten.add({"role": "tool", "tool_call_id": call_id, "content": output}, path)
    elif kind != "reasoning":  # dropped: only the model that wrote it can read it
        raise unsupported_error(path, "send messages, function_call and function_call_output")


def _message(item: dict[str, Any], path: str) -> dict[str, Any]:
    role = _ROLES.get(str(item.get("role")))
    if role is None:
        raise invalid_error(f"{path}.role", "it must be user, assistant, system or developer")
    content = item.get("content")
    if isinstance(content, str):
        return {"role": role, "content": content}
    parts = [
        _part(part, f"{path}.content.{number}")
        for number, part in enumerate(as_list(content, f"{path}.content"))
    ]
    return {"role": role, "content": parts}


def _part(part: object, path: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise invalid_error(path, 'it must be a part such as {"type": "input_text", "text": "…"}')
    if kind in _TEXTS:
        return {"type": "text", "text": as_text(part.get("text"), f"{path}.text")}
    if kind == "input_image":
        return {
            "type": "image_url",
            "image_url": {"url": as_text(part.get("image_url"), f"{path}.image_url")},
        }
    raise unsupported_error(path, "only text and images by URL can stand here")


def _rewrite_call(rewritten: RewrittenBody, item: dict[str, Any], path: str) -> None:
    """Add a call to the assistant's message before it, or else as a message of its own."""
    function = {
        "name": as_text(item.get("name"), f"{path}.name"),
        "arguments": as_text(item.get("arguments"), f"{path}.arguments"),
    }
    call = {
        "id": as_text(item.get("call_id"), f"{path}.call_id"),
        "type": "function",
        "function": function,
    }
    last_message = rewritten.last()
    if last_message and last_message["role"] == "assistant":
        last_message.setdefault("tool_calls", []).append(call)
    else:
        rewritten.add({"role": "assistant", "content": None, "tool_calls": [call]}, path)


def _rewrite_text_options(rewritten: RewrittenBody, text: object) -> None:
    if not isinstance(text, dict):
        raise invalid_error("text", "it must be an object")
    for name in text:
        if name not in ("format", "verbosity"):
            raise unsupported_error(f"text.{name}", "it has no place here; remove it")
    if "verbosity" in text:
        rewritten.put("verbosity", text["verbosity"], "text.verbosity")
    if text.get("format") is not None:
        rewritten.put("response_format", _response_format(text["format"]), "text.format")


def _response_format(text_format: object) -> object:
    """Chat completions put the fields of a JSON Schema into an object of its own."""
    if not isinstance(text_format, dict) or text_format.get("type") != "json_schema":
        return text_format
    json_schema = {name: value for name, value in text_format.items() if name != "type"}
    return {"type": "json_schema", "json_schema": json_schema}


def _tool(tool: object, path: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise invalid_error(path, "it must be an object")
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
        raise invalid_error("tool_choice", "it must be auto, none, required or a function")
    return choice


def response_of(
    body: Body, *, model: str, created: int, warnings: Sequence[str] = ()
) -> replies.responses.Response:
    """Build the response object of an outcome that has an answer.

    Args:
        body: the outcome's JSON.
        model: as the client named it.
        created: seconds since 1970.
        warnings: for `fusion.warnings`.
    """
    chat = chat_reply.completion_of(body, model=model, created=created, warnings=warnings)
    choice = chat["choices"][0]
    fusion_id = body["fusion_id"]
    is_incomplete = choice["finish_reason"] in ("length", "content_filter")
    details: replies.responses.IncompleteDetails = {
        "reason": "max_output_tokens" if choice["finish_reason"] == "length" else "content_filter"
    }
    return {
        **shell(fusion_id, model=model, created=created),
        "status": "incomplete" if is_incomplete else "completed",
        "incomplete_details": details if is_incomplete else None,
        "output": _output(choice["message"], fusion_id),
        "usage": _usage(chat.get("usage")),
        "fusion": chat["fusion"],
    }


def shell(fusion_id: str, *, model: str, created: int) -> replies.responses.Response:
    """A response in progress, without output."""
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
    message: replies.chat.ChatMessage, fusion_id: str
) -> list[replies.responses.OutputMessage | replies.responses.OutputCall]:
    output: list[replies.responses.OutputMessage | replies.responses.OutputCall] = []
    if message["content"]:
        text: replies.responses.OutputText = {
            "type": "output_text",
            "text": message["content"],
            "annotations": [],
            "logprobs": [],
        }
        output.append(
            {
                "type": "message",
                "id": message_id(fusion_id),
                "status": "completed",
                "role": "assistant",
                "content": [text],
            }
        )
    for number, call in enumerate(message.get("tool_calls", ())):
        output.append(
            {
                "type": "function_call",
                "id": f"fc_{fusion_id}_{number}",
                "call_id": call["id"],
                "status": "completed",
                "name": call["function"]["name"],
                "arguments": call["function"]["arguments"],
            }
        )
    return output


def _usage(usage: replies.chat.Usage | None) -> replies.responses.ResponseUsage | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage["prompt_tokens"],
        # The SDK requires both fields; writes into a provider's cache are not counted apart.
        "input_tokens_details": {
            "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "cache_write_tokens": 0,
        },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": usage["completion_tokens_details"],
        "total_tokens": usage["total_tokens"],
        "cost": usage.get("cost"),
        "cost_details": usage["cost_details"],
    }
