"""Deletes what ended long ago: first the texts, then fusions and batches with all their rows."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from fusewire.store import summaries
from fusewire.store.engine import Store
from fusewire.store.tables import (
    answers,
    batch_lines,
    batches,
    budget_holds,
    candidates,
    file_chunks,
    files,
    fusions,
    image_uses,
    images,
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
HAS_ENDED = or_(
    *(
        batches.c[f"{status}_at"].is_not(None)
        for status in ("completed", "failed", "expired", "cancelled")
    )
)
_ENDED_AT = func.coalesce(
    batches.c.completed_at, batches.c.failed_at, batches.c.expired_at, batches.c.cancelled_at
)
_IS_OF_RUNNING_BATCH = exists().where(
    batches.c.batch_id == outcomes.c.batch_id, _ENDED_AT.is_(None)
)
# The views read the costs of late candidates from their JSON.
_COST_ALONE = {
    "sqlite": "json_object('cost_usd', json_extract(body, '$.cost_usd'))",
    "postgresql": "json_build_object('cost_usd', body::json -> 'cost_usd')::text",
}


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
                HAS_ENDED,
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

    async def delete_inputs(self, tenant: str, before: datetime) -> int:
        """Delete the input files of batches that ended before a time; returns how many.

        Not those that a batch which has not ended so long ago has, too.
        """
        is_younger = or_(_ENDED_AT.is_(None), before <= _ENDED_AT)
        query = (
            select(files.c.file_id)
            .where(
                files.c.tenant == tenant,
                files.c.created_at < before,
                files.c.batch_id.is_(None),
                files.c.file_id.in_(
                    select(batches.c.input_file_id).where(
                        batches.c.tenant == tenant,
                        batches.c.created_at < before,
                        before > _ENDED_AT,
                    )
                ),
                ~exists().where(
                    batches.c.tenant == tenant,
                    batches.c.input_file_id == files.c.file_id,
                    is_younger,
                ),
            )
            .limit(AT_ONCE)
        )
        async with self._store.write() as connection:
            ids = list((await connection.execute(query)).scalars())
            if ids:
                await _delete_files(connection, files.c.file_id.in_(ids))
            return len(ids)

    async def delete_texts(self, tenant: str, before: datetime, now: datetime) -> int:
        """Delete the texts of fusions that ended before a time, and keep their figures.

        At most `AT_ONCE` fusions, the oldest first, without those of batches that have not ended.

        Returns:
            How many.
        """
        query = (
            select(outcomes.c.fusion_id)
            .where(
                outcomes.c.tenant == tenant,
                outcomes.c.finished_at < before,
                outcomes.c.texts_deleted_at.is_(None),
                ~_IS_OF_RUNNING_BATCH,
            )
            .order_by(outcomes.c.finished_at)
            .limit(AT_ONCE)
        )
        async with self._store.write() as connection:
            ids = list((await connection.execute(query)).scalars())
            if ids:
                await _delete_texts(connection, ids, now)
                await _delete_images(connection, ids, before)
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
                ~exists().where(budget_holds.c.fusion_id == outcomes.c.fusion_id),
            )
            .order_by(outcomes.c.finished_at)
            .limit(AT_ONCE)
        )
        async with self._store.write() as connection:
            ids = list((await connection.execute(query)).scalars())
            if ids:
                await delete_rows(connection, ids)
            return len(ids)


async def delete_rows(connection: AsyncConnection, fusion_ids: Sequence[str]) -> None:
    """Delete all rows of fusions, and take them out of the sums."""
    await connection.run_sync(summaries.subtract, fusion_ids)
    for table in OF_A_FUSION:
        await connection.execute(delete(table).where(table.c.fusion_id.in_(fusion_ids)))


async def _delete_texts(
    connection: AsyncConnection, fusion_ids: Sequence[str], now: datetime
) -> None:
    no_outcome_texts = {
        "content": None,
        "tool_calls": None,
        "reason": None,
        "error": None,
        "body": "",
        "texts_deleted_at": now,
    }
    cost_alone = text(_COST_ALONE[connection.dialect.name])
    changes = (
        (prompts, {"body": ""}),
        (fusions, {"plan": ""}),
        (rounds, {"body": ""}),
        (candidates, {"body": cost_alone}),
        (answers, {"content": None}),
        (outcomes, no_outcome_texts),
    )
    for table, values in changes:
        changed_rows = update(table).where(table.c.fusion_id.in_(fusion_ids))
        await connection.execute(changed_rows.values(values))


async def _delete_images(
    connection: AsyncConnection, fusion_ids: Sequence[str], before: datetime
) -> None:
    """Delete the large parts of fusions that no other fusion uses, and that the broker has not."""
    query = select(image_uses.c.image).where(image_uses.c.fusion_id.in_(fusion_ids)).distinct()
    names = list((await connection.execute(query)).scalars())
    if not names:
        return
    await connection.execute(delete(image_uses).where(image_uses.c.fusion_id.in_(fusion_ids)))
    # Ingest takes parts that no fusion waits for from the broker; what it has not yet, it deletes
    # when `image_days` are over.
    await connection.execute(
        delete(images).where(
            images.c.name.in_(names),
            images.c.used_at < before,
            images.c.published_at.is_(None),
            ~exists().where(image_uses.c.image == images.c.name),
        )
    )


async def _delete_files(connection: AsyncConnection, condition: ColumnElement[bool]) -> None:
    file_ids = select(files.c.file_id).where(condition)
    await connection.execute(delete(file_chunks).where(file_chunks.c.file_id.in_(file_ids)))
    await connection.execute(delete(files).where(condition))
