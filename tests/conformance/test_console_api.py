"""What the console asks of the API: who it is, prompts, one fusion's events, what runs now."""

import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import aiohttp
import pytest
from fastapi import FastAPI
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from fusewire import ids
from fusewire.bus import Bus
from fusewire.contracts import Candidate
from fusewire.errors import Transient
from fusewire.settings import Database, Http, Nats, Settings
from fusewire.store.engine import Store
from fusewire.store.history import History
from fusewire.store.history import history as read_history
from fusewire.testing.eventually import eventually
from fusewire.testing.http_api import rows
from fusewire.testing.large_parts import picture
from fusewire.testing.model_script import ModelScript, Script
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire.topology import candidate_subject
from fusewire_cli.client import Client
from fusewire_cli.local.runner import build_service
from fusewire_ingest import queues, service
from fusewire_ingest.admission import keys
from fusewire_ingest.api import event_encoder, events
from fusewire_ingest.api.dependencies import Dependencies
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.keys import ApiKeys, Change, Key
from fusewire_ingest.repository.retention import Retention
from fusewire_ingest.watching import EventQueue

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
Web = aiohttp.ClientSession
ALL = ("judge", "worker-remote", "dispatcher", "ingest")
SLOW = ModelScript(latency_ms=3_600_000)
"""A model that does not answer during the test."""
BODY = {"prompt": "Why?", "custom_id": "one"}
ONE = ids.fusion_id("default", None, "one")


@pytest.fixture
def settings(make_settings: MakeSettings, nats: NatsServer, database: Database) -> Settings:
    return make_settings(nats=Nats(url=nats.url), database=database)


@pytest.fixture
def secured(make_settings: MakeSettings, nats: NatsServer, database: Database) -> Settings:
    """Of an API that requires keys."""
    http = Http(port=0, keys="required")
    return make_settings(nats=Nats(url=nats.url), database=database, http=http)


@pytest.fixture
def start(running: Running) -> Callable[..., AbstractAsyncContextManager[Web]]:
    """Runs services, ingest among them, and a plain client: `async with start(settings) as web`."""

    @asynccontextmanager
    async def run(settings: Settings, *services: Any) -> AsyncIterator[Web]:
        async with running(settings, *(services or ALL)) as client, Web(client.url) as web:
            yield web

    return run


Start = Callable[..., AbstractAsyncContextManager[Web]]


async def make_key(settings: Settings, tenant: str, scopes: str = "admin") -> str:
    key = keys.make(secrets.token_bytes(keys.RANDOM_BYTES))
    now, digest = datetime.now(UTC), keys.digest(key, pepper(settings))
    store = Store(settings.database)
    made = Key(keys.key_id(key) or "", tenant, "test", digest, now, scopes=scopes)
    await ApiKeys(store).add(made, Change("operator:test", now))
    await store.close()
    return key


async def call(web: Web, method: str, path: str, key: str = "", **given: Any) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with web.request(method, f"/v1{path}", headers=headers, **given) as response:
        return response.status, await response.json()


async def submit(web: Web, **fields: Any) -> str:
    status, reply = await call(web, "POST", "/fusions", json=BODY | fields)
    assert status == 202, reply
    return str(reply["id"])


# -- who it is --------------------------------------------------------------------------------


async def test_a_caller_learns_who_it_is(settings: Settings, start: Start) -> None:
    async with start(settings, "ingest") as web:
        status, reply = await call(web, "GET", "/caller")

    assert (status, reply) == (
        200,
        {
            "object": "caller",
            "tenant": "default",
            "key_id": None,
            "scopes": ["admin", "batch", "read", "submit"],
            "needs_key": False,
        },
    )


async def test_a_key_s_caller_has_its_tenant_and_scopes(secured: Settings, start: Start) -> None:
    async with start(secured, "ingest") as web:
        assert (await call(web, "GET", "/caller"))[0] == 401
        key = await make_key(secured, "acme", scopes="read batch")
        status, reply = await call(web, "GET", "/caller", key)

    assert status == 200
    assert reply == {
        "object": "caller",
        "tenant": "acme",
        "key_id": key.split("-")[1],
        "scopes": ["batch", "read"],
        "needs_key": True,
    }


# -- prompts ----------------------------------------------------------------------------------

SMALL, LARGE = picture(300), picture(60_000)
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


def content(*urls: str) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]
    return [{"type": "text", "text": "Which?"}, *parts]


