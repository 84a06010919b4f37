"""Chat streams: their order, their silence, and text that is told while it is written."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import pytest

from fusewire import ids
from fusewire.bus import Bus
from fusewire.contracts import Token
from fusewire.settings import Nats, Settings
from fusewire.testing.http_api import ASKED, CHAT, streaming
from fusewire.testing.model_script import ModelScript, Script
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire.topology import token_subject
from fusewire_cli.client import Client
from fusewire_ingest import service
from fusewire_ingest.api.run import OUTCOME_HEADER

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
ANSWER = "Hello world, said the answer."


async def test_a_stream_has_the_order_that_clients_expect(http: aiohttp.ClientSession) -> None:
    async with streaming(http, stream_options={"include_usage": True}) as heard:
        pass

    assert heard.status == 200
    kept = ("content-type", "cache-control", "x-accel-buffering")
    assert [heard.response.headers[name] for name in kept] == [
        "text/event-stream; charset=utf-8",
        "no-cache",
        "no",
    ]
    assert heard.comments == [
        "fusewire",
        *(f"fusewire panel {number}/3" for number in (0, 1, 2, 3)),
    ]
    first, *content, finish, usage = heard.chunks
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert [c["choices"][0]["finish_reason"] for c in (first, *content)] == [None] * (
        1 + len(content)
    )
    assert (finish["choices"][0]["delta"], finish["choices"][0]["finish_reason"]) == ({}, "stop")
    assert (usage["choices"], usage["usage"]["total_tokens"] > 0) == ([], True)
    assert heard.is_done
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in heard.chunks}) == 1
    async with http.get(f"/v1/fusions/{heard.response.headers[OUTCOME_HEADER]}") as response:
        assert heard.text == (await response.json())["content"]


async def test_a_stream_without_usage_ends_with_its_finish(http: aiohttp.ClientSession) -> None:
    async with streaming(http) as heard:
        pass

    assert heard.chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert heard.chunks[-1]["fusion"]["outcome_id"] == heard.response.headers[OUTCOME_HEADER]


async def test_what_some_clients_take_for_a_line_end_is_none(
    http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    said = "one\u2028two\u2029three\u0085four"
    model_server.set_script(Script.of(answer=said))
    async with http.post(CHAT, json={**ASKED, "stream": True}) as response:
        raw = (await response.read()).decode()
    assert len(raw.splitlines()) == raw.count("\n")
    chunks = [
        json.loads(line.removeprefix("data: "))
        for line in raw.splitlines()
        if line.startswith("data: {")
    ]
    assert (
        "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
        == said
    )


async def test_a_stream_is_never_silent_for_long(
    make_settings: MakeSettings,
    stack: Running,
    model_server: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "HEARTBEAT_S", 0.05)
    slow = {"b": ModelScript(latency_ms=500), "c": ModelScript(latency_ms=500)}
    model_server.set_script(Script(models=slow))
    async with (
        stack(make_settings()) as client,
        aiohttp.ClientSession(client.url) as http,
        streaming(http) as heard,
    ):
        pass

    beats = [c for c, after in zip(heard.comments, heard.comments[1:], strict=False) if c == after]
    assert "fusewire panel 1/3" in beats
    assert heard.is_done


class Writer:
    """Stands in for a worker that tells what it writes."""

    def __init__(self, bus: Bus, key: str) -> None:
        self.bus = bus
        self.fusion_id = ids.fusion_id("default", None, f"key-{key}")

    async def write(self, text: str, offset: int, *, call: str = "write", attempt: int = 1) -> None:
        token = Token(
            fusion_id=self.fusion_id, round=1, call=call, attempt=attempt, offset=offset, text=text
        )
        await self.bus.client.publish(token_subject(self.fusion_id), token.encode())
        await self.bus.client.flush()


KEY = {"Idempotency-Key": "k"}


@pytest.fixture
async def written(
    make_settings: MakeSettings,
    running: Running,
    nats: NatsServer,
    make_bus: Any,
    model_server: ModelServer,
) -> AsyncIterator[tuple[aiohttp.ClientSession, Writer]]:
    """Fusewire with members that answer late and alike, and a writer for the fusion of key `k`."""
    model_server.set_script(Script.of(latency_ms=600, answer=ANSWER))
    names = ("judge", "worker-remote", "dispatcher", "ingest")
    async with (
        running(make_settings(nats=Nats(url=nats.url)), *names) as client,
        aiohttp.ClientSession(client.url) as http,
    ):
        yield http, Writer(await make_bus(), "k")


async def test_text_is_told_while_it_is_written(
    written: tuple[aiohttp.ClientSession, Writer], model_server: ModelServer
) -> None:
    http, writer = written

    async def write() -> None:
        await model_server.wait_for_requests(3)
        await writer.write("Hello", 0)
        await writer.write(" world", 5)

    writing = asyncio.create_task(write())
    async with streaming(http, headers=KEY) as heard:
        await heard.until(lambda: heard.text == "Hello world")
        assert heard.comments == ["fusewire", "fusewire panel 0/3"], "no member has answered yet"
    await writing

    assert heard.text == ANSWER
    assert [c["choices"][0]["delta"].get("role") for c in heard.chunks].count("assistant") == 1
    assert heard.chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "Hello"}
    assert heard.is_done


TORN = [
    ("a gap", [("Hello", 0, {}), ("world", 6, {})]),
    ("another attempt", [("Hello", 0, {}), ("Hello", 0, {"attempt": 2})]),
    ("another call", [("Hello", 0, {}), (" world", 5, {"call": "other"})]),
    ("more after a gap", [("Hello", 0, {}), ("d", 10, {}), (" world", 5, {})]),
]


@pytest.mark.parametrize("pieces", [row[1] for row in TORN], ids=[row[0] for row in TORN])
async def test_torn_text_is_told_no_further_and_the_outcome_has_the_rest(
    written: tuple[aiohttp.ClientSession, Writer], model_server: ModelServer, pieces: list[Any]
) -> None:
    http, writer = written

    async def write() -> None:
        await model_server.wait_for_requests(3)
        for piece, offset, which in pieces:
            await writer.write(piece, offset, **which)

    writing = asyncio.create_task(write())
    async with streaming(http, headers=KEY) as heard:
        await heard.until(lambda: heard.text == "Hello")
    await writing

    told = [
        c["choices"][0]["delta"].get("content") for c in heard.chunks if c["choices"][0]["delta"]
    ]
    assert told == ["Hello", ANSWER.removeprefix("Hello")]


async def test_text_that_was_not_chosen_ends_the_stream_with_an_error(
    written: tuple[aiohttp.ClientSession, Writer], model_server: ModelServer
) -> None:
    http, writer = written

    async def write() -> None:
        await model_server.wait_for_requests(3)
        await writer.write("Something else", 0)

    writing = asyncio.create_task(write())
    async with streaming(http, headers=KEY) as heard:
        pass
    await writing

    assert heard.text == "Something else"
    error = heard.chunks[-1]["error"]
    assert error["code"] == "stream_superseded"
    assert f"GET /v1/fusions/{writer.fusion_id}" in error["message"]
    assert not heard.is_done
