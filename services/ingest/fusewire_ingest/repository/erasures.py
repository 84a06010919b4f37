"""Erases a tenant, or one custom_id of it, from SQL; and keeps a report without content.

An erasure is entered before anything is erased. Each step finds what is left by itself, and adds
its counts in its own transaction: one that was interrupted is gone on with by doing all again.
"""

import json
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Insert,
    Select,
    Table,
    and_,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from fusewire.store import summary_tables
from fusewire.store.audit import Action, insert_action
from fusewire.store.engine import Store
from fusewire.store.tables import (
    api_keys,
    batch_lines,
    batches,
    budget_holds,
    budget_limits,
    budgets,
    erasures,
    file_chunks,
    files,
    fusions,
    image_uses,
    images,
    outcomes,
    prompts,
    reservations,
)
from fusewire_ingest.admission.budgets import key_account
from fusewire_ingest.repository.budget_holds import release_in
from fusewire_ingest.repository.retention import HAS_ENDED, OF_A_FUSION, delete_rows

AT_ONCE = 200
"""The most fusions that one transaction erases: on SQLite all other writers wait for it."""
SUMS = (
    summary_tables.pool_days,
    summary_tables.model_days,
    summary_tables.pair_days,
    summary_tables.judge_days,
    summary_tables.latency_days,
)
_OF_ACCOUNTS = (budget_holds, budgets, budget_limits)
TOUCHED = (
    *OF_A_FUSION,
    images,
    files,
    file_chunks,
    batches,
    batch_lines,
    api_keys,
    reservations,
    budget_holds,
)
"""The tables whose files must not keep what was erased."""


@dataclass(frozen=True)
class ErasureTarget:
    """What is to be erased: a whole tenant, or one custom_id of it.

    Attributes:
        tenant: the tenant.
        custom_id: None for all of the tenant.
        batch_id: only the custom_id of this batch; None for that of all, and of none.
    """

    tenant: str
    custom_id: str | None = None
    batch_id: str | None = None

    def of(self, table: Table) -> ColumnElement[bool]:
        """The condition for rows of a table with these three columns."""
        conditions = [table.c.tenant == self.tenant]
        if self.custom_id is not None:
            conditions.append(table.c.custom_id == self.custom_id)
        if self.batch_id is not None:
            conditions.append(table.c.batch_id == self.batch_id)
        return and_(*conditions)


@dataclass(frozen=True)
class Erasure:
    """A report, without content.

    Attributes:
        erasure_id: its id.
        tenant: the tenant.
        custom_id_hash: an HMAC of tenant, batch and custom_id; None if all was erased.
        requested_at: when it was asked for first.
        completed_at: None if it was interrupted.
        counts: by store and kind, how much was erased.
    """

    erasure_id: str
    tenant: str
    custom_id_hash: str | None
    requested_at: datetime
    completed_at: datetime | None = None
    counts: Mapping[str, int] = field(default_factory=dict)


