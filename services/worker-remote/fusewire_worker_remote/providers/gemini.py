"""Google's Gemini API: `generateContent`."""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from fusewire.answer_form import with_names
from fusewire.contracts import Image, Message, Task, ToolCall, Usage
from fusewire.settings import RemoteModel
from fusewire_worker_remote.dialect import PLAIN, Dialect, schema_instruction
from fusewire_worker_remote.errors import Failure, content_refusal, truncation
from fusewire_worker_remote.providers import base, reading
from fusewire_worker_remote.providers.assembly import JsonAssembly
from fusewire_worker_remote.providers.base import HttpRequest, HttpResponse, ProviderReply
from fusewire_worker_remote.providers.parts import (
    Text,
    append_turn,
    clean,
    content_parts,
    first_object,
    make_usage,
    media_type,
    parse_arguments,
    parse_data_url,
    system_text,
    tokens,
    without_none,
    word,
)

_REFUSALS = {
    "SAFETY",
    "RECITATION",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT",
    "IMAGE_RECITATION",
    "LANGUAGE",
    "MODEL_ARMOR",
}
_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
_MOST_SEED = 2**31
_MOST_STOPS = 5
_UNSIGNED = "skip_thought_signature_validator"
"""The API's documented placeholder for the signature of a thought that is not at hand."""
_WITHOUT_SIGNATURES = re.compile(r"gemini-[12]\b|gemini-[12]\.|gemma|learnlm")


class Gemini:
    """`POST {base_url}/models/{model}:generateContent`, or `:streamGenerateContent?alt=sse`."""

    base_dialect = PLAIN
    """See `Provider`."""

    def request(
        self, task: Task, model: RemoteModel, dialect: Dialect = PLAIN, *, is_streamed: bool = False
    ) -> HttpRequest:
        """See `Provider.request`."""
        system = system_text(task.messages)
        turns = _turns(with_names(task.messages), is_signed=_is_signed(model.model))
        if not turns:  # a conversation needs a user
            turns, system = [{"role": "user", "parts": [{"text": system}]}], ""
        if task.sampling.response_schema is not None and dialect.schema_form != "schema":
            system = f"{system}\n\n{schema_instruction(task.sampling.response_schema)}".strip()
        payload = without_none(
            {
                "systemInstruction": {"parts": [{"text": system}]} if system else None,
                "contents": turns,
                "generationConfig": _generation(task, model, dialect) or None,
                **_tools(task),
            }
        )
        method = "streamGenerateContent?alt=sse" if is_streamed else "generateContent"
        path = f"models/{quote(model.model.removeprefix('models/'), safe='/@.-_')}:{method}"
        return base.request(
            task, model, dialect, path, base.key_header(model, "x-goog-api-key"), payload
        )

    def read(self, response: HttpResponse, now: datetime) -> ProviderReply | Failure:
        """See `Provider.read`."""
        return reading.read(response, now, read_body=read_body, assemble=self.assemble)

    def assemble(self, now: datetime) -> "ContentAssembly":
        """See `Provider.assemble`."""
        return ContentAssembly(now)


def _is_signed(model: str) -> bool:
    """Whether a model requires signatures of thoughts with its calls."""
    return not _WITHOUT_SIGNATURES.search(model)


def _generation(task: Task, model: RemoteModel, dialect: Dialect) -> dict[str, Any]:
    sampling = task.sampling
    schema = sampling.response_schema if dialect.schema_form != "words" else None
    is_open = schema == {"type": "object"} or dialect.schema_form == "json"
    return without_none(
        {
            "maxOutputTokens": base.max_tokens(task, model),
            "temperature": sampling.temperature,
            "topP": sampling.top_p,
            "topK": sampling.top_k,
            "frequencyPenalty": sampling.frequency_penalty,
            "presencePenalty": sampling.presence_penalty,
            "seed": sampling.seed % _MOST_SEED if sampling.seed is not None else None,
            "stopSequences": list(sampling.stop[:_MOST_STOPS]) or None,
            "responseMimeType": "application/json" if schema is not None else None,
            "responseJsonSchema": None if is_open else schema,
        }
    )


def _turns(messages: tuple[Message, ...], *, is_signed: bool) -> list[dict[str, Any]]:
    """Return the conversation, with alternating roles; results of tools are a user's.

    A result names the function, and not the call.
    """
    turns: list[dict[str, Any]] = []
    names = _function_names(messages)
    pending_ids: list[str] = []
    for message in messages:
        if message.role == "system":
            continue
        pending_ids += [call.id for call in message.tool_calls]
        if message.role == "tool":
            message = _match_result(message, pending_ids)  # noqa: PLW2901 - the matched message replaces the one that was read
        role = "model" if message.role == "assistant" else "user"
        append_turn(turns, role, "parts", _parts(message, names, is_signed=is_signed))
    return turns


def _function_names(messages: tuple[Message, ...]) -> dict[str, str]:
    """Return the names of the functions that were called, by the call's id."""
    names: dict[str, str] = {}
    for message in messages:
        names.update((call.id, call.name) for call in message.tool_calls)
    return names


def _match_result(message: Message, pending_ids: list[str]) -> Message:
    """Return a tool's result with the id of the call that it belongs to.

    That is the call with the result's id; if the id is unknown, the first without a result.

    Args:
        message: the tool's result.
        pending_ids: ids of calls without a result so far; the matched id is removed.
    """
    call_id = message.tool_call_id
    if call_id not in pending_ids:
        call_id = pending_ids[0] if pending_ids else ""
    pending_ids[:] = [pending_id for pending_id in pending_ids if pending_id != call_id]
    return message.model_copy(update={"tool_call_id": call_id or message.tool_call_id})


