"""Answers of servers that are only nearly what their protocol says, byte by byte on a socket.

Each is of a kind that was seen at a real server; what it must come to is told beside it. The second
request of a case, where one is made, gets a plain answer.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fusewire.contracts import Candidate
from fusewire.settings import RemoteModel
from fusewire.testing.factories import make_task
from fusewire.testing.memory_kv import MemoryKeyValue
from fusewire.worker import TokenPublisher
from fusewire_worker_remote.generate import RemoteGenerate
from fusewire_worker_remote.ledger_kv import KvLedger

JSON, EVENTS = "application/json", "text/event-stream"
COUNTED = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
PLAIN: dict[str, Any] = {
    "openai": {
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
        ],
        "usage": COUNTED,
    },
    "anthropic": {
        "content": [{"type": "text", "text": "Hi"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 10, "output_tokens": 5},
    },
    "gemini": {
        "candidates": [{"content": {"parts": [{"text": "Hi"}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 5},
    },
}


@dataclass(frozen=True)
class Case:
    """What a server writes, and what the candidate must be."""

    name: str
    body: bytes
    provider: str = "openai"
    kind: str = JSON
    is_streamed: bool = False
    end: str = "whole"
    """How the body ends: `whole`; `closed` or `reset` in its middle."""
    content: str | None = "Hi"
    calls: tuple[tuple[str, Any], ...] = ()
    code: str | None = None
    finish: str | None = "stop"
    usage: tuple[int, int, int] | None = (10, 5, 0)
    """Prompt, completion and cached tokens; None where they are unknown, and the cost with them."""
    requests: int = 1
    more: dict[str, Any] = field(default_factory=dict)
    """Further fields of the candidate."""


def whole(content: Any = "Hi", finish: Any = "stop", usage: Any = COUNTED, **message: Any) -> bytes:
    told = {"role": "assistant", "content": content, **message}
    choice = {"index": 0, "message": told, "finish_reason": finish}
    return json.dumps(
        {"choices": [choice], **({"usage": usage} if usage != "absent" else {})}
    ).encode()


def event(value: Any, name: str = "") -> bytes:
    data = value if isinstance(value, str) else json.dumps(value)
    return (f"event: {name}\n" if name else "").encode() + f"data: {data}\n\n".encode()


def delta(finish: str | None = None, **said: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": said, "finish_reason": finish}]})


def call(
    index: Any = 0, id_: Any = "", name: str | None = None, arguments: Any = None
) -> dict[str, Any]:
    function = {
        key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None
    }
    numbered = {} if index is None else {"index": index}
    return {**numbered, "id": id_, "type": "function", "function": function}


USED, DONE = event({"choices": [], "usage": COUNTED}), event("[DONE]")
SAID = delta(content="Hi") + delta("stop") + USED
CALLED = (("f", {"a": 1}),)


def streamed(name: str, *pieces: bytes, **expected: Any) -> Case:
    return Case(name, b"".join(pieces), **{"kind": EVENTS, "is_streamed": True, **expected})


def calling(name: str, *pieces: bytes, calls: Sequence[tuple[str, Any]] = CALLED) -> Case:
    ended = delta("tool_calls") + DONE
    return streamed(
        name, *pieces, ended, content=None, calls=tuple(calls), finish="tool_calls", usage=None
    )


def piece(*calls: dict[str, Any]) -> bytes:
    return delta(tool_calls=list(calls))


OPENAI = (
    Case("an empty finish reason", whole(finish="")),
    Case("no finish reason", whole(finish=None)),
    *(
        Case(f"interrupted: {reason}", whole("The ans", reason), requests=2, usage=(20, 10, 0))
        for reason in ("insufficient_system_resource", "network_error", "abort")
    ),
    Case(
        "a reason of Gemini's",
        whole(finish="MAX_TOKENS"),
        finish="length",
        more={"provider_reason": "MAX_TOKENS"},
    ),
    Case(
        "a reason that nobody knows",
        whole(finish="paused"),
        finish=None,
        more={"provider_reason": "paused"},
    ),
    Case(
        "a function call of 2023",
        whole(None, "function_call", function_call={"name": "f", "arguments": '{"a":1}'}),
        content=None,
        calls=CALLED,
        finish="tool_calls",
    ),
    Case("content as plain texts", whole(["H", "i"])),
    Case(
        "content as parts",
        whole([{"type": "text", "text": "H"}, {"type": "output_text", "text": "i"}]),
    ),
    Case(
        "thought before the answer", whole("<think>\nhm\n</think>\n\nHi"), more={"reasoning": "hm"}
    ),
    Case("thought beside the answer", whole(reasoning_content="hm"), more={"reasoning": "hm"}),
    Case(
        "Latin-1",
        whole("Grüße").decode("unicode-escape").encode("latin-1"),
        content="Grüße",
        kind=f"{JSON}; charset=iso-8859-1",
    ),
    *(
        Case(
            f"arguments as {arguments!r}",
            whole(
                None,
                "tool_calls",
                tool_calls=[{"id": "c1", "function": {"name": "f", "arguments": arguments}}],
            ),
            content=None,
            calls=(("f", read),),
            finish="tool_calls",
        )
        for arguments, read in (
            (None, {}),
            ("", {}),
            ({"a": 1}, {"a": 1}),
            ('"{\\"a\\": 1}"', {"a": 1}),
        )
    ),
    Case("floats", whole(usage={"prompt_tokens": 10.0, "completion_tokens": 5.0})),
    Case("numbers as text", whole(usage={"prompt_tokens": "10", "completion_tokens": "5"})),
    *(
        Case(f"no count: {usage}", whole(usage=usage), usage=None)
        for usage in (
            "absent",
            None,
            {},
            "many",
            {"prompt_tokens": None, "completion_tokens": None},
            {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
            {"prompt_tokens": 9223372036854775808, "completion_tokens": 1},
            {"prompt_tokens": -1, "completion_tokens": 1},
            {"prompt_tokens": True, "completion_tokens": 1},
        )
    ),
    Case(
        "thought in the total alone",
        whole(usage={"completion_tokens": 12, "prompt_tokens": 35, "total_tokens": 109}),
        usage=(35, 74, 0),
    ),
    Case("what was charged", whole(usage={**COUNTED, "cost": 0.00183}), more={"cost_usd": 0.00183}),
    Case("cached at the top", whole(usage={**COUNTED, "cached_tokens": 4}), usage=(10, 5, 4)),
    Case(
        "cached as DeepSeek has it",
        whole(usage={**COUNTED, "prompt_cache_hit_tokens": 4}),
        usage=(10, 5, 4),
    ),
    Case(
        "an error in the choice",
        json.dumps(
            {"choices": [{"error": {"code": 403, "message": "flagged by moderation"}}]}
        ).encode(),
        content=None,
        code="refused",
        finish="content_filter",
        usage=None,
    ),
    Case(
        "some other service",
        b'{"method": "POST"}',
        content=None,
        code="bad_request",
        finish=None,
        usage=None,
    ),
    Case(
        "a web page",
        b"<!doctype html><p>Hi",
        content=None,
        code="bad_request",
        finish=None,
        usage=None,
    ),
    Case(
        "MiniMax's error",
        b'{"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}, '
        b'"choices": null}',
        content=None,
        code="insufficient_quota",
        finish=None,
        usage=None,
    ),
    Case("events where JSON was asked for", SAID + DONE, kind=EVENTS),
    calling(
        "a new id in each piece",
        piece(call(0, "a1", "f", "")),
        piece(call(0, "a2", None, '{"a"')),
        piece(call(0, "a3", None, ":1}")),
    ),
    calling(
        "all calls have index 0",
        piece(call(0, "", "f", '{"a":1}')),
        piece(call(0, "", "f", '{"a":2}')),
        calls=(("f", {"a": 1}), ("f", {"a": 2})),
    ),
    calling(
        "calls without index and id",
        piece(call(None, "", "f", '{"a":1}'), call(None, "", "g", "{}")),
        calls=(("f", {"a": 1}), ("g", {})),
    ),
    calling(
        "the name in each piece", piece(call(0, "c", "f", '{"a"')), piece(call(0, "c", "f", ":1}"))
    ),
    calling(
        "a call before its id", piece(call(0, None, "f", '{"a"')), piece(call(0, "c", None, ":1}"))
    ),
    calling("an object in a stream", piece(call(0, "c", "f", {"a": 1}))),
    streamed(
        "a whole message in a stream",
        event(
            {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}], "usage": COUNTED}
        ),
        DONE,
    ),
    streamed(
        "thought in a stream",
        delta(content="<thi"),
        delta(content="nk>h"),
        delta(content="m</think>\n"),
        SAID,
        DONE,
        more={"reasoning": "hm"},
    ),
    streamed(
        "usage as Groq has it",
        delta(content="Hi"),
        event({"choices": [{"delta": {}, "finish_reason": "stop"}], "x_groq": {"usage": COUNTED}}),
        DONE,
    ),
    streamed(
        "usage in the choice",
        delta(content="Hi"),
        event({"choices": [{"delta": {}, "finish_reason": "stop", "usage": COUNTED}]}),
        DONE,
    ),
    streamed(
        "bare heartbeats",
        b"data:\n\n",
        delta(content="Hi"),
        b"data: \n\n",
        delta("stop"),
        USED,
        DONE,
    ),
    streamed("pings", event("ping", "ping"), SAID, DONE),
    streamed("null events", event("null"), SAID, DONE),
    *(
        streamed(f"events as {kind}", SAID, DONE, kind=kind)
        for kind in ("text/plain", JSON, f"{JSON}, {EVENTS}; charset=utf-8")
    ),
    streamed("no finish reason, and [DONE]", delta(content="Hi"), USED, DONE),
    streamed("closed when all was said", SAID, end="closed"),
    streamed("reset when all was said", SAID, end="reset"),
    streamed("closed in the middle", delta(content="Hi"), end="closed", requests=2, usage=None),
    streamed(
        "an error when all was said",
        delta(content="", reasoning="We need"),
        delta("length", content=""),
        event(
            {
                "error": {"code": 400, "message": "Token limit reached"},
                "choices": [],
                "usage": COUNTED,
            }
        ),
        DONE,
        content=None,
        code="truncated",
        finish=None,
    ),
    streamed(
        "a final error in the middle",
        delta(content="Hi"),
        event({"error": {"code": "context_length_exceeded", "message": "too long"}}),
        content=None,
        code="context_length_exceeded",
        finish=None,
        usage=None,
    ),
    streamed(
        "an error line of llama.cpp's",
        b'error: {"code":400,"message":"exceeds the available context size",'
        b'"type":"exceed_context_size_error"}\n\n',
        content=None,
        code="context_length_exceeded",
        finish=None,
        usage=None,
    ),
    streamed("an error in words", event("upstream connect error", "error"), requests=2),
)


def message(usage: Any = None, **more: Any) -> bytes:
    body = {
        "type": "message",
        "content": [{"type": "text", "text": "Hi"}],
        "stop_reason": "end_turn",
        **more,
    }
    return json.dumps({**body, "usage": usage or {"input_tokens": 10, "output_tokens": 5}}).encode()


BEGUN = event(
    {"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}}
)
BLOCK = event(
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
)
TEXT = event(
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}}
)
STOP = event({"type": "message_stop"})


def ending(reason: str | None = "end_turn", **usage: int) -> bytes:
    return event(
        {
            "type": "message_delta",
            "delta": {"stop_reason": reason},
            "usage": {"output_tokens": 5, **usage},
        }
    )


ANTHROPIC = (
    Case("no stop reason", message(stop_reason=None)),
    Case("a reason of OpenAI's", message(stop_reason="length"), finish="length"),
    Case(
        "a pause",
        message(stop_reason="pause_turn"),
        finish=None,
        more={"provider_reason": "pause_turn"},
    ),
    streamed("a second end without a reason", BEGUN, BLOCK, TEXT, ending(), ending(None), STOP),
    streamed("a count of 0 at the end", BEGUN, BLOCK, TEXT, ending(input_tokens=0), STOP),
    streamed("a text that did not begin", BEGUN, TEXT, ending(), STOP),
    streamed("closed when all was said", BEGUN, BLOCK, TEXT, ending(), end="closed"),
)


def candidate(
    reason: str | None = "STOP", parts: Any = ({"text": "Hi"},), **more: Any
) -> dict[str, Any]:
    found = {
        "content": {"parts": list(parts)},
        **({"finishReason": reason} if reason else {}),
        **more,
    }
    return {
        "candidates": [found],
        "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 5},
    }


def encoded(body: Any) -> bytes:
    return json.dumps(body).encode()


GEMINI = (
    Case(
        "stopped by Model Armor",
        encoded(candidate("MODEL_ARMOR", ())),
        content=None,
        code="refused",
        finish="content_filter",
    ),
    Case(
        "an unexpected call that is whole",
        encoded(
            candidate("UNEXPECTED_TOOL_CALL", ({"functionCall": {"name": "f", "args": {"a": 1}}},))
        ),
        content=None,
        calls=CALLED,
        finish="tool_calls",
    ),
    Case("an empty answer", encoded(candidate(parts=())), requests=2, usage=(20, 10, 0)),
    Case("no finish reason", encoded(candidate(None))),
    Case(
        "a stream as a list",
        encoded([candidate(None, ({"text": "H"},)), candidate("STOP", ({"text": "i"},))]),
        is_streamed=True,
    ),
    streamed("closed when all was said", event(candidate()), end="closed"),
)
CASES = [
    *OPENAI,
    *(Case(**{**vars(case), "provider": "anthropic"}) for case in ANTHROPIC),
    *(Case(**{**vars(case), "provider": "gemini"}) for case in GEMINI),
]


class Server:
    """Writes one answer as it is given, and plain ones after it. A fake on a real socket."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self.requests = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = [
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-len")
        ]
        await reader.readexactly(length)
        self.requests += 1
        case = self._case
        if self.requests > 1:
            case = Case("plain", encoded(PLAIN[case.provider]))
        told = f"HTTP/1.1 200 OK\r\ncontent-type: {case.kind}\r\nconnection: close\r\n"
        if case.end == "whole":
            writer.write(f"{told}content-length: {len(case.body)}\r\n\r\n".encode() + case.body)
            await writer.drain()
        else:
            chunk = f"{len(case.body):x}\r\n".encode() + case.body + b"\r\n"
            writer.write(f"{told}transfer-encoding: chunked\r\n\r\n".encode() + chunk)
            await writer.drain()
            if case.end == "reset":
                await asyncio.sleep(0.05)  # a reset at once would take back what was sent
                writer.transport.abort()
        writer.close()


