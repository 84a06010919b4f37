"""The doors on the real parts: what is accepted, what is refused; a bad line stops nobody."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import pytest
from nats.js import api
from sqlalchemy import text

from fusewire import ids
from fusewire.bus import Bus
from fusewire.errors import StartupError, Transient
from fusewire.http_server import listen
from fusewire.settings import Http, Nats, Settings
from fusewire.store.engine import Store
from fusewire.store.queries import FusionStatus, standings
from fusewire.testing.eventually import PATIENCE_S, eventually
from fusewire.testing.nats_server import NatsServer
from fusewire_cli.client import ApiError, Client
from fusewire_ingest.api import fusions
from fusewire_ingest.intake import Intake, Line

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
LIMIT = 2_000


@pytest.fixture
def settings(make_settings: MakeSettings, nats: NatsServer) -> Settings:
    return make_settings(nats=Nats(url=nats.url), limits={"drain_s": 2, "prompt_bytes": LIMIT})


@pytest.fixture
async def client(settings: Settings, running: Running) -> AsyncIterator[Client]:
    """Ingest alone: what is accepted stays undecided."""
    async with running(settings, "ingest") as client:
        yield client


@pytest.fixture
async def http(client: Client) -> AsyncIterator[aiohttp.ClientSession]:
    """A plain HTTP client: nothing is tried again, and the answer is seen as it is."""
    async with aiohttp.ClientSession(client.url) as session:
        yield session


@pytest.fixture
async def producer(client: Client, nats: NatsServer) -> AsyncIterator[Bus]:
    """Someone who already lives on the bus."""
    bus = Bus("producer", Nats(url=nats.url), drain_s=2)
    await bus.connect(timeout_s=120)
    yield bus
    await bus.stop()


async def standing(
    settings: Settings, tenant: str, custom_id: str, batch: str | None = None
) -> FusionStatus | None:
    store = Store(settings.database)
    found = await standings(store, tenant, [ids.fusion_id(tenant, batch, custom_id)])
    await store.close()
    return found[0] if found else None


# -- HTTP -------------------------------------------------------------------------------------

BAD = [
    # what, body, status, code, param
    ("no JSON", b"Why?", 400, "invalid_json", None),
    ("nothing", b"", 400, "invalid_json", None),
    ("nothing to ask", b"{}", 400, "invalid_request", "messages"),
    ("an unknown key", b'{"prompt":"x","modle":"y"}', 400, "invalid_request", "modle"),
    ("an unknown pool", b'{"prompt":"x","pool":"defualt"}', 404, "unknown_pool", "pool"),
    ("an unknown mode", b'{"prompt":"x","mode":"vote"}', 400, "unknown_mode", "mode"),
    ("too much", b'{"prompt":"' + b"x" * LIMIT + b'"}', 413, "prompt_too_large", None),
]


@pytest.mark.parametrize(
    ("body", "status", "code", "param"), [row[1:] for row in BAD], ids=[row[0] for row in BAD]
)
async def test_a_bad_request_is_refused_in_openai_s_shape(
    http: aiohttp.ClientSession, body: bytes, status: int, code: str, param: str | None
) -> None:
    async with http.post("/v1/fusions", data=body) as response:
        answer = await response.json()

    assert response.status == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert (answer["error"]["code"], answer["error"]["param"]) == (code, param)
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/fusions/fnone", 404),
        ("GET", "/v1/none", 404),
        ("DELETE", "/v1/fusions", 405),
        ("GET", "/v1/fusions", 400),
        ("GET", "/v1/fusions/fnone?wait_s=-1", 400),
        ("POST", "/v1/fusions?wait_s=soon", 400),
        ("POST", "/v1/fusions?batch_id=a%20b", 400),
        ("POST", "/v1/fusions?batch_id=a%00b", 400),
        ("GET", "/v1/fusions/a%00b", 404),
    ],
)
async def test_a_bad_address_is_refused_in_openai_s_shape(
    http: aiohttp.ClientSession, method: str, path: str, status: int
) -> None:
    async with http.request(
        method, path, data=b'{"prompt":"x"}' if method == "POST" else None
    ) as response:
        answer = await response.json()

    assert response.status == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}


async def test_a_prompt_is_accepted(http: aiohttp.ClientSession, settings: Settings) -> None:
    async with http.post("/v1/fusions", json={"prompt": "Why?", "custom_id": "one"}) as response:
        answer = await response.json()

    assert response.status == 202
    assert answer["id"] == ids.fusion_id("default", None, "one")
    assert (answer["custom_id"], answer["status"], answer["is_repetition"]) == (
        "one",
        "running",
        False,
    )
    assert await standing(settings, "default", "one")
    async with http.get(f"/v1/fusions/{answer['id']}") as response:
        assert (response.status, (await response.json())["status"]) == (200, "running")


async def test_the_idempotency_key_is_the_custom_id_where_there_is_none(
    http: aiohttp.ClientSession,
) -> None:
    async def post(key: str, **fields: Any) -> tuple[int, dict[str, Any]]:
        headers = {"Idempotency-Key": key}
        async with http.post(
            "/v1/fusions", json={"prompt": "Why?", **fields}, headers=headers
        ) as response:
            return response.status, await response.json()

    first, again = (await post("k1"))[1], (await post("k1"))[1]
    assert (first["is_repetition"], again["is_repetition"]) == (False, True)
    assert first["id"] == again["id"]
    assert (await post("k1", custom_id="own"))[1]["id"] != first["id"]
    status, answer = await post("k" * 300)
    assert (status, answer["error"]["code"]) == (400, "invalid_request")


async def test_without_any_id_each_is_its_own(client: Client) -> None:
    one, two = await client.submit({"prompt": "Why?"}), await client.submit({"prompt": "Why?"})

    assert one["id"] != two["id"]


async def test_another_prompt_under_the_same_id_is_a_conflict(client: Client) -> None:
    await client.submit({"prompt": "Why?", "custom_id": "one"})

    with pytest.raises(ApiError) as caught:
        await client.submit({"prompt": "Why not?", "custom_id": "one"})

    assert (caught.value.status, caught.value.code) == (409, "custom_id_conflict")
    assert "'one'" in caught.value.message


async def test_waiting_ends_without_an_outcome(client: Client) -> None:
    shown = await client.submit({"prompt": "Why?"}, wait_s=0.05)

    assert shown["status"] == "running"


# -- JSONL ------------------------------------------------------------------------------------


async def test_one_bad_line_stops_nobody(client: Client, settings: Settings) -> None:
    lines = [
        '{"prompt": "Why?", "custom_id": "one"}',
        "not JSON",
        "",
        '{"prompt": "Why?"}',
        '{"prompt": "' + "x" * (LIMIT * 3) + '"}',
        '{"prompt": "Why?", "pool": "none"}',
        '{"prompt": "Other?", "custom_id": "one"}',
        '{"prompt": "Why?", "custom_id": "one"}',
        '{"prompt": "Why?", "custom_id": "last"}',
    ]

    results = await client.submit_lines(lines, "b1")

    told = {r["line"]: r.get("custom_id") or r["error"]["code"] for r in results}
    assert told == {
        1: "one",
        2: "invalid_json",
        4: "line-4",
        5: "prompt_too_large",
        6: "unknown_pool",
        7: "custom_id_conflict",
        8: "one",
        9: "last",
    }
    assert [r["line"] for r in results] == sorted(told)
    assert [r["line"] for r in results if r.get("is_repetition")] == [8]
    for custom_id in ("one", "line-4", "last"):
        found = await standing(settings, "default", custom_id, "b1")
        assert found is not None
        assert found.batch_id == "b1"


async def test_a_batch_may_be_submitted_again(client: Client) -> None:
    lines = [json.dumps({"prompt": f"Why {i}?"}) for i in range(450)]

    first, again = await client.submit_lines(lines, "b1"), await client.submit_lines(lines, "b1")

    assert [r["is_repetition"] for r in first] == [False] * 450
    assert [r["is_repetition"] for r in again] == [True] * 450
    assert [r["id"] for r in first] == [r["id"] for r in again]
    shown = await client.get_many([r["id"] for r in first])
    assert {s["id"] for s in shown} == {r["id"] for r in first}


@pytest.mark.parametrize(
    ("fails", "status"), [({2}, 202), ({1}, 503)], ids=["after some", "before any"]
)
async def test_of_many_lines_those_that_were_accepted_are_told(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch, fails: set[int], status: int
) -> None:
    """Whoever believes that nothing was accepted buys it again."""
    submit_lines, calls = Intake.submit_lines, itertools.count(1)

    async def sometimes(self: Intake, *args: Any, **kwargs: Any) -> list[Line]:
        if next(calls) in fails:
            raise Transient("the database is not available")
        return await submit_lines(self, *args, **kwargs)

    monkeypatch.setattr(Intake, "submit_lines", sometimes)
    monkeypatch.setattr(fusions, "JSONL_GROUP", 2)
    body = "\n".join(f'{{"prompt":"Why {i}?","custom_id":"{i}"}}' for i in range(5))
    headers = {"content-type": "application/x-ndjson"}
    async with http.post("/v1/fusions", data=body, headers=headers) as response:
        answer = await response.json()

    assert response.status == status
    if status == 202:
        told = [line.get("custom_id") or line["error"]["code"] for line in answer["lines"]]
        assert told == ["0", "1", "unavailable", "unavailable", "4"]
        assert (answer["accepted"], answer["refused"]) == (3, 2)


@pytest.mark.parametrize(
    "kind", ["application/x-ndjson", "application/jsonl; charset=utf-8", "application/jsonlines"]
)
async def test_jsonl_is_known_by_its_type(http: aiohttp.ClientSession, kind: str) -> None:
    async with http.post(
        "/v1/fusions", data=b'{"prompt":"a"}\n{"prompt":"b"}', headers={"content-type": kind}
    ) as r:
        answer = await r.json()

    assert (r.status, answer["accepted"], answer["refused"]) == (202, 2, 0)
    assert answer["batch_id"].startswith("req-")


# -- NATS -------------------------------------------------------------------------------------


async def intake_is_empty(bus: Bus) -> bool:
    return (await bus.js.stream_info("FW_IN")).state.messages == 0


async def wait_until_published(bus: Bus, count: int) -> None:
    """So many prompts went on to the dispatcher: soon after they were committed, not at once."""

    async def all_there() -> bool:
        return (await bus.js.stream_info("FW_PROMPT")).state.last_seq == count

    await eventually(all_there)


async def test_a_prompt_left_on_the_bus_is_accepted(producer: Bus, settings: Settings) -> None:
    await producer.publish("fw.in.acme", b'{"prompt":"Why?","custom_id":"one"}')
    await producer.publish("fw.in.acme", b'{"prompt":"Why?"}', msg_id="their-id")
    await producer.publish("fw.in.acme", b'{"prompt":"Why?"}')

    await eventually(lambda: intake_is_empty(producer))

    store = Store(settings.database)
    async with store.read() as connection:
        custom_ids = set(
            (
                await connection.execute(
                    text("SELECT custom_id FROM prompts WHERE tenant = 'acme'")
                )
            ).scalars()
        )
    await store.close()
    (unnamed,) = custom_ids - {"one", "their-id"}
    stream, stored_ns, sequence = unnamed.split("-")
    # A stream that is made anew counts from 1 again; the time tells its messages apart.
    assert (stream, sequence, int(stored_ns) > 1.7e18) == ("FW_IN", "3", True)
    for custom_id in custom_ids:
        assert await standing(settings, "acme", custom_id), custom_id
    assert await standing(settings, "default", "one") is None
    await wait_until_published(producer, 3)


REFUSED = [
    ("no JSON", "fw.in.acme", b"Why?", "invalid_json"),
    ("an unknown pool", "fw.in.acme", b'{"prompt":"x","pool":"none"}', "unknown_pool"),
    (
        "an unknown mode, by one who cannot know that its pool is edge-only",
        "fw.in.acme",
        b'{"prompt":"x","residency":"any","mode":"none"}',
        "unknown_mode",
    ),
    ("too much", "fw.in.acme", b'{"prompt":"' + b"x" * LIMIT + b'"}', "prompt_too_large"),
    ("a bad tenant", "fw.in.ACME!", b'{"prompt":"x"}', "invalid_request"),
]


@pytest.mark.parametrize(
    ("subject", "body", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
async def test_what_is_refused_on_the_bus_lies_in_fw_dead_with_the_reason(
    producer: Bus, subject: str, body: bytes, reason: str
) -> None:
    await producer.publish(subject, body)
    await producer.publish("fw.in.acme", b'{"prompt":"good"}')

    await eventually(lambda: intake_is_empty(producer))

    dead: api.RawStreamMsg = await producer.js.get_msg(
        "FW_DEAD", subject="fw.dead.ingest.FW_IN", direct=False
    )
    assert dead.headers is not None
    # Not the message, which may quote the prompt: that is told to the producer alone.
    assert dead.headers["Fw-Reason"] == reason
    assert dead.headers["Fw-Subject"] == subject
    assert dead.headers["Fw-Body"] == "sealed"
    assert (await producer.js.stream_info("FW_DEAD")).state.messages == 1
    await wait_until_published(producer, 1)


async def test_a_conflict_on_the_bus_is_refused(producer: Bus) -> None:
    await producer.publish("fw.in.acme", b'{"prompt":"Why?","custom_id":"one"}')
    await eventually(lambda: intake_is_empty(producer))
    await producer.publish("fw.in.acme", b'{"prompt":"Why not?","custom_id":"one"}')
    await eventually(lambda: intake_is_empty(producer))

    dead = await producer.js.get_msg("FW_DEAD", subject="fw.dead.ingest.FW_IN", direct=False)
    assert dead.headers is not None
    assert dead.headers["Fw-Reason"] == "custom_id_conflict"


async def replies(producer: Bus) -> tuple[str, Callable[[], Any]]:
    """An inbox, and how to wait for its next message."""
    inbox = producer.client.new_inbox()
    heard = await producer.client.subscribe(inbox)

    async def next_reply() -> Any:
        return json.loads((await heard.next_msg(timeout=PATIENCE_S)).data)

    return inbox, next_reply


async def test_a_producer_hears_what_became_of_its_prompt(
    producer: Bus, settings: Settings
) -> None:
    inbox, next_reply = await replies(producer)
    headers = {"Fw-Reply-To": inbox}

    await producer.publish("fw.in.acme", b'{"prompt":"Why?","custom_id":"one"}', headers=headers)
    first = await next_reply()
    await producer.publish("fw.in.acme", b'{"prompt":"Why?","custom_id":"one"}', headers=headers)
    again = await next_reply()
    await producer.publish("fw.in.acme", b'{"prompt":"Why?","pool":"none"}', headers=headers)
    refused = await next_reply()

    fusion = ids.fusion_id("acme", None, "one")
    assert first == {"id": fusion, "custom_id": "one", "is_repetition": False}
    assert again == {**first, "is_repetition": True}
    assert (refused["error"]["code"], refused["error"]["param"]) == ("unknown_pool", "pool")
    assert await standing(settings, "acme", "one")
    await wait_until_published(producer, 1)


async def test_the_message_id_is_the_custom_id(producer: Bus) -> None:
    inbox, next_reply = await replies(producer)

    await producer.publish(
        "fw.in.acme", b'{"prompt":"Why?"}', msg_id="m1", headers={"Fw-Reply-To": inbox}
    )
    assert (await next_reply())["custom_id"] == "m1"
    await producer.publish(
        "fw.in.acme", b'{"prompt":"Why?","custom_id":"m1"}', headers={"Fw-Reply-To": inbox}
    )
    assert (await next_reply())["is_repetition"]
    await wait_until_published(producer, 1)


@pytest.mark.parametrize(
    "subject",
    ["fw.dead.x", "_INBOX", "_INBOX.>", "_INBOX.a.*", "x._INBOX.a", "_INBOX." + "a" * 300],
)
async def test_nothing_is_said_but_to_an_inbox(
    producer: Bus, settings: Settings, subject: str
) -> None:
    await producer.publish(
        "fw.in.acme", b'{"prompt":"Why?","custom_id":"one"}', headers={"Fw-Reply-To": subject}
    )
    await eventually(lambda: intake_is_empty(producer))

    dead = await producer.js.get_msg("FW_DEAD", subject="fw.dead.ingest.FW_IN", direct=False)
    assert dead.headers is not None
    assert "Fw-Reply-To must be an inbox" in dead.headers["Fw-Reason"]
    assert await standing(settings, "acme", "one") is None


# -- operations -------------------------------------------------------------------------------


async def test_health_readiness_and_metrics(http: aiohttp.ClientSession, nats: NatsServer) -> None:
    async def get(path: str) -> tuple[int, str]:
        async with http.get(path) as response:
            return response.status, await response.text()

    assert await get("/healthz") == (200, "ok ingest\n")
    assert await get("/readyz") == (200, "ok ingest\n")
    status, metrics = await get("/metrics")
    assert status == 200
    assert "fusewire_prompts_accepted_total" in metrics

    await nats.kill()
    assert (await get("/readyz"))[0] == 200  # what is accepted is committed, and published later


async def test_a_service_that_needs_nats_is_not_ready_without_it(
    settings: Settings, running: Running, nats: NatsServer
) -> None:
    async with running(settings, "judge") as client, aiohttp.ClientSession(client.url) as http:

        async def status(path: str) -> int:
            async with http.get(path) as response:
                return response.status

        assert (await status("/readyz"), await status("/healthz")) == (200, 200)
        await nats.kill()

        async def unready() -> bool:
            return await status("/readyz") == 503

        await eventually(unready)
        assert await status("/healthz") == 200
        await nats.start()

        async def ready() -> bool:
            return await status("/readyz") == 200

        await eventually(ready)


async def test_a_port_in_use_is_named_with_what_to_do() -> None:
    held = listen(Http(port=0))
    held.listen()
    port = held.getsockname()[1]

    with pytest.raises(StartupError) as caught:
        listen(Http(port=port))

    assert f"port {port} on 127.0.0.1 cannot be used: Address already in use" in caught.value.what
    assert "FUSEWIRE_HTTP__PORT" in caught.value.mend
    held.close()


async def test_many_clients_at_once(client: Client) -> None:
    answers = await asyncio.gather(
        *(client.submit({"prompt": "Why?", "custom_id": str(i % 20)}) for i in range(100))
    )

    assert sum(not a["is_repetition"] for a in answers) == 20
