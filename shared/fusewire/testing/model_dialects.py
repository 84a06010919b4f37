"""The protocols that the fake model server speaks. For tests and benchmarks only.

Requests are converted to OpenAI's form, which the script knows; answers are written in each
protocol's own. Unknown fields are refused, as by the real servers.
"""

import json
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from fusewire.testing.model_script import Model, ScriptedCall

_TOKEN = re.compile(r"\S{1,64}\s{0,8}|\s{1,8}")
_LARGE = 65_536


class UnknownError(Exception):
    """A request holds what its protocol does not know."""


@dataclass(frozen=True)
class ScriptedReply:
    """What a model says, in no protocol's form."""

    model: str
    text: str
    calls: tuple[ScriptedCall, ...]
    finish: str | None
    """OpenAI's word for it; None where there shall be none."""
    asked_tokens: int
    said_tokens: int
    cached_tokens: int

    @classmethod
    def of(
        cls,
        model: Model,
        request: dict[str, Any],
        text: str,
        finish: str | None,
        calls: tuple[ScriptedCall, ...] = (),
    ) -> "ScriptedReply":
        """Tokens are counted as four characters each, whatever the model."""
        prompt_tokens = (
            sum(len(str(turn.get("content"))) for turn in request.get("messages") or []) // 4 + 1
        )
        reply_tokens = (len(text) + sum(len(str(call)) for call in calls)) // 4 + 1
        return cls(
            model.name,
            text,
            calls,
            finish,
            prompt_tokens,
            reply_tokens,
            min(model.cached_tokens, prompt_tokens),
        )

    def tokens(self) -> list[str]:
        """The text in pieces."""
        if len(self.text) > _LARGE:
            return [self.text[at : at + _LARGE] for at in range(0, len(self.text), _LARGE)]
        return _TOKEN.findall(self.text)

    def arguments(self) -> list[str]:
        """What the calls are given, as text."""
        return [
            c.arguments if isinstance(c.arguments, str) else json.dumps(c.arguments)
            for c in self.calls
        ]


def encode(value: object) -> bytes:
    """JSON."""
    return json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")


class Dialect(ABC):
    """One protocol."""

    fields: frozenset[str] = frozenset()
    """What a request may hold; empty: anything."""

    def normal(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A request in OpenAI's form.

        Raises:
            UnknownError: it holds a field that the protocol does not know.

        """
        if self.fields and (unknown := body.keys() - self.fields):
            raise UnknownError(", ".join(sorted(unknown)))
        return self.convert(path, body)

    @abstractmethod
    def convert(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The same, once the fields are known to be right."""

    @abstractmethod
    def whole(self, reply: ScriptedReply) -> bytes:
        """An answer's body."""

    @abstractmethod
    def start_events(self, reply: ScriptedReply) -> list[bytes]:
        """Events before a stream's first token."""

    @abstractmethod
    def token(self, reply: ScriptedReply, text: str) -> bytes:
        """The event of one token."""

    @abstractmethod
    def end_events(self, reply: ScriptedReply) -> list[bytes]:
        """Events after the last token: calls, the end, the usage."""

    @abstractmethod
    def error(
        self,
        status: int,
        code: str,
        kind: str,
        headers: dict[str, str],
    ) -> tuple[int, bytes]:
        """An error's status and body in this protocol. `code` and `kind` are OpenAI's."""

    def refusal(self, message: str, parameter: str | None) -> tuple[int, bytes]:
        """The error of a request that holds a parameter which the model does not take."""
        error = {"message": message, "type": "invalid_request_error", "param": parameter}
        return 400, encode(
            {"error": {**error, "code": "unsupported_parameter" if parameter else None}},
        )

    def event(self, body: object) -> bytes:
        """One event of a stream."""
        return b"data: " + encode(body) + b"\n\n"


MESSAGE = "The fake server was told to fail."


def image(url: str) -> dict[str, Any]:
    """An image part, in OpenAI's form."""
    return {"type": "image_url", "image_url": {"url": url}}


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    """A `response_format`, in OpenAI's form."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def turn(role: str, parts: list[dict[str, Any]], calls: list[dict[str, Any]]) -> dict[str, Any]:
    """A message, in OpenAI's form."""
    is_text = all(part["type"] == "text" for part in parts)
    content = ("".join(part["text"] for part in parts) or None) if is_text else parts
    return {"role": role, "content": content, **({"tool_calls": calls} if calls else {})}


def tool_call(id_: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A call, in OpenAI's form."""
    return {
        "id": id_,
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments)},
    }