def _parts(message: Message, names: Mapping[str, str], *, is_signed: bool) -> list[dict[str, Any]]:
    if message.role == "tool":
        name = names.get(message.tool_call_id or "", message.tool_call_id)
        return [{"functionResponse": {"name": name, "response": _result(message.content)}}]
    parts = [_part(part) for part in content_parts(message)]
    for number, call in enumerate(message.tool_calls):
        part: dict[str, Any] = {
            "functionCall": {"name": call.name, "args": parse_arguments(call.arguments)}
        }
        if is_signed and number == 0:
            part["thoughtSignature"] = _UNSIGNED
        parts.append(part)
    return parts


def _result(content: str) -> dict[str, Any]:
    """Return a tool's result as an object, which the API requires."""
    try:
        result = json.loads(content)
    except (ValueError, RecursionError):
        result = content
    return result if isinstance(result, dict) else {"result": result}


def _part(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"text": part}
    inline = parse_data_url(part.url)
    if inline is None:
        # The API fetches public addresses itself, for models since Gemini 2.5.
        return {"fileData": {"mimeType": media_type(part.url), "fileUri": part.url}}
    inline_type, base64 = inline
    return {"inlineData": {"mimeType": inline_type, "data": base64}}


def _tools(task: Task) -> dict[str, Any]:
    if not task.tools:
        return {}
    declarations = [
        without_none(
            {
                "name": tool.name,
                "description": tool.description or None,
                "parametersJsonSchema": tool.parameters or None,
            }
        )
        for tool in task.tools
    ]
    mode = _MODES.get(task.tool_choice)
    config = {"mode": mode} if mode else {"mode": "ANY", "allowedFunctionNames": [task.tool_choice]}
    return {
        "tools": [{"functionDeclarations": declarations}],
        "toolConfig": {"functionCallingConfig": config},
    }


def read_body(body: Mapping[str, Any], *, is_whole: bool = True) -> ProviderReply | Failure:
    """Read a GenerateContentResponse.

    Args:
        body: the response.
        is_whole: whether it is known to be whole; if not, only a finish reason shows that it is.
    """
    usage = _usage(body.get("usageMetadata"))
    feedback = body.get("promptFeedback")
    if isinstance(feedback, dict) and feedback.get("blockReason"):
        return content_refusal("the provider refused the prompt", usage)
    candidate = first_object(body.get("candidates"))
    if candidate is None:
        return reading.no_answer(body, "candidates", usage)
    reason = word(candidate.get("finishReason"))
    if reason in _REFUSALS:
        return content_refusal("the provider withheld the answer", usage)
    if not reason and not is_whole:
        return truncation("the answer has no finish reason", usage)
    parts = _answer_parts(candidate)
    text = clean("".join(word(part.get("text")) for part in parts))
    calls = _calls(parts)
    if reason == "STOP" and not text and not calls:
        # Models send this now and then; another call gets an answer.
        return truncation("the answer is empty", usage)
    return reading.make_reply(text, calls, usage, reason=reason)


def _answer_parts(candidate: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a candidate's parts without its thoughts."""
    content = candidate.get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, list):
        return []
    return [part for part in parts if isinstance(part, dict) and not part.get("thought")]


def _calls(parts: list[dict[str, Any]]) -> tuple[ToolCall, ...]:
    calls: list[ToolCall] = []
    for part in parts:
        call = part.get("functionCall")
        if not isinstance(call, dict):
            continue
        name = word(call.get("name"))
        if not name:
            continue
        id_ = clean(call.get("id")) or f"call_{len(calls)}"
        arguments = clean(json.dumps(call.get("args") or {}, ensure_ascii=False))
        calls.append(ToolCall(id=id_, name=clean(name), arguments=arguments))
    return tuple(calls)


def _usage(usage: object) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt = tokens(usage.get("promptTokenCount"))
    if prompt is None:
        return None
    tool_prompt = tokens(usage.get("toolUsePromptTokenCount")) or 0
    answer = tokens(usage.get("candidatesTokenCount")) or 0
    reasoning = tokens(usage.get("thoughtsTokenCount")) or 0
    return make_usage(
        prompt + tool_prompt,
        answer + reasoning,
        from_cache=usage.get("cachedContentTokenCount"),
        reasoning=reasoning,
    )


class ContentAssembly(JsonAssembly):
    """Assembles responses that each hold the next parts of the answer."""

    def __init__(self, now: datetime) -> None:
        super().__init__(now)
        self._text = Text()
        self._calls: list[dict[str, Any]] = []
        self._rest: dict[str, Any] = {}
        self._reason: object = None
        self._is_begun = False

    def take(self, chunk: Mapping[str, Any]) -> str:
        """See `JsonAssembly`."""
        self._rest.update(
            {key: chunk[key] for key in ("promptFeedback", "usageMetadata") if chunk.get(key)}
        )
        candidate = first_object(chunk.get("candidates"))
        if candidate is None:
            return ""
        self._is_begun = True
        self._reason = candidate.get("finishReason") or self._reason
        self.is_complete = bool(word(self._reason))
        parts = _answer_parts(candidate)
        self._calls += [part for part in parts if "functionCall" in part]
        self.has_answered = self.has_answered or bool(candidate.get("content"))
        return "".join(self._text.add(part.get("text")) for part in parts)

    def whole(self) -> ProviderReply | Failure:
        """See `JsonAssembly`."""
        content = {"parts": [{"text": str(self._text)}, *self._calls]}
        candidates = [{"content": content, "finishReason": self._reason}] if self._is_begun else []
        return read_body({"candidates": candidates, **self._rest}, is_whole=self.is_complete)


PROVIDER = Gemini()
