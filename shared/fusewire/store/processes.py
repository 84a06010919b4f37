"""Which processes work on the database, and with which broker's store."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, insert, select, update

from fusewire.store.engine import Store
from fusewire.store.tables import processes

LONG_GONE = timedelta(days=1)
"""Processes that were not seen for so long are forgotten, however wrong the clocks are."""


@dataclass(frozen=True)
class Process:
    """One of them, as it was when it was last seen."""

    process_id: str
    store_id: str
    seen_at: datetime


class Processes:
    """The `processes` table. Every method raises Transient when the database does not answer."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, service: str, me: Process) -> None:
        """Note a process, and forget those that have ended long ago."""
        async with self._store.write() as connection:
            await connection.execute(delete(processes).where(processes.c.seen_at < me.seen_at - LONG_GONE))
            await connection.execute(insert(processes).values(service=service, **asdict(me)))

    async def renew(self, me: Process) -> bool:
        """Note that a process still works. Returns False where it was removed meanwhile."""
        mine = update(processes).where(processes.c.process_id == me.process_id)
        async with self._store.write() as connection:
            renewed = await connection.execute(mine.values(store_id=me.store_id, seen_at=me.seen_at))
            return bool(renewed.rowcount)

    async def with_another_store(self, store_id: str) -> list[Process]:
        """The processes that work with another store than this one."""
        columns = (processes.c.process_id, processes.c.store_id, processes.c.seen_at)
        async with self._store.read() as connection:
            found = await connection.execute(select(*columns).where(processes.c.store_id != store_id))
            return [Process(*row) for row in found]

    async def remove(self, process_ids: Sequence[str]) -> None:
        """Forget processes that have ended."""
        async with self._store.write() as connection:
            await connection.execute(delete(processes).where(processes.c.process_id.in_(process_ids)))