def tool(name: str, description: str | None, parameters: dict[str, Any] | None) -> dict[str, Any]:
    """A function on offer, in OpenAI's form."""
    function = {"name": name, "description": description, "parameters": parameters}
    return {
        "type": "function",
        "function": {key: value for key, value in function.items() if value},
    }


class OpenAIDialect(Dialect):
    """Any OpenAI-compatible server: lenient."""

    def convert(self, path: str, body: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - the signature is the protocol's
        return body

    def whole(self, reply: ScriptedReply) -> bytes:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": (reply.text or None) if reply.calls else reply.text,
        }
        if reply.calls:
            message["tool_calls"] = self._calls(reply)
        choice = {"index": 0, "message": message, "finish_reason": reply.finish}
        return json.dumps(
            {**self._frame(reply, "chat.completion"), "choices": [choice], "usage": _usage(reply)},
        ).encode()

    def start_events(self, reply: ScriptedReply) -> list[bytes]:
        return [self._chunk(reply, {"role": "assistant", "content": ""})]

    def token(self, reply: ScriptedReply, text: str) -> bytes:
        return self._chunk(reply, {"content": text})

    def end_events(self, reply: ScriptedReply) -> list[bytes]:
        events = []
        for index, call in enumerate(self._calls(reply)):
            # In pieces, as OpenAI sends them.
            arguments = call["function"].pop("arguments")
            first = {**call, "index": index, "function": {**call["function"], "arguments": ""}}
            events.append(self._chunk(reply, {"tool_calls": [first]}))
            half = len(arguments) // 2
            events += [
                self._chunk(
                    reply,
                    {"tool_calls": [{"index": index, "function": {"arguments": piece}}]},
                )
                for piece in (arguments[:half], arguments[half:])
            ]
        if reply.finish:
            events.append(self._chunk(reply, {}, reply.finish))
        return [*events, *self._usage_events(reply), b"data: [DONE]\n\n"]

    def error(
        self,
        status: int,
        code: str,
        kind: str,
        headers: dict[str, str],  # noqa: ARG002 - the signature is the protocol's
    ) -> tuple[int, bytes]:
        return status, encode(
            {"error": {"message": MESSAGE, "type": kind, "param": None, "code": code or None}},
        )

    def _usage_events(self, reply: ScriptedReply) -> list[bytes]:
        return [
            self.event(
                {
                    **self._frame(reply, "chat.completion.chunk"),
                    "choices": [],
                    "usage": _usage(reply),
                },
            ),
        ]

    def _chunk(
        self,
        reply: ScriptedReply,
        delta: dict[str, Any],
        finish: str | None = None,
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return self.event({**self._frame(reply, "chat.completion.chunk"), "choices": [choice]})

    def _frame(self, reply: ScriptedReply, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-fake", "object": kind, "created": 0, "model": reply.model}

    def _calls(self, reply: ScriptedReply) -> list[dict[str, Any]]:
        return [
            {
                "id": f"call_{index}",
                "type": "function",
                "function": {"name": call.name, "arguments": arguments},
            }
            for index, (call, arguments) in enumerate(
                zip(reply.calls, reply.arguments(), strict=True)
            )
        ]


_CHAT_FIELDS = frozenset(
    {
        "model",
        "messages",
        "temperature",
        "top_p",
        "max_tokens",
        "stop",
        "response_format",
        "tools",
        "tool_choice",
        "stream",
    },
)
"""What all that are made after OpenAI's take."""


class DeepSeekDialect(OpenAIDialect):
    """DeepSeek's own: no schemas, and the thought comes back with its calls of tools."""

    fields = _CHAT_FIELDS | {"seed", "parallel_tool_calls", "stream_options"}

    def convert(self, path: str, body: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - the signature is the protocol's
        if body.get("response_format", {}).get("type") == "json_schema":
            raise UnknownError("response_format")
        turns = body["messages"]
        last_user = max((at for at, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
        for at, turn in enumerate(turns):
            if ("reasoning_content" in turn) != (at > last_user and bool(turn.get("tool_calls"))):
                raise UnknownError("reasoning_content")
        return {**body, "messages": [_without_thought(turn) for turn in turns]}


def _without_thought(turn: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in turn.items() if key != "reasoning_content"}


def _demand_short_ids(call_ids: list[str]) -> None:
    """Refuse ids of calls that Mistral does not take."""
    if not all(re.fullmatch(r"[a-zA-Z0-9]{9}", call_id) for call_id in call_ids):
        raise UnknownError("tool_call_id")


class MistralDialect(OpenAIDialect):
    """Mistral's own: strict, with ids of nine characters and answers of chunks."""

    fields = _CHAT_FIELDS | {"random_seed"}

    def convert(self, path: str, body: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - the signature is the protocol's
        for message in body["messages"]:
            call_ids = [call["id"] for call in message.get("tool_calls", ())]
            if "tool_call_id" in message:
                call_ids.append(message["tool_call_id"])
            _demand_short_ids(call_ids)
        if body.get("tool_choice") == "required":
            raise UnknownError("tool_choice")
        normal = {("seed" if key == "random_seed" else key): value for key, value in body.items()}
        if normal.get("tool_choice") == "any":
            normal["tool_choice"] = "required"
        return normal

    def whole(self, reply: ScriptedReply) -> bytes:
        content = (
            [{"type": "thinking", "thinking": []}, {"type": "text", "text": reply.text}]
            if reply.text
            else ""
        )
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content,
            "tool_calls": self._calls(reply) or None,
        }
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": _MISTRAL_FINISH.get(reply.finish, reply.finish),
        }
        return encode(
            {**self._frame(reply, "chat.completion"), "choices": [choice], "usage": _usage(reply)},
        )

    def end_events(self, reply: ScriptedReply) -> list[bytes]:
        choice = {
            "index": 0,
            "delta": {
                "content": "",
                "tool_calls": [{**c, "index": n} for n, c in enumerate(self._calls(reply))],
            },
            "finish_reason": _MISTRAL_FINISH.get(reply.finish, reply.finish),
        }
        last = {
            **self._frame(reply, "chat.completion.chunk"),
            "choices": [choice],
            "usage": _usage(reply),
        }
        return [self.event(last), b"data: [DONE]\n\n"]

    def refusal(self, message: str, parameter: str | None) -> tuple[int, bytes]:
        place = {"type": "extra_forbidden", "loc": ["body", parameter or ""], "msg": message}
        return 422, encode(
            {"object": "error", "message": {"detail": [place]}, "type": "invalid_request_error"},
        )

    def error(
        self,
        status: int,
        code: str,
        kind: str,
        headers: dict[str, str],  # noqa: ARG002 - the signature is the protocol's
    ) -> tuple[int, bytes]:
        if code == "context_length_exceeded":
            message = (
                "Prompt contains 40000 tokens, too large for model with 32768 maximum context "
                "length"
            )
            return 400, encode(
                {"object": "error", "message": message, "type": kind, "code": "3051"},
            )
        if code == "content_policy_violation":
            return 403, encode(
                {"object": "error", "message": "Blocked by moderation", "type": "guardrail"},
            )
        if code == "insufficient_quota":
            return 402, encode({"detail": "Payment required"})
        if status == 400:
            return 422, encode(
                {"detail": [{"type": "value_error", "loc": ["body", "stop"], "msg": MESSAGE}]},
            )
        kind = "rate_limited" if status == 429 else kind
        return status, encode(
            {"object": "error", "message": MESSAGE, "type": kind, "param": None, "code": "1300"},
        )

    def _calls(self, reply: ScriptedReply) -> list[dict[str, Any]]:
        return [
            {
                "id": f"fakecall{index}"[:9],
                # An object where there is one, as the API's description allows.
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for index, call in enumerate(reply.calls)
        ]


_MISTRAL_FINISH: dict[str | None, str] = {"length": "model_length"}


def _usage(reply: ScriptedReply) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "prompt_tokens": reply.asked_tokens,
        "completion_tokens": reply.said_tokens,
        "total_tokens": reply.asked_tokens + reply.said_tokens,
    }
    if reply.cached_tokens:
        usage["prompt_tokens_details"] = {"cached_tokens": reply.cached_tokens}
    return usage