class Told(TokenPublisher):
    """Keeps what is told of the last attempt."""

    def __init__(self) -> None:
        self.text = ""

    @property
    def is_enabled(self) -> bool:
        return True

    async def __call__(self, text: str) -> None:
        self.text += text

    def restart(self) -> None:
        self.text = ""


@asynccontextmanager
async def asking(case: Case) -> AsyncIterator[tuple[RemoteGenerate, Server]]:
    server = Server(case)
    listener = await asyncio.start_server(server.answer, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    price = {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0}
    settings = {
        "kind": "remote",
        "provider": case.provider,
        "base_url": address,
        "model": "m",
        **price,
    }
    generate = RemoteGenerate(
        {"m": RemoteModel.model_validate(settings)},
        KvLedger(MemoryKeyValue()),
        clock=lambda: datetime.now(UTC),
        sleep=lambda _: asyncio.sleep(0),
        rng=random.Random(0).random,
        worker_id="w",
    )
    yield generate, server
    await generate.aclose()
    listener.close()
    await listener.wait_closed()


def arguments_of(found: Candidate) -> tuple[tuple[str, Any], ...]:
    return tuple((made.name, json.loads(made.arguments)) for made in found.tool_calls)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.provider}: {case.name}")
async def test_it_is_read_for_what_it_is(case: Case) -> None:
    told = Told()
    until = datetime.now(UTC) + timedelta(seconds=250)
    task = make_task(model="m", tier="remote", deadline_at=until, is_streamed=case.is_streamed)
    async with asking(case) as (generate, server):
        found = await generate.generate(task, told if case.is_streamed else None)

    assert (found.error and found.error.code, found.content, arguments_of(found)) == (
        case.code,
        case.content,
        case.calls,
    )
    assert (found.finish_reason, server.requests) == (case.finish, case.requests)
    if case.code is None:
        assert told.text == ((case.content or "") if case.is_streamed else "")
    used = found.usage
    counted = used and (used.prompt_tokens, used.completion_tokens, used.cached_tokens)
    if case.code is None:
        assert counted == case.usage
        # Unknown, and not nothing.
        assert case.usage is not None or found.cost_usd is None
    else:
        assert counted in (case.usage, (0, 0, 0))
    for name, value in case.more.items():
        assert getattr(found, name) == value
