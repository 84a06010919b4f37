"""Deletes what ended long ago: fusions with all that belongs to them, batches with their lines and files."""

from datetime import datetime

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from fusewire.store.engine import Store
from fusewire.store.tables import (
    answers,
    batch_lines,
    batches,
    candidates,
    file_chunks,
    files,
    fusions,
    image_uses,
    late_costs,
    outcomes,
    prompts,
    reservations,
    rounds,
    verdicts,
)

AT_ONCE = 200
"""Fusions that one transaction deletes: on SQLite everybody else waits for it."""

OF_A_FUSION = (
    answers,
    verdicts,
    candidates,
    rounds,
    image_uses,
    late_costs,
    outcomes,
    fusions,
    prompts,
)
_ENDED = or_(
    *(
        batches.c[f"{how}_at"].is_not(None)
        for how in ("completed", "failed", "expired", "cancelled")
    )
)
_ENDED_AT = func.coalesce(
    batches.c.completed_at, batches.c.failed_at, batches.c.expired_at, batches.c.cancelled_at
)


class Retention:
    """What is deleted, by tenant and time. Every method raises Transient when the database does not answer."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def tenants(self) -> list[str]:
        """The tenants that have outcomes. Each is one step in an index, however many outcomes it has."""
        found: list[str] = []
        async with self._store.read() as connection:
            while True:
                after = outcomes.c.tenant > (found[-1] if found else "")
                tenant = (
                    await connection.execute(select(func.min(outcomes.c.tenant)).where(after))
                ).scalar()
                if tenant is None:
                    return found
                found.append(tenant)

    async def delete_batches(self, tenant: str, before: datetime) -> int:
        """Delete batches that ended before a time, with their lines and files; returns how many.

        Their fusions are no batch's then, and go by their own age.
        """
        async with self._store.write() as connection:
            old = select(batches.c.batch_id, batches.c.input_file_id).where(
                batches.c.tenant == tenant,
                batches.c.created_at < before,
                _ENDED,
                before > _ENDED_AT,
            )
            # Not one that is resumed just now.
            old = old.with_for_update(skip_locked=True)
            found = (await connection.execute(old)).all()
            if not found:
                return 0
            ids = [row.batch_id for row in found]
            await connection.execute(delete(batch_lines).where(batch_lines.c.batch_id.in_(ids)))
            await connection.execute(delete(batches).where(batches.c.batch_id.in_(ids)))
            inputs = {row.input_file_id for row in found}
            unused = ~exists().where(batches.c.input_file_id == files.c.file_id)
            await _delete_files(
                connection,
                or_(files.c.batch_id.in_(ids), and_(files.c.file_id.in_(inputs), unused)),
            )
            return len(ids)

    async def delete_fusions(self, tenant: str, before: datetime) -> int:
        """Delete the oldest fusions that ended before a time, `AT_ONCE` at most; returns how many.

        What a batch or a budget still has to read of them is left.
        """
        old = (
            select(outcomes.c.fusion_id)
            .where(
                outcomes.c.tenant == tenant,
                outcomes.c.finished_at < before,
                ~exists().where(batches.c.batch_id == outcomes.c.batch_id),
                ~exists().where(reservations.c.fusion_id == outcomes.c.fusion_id),
            )
            .order_by(outcomes.c.finished_at)
            .limit(AT_ONCE)
        )
        async with self._store.write() as connection:
            ids = list((await connection.execute(old)).scalars())
            if ids:
                for table in OF_A_FUSION:
                    await connection.execute(delete(table).where(table.c.fusion_id.in_(ids)))
            return len(ids)


async def _delete_files(connection: AsyncConnection, which: ColumnElement[bool]) -> None:
    gone = select(files.c.file_id).where(which)
    await connection.execute(delete(file_chunks).where(file_chunks.c.file_id.in_(gone)))
    await connection.execute(delete(files).where(which))
