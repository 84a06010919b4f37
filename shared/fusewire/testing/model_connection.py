"""A connection to the fake model server, which answers or fails by the script. For tests only."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from pydantic import ValidationError

from fusewire.testing.model_dialects import (
    DeepSeekDialect,
    Dialect,
    MistralDialect,
    OpenAIDialect,
    ScriptedReply,
    UnknownError,
)
from fusewire.testing.model_gemini import GeminiDialect
from fusewire.testing.model_messages import AnthropicDialect
from fusewire.testing.model_script import (
    ANY_MODEL,
    STATUS_FAULTS,
    Fault,
    FaultKind,
    Model,
    ModelScript,
    Refusal,
    Script,
)

_DRIPS = 20
_END = b"\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"

_OPENAI = OpenAIDialect()
_BY_PATH: dict[bytes, Dialect] = {b"mistral": MistralDialect(), b"deepseek": DeepSeekDialect()}
_ANTHROPIC = AnthropicDialect()
_GEMINI = GeminiDialect()


@dataclass(frozen=True)
class RecordedRequest:
    """A chat request as it arrived."""

    model: str
    key: str
    head: str
    body: dict[str, Any]
    request: dict[str, Any]
    """The body in OpenAI's form, whatever the protocol."""
    at: float = 0.0
    """When it arrived, Unix time, s."""
    fault: str = ""
    """What befalls it by the script; empty if it is answered."""


@dataclass
class Stats:
    """Counts since the script was set."""

    requests: int = 0
    by_model: Counter[str] = field(default_factory=Counter)
    by_key: Counter[str] = field(default_factory=Counter)
    """By the `Idempotency-Key` header."""
    peak_by_model: Counter[str] = field(default_factory=Counter)
    """The most requests that were in flight at once."""
    connections: int = 0
    first_token_ns: dict[str, list[int]] = field(default_factory=dict)
    """By model: when the first token of each stream was written, by `time.monotonic_ns`."""
    unknown: list[str] = field(default_factory=list)
    """What requests held that their protocol does not know; they were refused."""
    recorded: list[RecordedRequest] = field(default_factory=list)


class ServerState:
    """The state that the connections of one server share: the script, and counts."""

    def __init__(self, script: Script) -> None:
        self.connections: set[Connection] = set()
        self.arrival = asyncio.Event()
        self.set_script(script)

    def set_script(self, script: Script) -> None:
        """Replace the script; counts, recordings and places in the old script are gone."""
        self.script = script
        self.stats = Stats()
        self.received_bytes = bytearray()
        self.in_flight: Counter[str] = Counter()
        self._models: dict[str, Model] = {}

    def model(self, name: str) -> Model:
        """The running model of this name."""
        model = self._models.get(name)
        if model is None:
            models = self.script.models
            model = self._models[name] = Model(
                name, models.get(name) or models.get(ANY_MODEL) or ModelScript()
            )
        return model

    def count(self, model: str, key: str) -> None:
        """Note a chat request."""
        self.stats.requests += 1
        self.stats.by_model[model] += 1
        if key:
            self.stats.by_key[key] += 1
        self.arrival.set()

    def add(self, connection: "Connection") -> None:
        """Note a connection."""
        self.connections.add(connection)
        self.stats.connections += 1

    def discard(self, connection: "Connection") -> None:
        """Forget a connection."""
        self.connections.discard(connection)

    def control(self, method: bytes, path: bytes, body: bytes) -> tuple[int, bytes]:
        """Answer a control request: status and body."""
        if (method, path) == (b"GET", b"/_control/stats"):
            return 200, json.dumps(self.stats, default=vars).encode()
        if (method, path) == (b"GET", b"/_control/received"):
            return 200, bytes(self.received_bytes)
        if (method, path) == (b"POST", b"/_control/script"):
            try:
                self.set_script(Script.model_validate_json(body))
            except ValidationError as exc:
                return 400, str(exc).encode()
            return 200, b"{}"
        return 404, _error("", "invalid_request_error")


@dataclass(frozen=True)
class _ModelRequest:
    """A request: its protocol, its fields in OpenAI's form, and whether it wants a stream."""

    dialect: Dialect
    fields: dict[str, Any]
    is_streamed: bool


def _dialect(path: bytes) -> Dialect | None:
    if path.endswith(b"/chat/completions"):
        return _BY_PATH.get(path.split(b"/", 2)[1], _OPENAI)
    if path.endswith(b"/messages"):
        return _ANTHROPIC
    return _GEMINI if b"/models/" in path and b"enerateContent" in path else None


_WITHOUT_STREAM: dict[FaultKind, FaultKind] = {
    "stream_error": "error_in_200",
    "stream_hang": "hang",
}
"""Faults of streams, and what they are for requests that want none."""
_CUT_STREAMS = frozenset({"truncate", "stream_close", "stream_hang", "stream_error"})


def _fault_kind(fault: Fault | None, *, is_streamed: bool) -> FaultKind | None:
    """A fault's kind for a stream, or for a whole body."""
    if fault is None:
        return None
    return fault.kind if is_streamed else _WITHOUT_STREAM.get(fault.kind, fault.kind)