async def test_a_prompt_is_shown_as_it_was_submitted(
    make_settings: MakeSettings,
    nats: NatsServer,
    database: Database,
    model_server: ModelServer,
    start: Start,
) -> None:
    hosted = {"kind": "remote", "base_url": model_server.base_url, "images": True}
    settings = make_settings(
        nats=Nats(url=nats.url),
        database=database,
        models={name: {**hosted, "model": name} for name in "abcj"},
    )
    web_image = "https://example.com/a.png"
    function = {"name": "look_up", "arguments": "{}"}
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": content(SMALL, LARGE, web_image)},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "A cat."},
    ]
    body = {
        "custom_id": "one",
        "messages": conversation,
        "tools": [TOOL],
        "priority": "high",
        "preset": "fast",
    }
    async with start(settings, "ingest") as web:
        assert (await call(web, "POST", "/fusions?batch_id=b1", json=body))[0] == 202
        fusion_id = ids.fusion_id("default", "b1", "one")
        status, reply = await call(web, "GET", f"/fusions/{fusion_id}/prompt")
        await call(web, "DELETE", f"/fusions/{fusion_id}/images")
        _, later_reply = await call(web, "GET", f"/fusions/{fusion_id}/prompt")

    assert status == 200
    messages = reply.pop("messages")
    times = [datetime.fromisoformat(reply.pop(name)) for name in ("submitted_at", "deadline_at")]
    # That of the pool for lines of batches.
    assert times[1] - times[0] == timedelta(days=1)
    assert reply == {
        "object": "prompt",
        "id": fusion_id,
        "custom_id": "one",
        "batch_id": "b1",
        "mode": "best-of",
        "pool": "default",
        "residency": "any",
        "priority": "high",
        "preset": "fast",
        "tools": ["look_up"],
    }
    bare: dict[str, Any] = {"name": None, "tool_calls": [], "tool_call_id": None, "reasoning": None}
    assert messages[0] == {"role": "system", "content": "Be brief.", "parts": [], **bare}
    assert messages[2] == {
        "role": "assistant",
        "content": "",
        "parts": [],
        **bare,
        "tool_calls": [{"id": "c1", **function}],
    }
    answer = {"role": "tool", "content": "A cat.", "parts": [], **bare, "tool_call_id": "c1"}
    assert messages[3] == answer
    parts = messages[1].pop("parts")
    assert messages[1] == {"role": "user", "content": "Which?", **bare}
    image = {"kind": "image", "at": 6, "detail": "low", "chars": None}
    png = {**image, "media_type": "image/png"}
    assert parts[0] == {**png, "url": SMALL, "bytes": None, "sha256": None}
    name = ids.digest("image", "default", LARGE.partition(",")[2]).hex()
    assert parts[1] == {**png, "url": None, "bytes": 60_000, "sha256": name}
    assert parts[2] == {
        **image,
        "media_type": None,
        "url": web_image,
        "bytes": None,
        "sha256": None,
    }
    assert later_reply["messages"][1]["parts"][1] == {**parts[1], "bytes": None}


async def test_a_long_text_is_described_and_not_shown(
    make_settings: MakeSettings, nats: NatsServer, database: Database, start: Start
) -> None:
    limits = {"drain_s": 2, "prompt_bytes": 20_000, "text_bytes": 100_000}
    settings = make_settings(nats=Nats(url=nats.url), database=database, limits=limits)
    async with start(settings, "ingest") as web:
        await submit(web, prompt="ä" * 30_000)
        _, reply = await call(web, "GET", f"/fusions/{ONE}/prompt")

    (message,) = reply["messages"]
    (part,) = message["parts"]
    assert len(message["content"]) + part["chars"] == 30_000
    assert part["bytes"] == 2 * part["chars"]
    assert set(message["content"]) == {"ä"}
    assert part["sha256"] == ids.digest("text", "default", "ä" * part["chars"]).hex()
    assert [part[name] for name in ("kind", "url", "media_type", "detail")] == ["text"] + [None] * 3
    assert part["at"] == len(message["content"]) // 2


async def test_what_is_deleted_or_unknown_has_no_prompt_and_no_events(
    settings: Settings, start: Start
) -> None:
    async with start(settings) as web:
        await call(web, "POST", "/fusions?wait_s=200", json=BODY)
        store = Store(settings.database)
        after = datetime.now(UTC) + timedelta(days=1)
        assert await Retention(store).delete_texts("default", after, after) == 1
        await store.close()
        for kind in ("prompt", "events"):
            status, reply = await call(web, "GET", f"/fusions/{ONE}/{kind}")
            assert (status, reply["error"]["code"]) == (410, "texts_deleted"), kind
            for wrong in (ONE[:-1] + "q", "*", "%3E", "a%00b"):
                status, reply = await call(web, "GET", f"/fusions/{wrong}/{kind}")
                assert (status, reply["error"]["code"]) == (404, "not_found"), (kind, wrong)


