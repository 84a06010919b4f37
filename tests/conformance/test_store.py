"""Transactions on a real SQLite file: writers of one process stand in line."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import QueuePool, text

from fusewire.errors import Transient
from fusewire.settings import Database
from fusewire.store import engine
from fusewire.store.engine import Store


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
        writers = [asyncio.create_task(write(stores[number % 2], number, done)) for number in range(12)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (connections(first), connections(second)) == (1, 0)
    await asyncio.gather(*writers)

    assert done == list(range(12))


async def test_who_reads_waits_for_no_writer(stores: tuple[Store, Store]) -> None:
    first, second = stores
    async with first.write(), second.read() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar() == 1


async def test_who_gives_up_leaves_the_line(stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_LINE_S", 0.05)
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
