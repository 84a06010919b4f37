"""Transactions on real databases; on SQLite, writers of one process stand in line."""

import asyncio
import gc
import sqlite3
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, QueuePool, func, insert, select, text
from sqlalchemy.exc import IntegrityError, OperationalError

from fusewire.errors import StartupError, Transient
from fusewire.settings import Database
from fusewire.store import engine, migrate
from fusewire.store.engine import Store
from fusewire.store.tables import files
from fusewire.testing.eventually import PATIENCE_S
from fusewire.testing.factories import T0
from fusewire.testing.postgres import PostgresServer


@pytest.fixture
async def stores(sqlite_database: Database) -> AsyncIterator[tuple[Store, Store]]:
    """Two on one file, as ingest's and the judge's in `fusewire up`."""
    found = Store(sqlite_database), Store(sqlite_database)
    yield found
    for store in found:
        await store.close()


async def write(store: Store, number: int, done: list[int]) -> None:
    async with store.write() as connection:
        await connection.execute(text("SELECT 1"))
        done.append(number)


def connections(store: Store) -> int:
    """Of its pool, those in use."""
    pool = store.engine.pool
    assert isinstance(pool, QueuePool)
    return pool.checkedout()


async def test_writers_of_one_file_have_their_turns_in_order_and_hold_no_connection_before(
    stores: tuple[Store, Store],
) -> None:
    done: list[int] = []
    first, second = stores
    async with first.write():
        writers = [
            asyncio.create_task(write(stores[number % 2], number, done)) for number in range(12)
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (connections(first), connections(second)) == (1, 0)
    await asyncio.gather(*writers)

    assert done == list(range(12))


async def test_who_reads_waits_for_no_writer(stores: tuple[Store, Store]) -> None:
    first, second = stores
    async with first.write(), second.read() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar() == 1


async def test_who_gives_up_leaves_the_line(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_WRITE_QUEUE_S", 0.05)
    done: list[int] = []
    first, second = stores
    async with first.write():
        with pytest.raises(Transient, match="TimeoutError"):
            await write(second, 0, done)
        left = asyncio.create_task(write(second, 1, done))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
    await write(second, 2, done)

    assert done == [2]


# -- at the start -----------------------------------------------------------------------------


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    """What is in a reference cycle stays, as in a service for a while."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collection")
async def test_who_is_cancelled_during_a_statement_keeps_no_lock(
    stores: tuple[Store, Store],
) -> None:
    store, other = stores
    caught: list[object] = []
    for _ in range(3):
        reader = asyncio.create_task(_read_slowly_in_a_write(store))
        # Until the statement runs on its thread.
        await asyncio.sleep(0.1)
        reader.cancel()
        caught += await asyncio.gather(reader, return_exceptions=True)
        async with asyncio.timeout(engine._BUSY_S / 2):
            await write(other, 2, [])
    # Their tracebacks hold the cursors.
    assert [type(error) for error in caught] == [asyncio.CancelledError] * 3


async def _read_slowly_in_a_write(store: Store) -> None:
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9999999)"
    async with store.write() as connection:
        await connection.execute(text(f"{numbers} SELECT i FROM n WHERE i > 1999990"))


async def test_all_tasks_end_when_they_are_cancelled_while_one_closes_a_connection(
    stores: tuple[Store, Store],
) -> None:
    """As at the end of an event loop, which waits for them without a limit."""
    store, _ = stores
    await store.ping()
    before = asyncio.all_tasks()
    for _ in range(5):
        with sqlite3.connect(str(store.url.database), isolation_level=None) as process:
            process.execute("BEGIN IMMEDIATE")
            writer = asyncio.create_task(write(store, 1, []))
            await asyncio.sleep(0.1)
            writer.cancel()
            # SQLAlchemy closes the connection in a task of its own.
            await asyncio.sleep(0.01)
            tasks = asyncio.all_tasks() - before
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0.01)
            process.execute("ROLLBACK")
        _, endless = await asyncio.wait(tasks, timeout=PATIENCE_S / 10)
        assert not endless


async def test_a_database_that_is_away_at_the_start_is_waited_for() -> None:
    with PostgresServer() as server:
        store = Store(Database(url=server.url()))
        await migrate.upgrade(store)
        server.kill()
        with pytest.raises(StartupError, match="no database answers"):
            await migrate.check(store)
        checking = asyncio.create_task(migrate.check(store, wait_s=PATIENCE_S))
        await asyncio.sleep(1)
        assert not checking.done()
        await asyncio.to_thread(server.start)
        await checking
        await store.close()


async def test_a_damaged_database_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "fusewire.db").write_bytes(b"no database, and long enough to be looked at " * 100)
    store = Store(Database(url=f"sqlite+aiosqlite:///{tmp_path / 'fusewire.db'}"))
    async with asyncio.timeout(PATIENCE_S / 2):
        with pytest.raises(StartupError, match="damaged"):
            await migrate.check(store, wait_s=PATIENCE_S)
    await store.close()


# -- whole transactions, on both databases ----------------------------------------------------


def add(connection: Connection, key: str) -> str:
    connection.execute(insert(files), {**FILE, "file_id": key})
    return key


def count(connection: Connection) -> int:
    return int(connection.execute(select(func.count()).select_from(files)).scalar_one())


FILE = {
    "tenant": "t",
    "purpose": "batch",
    "filename": "f",
    "bytes": 1,
    "is_whole": True,
    "created_at": T0,
}


async def test_what_a_transaction_returns_is_returned_once_it_is_committed(store: Store) -> None:
    assert await store.run(partial(add, key="one"), write=True) == "one"

    async with store.read() as connection:
        assert (await connection.execute(select(files.c.file_id))).scalars().all() == ["one"]
    assert await store.run(count, write=False) == 1


async def test_what_raises_leaves_nothing_and_the_next_one_is_run(store: Store) -> None:
    def fail(connection: Connection) -> None:
        add(connection, "one")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        await store.run(fail, write=True)

    assert await store.run(count, write=False) == 0
    await store.run(partial(add, key="one"), write=True)
    assert await store.run(count, write=False) == 1


async def test_a_statement_that_is_wrong_is_a_fault_and_one_that_finds_no_database_is_not(
    store: Store,
) -> None:
    await store.run(partial(add, key="one"), write=True)
    with pytest.raises(IntegrityError):
        await store.run(partial(add, key="one"), write=True)

    def lost(_: Connection) -> None:
        raise OperationalError("", {}, Exception())

    with pytest.raises(Transient, match="not available"):
        await store.run(lost, write=True)


async def test_many_at_once_are_each_run_once(store: Store) -> None:
    await asyncio.gather(
        *(store.run(partial(add, key=f"f{number}"), write=True) for number in range(50))
    )

    assert await store.run(count, write=False) == 50


async def test_whole_transactions_stand_in_line_with_the_others(
    stores: tuple[Store, Store],
) -> None:
    first, second = stores
    done: list[str] = []

    async def run() -> None:
        await second.run(lambda connection: connection.execute(text("SELECT 1")), write=True)
        done.append("run")

    async with first.write():
        running = asyncio.create_task(run())
        assert await second.run(count, write=False) == 0, "who reads waits for no writer"
        await asyncio.sleep(0.05)
        assert second._plain is not None
        assert second._plain.pool.checkedout() == 0, "who stands in line holds no connection"  # type: ignore[attr-defined]
        done.append("first")
    await running

    assert done == ["first", "run"]


async def test_a_whole_transaction_is_synced_as_the_others_are(stores: tuple[Store, Store]) -> None:
    def settings(connection: Connection) -> list[object]:
        return [
            connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("synchronous", "journal_mode")
        ]

    assert await stores[0].run(settings, write=True) == [2, "wal"]