# -- events -----------------------------------------------------------------------------------


class EventReader:
    """The events of a stream, as they come."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.comments = 0
        self.events: list[tuple[str, dict[str, Any]]] = []

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    def of(self, name: str) -> list[dict[str, Any]]:
        return [event for event_name, event in self.events if event_name == name]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Read on until then, or to the end."""
        name = ""
        async for line in self.response.content:
            if line.startswith(b":"):
                self.comments += 1
            elif line.startswith(b"event: "):
                name = line[7:].decode().strip()
            elif line.startswith(b"data: "):
                self.events.append((name, json.loads(line[6:])))
            else:
                assert line == b"\n"
            if condition():
                return

    async def to_end(self) -> None:
        await self.until(lambda: False)


@asynccontextmanager
async def following(web: Web, fusion_id: str = ONE) -> AsyncIterator[EventReader]:
    async with web.get(f"/v1/fusions/{fusion_id}/events") as response:
        assert response.status == 200, await response.text()
        yield EventReader(response)


def calls(reader: EventReader) -> Counter[tuple[int, str]]:
    return Counter((event["round"], event["call"]) for event in reader.of("candidate"))


async def test_a_fusion_is_told_as_it_happens_and_alike_to_who_comes_later(
    settings: Settings, running: Running, start: Start, nats: NatsServer
) -> None:
    async with start(settings, "judge", "dispatcher", "ingest") as web:
        await submit(web)
        async with following(web) as live:
            await live.until(lambda: live.names == ["plan"])
            headers = live.response.headers
            async with running(settings, "worker-remote"):
                await live.to_end()
        async with following(web) as late:
            await late.to_end()
        _, fusion = await call(web, "GET", f"/fusions/{ONE}")

    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["x-accel-buffering"] == "no"
    (plan,) = live.of("plan")
    assert (plan["id"], plan["mode"], plan["pool"]) == (ONE, "best-of", "default")
    member = {"tier": "remote", "samples": 1, "wave": 0}
    assert plan["members"] == [{"name": name, "model": name, **member} for name in "abc"]
    assert (plan["judge"], plan["jury"], plan["excluded"]) == (
        {"model": "j", "tier": "remote"},
        [],
        [],
    )
    times = [
        datetime.fromisoformat(plan[f"{name}_at"])
        for name in ("planned", "panel_deadline", "deadline")
    ]
    assert times == sorted(times)

    (round_,) = live.of("round")
    assert (round_["id"], round_["round"]) == (ONE, 1)
    assert {(c["kind"], c["model"], c["member"]) for c in round_["calls"]} == {
        ("verdict", "j", None)
    }
    of_judge = len(round_["calls"])
    assert live.names == ["plan", *["candidate"] * 3, "round", *["candidate"] * of_judge, "outcome"]
    asked = {(1, call["call"]) for call in round_["calls"]}
    assert calls(live) == dict.fromkeys({(0, "a"), (0, "b"), (0, "c")} | asked, 1)
    answers = {answer["member"]: answer for answer in fusion["answers"]}
    for event in live.of("candidate"):
        assert (event["tier"], event["ok"], event["error_code"]) == ("remote", True, None)
        assert (event["is_cut"], event["tool_calls"], event["id"]) == (False, [], ONE)
        assert event["latency_ms"] >= 0
        if event["round"] == 0:
            answer = answers[event["member"]]
            assert (event["kind"], event["model"]) == ("answer", event["member"])
            assert (event["content"], event["cost_usd"]) == (answer["content"], answer["cost_usd"])
        else:
            assert (event["kind"], event["model"], event["member"]) == ("verdict", "j", None)
    assert live.of("outcome") == [fusion]

    assert late.names == live.names
    by_text = [sorted(map(json.dumps, reader.events)) for reader in (live, late)]
    assert by_text[0] == by_text[1]


