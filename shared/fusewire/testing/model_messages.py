"""Anthropic's protocol, for the fake model server. For tests and benchmarks only."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from fusewire.testing.model_dialects import (
    MESSAGE,
    Dialect,
    ScriptedReply,
    UnknownError,
    encode,
    image,
    schema_format,
    tool,
    tool_call,
    turn,
)
from fusewire.testing.model_script import ScriptedCall


class AnthropicDialect(Dialect):
    """Anthropic's Messages API: strict."""

    fields = frozenset(
        [
            "model",
            "max_tokens",
            "system",
            "messages",
            "temperature",
            "top_p",
            "stop_sequences",
            "output_config",
            "stream",
            "tools",
            "tool_choice",
        ]
    )
    _bounds = frozenset(
        [
            "minimum",
            "maximum",
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "uniqueItems",
            "oneOf",
        ]
    )

    def convert(self, path: str, body: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - the signature is the protocol's
        if (
            "max_tokens" not in body
            or body.get("temperature", 0) > 1
            or {"temperature", "top_p"} <= body.keys()
        ):
            raise UnknownError("max_tokens, temperature, top_p")
        messages = [{"role": "system", "content": body["system"]}] if body.get("system") else []
        _demand_alternation(body["messages"])
        for message in body["messages"]:
            messages += _from_blocks(message)
        normal: dict[str, Any] = {
            "model": body["model"],
            "messages": messages,
            "max_tokens": body["max_tokens"],
            "stop": body.get("stop_sequences"),
            "stream": body.get("stream"),
            **{key: body[key] for key in ("temperature", "top_p") if key in body},
        }
        if output_config := body.get("output_config"):
            schema = output_config["format"]["schema"]
            _demand_closed(schema, self._bounds)
            normal["response_format"] = schema_format(schema)
        if "tools" in body:
            normal["tools"] = [
                tool(entry["name"], entry.get("description"), entry["input_schema"])
                for entry in body["tools"]
            ]
            normal["tool_choice"] = _tool_choice(body["tool_choice"])
        return normal

    def whole(self, reply: ScriptedReply) -> bytes:
        content: list[dict[str, Any]] = [{"type": "thinking", "thinking": "…", "signature": "x"}]
        content += [{"type": "text", "text": reply.text}] if reply.text else []
        for index, call in enumerate(reply.calls):
            content.append({**self._call(index, call), "input": call.arguments})
        usage = {**self._prompt_usage(reply), "output_tokens": reply.said_tokens}
        return encode(
            {
                **self._frame(reply),
                "content": content,
                "stop_reason": self._finish(reply),
                "usage": usage,
            }
        )

    def start_events(self, reply: ScriptedReply) -> list[bytes]:
        usage = {**self._prompt_usage(reply), "output_tokens": 1}
        start = {
            "type": "message_start",
            "message": {**self._frame(reply), "content": [], "usage": usage},
        }
        block = {"type": "thinking", "thinking": ""}
        return [
            self.event(start),
            self.event({"type": "ping"}),
            self.event({"type": "content_block_start", "index": 0, "content_block": block}),
            self._delta(0, {"type": "thinking_delta", "thinking": "…"}),
            self.event({"type": "content_block_stop", "index": 0}),
            self.event(
                {
                    "type": "content_block_start",
                    "index": 1,
                    "content_block": {"type": "text", "text": ""},
                }
            ),
        ]

    def token(self, reply: ScriptedReply, text: str) -> bytes:  # noqa: ARG002 - the signature is the protocol's
        return self._delta(1, {"type": "text_delta", "text": text})

    def end_events(self, reply: ScriptedReply) -> list[bytes]:
        events = [self.event({"type": "content_block_stop", "index": 1})]
        for index, (call, arguments) in enumerate(zip(reply.calls, reply.arguments(), strict=True)):
            block = {**self._call(index, call), "input": {}}
            events.append(
                self.event(
                    {"type": "content_block_start", "index": index + 2, "content_block": block}
                )
            )
            pieces = ("", arguments[:3], arguments[3:])
            events += [
                self._delta(index + 2, {"type": "input_json_delta", "partial_json": piece})
                for piece in pieces
            ]
            events.append(self.event({"type": "content_block_stop", "index": index + 2}))
        if reply.finish:
            delta = {"stop_reason": self._finish(reply), "stop_sequence": None}
            usage = {"output_tokens": reply.said_tokens}
            events.append(self.event({"type": "message_delta", "delta": delta, "usage": usage}))
        return [*events, self.event({"type": "message_stop"})]

    def refusal(self, message: str, parameter: str | None) -> tuple[int, bytes]:  # noqa: ARG002 - it is in the message
        error = {"type": "invalid_request_error", "message": message}
        return 400, encode({"type": "error", "error": error})

    def error(
        self,
        status: int,
        code: str,
        kind: str,  # noqa: ARG002 - the signature is the protocol's
        headers: dict[str, str],  # noqa: ARG002 - the signature is the protocol's
    ) -> tuple[int, bytes]:
        message = MESSAGE
        if code == "context_length_exceeded":
            message = "prompt is too long: 210000 tokens > 200000 maximum"
        elif code == "content_policy_violation":
            message = "Output blocked by content filtering policy"
        elif code == "insufficient_quota":
            status, message = 400, "Your credit balance is too low to access the API"
        error_type = _ANTHROPIC_TYPES.get(
            status, "api_error" if status >= 500 else "invalid_request_error"
        )
        return status, encode({"type": "error", "error": {"type": error_type, "message": message}})

    def event(self, body: object) -> bytes:
        assert isinstance(body, dict)
        return f"event: {body['type']}\n".encode() + super().event(body)

    def _delta(self, index: int, delta: dict[str, Any]) -> bytes:
        return self.event({"type": "content_block_delta", "index": index, "delta": delta})

    def _frame(self, reply: ScriptedReply) -> dict[str, Any]:
        return {"id": "msg_fake", "type": "message", "role": "assistant", "model": reply.model}

    def _prompt_usage(self, reply: ScriptedReply) -> dict[str, Any]:
        beside = reply.asked_tokens - reply.cached_tokens
        return {
            "input_tokens": beside,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": reply.cached_tokens,
        }

    def _call(self, index: int, call: ScriptedCall) -> dict[str, Any]:
        return {"type": "tool_use", "id": f"toolu_{index}", "name": call.name}

    def _finish(self, reply: ScriptedReply) -> str | None:
        words: dict[str | None, str] = {
            "stop": "end_turn",
            "length": "max_tokens",
            "tool_calls": "tool_use",
            "content_filter": "refusal",
        }
        return words.get(reply.finish)


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


def _demand_alternation(messages: list[dict[str, Any]]) -> None:
    """Refuse two turns of one role in a row."""
    for message, following in itertools.pairwise(messages):
        if message["role"] == following["role"]:
            raise UnknownError("messages: two turns of one role")


def _tool_choice(choice: dict[str, Any]) -> str | dict[str, Any]:
    """A `tool_choice`, in OpenAI's form."""
    if choice["type"] == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return {"auto": "auto", "none": "none", "any": "required"}[choice["type"]]


def _image_url(source: dict[str, Any]) -> str:
    """The URL of an image; its own data become a data URL."""
    if source["type"] == "base64":
        return f"data:{source['media_type']};base64,{source['data']}"
    return str(source["url"])


def _from_blocks(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A turn's messages in OpenAI's form: each tool's result is one of its own."""
    if isinstance(message["content"], str):
        yield dict(message)
        return
    parts, calls = [], []
    for block in message["content"]:
        if block["type"] == "tool_result":
            yield {
                "role": "tool",
                "tool_call_id": block["tool_use_id"],
                "content": block["content"],
            }
        elif block["type"] == "tool_use":
            calls.append(tool_call(block["id"], block["name"], block["input"]))
        elif block["type"] == "image":
            parts.append(image(_image_url(block["source"])))
        else:
            parts.append({"type": "text", "text": block["text"]})
    if parts or calls:
        yield turn(message["role"], parts, calls)


def _demand_closed(schema: object, bounds: Iterable[str]) -> None:
    """Refuse what Anthropic's structured outputs do not know."""
    if isinstance(schema, list):
        for element in schema:
            _demand_closed(element, bounds)
        return
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
        raise UnknownError("additionalProperties")
    if unknown := schema.keys() & set(bounds):
        raise UnknownError(", ".join(sorted(unknown)))
    for subschema in schema.values():
        _demand_closed(subschema, bounds)
