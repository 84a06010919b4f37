"""Batches in SQL: their options, statuses and sums. Their lines are in `lines`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from fusewire.store.engine import Store
from fusewire.store.tables import batch_lines, batches, files, outcomes

OPEN = ("validating", "in_progress", "finalizing", "cancelling")
OVER = ("completed", "failed", "expired", "cancelled")
RATE_OVER = 50
"""A batch's rate is measured over so many of its last outcomes."""
_ADD = {
    "sqlite": sqlite.insert(batches).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(batches).on_conflict_do_nothing(),
}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A row of `batches`.

    `options` is the client's request as it was parsed, in JSON; `errors` is a JSON list of the
    faults of its input.
    """

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
    total: int = 0
    completed: int = 0
    failed: int = 0
    degraded: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    tokens_thought: int = 0
    cost_usd: float = 0.0
    n_unpriced: int = 0
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
    key_id: str | None = None
    """The API key that it was created with."""

    @property
    def parsed_options(self) -> dict[str, Any]:
        """`options`, parsed."""
        options: dict[str, Any] = json.loads(self.options)
        return options


@dataclass(frozen=True)
class BatchProgress:
    """How many lines of a batch wait or are in flight, and how fast they end."""

    held: int
    in_flight: int
    rate_per_s: float | None
    """Over its last outcomes; None if there are too few."""


_COLUMNS = [batches.c[field.name] for field in fields(Batch)]


class Batches:
    """The `batches` table."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def add_in(self, connection: Connection, batch: Batch) -> bool:
        """Store a batch within a transaction of the caller; False if it exists already."""
        insertion = connection.execute(_ADD[connection.dialect.name], vars(batch))
        return insertion.rowcount > 0

    async def add(self, batch: Batch) -> bool:
        """Store a batch; False if it exists already."""
        return await self._store.run(lambda connection: self.add_in(connection, batch), write=True)

    async def get(self, tenant: str, batch_id: str) -> Batch | None:
        """Read a batch of a tenant; None if there is none of that id."""
        query = select(*_COLUMNS).where(batches.c.batch_id == batch_id, batches.c.tenant == tenant)
        async with self._store.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return Batch(**row) if row else None

    async def page(self, tenant: str, *, after: str | None, limit: int) -> list[Batch]:
        """List a tenant's batches, the newest first, those after the batch `after`."""
        query = select(*_COLUMNS).where(batches.c.tenant == tenant)
        if after is not None:
            since = (
                select(batches.c.created_at)
                # Another tenant's is unknown here too.
                .where(batches.c.batch_id == after, batches.c.tenant == tenant)
                .scalar_subquery()
            )
            # Ids break ties.
            same_time = (batches.c.created_at == since) & (batches.c.batch_id < after)
            query = query.where(or_(batches.c.created_at < since, same_time))
        order = (batches.c.created_at.desc(), batches.c.batch_id.desc())
        async with self._store.read() as connection:
            rows = await connection.execute(query.order_by(*order).limit(limit))
            return [Batch(**row) for row in rows.mappings()]

    async def progress(self, batch_id: str) -> BatchProgress:
        """Count a batch's lines that have not settled, and measure how fast the last ones did."""
        counts = select(batch_lines.c.state, func.count()).where(
            batch_lines.c.batch_id == batch_id, batch_lines.c.state.in_(("held", "flying"))
        )
        last_times = (
            select(outcomes.c.finished_at)
            .join(batch_lines, batch_lines.c.fusion_id == outcomes.c.fusion_id)
            .where(batch_lines.c.batch_id == batch_id, batch_lines.c.settled.is_not(None))
            .order_by(batch_lines.c.settled.desc())
            .limit(RATE_OVER)
        )
        async with self._store.read() as connection:
            rows = await connection.execute(counts.group_by(batch_lines.c.state))
            states = {row[0]: row[1] for row in rows}
            times = sorted((await connection.execute(last_times)).scalars())
        span_s = (times[-1] - times[0]).total_seconds() if times else 0.0
        rate_per_s = (len(times) - 1) / span_s if span_s else None
        return BatchProgress(states.get("held", 0), states.get("flying", 0), rate_per_s)

    async def find_open(self) -> list[Batch]:
        """List the batches that are not over, by priority, then the oldest first."""
        oldest_first = (batches.c.created_at, batches.c.batch_id)
        query = select(*_COLUMNS).where(batches.c.status.in_(OPEN)).order_by(*oldest_first)
        open_batches = await self._store.run(
            lambda connection: [Batch(**row) for row in connection.execute(query).mappings()],
            write=False,
        )
        priorities = ("high", "normal", "low")
        return sorted(open_batches, key=lambda batch: priorities.index(batch.priority))

    def find_in(self, connection: Connection, tenant: str, batch_id: str) -> Batch | None:
        """Read a batch of a tenant, and lock it as `lock_in` does; None if there is none."""
        query = (
            select(*_COLUMNS)
            .where(batches.c.batch_id == batch_id, batches.c.tenant == tenant)
            .with_for_update()
        )
        row = connection.execute(query).mappings().one_or_none()
        return Batch(**row) if row else None

    def delete_output_in(self, connection: Connection, batch_id: str) -> None:
        """Delete the files that a batch wrote, since it is resumed."""
        connection.execute(files.delete().where(files.c.batch_id == batch_id))

    def lock_in(self, connection: Connection, batch_id: str) -> Batch:
        """Read a batch, and lock its row until the caller's transaction ends."""
        query = select(*_COLUMNS).where(batches.c.batch_id == batch_id).with_for_update()
        return Batch(**connection.execute(query).mappings().one())

    def change_in(self, connection: Connection, batch_id: str, **values: Any) -> None:
        """Set columns of a batch within a transaction of the caller."""
        connection.execute(update(batches).where(batches.c.batch_id == batch_id).values(**values))

    async def change(self, batch_id: str, *statuses: str, **values: Any) -> bool:
        """Set columns of a batch if it is in one of these statuses; returns whether it was."""
        conditions: list[ColumnElement[bool]] = [batches.c.batch_id == batch_id]
        if statuses:
            conditions.append(batches.c.status.in_(statuses))
        statement = update(batches).where(*conditions).values(**values)
        async with self._store.write() as connection:
            return (await connection.execute(statement)).rowcount > 0

    async def end(self, batch: Batch, file_rows: Sequence[dict[str, Any]], **values: Any) -> bool:
        """End a batch that is being finalised, and store the rows of its files.

        Returns:
            False if another process has ended it before.
        """
        statement = update(batches).where(
            batches.c.batch_id == batch.batch_id, batches.c.status == "finalizing"
        )
        async with self._store.write() as connection:
            if not (await connection.execute(statement.values(**values))).rowcount:
                return False
            if file_rows:
                await connection.execute(insert(files), file_rows)
        return True
