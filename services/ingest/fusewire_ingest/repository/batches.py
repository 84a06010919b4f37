"""Batches in SQL: what they are and how they stand. Their lines are in `lines`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from fusewire.store.engine import Store
from fusewire.store.tables import batch_lines, batches, files, outcomes

OPEN = ("validating", "in_progress", "finalizing", "cancelling")
OVER = ("completed", "failed", "expired", "cancelled")
RATE_OVER = 50
"""How many of the last outcomes a batch's rate is measured over."""
_ADD = {
    "sqlite": sqlite.insert(batches).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(batches).on_conflict_do_nothing(),
}


@dataclass(frozen=True)
class Batch:
    """A row of `batches`. `options` is JSON: what the client said, as it was understood; `errors` a JSON list."""

    batch_id: str
    tenant: str
    status: str
    stop_reason: str | None
    waiting_for: str | None
    endpoint: str
    input_file_id: str
    options: str
    priority: str
    completion_window: str
    errors: str | None
    total: int
    completed: int
    failed: int
    degraded: int
    tokens_in: int
    tokens_out: int
    tokens_cached: int
    tokens_thought: int
    cost_usd: float
    n_unpriced: int
    max_cost_usd: float | None
    created_at: datetime
    touched_at: datetime
    expires_at: datetime
    in_progress_at: datetime | None = None
    finalizing_at: datetime | None = None
    completed_at: datetime | None = None
    failed_at: datetime | None = None
    expired_at: datetime | None = None
    cancelling_at: datetime | None = None
    cancelled_at: datetime | None = None

    @property
    def asked(self) -> dict[str, Any]:
        """`options`, read."""
        found: dict[str, Any] = json.loads(self.options)
        return found


@dataclass(frozen=True)
class BatchProgress:
    """How a batch moves."""

    held: int
    in_flight: int
    rate_per_s: float | None
    """Over its last outcomes; None where there are too few."""


_COLUMNS = [batches.c[field.name] for field in fields(Batch)]


class Batches:
    """The `batches` table."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add_in(self, connection: AsyncConnection, batch: Batch) -> bool:
        """Store a batch within a transaction of the caller's; False if it is there already."""
        added = await connection.execute(_ADD[connection.dialect.name], vars(batch))
        return added.rowcount > 0

    async def add(self, batch: Batch) -> bool:
        """Store a batch; False if it is there already."""
        async with self._store.write() as connection:
            return await self.add_in(connection, batch)

    async def get(self, tenant: str, batch_id: str) -> Batch | None:
        """One batch of a tenant."""
        query = select(*_COLUMNS).where(batches.c.batch_id == batch_id, batches.c.tenant == tenant)
        async with self._store.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return Batch(**row) if row else None

    async def listed(self, tenant: str, *, after: str | None, limit: int) -> list[Batch]:
        """A page of a tenant's batches, the newest first, behind the batch `after`."""
        query = select(*_COLUMNS).where(batches.c.tenant == tenant)
        if after is not None:
            since = (
                select(batches.c.created_at).where(batches.c.batch_id == after).scalar_subquery()
            )
            same = (batches.c.created_at == since) & (batches.c.batch_id < after)
            query = query.where(or_(batches.c.created_at < since, same))
        order = (batches.c.created_at.desc(), batches.c.batch_id.desc())
        async with self._store.read() as connection:
            return [
                Batch(**row)
                for row in (
                    await connection.execute(query.order_by(*order).limit(limit))
                ).mappings()
            ]

    async def motion(self, batch_id: str) -> BatchProgress:
        """How a batch moves."""
        counted = select(batch_lines.c.state, func.count()).where(
            batch_lines.c.batch_id == batch_id, batch_lines.c.state.in_(("held", "flying"))
        )
        last = (
            select(outcomes.c.finished_at)
            .join(batch_lines, batch_lines.c.fusion_id == outcomes.c.fusion_id)
            .where(batch_lines.c.batch_id == batch_id, batch_lines.c.settled.is_not(None))
            .order_by(batch_lines.c.settled.desc())
            .limit(RATE_OVER)
        )
        async with self._store.read() as connection:
            rows = await connection.execute(counted.group_by(batch_lines.c.state))
            states = {row[0]: row[1] for row in rows}
            times = sorted((await connection.execute(last)).scalars())
        span_s = (times[-1] - times[0]).total_seconds() if times else 0.0
        return BatchProgress(
            states.get("held", 0),
            states.get("flying", 0),
            (len(times) - 1) / span_s if span_s else None,
        )

    async def open(self) -> list[Batch]:
        """All that are not over, those of high priority first, then the oldest."""
        oldest = (batches.c.created_at, batches.c.batch_id)
        query = select(*_COLUMNS).where(batches.c.status.in_(OPEN)).order_by(*oldest)
        async with self._store.read() as connection:
            found = [Batch(**row) for row in (await connection.execute(query)).mappings()]
        return sorted(found, key=lambda batch: ("high", "normal", "low").index(batch.priority))

    async def find_in(
        self, connection: AsyncConnection, tenant: str, batch_id: str
    ) -> Batch | None:
        """A batch of a tenant, locked as by `lock_in`."""
        query = (
            select(*_COLUMNS)
            .where(batches.c.batch_id == batch_id, batches.c.tenant == tenant)
            .with_for_update()
        )
        row = (await connection.execute(query)).mappings().one_or_none()
        return Batch(**row) if row else None

    async def forget_written_in(self, connection: AsyncConnection, batch_id: str) -> None:
        """Take back the files that a batch wrote: it goes on."""
        await connection.execute(files.delete().where(files.c.batch_id == batch_id))

    async def lock_in(self, connection: AsyncConnection, batch_id: str) -> Batch:
        """A batch, which nobody else changes until the caller's transaction ends."""
        query = select(*_COLUMNS).where(batches.c.batch_id == batch_id).with_for_update()
        return Batch(**(await connection.execute(query)).mappings().one())

    async def change_in(self, connection: AsyncConnection, batch_id: str, **values: Any) -> None:
        """Set columns within a transaction of the caller's."""
        await connection.execute(
            update(batches).where(batches.c.batch_id == batch_id).values(**values)
        )

    async def change(self, batch_id: str, *statuses: str, **values: Any) -> bool:
        """Set columns of a batch that stands in one of these; False if it does not, and is left as it is."""
        here: list[ColumnElement[bool]] = [batches.c.batch_id == batch_id]
        if statuses:
            here.append(batches.c.status.in_(statuses))
        async with self._store.write() as connection:
            return (
                await connection.execute(update(batches).where(*here).values(**values))
            ).rowcount > 0

    async def end(self, batch: Batch, written: Sequence[dict[str, Any]], **values: Any) -> bool:
        """End a batch that is being finalised, with the files that it wrote; False if another was quicker."""
        ending = update(batches).where(
            batches.c.batch_id == batch.batch_id, batches.c.status == "finalizing"
        )
        async with self._store.write() as connection:
            if not (await connection.execute(ending.values(**values))).rowcount:
                return False
            if written:
                await connection.execute(insert(files), written)
        return True