async def test_who_comes_in_the_middle_gets_what_is_stored_first(
    settings: Settings, start: Start, model_server: ModelServer
) -> None:
    model_server.set_script(Script(models={"b": SLOW, "c": SLOW}))
    async with start(settings) as web:
        await submit(web)

        async def has_answer() -> bool:
            return len(await rows(settings, "SELECT call FROM candidates")) == 1

        await eventually(has_answer)
        async with following(web) as reader:
            await reader.until(lambda: len(reader.events) == 2)
            assert reader.names == ["plan", "candidate"]
            await call(web, "POST", f"/fusions/{ONE}/cancel")
            await reader.to_end()

    assert reader.names[-1] == "outcome"
    assert reader.of("outcome")[0]["status"] == "cancelled"
    first, *others = reader.of("candidate")
    assert (first["member"], first["ok"]) == ("a", True)
    assert {event["error_code"] for event in others} <= {"cancelled"}
    assert set(calls(reader).values()) == {1}


async def test_what_the_bus_loses_comes_before_the_outcome(
    settings: Settings, running: Running, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EventQueue, "add", lambda queue, event: None)
    async with start(settings, "judge", "dispatcher", "ingest") as web:
        await submit(web)
        async with following(web) as reader, running(settings, "worker-remote"):
            await reader.to_end()

    assert reader.names[0] == "plan"
    assert reader.names[-1] == "outcome"
    assert set(calls(reader)) > {(0, "a"), (0, "b"), (0, "c")}
    assert set(calls(reader).values()) == {1}
    assert Counter(reader.names)["round"] == 1


