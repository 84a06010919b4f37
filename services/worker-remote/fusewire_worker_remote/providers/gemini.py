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
from fusewire_worker_remote.dialect import PLAIN, Dialect, asked_in_words
from fusewire_worker_remote.errors import Failure, refused, truncated
from fusewire_worker_remote.providers import base, reading
from fusewire_worker_remote.providers.assembly import JsonAssembly
from fusewire_worker_remote.providers.base import HttpRequest, HttpResponse, ProviderReply
from fusewire_worker_remote.providers.parts import (
    Text,
    arguments_of,
    clean,
    counted,
    given,
    inline,
    interleaved,
    media_type,
    system_text,
    tokens,
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
"""Stands where the API wants the signature of a thought that is not at hand, as its documentation provides for."""
_WITHOUT_SIGNATURES = re.compile(r"gemini-[12]\b|gemini-[12]\.|gemma|learnlm")


class Gemini:
    """`POST {base_url}/models/{model}:generateContent`, streamed `:streamGenerateContent?alt=sse`."""

    known = PLAIN
    """See `Provider`."""

    def request(
        self, task: Task, model: RemoteModel, dialect: Dialect = PLAIN, *, is_streamed: bool = False
    ) -> HttpRequest:
        """See `Provider.request`."""
        system, turns = (
            system_text(task.messages),
            _turns(with_names(task.messages), is_signed=_is_signed(model.model)),
        )
        if not turns:  # a conversation needs a user
            turns, system = [{"role": "user", "parts": [{"text": system}]}], ""
        if task.sampling.response_schema is not None and dialect.schema_form != "schema":
            system = f"{system}\n\n{asked_in_words(task.sampling.response_schema)}".strip()
        payload = given(
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
            task, model, dialect, path, base.key_of(model, "x-goog-api-key"), payload
        )

    def read(self, response: HttpResponse, now: datetime) -> ProviderReply | Failure:
        """See `Provider.read`."""
        return reading.read(response, now, read_body=read_body, assemble=self.assemble)

    def assemble(self, now: datetime) -> "ContentAssembly":
        """See `Provider.assemble`."""
        return ContentAssembly(now)


def _is_signed(model: str) -> bool:
    return not _WITHOUT_SIGNATURES.search(model)


def _generation(task: Task, model: RemoteModel, dialect: Dialect) -> dict[str, Any]:
    sampling = task.sampling
    schema = sampling.response_schema if dialect.schema_form != "words" else None
    is_open = schema == {"type": "object"} or dialect.schema_form == "json"
    return given(
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
    """The conversation. Results of tools are a user's, and name the function and not the call."""
    called = {call.id: call.name for message in messages for call in message.tool_calls}
    waiting: list[str] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "system":
            continue
        role = "model" if message.role == "assistant" else "user"
        waiting += [call.id for call in message.tool_calls]
        if message.role == "tool":
            # By its id, or where that is unknown in the order of the calls.
            first = waiting[0] if waiting else ""
            id_ = message.tool_call_id if message.tool_call_id in waiting else first
            waiting = [other for other in waiting if other != id_]
            message = message.model_copy(update={"tool_call_id": id_ or message.tool_call_id})  # noqa: PLW2901 - the mended message replaces the one that was read
        parts = _parts(message, called, is_signed=is_signed)
        if turns and turns[-1]["role"] == role:
            turns[-1]["parts"] += parts
        elif parts:
            turns.append({"role": role, "parts": parts})
    return turns


def _parts(message: Message, called: Mapping[str, str], *, is_signed: bool) -> list[dict[str, Any]]:
    if message.role == "tool":
        name = called.get(message.tool_call_id or "", message.tool_call_id)
        return [{"functionResponse": {"name": name, "response": _result(message.content)}}]
    parts = [_part(part) for part in interleaved(message)]
    for number, call in enumerate(message.tool_calls):
        part: dict[str, Any] = {
            "functionCall": {"name": call.name, "args": arguments_of(call.arguments)}
        }
        if is_signed and number == 0:
            part["thoughtSignature"] = _UNSIGNED
        parts.append(part)
    return parts


def _result(content: str) -> dict[str, Any]:
    """A tool's result, which has to be an object."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = content
    return value if isinstance(value, dict) else {"result": value}


def _part(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"text": part}
    held = inline(part.url)
    if held is None:
        # Public addresses are fetched by the API, for models since Gemini 2.5.
        return {"fileData": {"mimeType": media_type(part.url), "fileUri": part.url}}
    return {"inlineData": {"mimeType": held[0], "data": held[1]}}


def _tools(task: Task) -> dict[str, Any]:
    if not task.tools:
        return {}
    declared = [
        given(
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
        "tools": [{"functionDeclarations": declared}],
        "toolConfig": {"functionCallingConfig": config},
    }


def read_body(body: Mapping[str, Any], *, is_whole: bool = True) -> ProviderReply | Failure:
    """Read a GenerateContentResponse. Unless `is_whole`, only a finish reason tells that it is."""
    usage = _usage(body.get("usageMetadata"))
    feedback = body.get("promptFeedback")
    if isinstance(feedback, dict) and feedback.get("blockReason"):
        return refused("the provider refused the prompt", usage)
    candidates = body.get("candidates")
    candidate = candidates[0] if isinstance(candidates, list) and candidates else None
    if not isinstance(candidate, dict):
        return reading.no_answer(body, "candidates", usage)
    reason = word(candidate.get("finishReason"))
    if reason in _REFUSALS:
        return refused("the provider withheld the answer", usage)
    if not reason and not is_whole:
        return truncated("the answer has no finish reason", usage)
    parts = _said(candidate)
    text = clean("".join(p["text"] for p in parts if isinstance(p.get("text"), str)))
    calls = _calls(parts)
    if reason == "STOP" and not text and not calls:
        # Seen now and then, and gone with the next call.
        return truncated("the answer is empty", usage)
    return reading.answered(text, calls, usage, reason=reason)


def _said(candidate: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A candidate's parts without its thoughts."""
    content = candidate.get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    return (
        [p for p in parts if isinstance(p, dict) and not p.get("thought")]
        if isinstance(parts, list)
        else []
    )


def _calls(parts: list[dict[str, Any]]) -> tuple[ToolCall, ...]:
    calls: list[ToolCall] = []
    for part in parts:
        call = part.get("functionCall")
        if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
            continue
        arguments = json.dumps(call.get("args") or {}, ensure_ascii=False)
        id_ = clean(call.get("id")) or f"call_{len(calls)}"
        calls.append(ToolCall(id=id_, name=clean(call["name"]), arguments=clean(arguments)))
    return tuple(calls)


def _usage(usage: object) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt, answer = (
        tokens(usage.get("promptTokenCount")),
        tokens(usage.get("candidatesTokenCount")),
    )
    thought = tokens(usage.get("thoughtsTokenCount")) or 0
    if prompt is None:
        return None
    return counted(
        prompt + (tokens(usage.get("toolUsePromptTokenCount")) or 0),
        (answer or 0) + thought,
        cached=usage.get("cachedContentTokenCount"),
        reasoning=thought,
    )


class ContentAssembly(JsonAssembly):
    """Responses that each hold the next parts. Only the stream's end tells that it is whole."""

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
        candidates = chunk.get("candidates")
        candidate = candidates[0] if isinstance(candidates, list) and candidates else None
        if not isinstance(candidate, dict):
            return ""
        self._is_begun = True
        self._reason = candidate.get("finishReason") or self._reason
        self.is_complete = bool(word(self._reason))
        parts = _said(candidate)
        self._calls += [part for part in parts if "functionCall" in part]
        self.has_answered = self.has_answered or bool(candidate.get("content"))
        return "".join(self._text.add(part.get("text")) for part in parts)

    def whole(self) -> ProviderReply | Failure:
        """See `JsonAssembly`."""
        content = {"parts": [{"text": str(self._text)}, *self._calls]}
        candidates = [{"content": content, "finishReason": self._reason}] if self._is_begun else []
        return read_body({"candidates": candidates, **self._rest}, is_whole=self.is_complete)
