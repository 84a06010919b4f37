"""Requests that come again, and clients that leave: what is bought, and what goes on."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text

from fusewire import ids
from fusewire.contracts import Prompt
from fusewire.settings import Nats, Settings
from fusewire.store.engine import Store
from fusewire.testing.eventually import eventually
from fusewire.testing.http_api import ASKED, CHAT, post, rows
from fusewire.testing.model_script import Fault, Script
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire_cli.client import Client
from fusewire_ingest.api.run import OUTCOME_HEADER

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
AGAIN = {"x-stainless-retry-count": "1"}


# -- again ----------------------------------------------------------------------------------------


async def test_a_retry_is_answered_by_the_run_in_flight(
    http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    model_server.set_script(Script.of(latency_ms=300))
    leaving = asyncio.create_task(post(http))
    await model_server.wait_for_requests(1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)

    answers = [await post(http, headers=h) for h in ({}, AGAIN, {"x-fusewire-attach": "true"})]

    assert [status for status, _, _ in answers] == [200, 200, 200]
    assert len({headers[OUTCOME_HEADER] for _, _, headers in answers}) == 1
    assert dict(model_server.stats.by_model) == {"a": 1, "b": 1, "c": 1, "j": 2}
    # A reply that travels in another way is the same request; a stream attaches to it too.
    async with http.post(CHAT, json={**ASKED, "stream": True}, headers=AGAIN) as response:
        assert response.headers[OUTCOME_HEADER] == answers[0][2][OUTCOME_HEADER]
        assert b"[DONE]" in await response.read()
    assert model_server.stats.requests == 5


LEFT = "SELECT fusion_id FROM prompts WHERE left_at IS NOT NULL"


async def ask_and_leave(http: aiohttp.ClientSession, settings: Settings) -> str:
    """Ask, leave before the answer, and wait until that is known; returns the fusion's id."""
    asked = asyncio.create_task(post(http))
    # It is known to have come in when whoever left before it has been forgotten.
    await eventually(lambda: rows(settings, "SELECT 1 FROM prompts WHERE left_at IS NULL"))
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    (row,) = await eventually(lambda: rows(settings, LEFT))
    return str(row["fusion_id"])


@pytest.mark.parametrize("is_ended", [False, True], ids=["runs", "ended"])
async def test_a_client_that_left_and_asks_again_without_a_word_buys_nothing(
    http: aiohttp.ClientSession, settings: Settings, model_server: ModelServer, is_ended: bool
) -> None:
    """As OpenRouter's SDK does for an hour; what is asked once it was answered is a new fusion."""
    model_server.set_script(Script.of(latency_ms=300))
    fusion_id = await ask_and_leave(http, settings)
    if is_ended:
        assert await ended(http, fusion_id) == "selected"
    else:
        assert await ask_and_leave(http, settings) == fusion_id

    status, _, headers = await post(http)
    assert (status, headers[OUTCOME_HEADER]) == (200, fusion_id)
    assert dict(model_server.stats.by_model) == {"a": 1, "b": 1, "c": 1, "j": 2}
    assert (await post(http))[2][OUTCOME_HEADER] != fusion_id


