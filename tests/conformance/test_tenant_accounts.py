"""Tenants as users of NATS: each writes into its own intake, and hears its own replies alone.

One real nats-server with the files of deploy/nats, and a real ingest behind it.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError
from sqlalchemy import text

from fusewire import provision
from fusewire.bus import Bus
from fusewire.settings import Database, Settings
from fusewire.store.engine import Store
from fusewire.testing.eventually import eventually
from fusewire.testing.nats_accounts import Keys, hub
from fusewire.testing.nats_server import NatsServer
from fusewire.topology import topology
from fusewire_ingest.service import build

MakeSettings = Callable[..., Settings]

DEPLOY = Path(__file__).parents[2] / "deploy" / "nats"
TENANTS = ["acme", "other-1"]
REPLIES = "Fw-Reply-To"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys.make(tmp_path / "keys", tenants=TENANTS)


@pytest.fixture
async def server(tmp_path: Path, keys: Keys) -> AsyncIterator[NatsServer]:
    """The hub, provisioned."""
    async with hub(tmp_path / "hub", DEPLOY, keys) as running:
        async with operator(keys, running) as ops:
            await provision.apply(ops.js, topology({"a": "remote"}, ["default"]))
        yield running


@contextlib.asynccontextmanager
async def operator(keys: Keys, server: NatsServer) -> AsyncIterator[Bus]:
    bus = Bus("ops", keys.settings("ops", server.url), drain_s=2)
    await bus.connect(timeout_s=120)
    try:
        yield bus
    finally:
        await bus.stop()


@contextlib.asynccontextmanager
async def producer(tenant: str, keys: Keys, server: NatsServer) -> AsyncIterator[Client]:
    """A plain client of NATS, as docs/how-to/nats-producers.md says."""
    client = await nats.connect(
        server.url,
        nkeys_seed=str(keys.folder / f"tenant-{tenant}.seed"),
        inbox_prefix=f"_INBOX.{tenant}".encode(),
        error_cb=ignore,
    )
    try:
        yield client
    finally:
        await client.close()


async def ignore(_: Exception) -> None:
    """The server's log tells of violations."""


async def submit(client: Client, tenant: str, custom_id: str) -> dict[str, Any]:
    """Publish a prompt; returns the reply of ingest."""
    inbox = client.new_inbox()
    replies = await client.subscribe(inbox)
    body = json.dumps({"prompt": "Why?", "custom_id": custom_id}).encode()
    stored = await client.jetstream().publish(f"fw.in.{tenant}", body, headers={REPLIES: inbox})
    assert stored.stream == "FW_IN"
    reply: dict[str, Any] = json.loads((await replies.next_msg(timeout=100)).data)
    return reply


@contextlib.asynccontextmanager
async def ingest_running(settings: Settings) -> AsyncIterator[None]:
    ingest = build(settings)
    await ingest.start()
    try:
        yield
    finally:
        ingest.close()
        await ingest.stop()


@pytest.fixture
def settings(
    keys: Keys, server: NatsServer, make_settings: MakeSettings, sqlite_database: Database
) -> Settings:
    return make_settings(nats=keys.settings("ingest", server.url), database=sqlite_database)


async def stored(settings: Settings) -> list[tuple[str, str]]:
    """Tenant and custom id of each stored prompt, in order."""
    store = Store(settings.database)
    async with store.read() as connection:
        rows = await connection.execute(text("SELECT tenant, custom_id FROM prompts"))
        prompts = sorted((row.tenant, row.custom_id) for row in rows)
    await store.close()
    return prompts


async def test_each_tenant_submits_and_hears_its_own_replies(
    keys: Keys, server: NatsServer, settings: Settings
) -> None:
    async with ingest_running(settings):
        for tenant in TENANTS:
            async with producer(tenant, keys, server) as client:
                assert (await submit(client, tenant, "one"))["custom_id"] == "one"
    assert await stored(settings) == [(tenant, "one") for tenant in TENANTS]
    assert "Violation" not in server.log()


async def test_a_reply_goes_to_no_inbox_of_another_tenant(
    keys: Keys, server: NatsServer, settings: Settings
) -> None:
    """`_INBOX.acmex` begins as that of acme does, and is another's."""
    async with (
        ingest_running(settings),
        producer("acme", keys, server) as acme,
        operator(keys, server) as ops,
    ):
        for number, inbox in enumerate(("_INBOX.other-1.x", "_INBOX.acmex.x", "_INBOX.x")):
            body = json.dumps({"prompt": "Why?", "custom_id": f"forged-{number}"}).encode()
            await acme.jetstream().publish("fw.in.acme", body, headers={REPLIES: inbox})
        assert (await submit(acme, "acme", "own"))["custom_id"] == "own"

        async def dead_letters() -> bool:
            return bool((await ops.js.stream_info("FW_DEAD")).state.messages == 3)

        await eventually(dead_letters)
        dead = await ops.js.get_msg("FW_DEAD", subject="fw.dead.ingest.FW_IN", direct=False)
        assert dead.headers is not None
        assert "inbox prefix _INBOX.acme" in dead.headers["Fw-Reason"]
    assert await stored(settings) == [("acme", "own")]


