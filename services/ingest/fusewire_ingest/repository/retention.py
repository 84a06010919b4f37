"""Deletes what ended long ago: fusions with all their rows, batches with their lines and files."""

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
    vote_changes,
    votes,
)

AT_ONCE = 200
"""The most fusions that one transaction deletes: on SQLite all other writers wait for it."""

OF_A_FUSION = (
    answers,
    verdicts,
    candidates,
    rounds,
    image_uses,
    late_costs,
    outcomes,
    # After outcomes, at which what stores a vote waits (see `repository.votes`).
    vote_changes,
    votes,
    fusions,
    prompts,
)
_HAS_ENDED = or_(
    *(
        batches.c[f"{status}_at"].is_not(None)
        for status in ("completed", "failed", "expired", "cancelled")
    )
)
_ENDED_AT = func.coalesce(
    batches.c.completed_at, batches.c.failed_at, batches.c.expired_at, batches.c.cancelled_at
)


class Retention:
    """Deletes rows by tenant and time.

    Every method raises Transient if the database does not answer.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def tenants(self) -> list[str]:
        """List the tenants that have outcomes.

        Each takes one lookup in an index, however many outcomes it has; a DISTINCT would read all.
        """
        tenants: list[str] = []
        async with self._store.read() as connection:
            while True:
                is_next = outcomes.c.tenant > (tenants[-1] if tenants else "")
                query = select(func.min(outcomes.c.tenant)).where(is_next)
                tenant = (await connection.execute(query)).scalar()
                if tenant is None:
                    return tenants
                tenants.append(tenant)

    async def delete_batches(self, tenant: str, before: datetime) -> int:
        """Delete batches that ended before a time, with their lines and files; returns how many.

        Their fusions remain, and are deleted by `delete_fusions` at their own age.
        """
        async with self._store.write() as connection:
            query = select(batches.c.batch_id, batches.c.input_file_id).where(
                batches.c.tenant == tenant,
                batches.c.created_at < before,
                _HAS_ENDED,
                before > _ENDED_AT,
            )
            # A batch that is being resumed is locked, and skipped.
            query = query.with_for_update(skip_locked=True)
            old_batches = (await connection.execute(query)).all()
            if not old_batches:
                return 0
            ids = [row.batch_id for row in old_batches]
            await connection.execute(delete(batch_lines).where(batch_lines.c.batch_id.in_(ids)))
            await connection.execute(delete(batches).where(batches.c.batch_id.in_(ids)))
            input_ids = {row.input_file_id for row in old_batches}
            is_unused = ~exists().where(batches.c.input_file_id == files.c.file_id)
            await _delete_files(
                connection,
                or_(files.c.batch_id.in_(ids), and_(files.c.file_id.in_(input_ids), is_unused)),
            )
            return len(ids)

    async def delete_fusions(self, tenant: str, before: datetime) -> int:
        """Delete the oldest fusions that ended before a time, at most `AT_ONCE`; returns how many.

        Fusions of existing batches and those whose budget is not settled yet are not deleted.
        """
        query = (
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
            ids = list((await connection.execute(query)).scalars())
            if ids:
                for table in OF_A_FUSION:
                    await connection.execute(delete(table).where(table.c.fusion_id.in_(ids)))
            return len(ids)


async def _delete_files(connection: AsyncConnection, condition: ColumnElement[bool]) -> None:
    file_ids = select(files.c.file_id).where(condition)
    await connection.execute(delete(file_chunks).where(file_chunks.c.file_id.in_(file_ids)))
    await connection.execute(delete(files).where(condition))