def _cut_tokens(tokens: list[str], fault: Fault) -> list[str]:
    """The tokens that a stream sends before a fault."""
    return tokens[: len(tokens) // 2 if fault.kind == "truncate" else fault.tokens]


def _fate(refusal: Refusal | None, fault: Fault | None) -> str:
    """What befalls a request, for its record."""
    if refusal:
        return "refused"
    return fault.kind if fault else ""


class Connection(asyncio.Protocol):
    """One keep-alive connection: one request at a time, further ones wait in the buffer."""

    def __init__(self, server: ServerState, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._buffer = b""
        self._busy: str | None = None
        self._in_flight = server.in_flight
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._server.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self._timer is not None:
            self._timer.cancel()
        self._leave()
        self._server.discard(self)

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._server.script.recording:
            self._server.received_bytes += data
        self._buffer = self._buffer + data if self._buffer else data
        self._advance()

    def _advance(self) -> None:
        """Take requests from the buffer while nothing is in flight."""
        while self._buffer and self._busy is None and not self._transport.is_closing():
            end = self._buffer.find(_END)
            if end < 0:
                return
            head = self._buffer[:end]
            length = int(_header(head, b"content-length") or 0)
            total = end + len(_END) + length
            if len(self._buffer) < total:
                return
            body, self._buffer = self._buffer[end + len(_END) : total], self._buffer[total:]
            self._take(head, body)

    def _take(self, head: bytes, body: bytes) -> None:
        method, path, _ = head[: head.find(b"\r\n")].split(b" ", 2)
        if path.startswith(b"/_control/"):
            self._send(*self._server.control(method, path, body))
            return
        dialect = _dialect(path) if method == b"POST" else None
        if dialect is None:
            self._send(404, _error("", "invalid_request_error"))
            return
        try:
            content = json.loads(body)
            request = dialect.normal(path.decode(), content)
            name = str(request["model"])
        except (ValueError, KeyError, TypeError, IndexError, UnknownError) as exc:
            self._server.stats.unknown.append(f"{type(exc).__name__}: {exc}")
            self._send(*dialect.error(400, "invalid_value", "invalid_request_error", {}))
            return
        self._chat(
            name, head, content, _ModelRequest(dialect, request, bool(request.get("stream")))
        )

    def _chat(self, name: str, head: bytes, body: dict[str, Any], request: "_ModelRequest") -> None:
        server = self._server
        key = _header(head, b"idempotency-key").decode("latin-1")
        server.count(name, key)
        stats = server.stats
        self._busy = name
        # Kept to leave it, also if the script is replaced in the meantime.
        self._in_flight = server.in_flight
        self._in_flight[name] += 1
        stats.peak_by_model[name] = max(stats.peak_by_model[name], self._in_flight[name])
        model = server.model(name)
        refusal = model.refusal(body)
        fault = None if refusal else model.next_fault()
        if server.script.recording:
            text = head.decode("latin-1")
            fate = _fate(refusal, fault)
            stats.recorded.append(
                RecordedRequest(name, key, text, body, request.fields, time.time(), fate)
            )
        if refusal:
            message = refusal.message.replace("{parameter}", refusal.parameter)
            parameter = refusal.parameter if refusal.is_named else None
            self._send(*request.dialect.refusal(message, parameter))
            return
        delay_s = model.next_latency_s()
        if delay_s > 0:
            self._timer = self._loop.call_later(delay_s, self._reply, model, request, fault)
        else:
            self._reply(model, request, fault)

    def _reply(self, model: Model, request: "_ModelRequest", fault: Fault | None) -> None:
        dialect = request.dialect
        kind = _fault_kind(fault, is_streamed=request.is_streamed)
        if fault is None:
            calls = model.calls(request.fields)
            text = model.beside if calls else model.answer(request.fields)
            self._answer(
                model,
                request,
                ScriptedReply.of(
                    model, request.fields, text, "tool_calls" if calls else "stop", calls
                ),
            )
        elif fault.kind in STATUS_FAULTS:
            status, code, error_type = STATUS_FAULTS[fault.kind]
            headers = dict(fault.headers)
            self._send(*dialect.error(status, code, error_type, headers), headers)
        elif fault.kind == "garbage":
            self._send(200, b"not what you asked for")
        elif fault.kind == "close":
            self._transport.close()
        elif kind == "error_in_200":
            self._send_error_in_200(model, request)
        elif kind != "hang":
            self._answer_oddly(model, request, fault)

    def _send_error_in_200(self, model: Model, request: "_ModelRequest") -> None:
        dialect = request.dialect
        if request.is_streamed:
            self._stream(
                model.name, [_error_event(dialect)], 0.0, self._end_stream, has_tokens=False
            )
        else:
            self._send(200, dialect.error(502, "", "server_error", {})[1])

    def _answer_oddly(self, model: Model, request: "_ModelRequest", fault: Fault) -> None:
        """Faults that come with an answer, or a piece of one."""
        answer = model.answer(request.fields)
        finish: str | None = "stop"
        if fault.kind == "huge":
            answer = "x" * fault.bytes
        elif fault.kind == "empty":
            answer = ""
        elif fault.kind in {"length", "content_filter"}:
            finish = fault.kind
            answer = answer[: len(answer) // 2]
        elif fault.kind == "no_finish_reason":
            finish = None
        elif fault.kind == "interrupted":
            finish = "error"
        self._answer(model, request, ScriptedReply.of(model, request.fields, answer, finish), fault)

    def _answer(
        self,
        model: Model,
        request: "_ModelRequest",
        reply: ScriptedReply,
        fault: Fault | None = None,
    ) -> None:
        kind = fault.kind if fault else "none"
        if request.is_streamed and kind != "stream_unknown":
            self._answer_streamed(model, request.dialect, reply, fault)
            return
        body = request.dialect.whole(reply)
        if kind in {"truncate", "stream_close"}:
            self._transport.write(_head(200, len(body)) + body[: len(body) // 2])
            self._transport.close()
        elif fault and kind == "drip":
            whole = _head(200, len(body)) + body
            self._drip(whole, max(1, len(whole) // _DRIPS), fault.seconds / _DRIPS)
        else:
            self._send(200, body)

    def _answer_streamed(
        self, model: Model, dialect: Dialect, reply: ScriptedReply, fault: Fault | None
    ) -> None:
        tokens = reply.tokens()
        end: Callable[[], None] = self._end_stream
        pause_s = model.token_s
        last = dialect.end_events(reply)
        if fault and fault.kind in _CUT_STREAMS:
            tokens = _cut_tokens(tokens, fault)
            last = [_error_event(dialect)] if fault.kind == "stream_error" else []
            ends = {"stream_error": self._end_stream, "stream_hang": self._hang}
            end = ends.get(fault.kind, self._transport.close)
        elif fault and fault.kind == "drip":
            pause_s = fault.seconds / (len(tokens) + 1)
        steps = [dialect.token(reply, token) for token in tokens]
        start = b"".join(dialect.start_events(reply))
        steps = [start + steps[0], *steps[1:]] if steps else [start]
        if last:
            steps.append(b"".join(last))
        self._stream(
            reply.model,
            steps,
            pause_s,
            end,
            has_tokens=bool(tokens),
        )

    def _stream(
        self,
        name: str,
        steps: list[bytes],
        pause_s: float,
        end: Callable[[], None],
        *,
        has_tokens: bool,
    ) -> None:
        """Begin a stream: the first step at once, the others after a pause each."""
        if has_tokens:
            self._server.stats.first_token_ns.setdefault(name, []).append(time.monotonic_ns())
        if pause_s == 0:
            self._transport.write(_STREAM_HEAD + _chunk(b"".join(steps)))
            end()
            return
        self._transport.write(_STREAM_HEAD + _chunk(steps[0]))
        self._timer = self._loop.call_later(pause_s, self._go_on, steps, 1, pause_s, end)

    def _go_on(self, steps: list[bytes], at: int, pause_s: float, end: Callable[[], None]) -> None:
        if at == len(steps):
            end()
            return
        self._transport.write(_chunk(steps[at]))
        self._timer = self._loop.call_later(pause_s, self._go_on, steps, at + 1, pause_s, end)

    def _end_stream(self) -> None:
        self._transport.write(_LAST_CHUNK)
        self._leave()
        if self._buffer:
            self._loop.call_soon(self._advance)

    def _hang(self) -> None:
        """Nothing more comes."""

    def _drip(self, rest: bytes, size: int, pause_s: float) -> None:
        self._transport.write(rest[:size])
        if len(rest) > size:
            self._timer = self._loop.call_later(pause_s, self._drip, rest[size:], size, pause_s)
        else:
            self._leave()
            self._advance()

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._transport.write(_head(status, len(body), headers) + body)
        if self._busy is not None:
            self._leave()
            if self._buffer:
                self._loop.call_soon(self._advance)

    def _leave(self) -> None:
        if self._busy is not None:
            self._in_flight[self._busy] -= 1
            self._busy = None
        self._timer = None


_STREAM_HEAD = (
    b"HTTP/1.1 200 -\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


def _header(head: bytes, name: bytes) -> bytes:
    """One header's value; empty if it is absent. `name` in lower case."""
    at = head.lower().find(b"\r\n" + name + b":")
    if at < 0:
        return b""
    start = at + len(name) + 3
    end = head.find(b"\r\n", start)
    return head[start : end if end >= 0 else len(head)].strip()


def _head(status: int, length: int, headers: dict[str, str] | None = None) -> bytes:
    extra = "".join(f"{name}: {value}\r\n" for name, value in headers.items()) if headers else ""
    return (
        f"HTTP/1.1 {status} -\r\ncontent-type: application/json\r\n"
        f"content-length: {length}\r\n{extra}\r\n"
    ).encode()


def _error(code: str, kind: str) -> bytes:
    error = {
        "message": "The fake server was told to fail.",
        "type": kind,
        "param": None,
        "code": code or None,
    }
    return json.dumps({"error": error}).encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _error_event(dialect: Dialect) -> bytes:
    """The event of a stream that fails."""
    return dialect.event(json.loads(dialect.error(502, "", "server_error", {})[1]))