class Erasures:
    """The `erasures` table, and the steps of an erasure in SQL. Every method raises Transient."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def begin(
        self, tenant: str, custom_id_hash: str | None, now: datetime, actor: str
    ) -> Erasure:
        """Enter an erasure, or find the interrupted one of the same.

        Args:
            tenant: whose texts are erased.
            custom_id_hash: of the one fusion; None if all is erased.
            now: the time.
            actor: who asks for it, as the audit log names them.
        """
        query = select(erasures).where(
            erasures.c.tenant == tenant,
            erasures.c.custom_id_hash.is_not_distinct_from(custom_id_hash),
            erasures.c.completed_at.is_(None),
        )
        async with self._store.write() as connection:
            row = (await connection.execute(query)).first()
            if row is not None:
                return _erasure(row)
            erasure = Erasure(f"erasure_{secrets.token_hex(8)}", tenant, custom_id_hash, now)
            values = {**vars(erasure), "counts": json.dumps({})}
            await connection.execute(insert(erasures).values(values))
            await connection.execute(_action("erasure.requested", erasure, now, actor))
            return erasure

    async def all(self) -> list[Erasure]:
        """List all erasures, oldest first."""
        query = select(erasures).order_by(erasures.c.requested_at)
        async with self._store.read() as connection:
            return [_erasure(row) for row in await connection.execute(query)]

    async def add(self, erasure_id: str, counts: Mapping[str, int]) -> None:
        """Add to the counts of an erasure."""
        async with self._store.write() as connection:
            await add_counts(connection, erasure_id, counts)

    async def complete(self, erasure_id: str, now: datetime, actor: str) -> Erasure:
        """Note that all is erased. Returns the whole report."""
        change = update(erasures).where(erasures.c.erasure_id == erasure_id)
        query = select(erasures).where(erasures.c.erasure_id == erasure_id)
        async with self._store.write() as connection:
            await connection.execute(change.values(completed_at=now))
            erasure = _erasure((await connection.execute(query)).one())
            await connection.execute(_action("erasure.completed", erasure, now, actor))
            return erasure

    # -- what there is ---------------------------------------------------------------------------

    async def count(self, target: ErasureTarget) -> dict[str, int]:
        """Count what is stored of a target, by table."""
        tables = [prompts, outcomes]
        if target.custom_id is None:
            tables += [images, files, batches, api_keys]
        counts = {}
        async with self._store.read() as connection:
            for table in tables:
                condition = (
                    target.of(table)
                    if table in (prompts, outcomes)
                    else (table.c.tenant == target.tenant)
                )
                query = select(func.count()).select_from(table).where(condition)
                counts[table.name] = int((await connection.execute(query)).scalar_one())
        return {name: count for name, count in counts.items() if count}

    async def running_batches(self, target: ErasureTarget) -> list[str]:
        """List the batches that have not ended and would lose lines."""
        query = select(batches.c.batch_id).where(batches.c.tenant == target.tenant, ~HAS_ENDED)
        if target.custom_id is not None:
            has_line = exists().where(
                batch_lines.c.batch_id == batches.c.batch_id,
                batch_lines.c.custom_id == target.custom_id,
            )
            query = query.where(has_line)
        if target.batch_id is not None:
            query = query.where(batches.c.batch_id == target.batch_id)
        async with self._store.read() as connection:
            return sorted((await connection.execute(query)).scalars())

    async def running(self, target: ErasureTarget) -> list[str]:
        """List the fusions that have no outcome, or one that is not published yet."""
        is_pending = or_(fusions.c.is_done.is_(False), fusions.c.unpublished_since.is_not(None))
        query = (
            select(prompts.c.fusion_id)
            .join(fusions, fusions.c.fusion_id == prompts.c.fusion_id)
            .where(target.of(prompts), is_pending)
        )
        async with self._store.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def fusion_ids(self, target: ErasureTarget) -> list[str]:
        """List the fusions of one custom_id."""
        query = select(prompts.c.fusion_id).where(target.of(prompts))
        async with self._store.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def owns(self, target: ErasureTarget, fusion_id: str) -> bool:
        """Whether a fusion is one of the target."""
        query = select(prompts.c.fusion_id).where(
            prompts.c.fusion_id == fusion_id, target.of(prompts)
        )
        async with self._store.read() as connection:
            return (await connection.execute(query)).first() is not None

    async def is_stored(self, fusion_id: str) -> bool:
        """Whether a fusion has a row, whosever it is."""
        query = select(prompts.c.fusion_id).where(prompts.c.fusion_id == fusion_id)
        async with self._store.read() as connection:
            return (await connection.execute(query)).first() is not None

    async def large_parts(self, target: ErasureTarget) -> list[str]:
        """List the names of the images and texts that only the target uses."""
        async with self._store.read() as connection:
            names = (await connection.execute(_large_parts(target))).scalars()
            return [str(name) for name in names]

    # -- erasing ---------------------------------------------------------------------------------

    async def erase_fusions(self, erasure_id: str, target: ErasureTarget) -> None:
        """Erase fusions with all their rows, `AT_ONCE` in each transaction, and their images."""
        async with self._store.write() as connection:
            deletion = delete(images).where(images.c.name.in_(_large_parts(target)))
            count = (await connection.execute(deletion)).rowcount
            await add_counts(connection, erasure_id, {"sql.images": count})
        while await self._erase_some(erasure_id, target):
            pass

    async def _erase_some(self, erasure_id: str, target: ErasureTarget) -> int:
        query = select(prompts.c.fusion_id).where(target.of(prompts)).limit(AT_ONCE)
        async with self._store.write() as connection:
            ids = list((await connection.execute(query)).scalars())
            if not ids:
                return 0
            await connection.run_sync(release_in, ids)
            await delete_rows(connection, ids)
            await add_counts(connection, erasure_id, {"sql.fusions": len(ids)})
            return len(ids)

    async def erase_tenant(self, erasure_id: str, tenant: str) -> None:
        """Erase what a tenant has besides fusions: keys, batches, files, budgets and sums."""
        of_tenant = select(batches.c.batch_id).where(batches.c.tenant == tenant)
        its_files = select(files.c.file_id).where(files.c.tenant == tenant)
        its_keys = select(literal(key_account("")) + api_keys.c.key_id).where(
            api_keys.c.tenant == tenant
        )
        deletions = [
            *((table, table.c.account.in_(its_keys)) for table in _OF_ACCOUNTS),
            # The operator's limit of the tenant stays, as that of the configuration does.
            (budgets, budgets.c.account == tenant),
            (budget_holds, budget_holds.c.account == tenant),
            (reservations, reservations.c.tenant == tenant),
            (api_keys, api_keys.c.tenant == tenant),
            (batch_lines, batch_lines.c.batch_id.in_(of_tenant)),
            (batches, batches.c.tenant == tenant),
            (file_chunks, file_chunks.c.file_id.in_(its_files)),
            (files, files.c.tenant == tenant),
            (images, images.c.tenant == tenant),
            *((table, table.c.tenant == tenant) for table in SUMS),
        ]
        counts: Counter[str] = Counter()
        async with self._store.write() as connection:
            for table, condition in deletions:
                count = (await connection.execute(delete(table).where(condition))).rowcount
                kind = "sums" if table in SUMS else table.name
                counts[f"sql.{kind}"] += count
            await add_counts(connection, erasure_id, counts)


def _action(name: str, erasure: Erasure, now: datetime, actor: str) -> Insert:
    detail = {"is_whole_tenant": erasure.custom_id_hash is None}
    return insert_action(
        Action(now, actor, name, erasure.tenant, target=erasure.erasure_id, detail=detail)
    )


def _erasure(row: Any) -> Erasure:
    return Erasure(
        row.erasure_id,
        row.tenant,
        row.custom_id_hash,
        row.requested_at,
        row.completed_at,
        json.loads(row.counts),
    )


async def add_counts(
    connection: AsyncConnection, erasure_id: str, counts: Mapping[str, int]
) -> None:
    """Add to the counts of an erasure within a transaction of the caller."""
    row_query = (
        select(erasures.c.counts)
        .where(erasures.c.erasure_id == erasure_id)
        # Two that add at the same time would otherwise both add to the same counts.
        .with_for_update()
    )
    stored_counts = json.loads((await connection.execute(row_query)).scalar_one())
    sums = Counter(stored_counts) + Counter(counts)
    change = update(erasures).where(erasures.c.erasure_id == erasure_id)
    await connection.execute(change.values(counts=json.dumps(sums)))


def _large_parts(target: ErasureTarget) -> Select[Any]:
    """The names of the images that no other fusion uses; all of a whole tenant."""
    if target.custom_id is None:
        return select(images.c.name).where(images.c.tenant == target.tenant)
    ids = select(prompts.c.fusion_id).where(target.of(prompts))
    is_used_elsewhere = exists().where(
        image_uses.c.image == images.c.name, image_uses.c.fusion_id.not_in(ids)
    )
    is_used_here = exists().where(
        image_uses.c.image == images.c.name, image_uses.c.fusion_id.in_(ids)
    )
    return select(images.c.name).where(
        images.c.tenant == target.tenant, is_used_here, ~is_used_elsewhere
    )
