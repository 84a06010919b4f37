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
from fusewire_worker_remote.dialect import PLAIN, Dialect, SchemaForm, schema_instruction
from fusewire_worker_remote.errors import Failure, classify, content_refusal, truncation
from fusewire_worker_remote.providers import base, reading
from fusewire_worker_remote.providers.assembly import JsonAssembly
from fusewire_worker_remote.providers.base import HttpRequest, HttpResponse, ProviderReply
from fusewire_worker_remote.providers.parts import (
    Text,
    ThoughtFilter,
    arguments_text,
    call_id,
    clean,
    content_parts,
    first_object,
    is_json,
    make_usage,
    usd,
    without_none,
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
"""Servers that support `reasoning_effort`, for models that think."""


class OpenAI:
    """`POST {base_url}/chat/completions`."""

    base_dialect = PLAIN
    """See `Provider`."""

    def request(
        self, task: Task, model: RemoteModel, dialect: Dialect = PLAIN, *, is_streamed: bool = False
    ) -> HttpRequest:
        """See `Provider.request`."""
        schema = task.sampling.response_schema
        instruction = ""
        if schema is not None and dialect.schema_form != "schema":
            instruction = schema_instruction(schema)
        form = response_format(schema, dialect.schema_form)
        payload = {
            "model": model.model,
            "messages": self.messages(with_instruction(task.messages, instruction)),
            **without_none({**self.sampling(task, model), "response_format": form}),
        }
        if _needs_short_thought(task, model, dialect):
            payload["reasoning_effort"] = "low"
        payload.update(self.tools(task))
        if is_streamed:
            payload.update(self.streaming())
        return base.request(
            task,
            model,
            dialect,
            "chat/completions",
            base.key_header(model, "Authorization", prefix="Bearer "),
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
        """Return the conversation as the API takes it."""
        return [_message(message) for message in messages]

    def sampling(self, task: Task, model: RemoteModel) -> dict[str, Any]:
        """Return the sampling parameters; those that are None are not sent."""
        is_openai = model.base_url.startswith(_OPENAI)
        sampling = task.sampling
        # OpenAI's own newer models refuse `max_tokens`; other servers support no other name.
        limit = "max_completion_tokens" if is_openai else "max_tokens"
        parameters = {
            limit: base.max_tokens(task, model),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "stop": list(sampling.stop) or None,
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "logit_bias": sampling.logit_bias,
        }
        if not is_openai:
            # Many other servers accept these too; one that refuses a parameter gets it once.
            parameters.update({name: getattr(sampling, name) for name in _NOT_AT_OPENAI})
        return parameters

    def tools(self, task: Task) -> dict[str, Any]:
        """Return the functions on offer, and which to call."""
        if not task.tools:
            return {}
        choice: object = task.tool_choice
        if choice not in _CHOICES:
            choice = {"type": "function", "function": {"name": choice}}
        wire: dict[str, Any] = {
            "tools": [{"type": "function", "function": _function(tool)} for tool in task.tools],
            "tool_choice": choice,
        }
        if not task.parallel_tool_calls:
            wire["parallel_tool_calls"] = False
        return wire

    def streaming(self) -> dict[str, Any]:
        """Return the parameters that request a stream with a count of tokens at its end."""
        return {"stream": True, "stream_options": {"include_usage": True}}


def response_format(
    schema: dict[str, Any] | None, form: SchemaForm = "schema"
) -> dict[str, Any] | None:
    """Return a schema as `response_format`.

    It is strict only if the schema allows that, because OpenAI refuses the request otherwise.
    """
    if schema is None or form == "words":
        return None
    if schema == {"type": "object"} or form == "json":
        return {"type": "json_object"}
    json_schema = {"name": "answer", "schema": schema, "strict": is_strict(schema)}
    return {"type": "json_schema", "json_schema": json_schema}


def _needs_short_thought(task: Task, model: RemoteModel, dialect: Dialect) -> bool:
    """Whether a model that thinks should think little: a verdict is a short answer."""
    return (
        task.kind in ("verdict", "check")
        and dialect.is_thinking
        and model.base_url.startswith(_EFFORT)
    )


def _message(message: Message) -> dict[str, Any]:
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None and message.role != "tool":
        wire["name"] = message.name
    if message.images:
        wire["content"] = [_part(part) for part in content_parts(message)]
    if message.tool_calls:
        # A missing text is null here: some servers refuse an empty one.
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


def _id(original_id: str) -> str:
    return call_id(original_id, _CALL_ID, 40)


def _part(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    detail = {} if part.detail == "auto" else {"detail": part.detail}
    return {"type": "image_url", "image_url": {"url": part.url, **detail}}


def _function(tool: Tool) -> dict[str, Any]:
    fields = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {name: value for name, value in fields.items() if value}


def read_body(
    body: Mapping[str, Any], now: datetime, *, is_whole: bool = True
) -> ProviderReply | Failure:
    """Read a chat completion.

    Args:
        body: the completion.
        now: the current time, for waits that an error in it gives.
        is_whole: whether it is known to be whole; if not, only a finish reason shows that it is.
    """
    choice = first_object(body.get("choices"))
    usage, cost = _usage(body, choice)
    if choice is None:
        return reading.no_answer(body, "choices", usage)
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    finish = word(choice.get("finish_reason"))
    if isinstance(choice.get("error"), dict):
        return _classify_error(choice["error"], usage, now)
    if finish in _REFUSALS or message.get("refusal"):
        return content_refusal("the provider withheld the answer", usage)
    if not finish and not is_whole:
        return truncation("the answer has no finish reason", usage)
    text, inline_thought = without_thought(clean(message.get("content")))
    separate_thought = clean(message.get("reasoning_content") or message.get("reasoning"))
    calls = _calls(message.get("tool_calls")) or _calls(
        [{"function": message.get("function_call")}]
    )
    return reading.make_reply(
        text,
        calls,
        usage,
        reason=finish,
        cost_usd=cost,
        reasoning=inline_thought or separate_thought,
    )


def _classify_error(error: dict[str, Any], usage: Usage | None, now: datetime) -> Failure:
    """Classify the error that a choice holds in place of its answer."""
    failure = classify(200, {}, json.dumps({"error": error}).encode(), now)
    if failure.retryable:
        return truncation("the provider failed while answering", usage)
    return replace(failure, billed=True, usage=usage)


def _calls(calls: object) -> tuple[ToolCall, ...]:
    """Return the tool calls that name a function; other entries are skipped."""
    calls_by_id: dict[str, ToolCall] = {}
    for index, call in enumerate(calls if isinstance(calls, list) else ()):
        function = _function_of(call)
        name = clean(function.get("name"))
        if not name:
            continue
        # Some servers give no id, others give the same id twice.
        id_ = clean(call.get("id")) or f"call_{index}"
        if id_ in calls_by_id:
            id_ = f"{id_}_{index}"
        arguments = arguments_text(function.get("arguments"))
        calls_by_id[id_] = ToolCall(id=id_, name=name, arguments=arguments)
    return tuple(calls_by_id.values())


def _function_of(call: object) -> dict[str, Any]:
    """Return the function that a tool call holds; empty if it holds none."""
    function = call.get("function") if isinstance(call, dict) else None
    return function if isinstance(function, dict) else {}


def _usage(body: Mapping[str, Any], choice: object) -> tuple[Usage | None, float | None]:
    """Return the tokens and the cost in US dollars; servers report them in three places."""
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
    cache_counts = (
        prompt.get("cached_tokens") if isinstance(prompt, dict) else None,
        usage.get("cached_tokens"),
        usage.get("prompt_cache_hit_tokens"),
    )
    token_usage = make_usage(
        usage.get("prompt_tokens"),
        usage.get("completion_tokens"),
        from_cache=next((count for count in cache_counts if count is not None), None),
        reasoning=answer.get("reasoning_tokens") if isinstance(answer, dict) else None,
        total=usage.get("total_tokens"),
    )
    return token_usage, usd(usage.get("cost"))


class _CallParts:
    """A tool call that comes in pieces."""

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: Text | None = None
        self.argument_object: object = None
        """Arguments that came as an object and not as text."""

    def body(self) -> dict[str, Any]:
        """Return the call in the form in which it would have come without streaming."""
        arguments = self.argument_object if self.arguments is None else str(self.arguments)
        return {"id": self.id, "function": {"name": self.name, "arguments": arguments}}

    def is_followed_by(self, name: str, id_: str) -> bool:
        """Whether a piece with this name and id begins another call, although its index is ours."""
        if not name or not self.name:
            return False
        if id_ and self.id:
            return id_ != self.id
        if name != self.name or self.argument_object is not None:
            return True
        return is_json(str(self.arguments or ""))


class ChatAssembly(JsonAssembly):
    """Assembles the deltas of a chat completion."""

    def __init__(self, now: datetime) -> None:
        super().__init__(now)
        self._text = Text()
        self._thought_filter = ThoughtFilter()
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
        choice = first_object(chunk.get("choices"))
        if choice is None:
            return ""
        self._choice.update(
            {key: choice[key] for key in ("finish_reason", "error", "usage") if choice.get(key)}
        )
        self._choice.setdefault("index", 0)
        # Some servers send the whole message in place of a delta.
        delta = choice.get("delta") or choice.get("message")
        text = self._take_delta(delta) if isinstance(delta, dict) else ""
        self.is_complete = bool(word(self._choice.get("finish_reason")))
        return text

    def whole(self) -> ProviderReply | Failure:
        """See `JsonAssembly`."""
        message = {
            "content": str(self._text),
            "reasoning": str(self._reasoning),
            "refusal": self._refusal,
            "tool_calls": [call.body() for call in self._calls],
        }
        if not self._choice:
            return truncation("the stream holds no choice", _usage(self._rest, None)[0])
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
        return self._thought_filter.add(piece)

    def _take_call(self, call: Mapping[str, Any], index: object) -> None:
        function = _function_of(call)
        name, id_ = clean(function.get("name")), clean(call.get("id"))
        call_parts = self._find_call(index, name, id_) or self._add_call(index)
        call_parts.id = call_parts.id or id_
        call_parts.name = call_parts.name or name
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            call_parts.arguments = call_parts.arguments or Text()
            call_parts.arguments.add(arguments)
        elif arguments is not None:
            call_parts.argument_object = arguments

    def _find_call(self, index: object, name: str, id_: str) -> _CallParts | None:
        """Return the call that a piece belongs to; None if the piece begins a call.

        A call is found by its index, without one it is the last. Some servers give all calls the
        same index, so that only name and id separate them.
        """
        if isinstance(index, int):
            call = self._by_index.get(index)
        else:
            call = self._calls[-1] if self._calls else None
            if call is not None and name and call.name:
                return None
        if call is None or call.is_followed_by(name, id_):
            return None
        return call

    def _add_call(self, index: object) -> _CallParts:
        call = _CallParts()
        self._calls.append(call)
        if isinstance(index, int):
            self._by_index[index] = call
        return call


PROVIDER = OpenAI()
