"""OpenAI's chat completions, as OpenAI and the many servers compatible with it speak them."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fusewire.contracts import FinishReason, Image, Message, Task, Tool, ToolCall, Usage
from fusewire.settings import RemoteModel
from fusewire_worker_remote.errors import Failure, classify, is_error, refused, truncated
from fusewire_worker_remote.providers import base
from fusewire_worker_remote.providers.assembly import JsonAssembly
from fusewire_worker_remote.providers.base import HttpRequest, HttpResponse, Reply
from fusewire_worker_remote.providers.parts import Text, clean, count, given, interleaved, word
from fusewire_worker_remote.providers.schema import is_strict

_LENGTH = {"length", "max_tokens", "model_length"}
_CHOICES = {"auto", "none", "required"}


class OpenAI:
    """`POST {base_url}/chat/completions`."""

    def request(self, task: Task, model: RemoteModel, *, is_streamed: bool = False) -> HttpRequest:
        """See `Provider.request`."""
        payload = {
            "model": model.model,
            "messages": self.messages(task),
            **given(self.sampling(task, model)),
            **self.tools(task),
            **(self.streaming() if is_streamed else {}),
        }
        return base.request(
            task, model, "chat/completions", base.key_of(model, "Authorization", prefix="Bearer "), payload
        )

    def read(self, response: HttpResponse, now: datetime) -> Reply | Failure:
        """See `Provider.read`."""
        if not 200 <= response.status < 300:
            return classify(response.status, response.headers, response.body, now)
        try:
            body = json.loads(response.body)
        except (ValueError, RecursionError):
            return truncated("the response is not whole JSON")
        if not isinstance(body, dict):
            return truncated("the response is not a JSON object")
        if is_error(body):
            return classify(response.status, response.headers, response.body, now)
        return read_body(body)

    def assemble(self, now: datetime) -> "ChatAssembly":
        """See `Provider.assemble`."""
        return ChatAssembly(now)

    def messages(self, task: Task) -> list[dict[str, Any]]:
        """The conversation."""
        return [_message(m) for m in task.messages]

    def sampling(self, task: Task, model: RemoteModel) -> dict[str, Any]:
        """How to sample; what is None is left out."""
        # OpenAI's own newer models refuse `max_tokens`; others know no other name for it.
        cap = "max_completion_tokens" if model.base_url.startswith("https://api.openai.com/") else "max_tokens"
        return {
            cap: base.max_tokens(task, model),
            "temperature": task.sampling.temperature,
            "top_p": task.sampling.top_p,
            "seed": task.sampling.seed,
            "stop": list(task.sampling.stop) or None,
            "response_format": response_format(task.sampling.response_schema),
        }

    def tools(self, task: Task) -> dict[str, Any]:
        """The functions on offer, and which to call."""
        if not task.tools:
            return {}
        choice = task.tool_choice
        return {
            "tools": [{"type": "function", "function": _function(tool)} for tool in task.tools],
            "tool_choice": choice if choice in _CHOICES else {"type": "function", "function": {"name": choice}},
            **({} if task.parallel_tool_calls else {"parallel_tool_calls": False}),
        }

    def streaming(self) -> dict[str, Any]:
        """What asks for a stream that counts its tokens at its end."""
        return {"stream": True, "stream_options": {"include_usage": True}}


def response_format(schema: dict[str, Any] | None) -> dict[str, Any] | None:
    """A schema as `response_format`; strict where its form allows that, for OpenAI refuses the request otherwise."""
    if schema is None:
        return None
    if schema == {"type": "object"}:
        return {"type": "json_object"}
    wanted = {"name": "answer", "schema": schema, "strict": is_strict(schema)}
    return {"type": "json_schema", "json_schema": wanted}


def _message(message: Message) -> dict[str, Any]:
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.images:
        wire["content"] = [_part(part) for part in interleaved(message)]
    if message.tool_calls:
        # No text is null here; some servers refuse an empty one.
        wire["content"] = message.content or None
        wire["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
    return wire


def _part(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    detail = {} if part.detail == "auto" else {"detail": part.detail}
    return {"type": "image_url", "image_url": {"url": part.url, **detail}}


def _function(tool: Tool) -> dict[str, Any]:
    wanted = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {name: value for name, value in wanted.items() if value}


def read_body(body: Mapping[str, Any]) -> Reply | Failure:
    """Read a chat completion."""
    usage = _usage(body.get("usage"))
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return truncated("the response holds no choice", usage)
    return _choice(choice, usage)


def _choice(choice: Mapping[str, Any], usage: Usage | None) -> Reply | Failure:
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    finish = word(choice.get("finish_reason"))
    if finish == "content_filter" or message.get("refusal"):
        return refused("the provider withheld the answer", usage)
    if choice.get("error") or finish == "error":
        return truncated("the provider failed while answering", usage)
    if not finish:
        return truncated("the answer has no finish reason", usage)
    return answered(clean(message.get("content")), _calls(message.get("tool_calls")), usage, is_cut=finish in _LENGTH)


def answered(content: str, calls: tuple[ToolCall, ...], usage: Usage | None, *, is_cut: bool) -> Reply | Failure:
    """A whole answer, or what it is when there is nothing in it."""
    if not content and not calls:
        what = "the token limit was reached before any answer" if is_cut else "the answer is empty"
        return Failure("truncated", what, retryable=False, billed=True, usage=usage)
    # Some servers say `stop` though there are calls.
    reason: FinishReason = "length" if is_cut else "tool_calls" if calls else "stop"
    return Reply(content or None, reason, usage, calls)


def _calls(calls: object) -> tuple[ToolCall, ...]:
    """The tool calls that name a function and give its arguments; what else stands there is left out."""
    found = []
    for index, call in enumerate(calls if isinstance(calls, list) else ()):
        function = call.get("function") if isinstance(call, dict) else None
        name, given_ = (function.get("name"), function.get("arguments")) if isinstance(function, dict) else (None, None)
        if isinstance(name, str) and name and isinstance(given_, str):
            # Some servers give no id, and some an empty text where a function takes no arguments.
            arguments = clean(given_) or "{}"
            found.append(ToolCall(id=clean(call.get("id")) or f"call_{index}", name=clean(name), arguments=arguments))
    return tuple(found)


def _usage(usage: object) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    return Usage(
        prompt_tokens=count(usage.get("prompt_tokens")),
        completion_tokens=count(usage.get("completion_tokens")),
        cached_tokens=count(details.get("cached_tokens")) if isinstance(details, dict) else 0,
    )


class _CallParts:
    """A tool call whose pieces come one by one."""

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: Text | None = None

    def body(self) -> dict[str, Any]:
        arguments = None if self.arguments is None else str(self.arguments)
        return {"id": self.id, "function": {"name": self.name, "arguments": arguments}}


class ChatAssembly(JsonAssembly):
    """Deltas of a chat completion."""

    def __init__(self, now: datetime) -> None:
        super().__init__(now)
        self._text = Text()
        self._refusal = ""
        self._calls: list[_CallParts] = []
        self._by_index: dict[int, _CallParts] = {}
        self._choice: dict[str, Any] = {}
        self._usage: object = None

    def take(self, chunk: Mapping[str, Any]) -> str:
        """See `JsonAssembly`."""
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return ""
        self._choice.update({key: choice[key] for key in ("finish_reason", "error") if choice.get(key)})
        self._choice.setdefault("index", 0)
        delta = choice.get("delta")
        return self._take_delta(delta) if isinstance(delta, dict) else ""

    def whole(self) -> Reply | Failure:
        """See `JsonAssembly`."""
        message = {
            "content": str(self._text),
            "refusal": self._refusal,
            "tool_calls": [call.body() for call in self._calls],
        }
        choices = [{**self._choice, "message": message}] if self._choice else []
        return read_body({"choices": choices, "usage": self._usage})

    def _take_delta(self, delta: Mapping[str, Any]) -> str:
        if isinstance(delta.get("refusal"), str):
            self._refusal += delta["refusal"]
        for call in delta["tool_calls"] if isinstance(delta.get("tool_calls"), list) else ():
            if isinstance(call, dict):
                self._take_call(call)
        content = delta.get("content")
        shown = self._text.add(clean(content) if isinstance(content, list) else content)
        self.has_answered = self.has_answered or any(value for key, value in delta.items() if key != "role")
        return shown

    def _take_call(self, delta: Mapping[str, Any]) -> None:
        given_id, function = delta.get("id"), delta.get("function")
        call = self._call(delta.get("index"), given_id if isinstance(given_id, str) else "")
        if not isinstance(function, dict):
            return
        if isinstance(function.get("name"), str) and not call.name:
            call.name = function["name"]
        arguments = function.get("arguments")
        if isinstance(arguments, dict):  # Mistral may send an object
            arguments = json.dumps(arguments, ensure_ascii=False)
        if isinstance(arguments, str):
            call.arguments = call.arguments or Text()
            call.arguments.add(arguments)

    def _call(self, index: object, id_: str) -> _CallParts:
        """The call that a piece belongs to. Some servers give no index, or the same to each call."""
        if isinstance(index, int):
            call = self._by_index.get(index)
        else:
            call = self._calls[-1] if self._calls and not id_ else None
        if call is None or (id_ and call.id and call.id != id_):
            call = _CallParts()
            self._calls.append(call)
            if isinstance(index, int):
                self._by_index[index] = call
        call.id = call.id or id_
        return call