async def test_what_was_published_before_the_stream_and_stored_after_it_is_not_missing(
    settings: Settings, start: Start, model_server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_server.set_script(Script(models={"b": SLOW, "c": SLOW}))
    reads: list[History] = []

    async def read_before_it_is_stored(store: Store, fusion_ids: list[str]) -> History | None:
        found = await read_history(store, fusion_ids)
        assert found is not None
        reads.append(found)
        return found if len(reads) > 1 else replace(found, plan=None, received=())

    monkeypatch.setattr(events, "history", read_before_it_is_stored)
    monkeypatch.setattr(events, "SETTLE_S", 0.05)
    monkeypatch.setattr(service, "HEARTBEAT_S", 0.05)
    async with start(settings) as web:
        await submit(web)

        async def has_answer() -> bool:
            return len(await rows(settings, "SELECT call FROM candidates")) == 1

        await eventually(has_answer)
        async with following(web) as reader:
            # The first one, that of the first silence, and that of the second.
            await reader.until(lambda: reader.comments == 3)

    assert reader.names == ["plan", "candidate"]


async def test_a_round_is_told_with_its_first_result(
    make_settings: MakeSettings,
    nats: NatsServer,
    database: Database,
    running: Running,
    start: Start,
    model_server: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # No silence: what it is told comes with a message.
    monkeypatch.setattr(events, "SETTLE_S", 3600.0)
    monkeypatch.setattr(service, "HEARTBEAT_S", 3600.0)
    model_server.set_script(Script(models={"k": SLOW}))
    judge = {"kind": "remote", "base_url": model_server.base_url, "model": "k"}
    settings = make_settings(
        nats=Nats(url=nats.url), database=database, pool={"jury": ["j", "k"]}, models={"k": judge}
    )
    async with start(settings, "judge", "dispatcher", "ingest") as web:
        await submit(web)

        async def is_planned() -> bool:
            return bool(await rows(settings, "SELECT 1 FROM fusions WHERE plan IS NOT NULL"))

        await eventually(is_planned)
        async with following(web) as reader:
            await reader.until(lambda: reader.names == ["plan"])
            async with running(settings, "worker-remote"):
                await reader.until(lambda: any(number == 1 for number, _ in calls(reader)))
                names = reader.names
                _, fusion = await call(web, "GET", f"/fusions/{ONE}")
                await call(web, "POST", f"/fusions/{ONE}/cancel")
                await reader.to_end()

    assert fusion["status"] == "running"
    assert names == ["plan", *["candidate"] * 3, "round", "candidate"]
    (round_,) = reader.of("round")
    assert {asked["model"] for asked in round_["calls"]} == {"j", "k"}


async def test_calls_that_nobody_asked_for_are_not_told(
    settings: Settings, start: Start, model_server: ModelServer, ops: Bus
) -> None:
    """A worker's account may publish candidates of any name; the judge refuses them."""
    model_server.set_script(Script(models={"b": SLOW, "c": SLOW}))
    now = datetime.now(UTC)

    async def forge(round_: int, name: str, model: str) -> None:
        forged = Candidate(
            task_id="t",
            fusion_id=ONE,
            round=round_,
            call=name,
            member=name,
            model=model,
            tier="remote",
            provider="openai",
            content="forged",
            started_at=now,
            finished_at=now,
        )
        # Not stored, so that it is all the same whether the judge refuses it.
        inbox = await ops.client.subscribe(candidate_subject(ONE, round_, name))
        await ops.client.publish(candidate_subject(ONE, round_, name), forged.encode())
        await inbox.next_msg(timeout=60)
        await inbox.unsubscribe()

    async with start(settings) as web:
        await submit(web)
        async with following(web) as reader:
            await reader.until(lambda: len(reader.events) == 2)
            for forged_call in ((0, "x", "a"), (0, "b", "a"), (7, "b", "b"), (0, "a", "a")):
                await forge(*forged_call)
            await call(web, "POST", f"/fusions/{ONE}/cancel")
            await reader.to_end()

    assert "forged" not in json.dumps(reader.of("candidate"))
    assert {number for number, _ in calls(reader)} == {0}
    assert set(calls(reader).values()) == {1}


async def test_a_long_answer_is_cut_and_stands_on_one_line(
    settings: Settings, start: Start, model_server: ModelServer
) -> None:
    answer = "one\u2028two\u2029three\u0085four\n" * 400
    model_server.set_script(Script(models={"*": ModelScript(answer=answer)}))
    async with start(settings) as web:
        await call(web, "POST", "/fusions?wait_s=200", json=BODY)
        async with web.get(f"/v1/fusions/{ONE}/events") as response:
            raw = (await response.read()).decode()

    assert len(raw.splitlines()) == raw.count("\n")
    told = [json.loads(line[6:]) for line in raw.split("\n") if line.startswith("data: ")]
    answers = [event for event in told if event.get("kind") == "answer"]
    assert [event["content"] for event in answers] == [answer[: event_encoder.MOST_CHARS]] * 3
    assert all(event["is_cut"] for event in answers)


async def test_a_stream_is_never_silent_and_leaves_nothing_when_its_client_leaves(
    settings: Settings,
    start: Start,
    model_server: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "HEARTBEAT_S", 0.05)
    model_server.set_script(Script(models={"*": SLOW}))
    ingest = build_service("ingest", settings)
    parts: Dependencies = cast("FastAPI", ingest.app()).state.dependencies
    async with start(settings, "judge", "worker-remote", "dispatcher", ingest) as web:
        await submit(web)
        client = parts.watcher._bus.client
        before = len(client._subs)
        async with following(web) as reader:
            await reader.until(lambda: reader.comments >= 5 and reader.names == ["plan"])
            assert len(client._subs) == before + 2
            assert parts.outcomes._events
            reader.response.close()
        await eventually(lambda: len(client._subs) == before)
        await eventually(lambda: not parts.outcomes._events)


async def test_a_fusewire_that_stops_says_that_the_fusion_goes_on(
    settings: Settings, running: Running, model_server: ModelServer
) -> None:
    model_server.set_script(Script(models={"*": SLOW}))
    async with running(settings, *ALL) as client:
        web = Web(client.url)
        await submit(web)
        response = await web.get(f"/v1/fusions/{ONE}/events")
        reader = EventReader(response)
        await reader.until(lambda: reader.names == ["plan"])
    await reader.to_end()
    await web.close()

    assert reader.names == ["plan", "error"]
    assert reader.of("error")[0]["code"] == "draining"
    assert "open the stream again" in reader.of("error")[0]["message"]


async def test_a_database_that_goes_away_ends_the_stream_with_an_error(
    settings: Settings, running: Running, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []

    async def read_once(store: Store, fusion_ids: list[str]) -> History | None:
        reads.extend(fusion_ids)
        if len(reads) > 1:
            raise Transient("the database is not available")
        return await read_history(store, fusion_ids)

    monkeypatch.setattr(events, "history", read_once)
    async with start(settings, "judge", "dispatcher", "ingest") as web:
        await submit(web)
        async with following(web) as reader, running(settings, "worker-remote"):
            await reader.to_end()

    assert reader.names[-1] == "error"
    assert "outcome" not in reader.names
    error = reader.of("error")[0]
    assert error["code"] == "unavailable"
    assert error["message"].startswith("the database is not available; open the stream again")


# -- what runs now ----------------------------------------------------------------------------


async def test_what_runs_is_counted_for_the_caller_s_tenant(
    secured: Settings, start: Start
) -> None:
    async with start(secured, "ingest") as web:
        acme, bolt = [await make_key(secured, name) for name in ("acme", "bolt")]
        for number in range(3):
            body = {"prompt": "Why?", "custom_id": str(number)}
            await call(web, "POST", "/fusions", acme, json=body)
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", b'{"prompt":"Why?"}\n', filename="in.jsonl")
        _, file = await call(web, "POST", "/files", bolt, data=form)
        wanted = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
        await call(web, "POST", "/batches", bolt, json=wanted)
        _, of_acme = await call(web, "GET", "/status", acme)

        async def bolt_runs() -> dict[str, Any]:
            _, reply = await call(web, "GET", "/status", bolt)
            return cast("dict[str, Any]", reply) if reply["running"] else {}

        of_bolt = await eventually(bolt_runs)
        nobody = await make_key(secured, "carl", scopes="read")
        _, of_nobody = await call(web, "GET", "/status", nobody)

    assert (of_acme["object"], of_acme["tenant"]) == ("status", "acme")
    assert (of_acme["running"], of_acme["batches"]) == (3, 0)
    assert of_acme["oldest_running_s"] > 0
    assert (of_bolt["running"], of_bolt["batches"]) == (1, 1)
    assert of_nobody == {
        "object": "status",
        "tenant": "carl",
        "running": 0,
        "oldest_running_s": None,
        "batches": 0,
    }


async def test_what_has_ended_does_not_run(settings: Settings, start: Start) -> None:
    async with start(settings) as web:
        await call(web, "POST", "/fusions?wait_s=200", json=BODY)
        _, reply = await call(web, "GET", "/status")

    assert (reply["running"], reply["oldest_running_s"], reply["batches"]) == (0, None, 0)


async def fetch(pull: JetStreamContext.PullSubscription, count: int) -> list[Msg]:
    """So many messages, however many come at once."""
    messages: list[Msg] = []
    while len(messages) < count:
        messages += await pull.fetch(count - len(messages), timeout=60)
    return messages


async def test_an_admin_sees_what_waits_in_the_queues(
    settings: Settings, start: Start, ops: Bus
) -> None:
    async with start(settings, "ingest") as web:
        await submit(web, custom_id="1", priority="high")
        await submit(web, custom_id="2", priority="high")
        # Delivered and not acknowledged, and one of them twice.
        pull = await ops.js.pull_subscribe_bind("dispatcher-high", stream="FW_PROMPT")
        first, *_ = await fetch(pull, 2)
        await first.nak()
        await fetch(pull, 1)
        await submit(web, custom_id="3", priority="high")

        async def are_published() -> bool:
            return (await ops.js.stream_info("FW_PROMPT")).state.messages == 3

        await eventually(are_published)
        _, reply = await call(web, "GET", "/status")

    assert reply["queues_error"] is None
    found = {(queue["stream"], queue["durable"]): queue for queue in reply["queues"]}
    assert list(found) == sorted(found, key=lambda key: (queues.STREAMS.index(key[0]), key[1]))
    assert set(found) == {
        *(("FW_PROMPT", f"dispatcher-{priority}") for priority in ("high", "normal", "low")),
        ("FW_ROUND", "dispatcher"),
        *(("FW_TASK_REMOTE", f"default-{priority}") for priority in ("high", "normal", "low")),
        ("FW_CANDIDATE", "judge"),
        ("FW_IN", "ingest"),
    }
    idle = {"waiting": 0, "in_flight": 0, "redelivered": 0}
    busy = {"waiting": 1, "in_flight": 2, "redelivered": 1}
    for (stream, durable), queue in found.items():
        expected = busy if durable == "dispatcher-high" else idle
        assert queue == {"stream": stream, "durable": durable, **expected}


async def test_a_broker_that_does_not_answer_hides_the_queues_alone(
    settings: Settings, start: Start, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(settings, "ingest") as web:
        await submit(web)
        with monkeypatch.context() as patch:
            patch.setattr(queues, "WITHIN_S", 0.0)
            _, slow = await call(web, "GET", "/status")
        await nats.kill()

        async def is_seen() -> dict[str, Any]:
            _, reply = await call(web, "GET", "/status")
            return cast("dict[str, Any]", reply) if reply["queues"] is None else {}

        away = await eventually(is_seen)
        await nats.start()

    assert (slow["queues"], slow["queues_error"]) == (None, "NATS does not answer within 0 s")
    assert away["queues_error"].startswith("NATS does not answer")
    assert (slow["running"], away["running"]) == (1, 1)
