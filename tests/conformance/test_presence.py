"""One database, one broker: on real servers of both kinds, and real brokers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from fusewire import presence, provision
from fusewire.bus import Bus
from fusewire.errors import StartupError
from fusewire.presence import Presence
from fusewire.settings import Database, Nats, Settings
from fusewire.store.engine import Store
from fusewire.store.tables import processes
from fusewire.testing.eventually import eventually
from fusewire.testing.nats_server import NatsServer
from fusewire.topology import topology
from fusewire_cli.client import Client

FOREIGN = "another Fusewire, with another NATS, works on this database"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(presence, "GONE_S", 1.0)


async def provisioned(server: NatsServer) -> Bus:
    bus = Bus("ops", Nats(url=server.url), drain_s=1)
    await bus.connect(timeout_s=120)
    await provision.apply(bus.js, topology({}, ["default"]))
    return bus


@pytest.fixture
async def bus(nats: NatsServer) -> AsyncIterator[Bus]:
    bus = await provisioned(nats)
    yield bus
    await bus.stop()


@pytest.fixture
async def other_nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with NatsServer(tmp_path / "other") as server:
        yield server


@pytest.fixture
async def other_bus(other_nats: NatsServer) -> AsyncIterator[Bus]:
    bus = await provisioned(other_nats)
    yield bus
    await bus.stop()


def present(bus: Bus, store: Store) -> Presence:
    return Presence("test", bus, store, lambda: datetime.now(UTC))


async def kill(one: Presence) -> None:
    """As by kill -9: it ends, and what it noted stays."""
    await one._background.stop()


async def noted(store: Store) -> set[str]:
    async with store.read() as connection:
        return set((await connection.execute(select(processes.c.store_id))).scalars())


async def test_replicas_on_one_broker_work_side_by_side(bus: Bus, store: Store) -> None:
    first, second = present(bus, store), present(bus, store)
    await first.start()
    await second.start()
    await asyncio.sleep(1)

    assert first.faults() + second.faults() == []
    assert await noted(store) == {await bus.store_id()}
    await first.stop()
    await second.stop()
    assert await noted(store) == set()


async def test_a_database_on_which_another_broker_is_worked_with_is_refused(
    bus: Bus, other_bus: Bus, store: Store
) -> None:
    mine, theirs = present(bus, store), present(other_bus, store)
    await mine.start()

    with pytest.raises(StartupError, match=FOREIGN):
        await theirs.start()

    assert mine.faults() == []
    assert await noted(store) == {await bus.store_id()}
    await mine.stop()


async def test_a_database_whose_processes_have_ended_is_taken_over(
    bus: Bus, other_bus: Bus, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, next_one = present(bus, store), present(other_bus, store)
    await killed.start()
    await kill(killed)

    await next_one.start()

    assert await noted(store) == {await other_bus.store_id()}
    assert next_one.faults() == []
    await next_one.stop()


async def test_who_slept_while_the_database_was_taken_over_gives_up(
    bus: Bus, other_bus: Bus, store: Store
) -> None:
    slept, taker = present(bus, store), present(other_bus, store)
    await slept.start()
    await kill(slept)
    await taker.start()

    slept._background.start("presence", slept._look_on())

    async def has_noticed() -> bool:
        return FOREIGN in slept.faults()

    await eventually(has_noticed)
    # Nor does it seem to the other one that it works.
    await asyncio.sleep(1)
    assert taker.faults() == []
    assert await noted(store) == {await other_bus.store_id()}
    await slept.stop()
    await taker.stop()


async def test_a_broker_s_new_store_is_the_same_broker(
    nats: NatsServer, bus: Bus, store: Store
) -> None:
    first, second = present(bus, store), present(bus, store)
    await first.start()
    await second.start()
    before = await bus.store_id()
    await nats.kill()
    nats.wipe()
    await nats.start()
    ops = await provisioned(nats)

    after = await ops.store_id()
    assert after != before

    async def is_noted() -> bool:
        return await noted(store) == {after}

    await eventually(is_noted)
    assert first.faults() + second.faults() == []
    await first.stop()
    await second.stop()
    await ops.stop()


async def test_rows_of_long_ago_are_removed_though_they_are_of_the_same_store(
    bus: Bus, store: Store
) -> None:
    """Of processes that were killed; nobody ever waits for them."""
    row = {"process_id": "killed", "service": "judge", "store_id": await bus.store_id()}
    async with store.write() as connection:
        for at in (datetime.now(UTC) - timedelta(days=2), datetime.now(UTC) - timedelta(hours=1)):
            named = {**row, "process_id": f"killed {at:%d}"}
            await connection.execute(processes.insert().values(named | {"seen_at": at}))
    one = present(bus, store)
    await one.start()

    async with store.read() as connection:
        assert len((await connection.execute(select(processes))).all()) == 2
    await one.stop()


async def test_a_store_that_was_not_provisioned_has_no_id(nats: NatsServer, store: Store) -> None:
    bus = Bus("ops", Nats(url=nats.url), drain_s=1)
    await bus.connect(timeout_s=120)
    await bus.js.add_stream(name="FW_PROMPT", subjects=["fw.prompt.*.*"])

    with pytest.raises(StartupError, match="no store id; run `fusewire topology apply`"):
        await present(bus, store).start()

    await provision.apply(bus.js, topology({}, ["default"]))
    assert await bus.store_id()
    await bus.stop()


Running = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.mark.parametrize("service", ["judge", "ingest"])
async def test_a_second_stack_on_the_database_does_not_start(
    make_settings: Callable[..., Settings],
    running: Running,
    nats: NatsServer,
    other_nats: NatsServer,
    sqlite_database: Database,
    service: str,
) -> None:
    first = make_settings(nats=Nats(url=nats.url))
    second = make_settings(nats=Nats(url=other_nats.url))
    async with running(first, "judge", "ingest"):
        with pytest.raises(StartupError, match=FOREIGN):
            async with running(second, service):
                pass
