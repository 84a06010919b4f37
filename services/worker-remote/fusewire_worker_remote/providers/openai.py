"""OpenAI's chat completions, as OpenAI and the many servers compatible with it speak them."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from fusewire.answer_form import with_instruction
from fusewire.contracts import Image, Message, Task, Tool, ToolCall, Usage
from fusewire.settings import RemoteModel
from fusewire_worker_remote.dialect import PLAIN, Dialect, SchemaForm, asked_in_words
from fusewire_worker_remote.errors import Failure, classify, refused, truncated
from fusewire_worker_remote.providers import base, reading
from fusewire_worker_remote.providers.assembly import JsonAssembly
from fusewire_worker_remote.providers.base import HttpRequest, HttpResponse, ProviderReply
from fusewire_worker_remote.providers.parts import (
    Text,
    ThoughtFilter,
    arguments_text,
    call_id,
    clean,
    counted,
    given,
    interleaved,
    is_json,
    usd,
    without_thought,
    word,
)
from fusewire_worker_remote.providers.schema import is_strict

_REFUSALS = {"content_filter", "safety", "sensitive", "content_policy"}
_CALL_ID = re.compile(r".{1,40}", re.DOTALL)
_CHOICES = {"auto", "none", "required"}


_OPENAI = "https://api.openai.com/"
_NOT_AT_OPENAI = ("top_k", "min_p", "repetition_penalty")
_EFFORT = (_OPENAI, "https://openrouter.ai/")
"""Where `reasoning_effort` exists, for models that think."""


class OpenAI:
    """`POST {base_url}/chat/completions`."""

    known = PLAIN
    """See `Provider`."""

    def request(
        self, task: Task, model: RemoteModel, dialect: Dialect = PLAIN, *, is_streamed: bool = False
    ) -> HttpRequest:
        """See `Provider.request`."""
        schema = task.sampling.response_schema
        told = (
            asked_in_words(schema) if schema is not None and dialect.schema_form != "schema" else ""
        )
        form = response_format(schema, dialect.schema_form)
        payload = {
            "model": model.model,
            "messages": self.messages(with_instruction(task.messages, told)),
            **given({**self.sampling(task, model), "response_format": form}),
            **({"reasoning_effort": "low"} if _is_short_thought(task, model, dialect) else {}),
            **self.tools(task),
            **(self.streaming() if is_streamed else {}),
        }
        return base.request(
            task,
            model,
            dialect,
            "chat/completions",
            base.key_of(model, "Authorization", prefix="Bearer "),
            payload,
        )

    def read(self, response: HttpResponse, now: datetime) -> ProviderReply | Failure:
        """See `Provider.read`."""
        return reading.read(
            response, now, read_body=lambda body: read_body(body, now), assemble=self.assemble
        )

    def assemble(self, now: datetime) -> "ChatAssembly":
        """See `Provider.assemble`."""
        return ChatAssembly(now)

    def messages(self, messages: tuple[Message, ...]) -> list[dict[str, Any]]:
        """The conversation."""
        return [_message(m) for m in messages]

    def sampling(self, task: Task, model: RemoteModel) -> dict[str, Any]:
        """How to sample; what is None is left out."""
        # OpenAI's own newer models refuse `max_tokens`; others know no other name for it.
        is_openai, asked = model.base_url.startswith(_OPENAI), task.sampling
        cap = "max_completion_tokens" if is_openai else "max_tokens"
        # Many of the others take these too, and whoever refuses one is not sent it again.
        others = {} if is_openai else {name: getattr(asked, name) for name in _NOT_AT_OPENAI}
        return {
            cap: base.max_tokens(task, model),
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "seed": asked.seed,
            "stop": list(asked.stop) or None,
            "frequency_penalty": asked.frequency_penalty,
            "presence_penalty": asked.presence_penalty,
            "logit_bias": asked.logit_bias,
            **others,
        }

    def tools(self, task: Task) -> dict[str, Any]:
        """The functions on offer, and which to call."""
        if not task.tools:
            return {}
        choice = task.tool_choice
        return {
            "tools": [{"type": "function", "function": _function(tool)} for tool in task.tools],
            "tool_choice": choice
            if choice in _CHOICES
            else {"type": "function", "function": {"name": choice}},
            **({} if task.parallel_tool_calls else {"parallel_tool_calls": False}),
        }

    def streaming(self) -> dict[str, Any]:
        """What asks for a stream that counts its tokens at its end."""
        return {"stream": True, "stream_options": {"include_usage": True}}


def response_format(
    schema: dict[str, Any] | None, form: SchemaForm = "schema"
) -> dict[str, Any] | None:
    """A schema as `response_format`; strict where its form allows that, for OpenAI refuses the request otherwise."""
    if schema is None or form == "words":
        return None
    if schema == {"type": "object"} or form == "json":
        return {"type": "json_object"}
    wanted = {"name": "answer", "schema": schema, "strict": is_strict(schema)}
    return {"type": "json_schema", "json_schema": wanted}


def _is_short_thought(task: Task, model: RemoteModel, dialect: Dialect) -> bool:
    """Whether a model that thinks shall think little: a verdict is a short answer to a question that is laid out."""
    return task.kind == "verdict" and dialect.is_thinking and model.base_url.startswith(_EFFORT)


def _message(message: Message) -> dict[str, Any]:
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None and message.role != "tool":
        wire["name"] = message.name
    if message.images:
        wire["content"] = [_part(part) for part in interleaved(message)]
    if message.tool_calls:
        # No text is null here; some servers refuse an empty one.
        wire["content"] = message.content or None
        wire["tool_calls"] = [
            {
                "id": _id(call.id),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        wire["tool_call_id"] = _id(message.tool_call_id)
    return wire


def _id(given_: str) -> str:
    return call_id(given_, _CALL_ID, 40)


def _part(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    detail = {} if part.detail == "auto" else {"detail": part.detail}
    return {"type": "image_url", "image_url": {"url": part.url, **detail}}


def _function(tool: Tool) -> dict[str, Any]:
    wanted = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {name: value for name, value in wanted.items() if value}


def read_body(
    body: Mapping[str, Any], now: datetime, *, is_whole: bool = True
) -> ProviderReply | Failure:
    """Read a chat completion.

    Args:
        body: it.
        now: for waits that an error in it gives.
        is_whole: whether it is known to be; else only a finish reason tells.
    """
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    usage, cost = _usage(body, choice)
    if not isinstance(choice, dict):
        return reading.no_answer(body, "choices", usage)
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    finish = word(choice.get("finish_reason"))
    if isinstance(choice.get("error"), dict):
        told = json.dumps({"error": choice["error"]}).encode()
        failure = classify(200, {}, told, now)
        if not failure.retryable:
            return replace(failure, billed=True, usage=usage)
        return truncated("the provider failed while answering", usage)
    if finish in _REFUSALS or message.get("refusal"):
        return refused("the provider withheld the answer", usage)
    if not finish and not is_whole:
        return truncated("the answer has no finish reason", usage)
    text, thought = without_thought(clean(message.get("content")))
    told_apart = clean(message.get("reasoning_content") or message.get("reasoning"))
    calls = _calls(message.get("tool_calls")) or _calls(
        [{"function": message.get("function_call")}]
    )
    return reading.answered(
        text, calls, usage, reason=finish, cost_usd=cost, reasoning=thought or told_apart
    )


def _calls(calls: object) -> tuple[ToolCall, ...]:
    """The tool calls that name a function; what else stands there is left out."""
    found: dict[str, ToolCall] = {}
    for index, call in enumerate(calls if isinstance(calls, list) else ()):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            continue
        name = clean(function.get("name"))
        if name:
            # Some servers give no id.
            id_ = clean(call.get("id")) or f"call_{index}"
            if id_ in found:
                id_ = f"{id_}_{index}"
            found[id_] = ToolCall(
                id=id_, name=name, arguments=arguments_text(function.get("arguments"))
            )
    return tuple(found.values())


def _usage(body: Mapping[str, Any], choice: object) -> tuple[Usage | None, float | None]:
    """Tokens, and what was charged, wherever a server tells them."""
    groq = body.get("x_groq")
    places = (
        body.get("usage"),
        choice.get("usage") if isinstance(choice, dict) else None,
        groq.get("usage") if isinstance(groq, dict) else None,
    )
    usage = next((place for place in places if isinstance(place, dict) and place), None)
    if usage is None:
        return None, None
    prompt, answer = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    cached = (
        prompt.get("cached_tokens") if isinstance(prompt, dict) else None,
        usage.get("cached_tokens"),
        usage.get("prompt_cache_hit_tokens"),
    )
    counted_ = counted(
        usage.get("prompt_tokens"),
        usage.get("completion_tokens"),
        cached=next((value for value in cached if value is not None), None),
        reasoning=answer.get("reasoning_tokens") if isinstance(answer, dict) else None,
        total=usage.get("total_tokens"),
    )
    return counted_, usd(usage.get("cost"))


class _CallParts:
    """A tool call whose pieces come one by one."""

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: Text | None = None
        self.given: object = None
        """Arguments that came as an object."""

    def body(self) -> dict[str, Any]:
        arguments = self.given if self.arguments is None else str(self.arguments)
        return {"id": self.id, "function": {"name": self.name, "arguments": arguments}}

    def is_another(self, name: str, id_: str) -> bool:
        """Whether a piece with this name begins another call, though its index is this one's."""
        if not name or not self.name:
            return False
        if id_ and self.id:
            return id_ != self.id
        written = str(self.arguments or "")
        return name != self.name or self.given is not None or is_json(written)


