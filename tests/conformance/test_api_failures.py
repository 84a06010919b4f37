"""What a client is told of a fusion that has no answer, or none yet."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import pytest

from fusewire.settings import Nats, Settings
from fusewire.testing.http_api import ASKED, post, streaming
from fusewire.testing.model_script import Fault, ModelScript, Script
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire_cli.client import Client
from fusewire_ingest.api.run import OUTCOME_HEADER

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]


WAITS = {"a": "50", "b": "40", "c": "3600"}
FAILURES: list[tuple[Any, int, str]] = [
    ("bad_request", 400, "bad_request"),
    ("server_error", 424, "all_panels_failed"),
    (Fault(kind="rate_limited", headers={"retry-after": "3600"}), 429, "rate_limited"),
]


@pytest.mark.parametrize(("fault", "status", "code"), FAILURES, ids=[row[2] for row in FAILURES])
async def test_what_all_members_fail_at_says_whose_fault_it_is(
    http: aiohttp.ClientSession, model_server: ModelServer, fault: Any, status: int, code: str
) -> None:
    """And never in a way that makes a client buy it again by itself."""
    model_server.set_script(Script.of(*[fault] * 99))
    found, answer, headers = await post(http)

    error = answer["error"]
    assert (found, error["code"]) == (status, code)
    told = error["fusion"]
    assert told["outcome_id"] == headers[OUTCOME_HEADER]
    assert [one["model"] for one in told["failed_models"]] == ["a", "b", "c"]
    assert headers["x-should-retry"] == "false"
    assert headers.get("retry-after") == ("3600" if status == 429 else None)
    async with http.get(f"/v1/fusions/{headers[OUTCOME_HEADER]}") as response:
        assert (await response.json())["status"] == "failed"


async def test_a_short_wait_is_the_clients_own(
    http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    limited = {
        name: Fault(kind="rate_limited", headers={"retry-after": wait})
        for name, wait in WAITS.items()
    }
    model_server.set_script(
        Script(models={name: ModelScript(faults=(one,) * 9) for name, one in limited.items()})
    )
    status, _, headers = await post(http, json={**ASKED, "fusewire": {"deadline_s": 5}})

    assert (status, headers["retry-after"], "x-should-retry" in headers) == (429, "40", False)


@pytest.mark.parametrize(("fault", "status", "code"), FAILURES, ids=[row[2] for row in FAILURES])
async def test_within_a_stream_a_failure_travels_as_data(
    http: aiohttp.ClientSession, model_server: ModelServer, fault: Any, status: int, code: str
) -> None:
    model_server.set_script(Script.of(*[fault] * 99))
    async with streaming(http) as heard:
        pass

    assert heard.status == 200
    (error,) = [chunk["error"] for chunk in heard.chunks]
    assert (error["code"], len(error["fusion"]["failed_models"])) == (code, 3)
    assert not heard.is_done


async def test_what_all_members_decline_is_a_refusal(
    http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    model_server.set_script(Script.of(*[Fault(kind="content_filter")] * 99))
    status, reply, _ = await post(http)
    async with streaming(http) as heard:
        pass

    (choice,) = reply["choices"]
    assert (status, choice["finish_reason"], choice["message"]["content"]) == (
        200,
        "content_filter",
        None,
    )
    assert choice["message"]["refusal"]
    deltas = [c["choices"][0] for c in heard.chunks]
    assert [d["delta"]["refusal"] for d in deltas if "refusal" in d["delta"]] == [
        choice["message"]["refusal"]
    ]
    assert deltas[-1]["finish_reason"] == "content_filter"


async def test_who_waits_when_it_stops_is_told_to_come_back(
    make_settings: MakeSettings, running: Running, nats: NatsServer
) -> None:
    """Nothing is lost: the next one that runs is asked again, and has it."""
    async with contextlib.AsyncExitStack() as end:
        client = await end.enter_async_context(
            running(make_settings(nats=Nats(url=nats.url)), "ingest")
        )
        async with aiohttp.ClientSession(client.url) as http:
            waiting = asyncio.create_task(post(http))
            async with streaming(http, headers={"Idempotency-Key": "k"}) as heard:
                await heard.until(lambda: bool(heard.comments))
                await end.aclose()
            status, answer, headers = await waiting

    assert (status, answer["error"]["code"]) == (503, "draining")
    assert headers[OUTCOME_HEADER] in answer["error"]["message"]
    assert int(headers["retry-after"]) >= 1
    assert heard.chunks[-1]["error"]["code"] == "draining"


async def test_a_request_that_does_not_end_is_told_that_it_stops(
    make_settings: MakeSettings,
    running: Running,
    nats: NatsServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The web server cuts it off after a while, and would write a traceback of that."""
    monkeypatch.setattr("fusewire.http_server.STOP_S", 1)
    begun, ended = asyncio.Event(), asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b'{"prompt": "a"}\n'
        begun.set()
        await ended.wait()

    async with contextlib.AsyncExitStack() as end:
        client = await end.enter_async_context(
            running(make_settings(nats=Nats(url=nats.url)), "ingest")
        )
        async with aiohttp.ClientSession(client.url) as http:
            kind = {"content-type": "application/x-ndjson"}
            sending = asyncio.create_task(http.post("/v1/fusions", data=endless(), headers=kind))
            await begun.wait()
            await end.aclose()
            reply = await sending
            told = await reply.json()
            ended.set()

    assert (reply.status, told["error"]["code"]) == (503, "draining")
    assert reply.headers["retry-after"] == "1"
    assert [record.message for record in caplog.records if record.exc_info] == []


async def test_a_wait_without_an_outcome_names_the_fusion(
    door: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusewire_ingest.api.run.PATIENCE_S", 0.1)

    status, answer, headers = await post(door, json={**ASKED, "fusewire": {"deadline_s": 0.1}})

    assert (status, answer["error"]["code"]) == (504, "timeout")
    assert f"GET /v1/fusions/{headers[OUTCOME_HEADER]}" in answer["error"]["message"]
    assert "x-should-retry" not in headers, "a retry waits on"
