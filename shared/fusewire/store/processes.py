"""The processes that work on the database, each with its broker's store."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from fusewire.store.engine import Store
from fusewire.store.tables import processes

LONG_GONE = timedelta(days=1)
"""Rows that were not renewed for this long are removed, also those of the same store."""


@dataclass(frozen=True)
class Process:
    """One process, as of its last renewal."""

    process_id: str
    seen_at: datetime
    unseen_s: float
    """Seconds since then."""


class Processes:
    """The `processes` table. Every method raises Transient when the database does not answer.

    All its times come from one clock: PostgreSQL's, or this machine's for SQLite
    (docs/decisions/0044).
    """

    def __init__(self, store: Store, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = clock

    async def add(self, process_id: str, service: str, store_id: str) -> None:
        """Add a process."""
        async with self._store.write() as connection:
            now = await self._now(connection)
            await connection.execute(delete(processes).where(processes.c.seen_at < now - LONG_GONE))
            row = {
                "process_id": process_id,
                "service": service,
                "store_id": store_id,
                "seen_at": now,
            }
            await connection.execute(insert(processes).values(row))

    async def renew(self, process_id: str, store_id: str) -> bool:
        """Note that a process still works. Returns False if it was removed in the meantime."""
        mine = update(processes).where(processes.c.process_id == process_id)
        async with self._store.write() as connection:
            now = await self._now(connection)
            result = await connection.execute(mine.values(store_id=store_id, seen_at=now))
            return bool(result.rowcount)

    async def with_another_store(self, store_id: str) -> list[Process]:
        """The processes that work with another store than this one."""
        query = select(processes.c.process_id, processes.c.seen_at).where(
            processes.c.store_id != store_id
        )
        async with self._store.read() as connection:
            now = await self._now(connection)
            return [
                Process(key, at, (now - at).total_seconds())
                for key, at in await connection.execute(query)
            ]

    async def remove(self, process_ids: Sequence[str]) -> None:
        """Remove processes that have ended."""
        async with self._store.write() as connection:
            await connection.execute(
                delete(processes).where(processes.c.process_id.in_(process_ids))
            )

    async def _now(self, connection: AsyncConnection) -> datetime:
        if self._store.is_sqlite:
            return self._clock()
        now: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
        return now