async def violations(server: NatsServer, kind: str, subjects: set[str]) -> set[str]:
    """The subjects of which the server has refused what it was asked."""

    def refused_subjects() -> set[str]:
        lines = [line for line in server.log().splitlines() if f"{kind} Violation" in line]
        return {line.partition('Subject "')[2].partition('"')[0] for line in lines}

    with contextlib.suppress(AssertionError):
        await eventually(lambda: refused_subjects() >= subjects, timeout_s=3)
    return refused_subjects() & subjects


async def test_a_tenant_writes_nowhere_but_into_its_intake(keys: Keys, server: NatsServer) -> None:
    forbidden = {
        "fw.in.other-1",
        "fw.in.default",
        "fw.prompt.high.acme",
        "fw.prompt.normal.other-1",
        "fw.task.edge.m.high",
        "fw.task.remote.default.high",
        "fw.round.f",
        "fw.plan.f",
        "fw.candidate.f.1.a",
        "fw.outcome.acme.f",
        "fw.cancel.f",
        "fw.dead.ingest.x",
        "$KV.fw_calls.k",
        "$O.fw_blobs.C.x",
        "$JS.API.STREAM.MSG.GET.FW_IN",
        "$JS.API.STREAM.PURGE.FW_IN",
        "$JS.API.CONSUMER.MSG.NEXT.FW_IN.ingest",
        "$JS.ACK.FW_IN.ingest.1.1.1.1.1",
        "fwjs.STREAM.MSG.GET.FW_IN",
        # A forged reply, to another tenant or to a service.
        "_INBOX.other-1.x",
        "_INBOX_judge.x",
    }
    async with producer("acme", keys, server) as client:
        for subject in sorted(forbidden):
            await client.publish(subject, b"{}")
        with contextlib.suppress(NatsError):
            await client.flush()
        assert await violations(server, "Publish", forbidden) == forbidden


async def test_a_tenant_hears_nothing_of_another(keys: Keys, server: NatsServer) -> None:
    forbidden = {
        ">",
        "fw.>",
        "fw.in.>",
        "fw.in.acme",
        "fw.outcome.acme.*",
        "fw.token.*",
        "_INBOX.>",
        "_INBOX.*.x",
        "_INBOX.other-1.>",
        "_INBOX_ingest.>",
    }
    received: list[bytes] = []

    async def note(message: Any) -> None:
        received.append(message.data)

    async with (
        producer("acme", keys, server) as acme,
        producer("other-1", keys, server) as other,
        operator(keys, server) as ops,
    ):
        for subject in (*forbidden, "_INBOX.acme.>"):
            await acme.subscribe(subject, cb=note)
        with contextlib.suppress(NatsError):
            await acme.flush()
        assert await violations(server, "Subscription", forbidden) == forbidden
        theirs = await other.subscribe("_INBOX.other-1.>")
        # Twice: nats-py sends the first ping before the subscription that it holds back.
        await other.flush()
        await other.flush()

        # What ingest replies, to both.
        await ops.client.publish("_INBOX.other-1.x", b"theirs")
        await ops.client.publish("_INBOX.acme.x", b"mine")
        await ops.client.flush()
        assert (await theirs.next_msg(timeout=100)).data == b"theirs"
        await eventually(lambda: received)
    assert received == [b"mine"]


async def test_no_reply_of_the_server_is_stored_anywhere(keys: Keys, server: NatsServer) -> None:
    """An acknowledgement whose subject is that of a task, or of another tenant's intake."""
    replies = ("fw.in.other-1", "fw.prompt.high.other-1", "fw.task.edge.m.high", "fw.round.f")
    async with producer("acme", keys, server) as client, operator(keys, server) as ops:
        for reply in replies:
            await client.publish("fw.in.acme", b"{}", reply=reply)
        # Answered: the one after them has its acknowledgement.
        await client.jetstream().publish("fw.in.acme", b"{}")
        for stream in ("FW_PROMPT", "FW_TASK_EDGE", "FW_ROUND"):
            assert (await ops.js.stream_info(stream)).state.last_seq == 0
        info = await ops.js.stream_info("FW_IN", subjects_filter=">")
        assert info.state.subjects == {"fw.in.acme": len(replies) + 1}


async def test_the_key_of_one_tenant_is_no_other_s(keys: Keys, server: NatsServer) -> None:
    """The inbox of the other is what its client is told, and not what it may use."""
    async with producer("acme", keys, server) as client:
        client._inbox_prefix = bytearray(b"_INBOX.other-1")
        with pytest.raises((NatsError, asyncio.TimeoutError)):
            await client.jetstream().publish("fw.in.other-1", b"{}", timeout=1)
