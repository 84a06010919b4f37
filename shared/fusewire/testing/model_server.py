"""A fake OpenAI-compatible server over a real socket, for tests and benchmarks only. No model answers here.

In a process of its own: `python -m fusewire.testing.model_server --port 0 --script script.json`
prints `{"port": N}` on one line and serves until SIGTERM. In process: `async with ModelServer(script)`.

| route | does |
|---|---|
| `POST …/chat/completions` | answers, or fails, as the script says for the request's model |
| `GET /_control/stats` | counts; with recording on, the requests too |
| `GET /_control/received` | with recording on, every byte that arrived |
| `POST /_control/script` | replaces the script and clears the counts |

Written on `asyncio.Protocol`, so that a benchmark measures its client and not this.
"""

import argparse
import asyncio
import json
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from pydantic import ValidationError

from fusewire.testing.model_script import ANY_MODEL, STATUS_FAULTS, Fault, Model, ModelScript, Script, ScriptedCall

_DRIPS = 20
_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Recorded:
    """A chat request as it arrived."""

    model: str
    key: str
    head: str
    body: dict[str, Any]


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
    recorded: list[Recorded] = field(default_factory=list)


class ModelServer:
    """The server; an asynchronous context manager. `base_url` is what a model's configuration takes."""

    def __init__(self, script: Script | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()
        self._arrival = asyncio.Event()
        self.set_script(script or Script())

    def set_script(self, script: Script) -> None:
        """Replace the script; counts, recordings and places in the old script are gone."""
        self.script = script
        self.stats = Stats()
        self.received = bytearray()
        self.in_flight: Counter[str] = Counter()
        self._models: dict[str, Model] = {}

    def model(self, name: str) -> Model:
        """The running model of this name."""
        model = self._models.get(name)
        if model is None:
            models = self.script.models
            model = self._models[name] = Model(name, models.get(name) or models.get(ANY_MODEL) or ModelScript())
        return model

    @property
    def port(self) -> int:
        """Where it listens."""
        if self._server is None:
            raise RuntimeError("not started")
        return cast("int", self._server.sockets[0].getsockname()[1])

    @property
    def base_url(self) -> str:
        """Such as `http://127.0.0.1:40123/v1`."""
        return f"http://{self._host}:{self.port}/v1"

    async def arrived(self, requests: int) -> None:
        """Wait until so many chat requests have arrived since the script was set."""
        while self.stats.requests < requests:
            self._arrival.clear()
            await self._arrival.wait()

    async def start(self) -> None:
        """Begin to listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self, loop), self._host, self._port)

    async def stop(self) -> None:
        """Stop listening and drop every connection, answered or not."""
        if self._server is not None:
            self._server.close()
            for connection in list(self._open):
                connection.abort()
            await self._server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def count(self, model: str, key: str) -> None:
        """Note a chat request."""
        self.stats.requests += 1
        self.stats.by_model[model] += 1
        if key:
            self.stats.by_key[key] += 1
        self._arrival.set()

    def opened(self, connection: "_Connection") -> None:
        """Note a connection."""
        self._open.add(connection)
        self.stats.connections += 1

    def closed(self, connection: "_Connection") -> None:
        """Forget a connection."""
        self._open.discard(connection)

    def control(self, method: bytes, path: bytes, body: bytes) -> tuple[int, bytes]:
        """Answer a control request: status and body."""
        if (method, path) == (b"GET", b"/_control/stats"):
            return 200, json.dumps(self.stats, default=vars).encode()
        if (method, path) == (b"GET", b"/_control/received"):
            return 200, bytes(self.received)
        if (method, path) == (b"POST", b"/_control/script"):
            try:
                self.set_script(Script.model_validate_json(body))
            except ValidationError as exc:
                return 400, str(exc).encode()
            return 200, b"{}"
        return 404, _error("", "invalid_request_error")


class _Connection(asyncio.Protocol):
    """One keep-alive connection: one request at a time, further ones wait in the buffer."""

    def __init__(self, server: ModelServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._buffer = b""
        self._busy: str | None = None
        self._in_flight = server.in_flight
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._server.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self._timer is not None:
            self._timer.cancel()
        self._leave()
        self._server.closed(self)

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._server.script.recording:
            self._server.received += data
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
        if method != b"POST" or not path.endswith(b"/chat/completions"):
            self._send(404, _error("", "invalid_request_error"))
            return
        try:
            request = json.loads(body)
            name = str(request["model"])
        except (ValueError, KeyError, TypeError):
            self._send(400, _error("invalid_json", "invalid_request_error"))
            return
        self._chat(name, head, request)

    def _chat(self, name: str, head: bytes, request: dict[str, Any]) -> None:
        server = self._server
        key = _header(head, b"idempotency-key").decode("latin-1")
        server.count(name, key)
        stats = server.stats
        if server.script.recording:
            stats.recorded.append(Recorded(name, key, head.decode("latin-1"), request))
        self._busy = name
        self._in_flight = server.in_flight  # the one to leave, though the script be replaced meanwhile
        self._in_flight[name] += 1
        stats.peak_by_model[name] = max(stats.peak_by_model[name], self._in_flight[name])
        model = server.model(name)
        fault, delay_s = model.next_fault(), model.next_latency_s()
        if delay_s > 0:
            self._timer = self._loop.call_later(delay_s, self._reply, model, request, fault)
        else:
            self._reply(model, request, fault)

    def _reply(self, model: Model, request: dict[str, Any], fault: Fault | None) -> None:
        if fault is None:
            calls = model.calls(request)
            message = _calling(calls) if calls else _saying(model.answer(request))
            self._send(200, _completion(model.name, request, message, "tool_calls" if calls else "stop"))
        elif fault.kind in STATUS_FAULTS:
            status, code, kind = STATUS_FAULTS[fault.kind]
            self._send(status, _error(code, kind), fault.headers)
        elif fault.kind == "error_in_200":
            self._send(200, json.dumps({"error": {"code": 502, "message": "Provider returned error"}}).encode())
        elif fault.kind == "garbage":
            self._send(200, b"<html>not what you asked for</html>")
        elif fault.kind == "close":
            self._transport.close()
        elif fault.kind != "hang":
            self._answer_oddly(model, request, fault)

    def _answer_oddly(self, model: Model, request: dict[str, Any], fault: Fault) -> None:
        """Faults that come with an answer, or a piece of one."""
        answer = model.answer(request)
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
        body = _completion(model.name, request, _saying(answer), finish)
        if fault.kind == "truncate":
            self._transport.write(_head(200, len(body)) + body[: len(body) // 2])
            self._transport.close()
        elif fault.kind == "drip":
            whole = _head(200, len(body)) + body
            self._drip(whole, max(1, len(whole) // _DRIPS), fault.seconds / _DRIPS)
        else:
            self._send(200, body)

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
    return f"HTTP/1.1 {status} -\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{extra}\r\n".encode()


def _error(code: str, kind: str) -> bytes:
    error = {"message": "The fake server was told to fail.", "type": kind, "param": None, "code": code or None}
    return json.dumps({"error": error}).encode()


def _saying(answer: str) -> dict[str, Any]:
    return {"role": "assistant", "content": answer}


def _calling(calls: Sequence[ScriptedCall]) -> dict[str, Any]:
    wire = []
    for index, call in enumerate(calls):
        given = call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments)
        function = {"name": call.name, "arguments": given}
        wire.append({"id": f"call_{index}", "type": "function", "function": function})
    return {"role": "assistant", "content": None, "tool_calls": wire}


def _completion(model: str, request: dict[str, Any], message: dict[str, Any], finish: str | None) -> bytes:
    """A chat completion. Tokens are counted as four characters each, whatever the model."""
    asked = sum(len(str(one.get("content"))) for one in request.get("messages") or []) // 4 + 1
    said = sum(len(str(message[key])) for key in ("content", "tool_calls") if message.get(key)) // 4 + 1
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return json.dumps(
        {
            "id": "chatcmpl-fake",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": [choice],
            "usage": {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said},
        }
    ).encode()


async def _serve(script: Script, host: str, port: int) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopped.set)
    async with ModelServer(script, host=host, port=port) as server:
        sys.stdout.write(json.dumps({"port": server.port}) + "\n")
        sys.stdout.flush()
        await stopped.wait()


def main() -> None:
    """Serve in a process of its own."""
    parser = argparse.ArgumentParser(prog="fusewire.testing.model_server", description="A fake model server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free port")
    parser.add_argument("--script", type=Path, help="a JSON file; it may also be posted later")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="of every model, where no script is given")
    options = parser.parse_args()
    if options.script:
        script = Script.model_validate_json(options.script.read_bytes())
    else:
        script = Script.of(latency_ms=options.latency_ms)
    asyncio.run(_serve(script, options.host, options.port))


if __name__ == "__main__":
    main()
