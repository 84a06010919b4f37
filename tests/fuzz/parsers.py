"""Fuzz what reads text of strangers: JSONL, server-sent events, models' streams and verdicts.

Each target states what holds for any bytes. `make fuzz`; `make test` replays the inputs that are
kept in `corpus/`. The first byte of an input chooses how it is cut, or which protocol it is.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from fuzzing import Target, main

if sys.argv[1:2] != ["replay"]:
    import atheris  # type: ignore[import-untyped]  # it publishes none

    atheris.enabled_hooks.add("str")
    INSTRUMENTED = atheris.instrument_imports(
        include=["fusewire_ingest", "fusewire_judge", "fusewire_worker_remote", "fusewire.sse"]
    )
else:
    import contextlib

    INSTRUMENTED = contextlib.nullcontext()

with INSTRUMENTED:
    from fusewire.json_schema import SchemaCheck
    from fusewire.sse import Event, EventReader, encode
    from fusewire_ingest.admission.jsonl import BOM, located_lines
    from fusewire_ingest.admission.refusal import RefusedError
    from fusewire_ingest.admission.strict_json import parse_object
    from fusewire_judge.judging.parse import Read, read
    from fusewire_judge.judging.prompts import verdict_schema
    from fusewire_worker_remote.backoff import retry_after_s
    from fusewire_worker_remote.errors import Failure
    from fusewire_worker_remote.providers import PROVIDERS, HttpResponse, ProviderReply
    from fusewire_worker_remote.stream_reader import StreamReader

NOW = datetime(2026, 11, 28, tzinfo=UTC)
LIMIT = 64
SCHEMA = verdict_schema(["AA", "BB", "CC"])
UNREADABLE = {"empty", "too_long", "ambiguous", "not_json", "schema_mismatch"}
PROTOCOLS = sorted(PROVIDERS)


def _cut(data: bytes) -> tuple[list[bytes], bytes]:
    """Return what follows the first byte, in pieces of that many bytes, and whole."""
    size, body = (data[0] % 16 + 1, data[1:]) if data else (1, b"")
    return [body[at : at + size] for at in range(0, len(body), size)], body


async def _located(chunks: list[bytes]) -> list[tuple[int, int, bytes]]:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return [line async for line in located_lines(stream(), LIMIT)]


def jsonl(data: bytes, _folder: Path) -> None:
    """Any cut gives the same lines, at their places; what is accepted can be stored."""
    pieces, body = _cut(data)
    lines = asyncio.run(_located(pieces))
    assert lines == asyncio.run(_located([body]))
    whole = body.split(b"\n")
    for number, offset, line in lines:
        assert body[offset : offset + len(line)] == line
        assert len(line) <= LIMIT + 1
        text = whole[number - 1].removeprefix(BOM if number == 1 else b"").rstrip(b"\r")
        assert line == text[: LIMIT + 1] or len(line) == LIMIT + 1
    # Nothing but blank lines is left out.
    numbers = {number for number, _, _ in lines}
    for number, text in enumerate(whole, 1):
        assert number in numbers or not text.removeprefix(BOM if number == 1 else b"").strip()
    for _, _, line in lines:
        try:
            value = parse_object(line, LIMIT)
        except RefusedError:
            continue
        stored = json.dumps(value, ensure_ascii=False, allow_nan=False)
        assert "\x00" not in stored
        assert json.loads(stored.encode()) == value


def _read_events(pieces: list[bytes]) -> list[Event]:
    reader = EventReader()
    events = [event for piece in pieces for event in reader.feed(piece)]
    return events + reader.end()


def sse(data: bytes, _folder: Path) -> None:
    """Any cut gives the same events; what is written is read as it was."""
    pieces, body = _cut(data)
    events = _read_events(pieces)
    assert events == _read_events([body])
    for event in events:
        if not {"\r", "\n"} & set(event.name + event.data):
            assert _read_events([encode(event.data, name=event.name)])[-1].data == event.data


def stream(data: bytes, _folder: Path) -> None:
    """A stream of any protocol comes to a reply or a failure, and its numbers can be stored."""
    provider = PROVIDERS[PROTOCOLS[data[0] % len(PROTOCOLS)] if data else "openai"]
    pieces, body = _cut(data[1:])

    async def read_stream() -> ProviderReply | Failure:
        reader = StreamReader(provider.assemble(NOW), None, max_chars=10_000)
        for piece in pieces:
            if await reader(piece):
                break
        return await reader.result()

    _check(asyncio.run(read_stream()))
    _check(provider.read(HttpResponse(200, {}, body), NOW))
    status = 400 + (data[0] if data else 0)
    headers = {"retry-after": body[:64].decode("latin-1"), "x-ratelimit-reset": "1s"}
    assert (retry_after_s(headers, NOW) or 0.0) >= 0
    _check(provider.read(HttpResponse(status, headers, body), NOW))


def _check(result: ProviderReply | Failure) -> None:
    for count in (
        (result.usage.prompt_tokens, result.usage.completion_tokens) if result.usage else ()
    ):
        assert 0 <= count < 2**31
    if isinstance(result, ProviderReply):
        assert result.content or result.tool_calls
        (result.content or "").encode()
        for call in result.tool_calls:
            call.model_dump_json()
    else:
        assert result.message
        result.message.encode()


def verdict(data: bytes, _folder: Path) -> None:
    """A verdict satisfies its schema and can be stored, or it is said why there is none."""
    result = read(
        data.decode(errors="surrogateescape" if data[:1] == b"\x00" else "replace"), SCHEMA
    )
    if not isinstance(result, Read):
        assert result.reason in UNREADABLE
        return
    assert SchemaCheck(SCHEMA).fits(result.value)
    assert result.value["winner"] in ("AA", "BB", "CC")
    assert "\x00" not in json.dumps(result.value, ensure_ascii=False).encode().decode()


TARGETS: dict[str, Target] = {"jsonl": jsonl, "sse": sse, "stream": stream, "verdict": verdict}


def seeds(name: str, folder: Path, corpus: Path) -> None:
    """Nothing more than what the repository keeps."""


if __name__ == "__main__":
    main(TARGETS, (), seeds)