async def test_requests_on_open_connections_are_fusions_of_their_own(
    http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    model_server.set_script(Script.of(latency_ms=300))
    found = await asyncio.gather(*(post(http) for _ in range(4)))
    assert len({headers[OUTCOME_HEADER] for _, _, headers in found}) == 4


async def test_a_request_is_found_again_when_its_ingest_is_gone(
    make_settings: MakeSettings, running: Running, nats: NatsServer
) -> None:
    """And not while it waits at another ingest that lives."""
    settings = make_settings(nats=Nats(url=nats.url))
    fusions = "SELECT fusion_id, held_by FROM prompts ORDER BY submitted_at"
    waiting: list[asyncio.Task[Any]] = []

    async def ask(http: aiohttp.ClientSession) -> None:
        waiting.append(asyncio.create_task(post(http)))

    async with (
        running(settings, "ingest") as here,
        running(settings, "ingest") as there,
        aiohttp.ClientSession(here.url) as http,
        aiohttp.ClientSession(there.url) as elsewhere,
    ):
        await ask(elsewhere)
        await eventually(lambda: rows(settings, fusions))
        await ask(http)
        first, second = await eventually(lambda: two(rows(settings, fusions)))
        assert first["held_by"] != second["held_by"]

        store = Store(settings.database)
        async with store.write() as connection:
            await connection.execute(text("UPDATE prompts SET held_by = 'gone'"))
        await store.close()
        await ask(http)
        again = (
            f"SELECT 1 FROM prompts WHERE fusion_id = '{second['fusion_id']}' AND held_by != 'gone'"
        )
        await eventually(lambda: rows(settings, again))
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert len(await rows(settings, fusions)) == 2


async def two(found: Awaitable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows, once there are two."""
    listed = await found
    return listed if len(listed) == 2 else []


async def test_attaching_can_be_switched_off(
    make_settings: MakeSettings, stack: Running, model_server: ModelServer
) -> None:
    model_server.set_script(Script.of(latency_ms=200))
    settings = make_settings(http={"port": 0, "attach": False})
    async with stack(settings) as client, aiohttp.ClientSession(client.url) as http:
        asked = asyncio.create_task(post(http))
        await model_server.wait_for_requests(3)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        status, _, _ = await post(http, headers=AGAIN)
        assert (status, model_server.stats.by_model["a"]) == (200, 2)


async def test_what_is_no_retry_is_a_run_of_its_own(
    http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    given: list[dict[str, Any]] = [
        {},
        {},
        {"headers": {"x-stainless-retry-count": "0"}},
        {"headers": AGAIN, "json": {**ASKED, "temperature": 0.5}},
    ]
    found = {(await post(http, **one))[2][OUTCOME_HEADER] for one in given}

    assert len(found) == len(given)
    assert model_server.stats.by_model["a"] == len(given)


async def test_a_key_makes_the_same_run_of_the_same_request(
    http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    key = {"Idempotency-Key": "k1"}

    first, again = await post(http, headers=key), await post(http, headers=key)
    status, answer, headers = await post(http, headers=key, json={**ASKED, "temperature": 0.5})

    assert first[1] == {**again[1], "created": first[1]["created"]}
    assert first[2][OUTCOME_HEADER] == ids.fusion_id("default", None, "key-k1")
    assert model_server.stats.by_model["a"] == 1
    assert (status, answer["error"]["code"], headers["x-should-retry"]) == (
        409,
        "custom_id_conflict",
        "false",
    )


async def test_a_fusion_may_ask_a_fusion_and_says_so(
    door: aiohttp.ClientSession, settings: Settings
) -> None:
    """Ingest notes how deep a prompt is."""
    asking = asyncio.create_task(post(door, headers={"x-fusewire-depth": "1"}))
    (row,) = await eventually(lambda: rows(settings, "SELECT body FROM prompts"))
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    assert Prompt.decode(row["body"]).depth == 1


# -- clients that leave ---------------------------------------------------------------------------


async def leave(
    http: aiohttp.ClientSession, model_server: ModelServer, key: str, **given: Any
) -> str:
    """Ask, and leave when the members have been asked; returns the fusion's id."""
    asking_ = asyncio.create_task(
        post(http, **{**given, "headers": {"Idempotency-Key": key, **given.get("headers", {})}})
    )
    await asyncio.wait_for(model_server.wait_for_requests(3), 250)
    asking_.cancel()
    await asyncio.gather(asking_, return_exceptions=True)
    return ids.fusion_id("default", None, f"key-{key}")


async def ended(http: aiohttp.ClientSession, fusion_id: str) -> str:
    """The status, once it is not `running`; nobody waits for it, as that would keep it going."""

    async def status() -> str | None:
        async with http.get(f"/v1/fusions/{fusion_id}") as response:
            found: str = (await response.json())["status"]
        return found if found != "running" else None

    return str(await eventually(status))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fusion_goes_on_when_its_client_leaves(
    http: aiohttp.ClientSession, model_server: ModelServer, stream: bool
) -> None:
    model_server.set_script(Script.of(latency_ms=200))

    fusion_id = await leave(http, model_server, "k", json={**ASKED, "stream": stream})

    assert await ended(http, fusion_id) == "selected"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("by", ["header", "body"])
async def test_a_fusion_is_cancelled_when_its_client_leaves_and_wanted_it(
    http: aiohttp.ClientSession, model_server: ModelServer, by: str, stream: bool
) -> None:
    model_server.set_script(Script.of(Fault(kind="hang")))
    wanted: dict[str, Any] = (
        {
            "headers": {"x-fusewire-cancel-on-disconnect": "true"},
            "json": {**ASKED, "stream": stream},
        }
        if by == "header"
        else {"json": {**ASKED, "stream": stream, "fusewire": {"cancel_on_disconnect": True}}}
    )

    fusion_id = await leave(http, model_server, "k", **wanted)

    assert await ended(http, fusion_id) == "cancelled"


async def test_a_fusion_that_another_waits_for_is_not_cancelled(
    http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    model_server.set_script(Script.of(latency_ms=500))
    wanted = {"x-fusewire-cancel-on-disconnect": "true"}
    other = asyncio.create_task(post(http, headers={"Idempotency-Key": "k"}))
    await asyncio.wait_for(model_server.wait_for_requests(3), 250)

    await leave(http, model_server, "k", headers=wanted)

    assert (await other)[0] == 200


async def test_a_fusion_is_cancelled_by_its_id(
    http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    model_server.set_script(Script.of(Fault(kind="hang")))
    fusion_id = await leave(http, model_server, "k")

    async with http.post(f"/api/v1/fusions/{fusion_id}/cancel") as response:
        assert (response.status, (await response.json())["is_cancelled"]) == (200, True)
    assert await ended(http, fusion_id) == "cancelled"
    async with http.post(f"/v1/fusions/{fusion_id}/cancel") as response:
        assert (response.status, (await response.json())["is_cancelled"]) == (200, False)
    # A retry finds it, and says what became of it.
    status, answer, _ = await post(http, headers={"Idempotency-Key": "k"})
    assert (status, answer["error"]["code"]) == (409, "cancelled")