class ChatAssembly(JsonAssembly):
    """Deltas of a chat completion."""

    def __init__(self, now: datetime) -> None:
        super().__init__(now)
        self._text = Text()
        self._thought = ThoughtFilter()
        self._reasoning = Text()
        self._refusal = ""
        self._calls: list[_CallParts] = []
        self._by_index: dict[int, _CallParts] = {}
        self._choice: dict[str, Any] = {}
        self._rest: dict[str, Any] = {}

    def take(self, chunk: Mapping[str, Any]) -> str:
        """See `JsonAssembly`."""
        self._rest.update(
            {key: chunk[key] for key in ("usage", "x_groq") if chunk.get(key) is not None}
        )
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return ""
        self._choice.update(
            {key: choice[key] for key in ("finish_reason", "error", "usage") if choice.get(key)}
        )
        self._choice.setdefault("index", 0)
        # Some servers send the whole message in place of a piece of it.
        delta = choice.get("delta") or choice.get("message")
        shown = self._take_delta(delta) if isinstance(delta, dict) else ""
        self.is_complete = bool(word(self._choice.get("finish_reason")))
        return shown

    def whole(self) -> ProviderReply | Failure:
        """See `JsonAssembly`."""
        message = {
            "content": str(self._text),
            "reasoning": str(self._reasoning),
            "refusal": self._refusal,
            "tool_calls": [call.body() for call in self._calls],
        }
        if not self._choice:
            return truncated("the stream holds no choice", _usage(self._rest, None)[0])
        body = {**self._rest, "choices": [{**self._choice, "message": message}]}
        return read_body(body, self._now, is_whole=self.is_complete)

    def _take_delta(self, delta: Mapping[str, Any]) -> str:
        if isinstance(delta.get("refusal"), str):
            self._refusal += delta["refusal"]
        calls = delta.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, dict):
                self._take_call(call, call.get("index"))
        if isinstance(delta.get("function_call"), dict):
            self._take_call({"function": delta["function_call"]}, 0)
        self._reasoning.add(delta.get("reasoning_content") or delta.get("reasoning"))
        content = delta.get("content")
        piece = self._text.add(clean(content) if isinstance(content, list) else content)
        self.has_answered = self.has_answered or any(
            value for key, value in delta.items() if key != "role"
        )
        return self._thought.add(piece)

    def _take_call(self, call: Mapping[str, Any], index: object) -> None:
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        name, id_ = clean(function.get("name")), clean(call.get("id"))
        held = self._call(index, name, id_)
        held.id = held.id or id_
        held.name = held.name or name
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            held.arguments = held.arguments or Text()
            held.arguments.add(arguments)
        elif arguments is not None:
            held.given = arguments

    def _call(self, index: object, name: str, id_: str) -> _CallParts:
        """The call that a piece belongs to: by its index, else the last one. Some servers give all the same index."""
        is_numbered = isinstance(index, int)
        last = self._calls[-1] if self._calls else None
        call = self._by_index.get(index) if isinstance(index, int) else last
        if call is None or call.is_another(name, id_) or (not is_numbered and name and call.name):
            call = _CallParts()
            self._calls.append(call)
            if isinstance(index, int):
                self._by_index[index] = call
        return call
