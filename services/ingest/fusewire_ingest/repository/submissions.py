"""Submissions in SQL, written here and nowhere else."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BindParameter,
    Connection,
    bindparam,
    delete,
    exists,
    false,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from fusewire import ids
from fusewire.contracts import Prompt
from fusewire.crash_points import CrashPoint, reach
from fusewire.errors import TextsDeletedError
from fusewire.store.engine import Store
from fusewire.store.tables import fusions, outcomes, prompts, published_to
from fusewire_ingest.admission.admit import body_hash
from fusewire_ingest.admission.refusal import BudgetRefusedError, RefusedError
from fusewire_ingest.repository.budgets import Budgets
from fusewire_ingest.repository.images import add_uses_in

# Statements are built once: building one takes longer than running it.
_KEYS: BindParameter[list[str]] = bindparam("keys", expanding=True)
_ADD = {
    "sqlite": sqlite.insert(prompts).on_conflict_do_nothing().returning(prompts.c.fusion_id),
    "postgresql": postgresql.insert(prompts)
    .on_conflict_do_nothing()
    .returning(prompts.c.fusion_id),
}
_UNDECIDED = ~exists().where(outcomes.c.fusion_id == prompts.c.fusion_id)
_NEWEST = (
    select(
        prompts.c.fusion_id, prompts.c.held_by, prompts.c.left_at, _UNDECIDED.label("is_undecided")
    )
    .where(
        prompts.c.tenant == bindparam("tenant"),
        prompts.c.request_hash == bindparam("request_hash"),
        or_(prompts.c.submitted_at > bindparam("since"), prompts.c.deadline_at > bindparam("now")),
    )
    .order_by(prompts.c.submitted_at.desc())
    .limit(1)
)
_LEAVE = (
    update(prompts)
    .where(prompts.c.fusion_id == bindparam("key"))
    .values(left_at=bindparam("at", type_=prompts.c.left_at.type))
)
_HOLD = (
    update(prompts)
    .where(prompts.c.fusion_id == bindparam("key"))
    .values(held_by=bindparam("holder"), left_at=None)
)
_CANCEL = (
    update(prompts)
    .where(prompts.c.tenant == bindparam("of"), prompts.c.fusion_id.in_(_KEYS), _UNDECIDED)
    .values(
        cancelled_at=func.coalesce(
            prompts.c.cancelled_at, bindparam("at", type_=prompts.c.cancelled_at.type)
        )
    )
    .returning(prompts.c.fusion_id)
)
_REMOVE = delete(prompts).where(prompts.c.fusion_id.in_(_KEYS))
_MARK = (
    update(prompts)
    .where(
        prompts.c.fusion_id.in_(_KEYS),
        exists().where(published_to.c.store_id == bindparam("store_id")),
    )
    .values(published_at=bindparam("at"))
)
_TAKE = {
    "sqlite": sqlite.insert(published_to)
    .on_conflict_do_nothing()
    .returning(published_to.c.store_id),
    "postgresql": postgresql.insert(published_to)
    .on_conflict_do_nothing()
    .returning(published_to.c.store_id),
}


@dataclass(frozen=True)
class RequestIdentity:
    """Identifies a request, so that it is recognised when its client sends it again.

    Attributes:
        request_hash: equal for the same request of the same client.
        held_by: name of the ingest process at which its client waits.
    """

    request_hash: str
    held_by: str


@dataclass(frozen=True)
class EarlierRequest:
    """An earlier request with the same hash.

    Attributes:
        fusion_id: the fusion that it began.
        held_by: name of the ingest process at which its client waits or waited.
        left_at: when its client left before the answer; None if it did not.
        is_undecided: whether the fusion has no outcome yet.
    """

    fusion_id: str
    held_by: str | None
    left_at: datetime | None
    is_undecided: bool


@dataclass(frozen=True)
class Acceptance:
    """What became of one submitted prompt."""

    prompt: Prompt
    is_new: bool
    is_conflict: bool
    """The custom_id is another prompt's, with another body."""
    refused: RefusedError | None = None
    """Why it was not stored: a budget (`budget_exceeded`, or `price_unknown`)."""

    @property
    def account_over_budget(self) -> str | None:
        """The account whose budget has to have more left before it can be accepted."""
        error = self.refused
        return error.account if isinstance(error, BudgetRefusedError) else None


_HASHED_FIELDS = {"messages", "sampling", "tools", "tool_choice", "parallel_tool_calls"}
"""Fields of `prompt_hash`: prompts equal in these are the same to analysts, in whatever pool."""


class Submissions:
    """The `prompts` table.

    Args:
        store: the database.
        budgets: checked before a prompt is accepted, if given.
        check_capacity: raises Transient if nothing may be accepted now.
    """

    def __init__(
        self,
        store: Store,
        budgets: Budgets | None = None,
        check_capacity: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._check_capacity = check_capacity
        self._budgets = budgets

    async def add(
        self,
        batch: Sequence[Prompt],
        traceparents: Sequence[str | None],
        origins: Sequence[RequestIdentity | None] | None = None,
    ) -> list[Acceptance]:
        """Commit prompts in one transaction; repetitions are recognised and not stored again.

        Args:
            batch: the prompts.
            traceparents: the trace of each, if it has one.
            origins: the identity of each one's request, if it has one.

        Raises:
            Transient: nothing was committed.
        """
        await self.ready()

        def add(connection: Connection) -> list[Acceptance]:
            acceptances = self.add_in(connection, batch, traceparents, origins)
            reach(CrashPoint.INGEST_STORED)
            return acceptances

        return await self._store.run(add, write=True)

    async def ready(self) -> None:
        """Prepare for `add_in`, which must not wait.

        Raises:
            Transient: nothing may be accepted now.
        """
        self._check_capacity()
        if self._budgets:
            await self._budgets.ready()

    def add_in(
        self,
        connection: Connection,
        batch: Sequence[Prompt],
        traceparents: Sequence[str | None],
        origins: Sequence[RequestIdentity | None] | None = None,
    ) -> list[Acceptance]:
        """Do the same as `add` within a transaction of the caller; call `ready` before it."""
        if not batch:
            return []
        hashes = [body_hash(prompt) for prompt in batch]
        rows = _rows(batch, hashes, traceparents, origins or [None] * len(batch))
        insertion = connection.execute(_ADD[connection.dialect.name], list(rows.values()))
        new_ids = set(insertion.scalars())
        # Stored before the budget is checked: only new prompts reserve, and a second transaction
        # with the same prompt waits at its insertion.
        refusals = self._reserve_in(connection, _with_ids(new_ids, batch))
        if refusals:
            connection.execute(_REMOVE, {"keys": list(refusals)})
            new_ids -= refusals.keys()
        if new_ids:
            _add_fusions_in(connection, rows, _with_ids(new_ids, batch))
        stored_hashes = _stored_hashes_in(connection, rows, new_ids | refusals.keys())
        acceptances = []
        for prompt, digest in zip(batch, hashes, strict=True):
            fusion_id = prompt.fusion_id
            is_new = fusion_id in new_ids
            # A prompt that is twice in the batch is new once.
            new_ids.discard(fusion_id)
            is_conflict = stored_hashes[fusion_id] != digest
            acceptances.append(Acceptance(prompt, is_new, is_conflict, refusals.get(fusion_id)))
        return acceptances

    def _reserve_in(
        self, connection: Connection, batch: Sequence[Prompt]
    ) -> dict[str, RefusedError]:
        """Reserve the cost of each fusion once; see Budgets.reserve_in."""
        if self._budgets is None or not batch:
            return {}
        # Of prompts with equal ids the first counts: it is the one that is stored.
        first_prompts = {prompt.fusion_id: prompt for prompt in reversed(batch)}
        return self._budgets.reserve_in(connection, list(first_prompts.values())[::-1])

    async def settle(self, now: datetime) -> int:
        """Settle the budgets of fusions that have ended; returns how many rows. See Budgets."""
        return await self._budgets.settle(now) if self._budgets else 0

    async def mark_published(self, fusion_ids: Sequence[str], at: datetime, store_id: str) -> None:
        """Note that a store of the broker has these prompts.

        Nothing is marked if prompts are published to another store meanwhile (docs/decisions/0044).
        """
        values = {"keys": list(fusion_ids), "at": at, "store_id": store_id}
        await self._store.run(lambda connection: connection.execute(_MARK, values), write=True)

    async def find_unpublished(
        self, before: datetime, limit: int
    ) -> list[tuple[Prompt, str | None]]:
        """List prompts committed before a time that the broker does not have, the oldest first.

        Each with its trace, if it has one.
        """
        query = (
            select(prompts.c.body, prompts.c.traceparent)
            .where(
                prompts.c.published_at.is_(None),
                prompts.c.submitted_at < before,
                prompts.c.cancelled_at.is_(None),
                # Its texts were deleted: it ended, at its deadline, without the broker.
                prompts.c.body != "",
            )
            .order_by(prompts.c.submitted_at)
            .limit(limit)
        )
        async with self._store.read() as connection:
            return [(Prompt.decode(body), trace) for body, trace in await connection.execute(query)]

    async def publish_to(self, store_id: str) -> int:
        """Note the broker's store that prompts are published to.

        If it is another one than before, take back the marks of unfinished prompts, which were in
        the old one.

        Returns:
            How many marks were taken back.
        """
        forget = (
            update(prompts)
            .where(prompts.c.published_at.is_not(None), _UNDECIDED)
            .values(published_at=None)
        )
        async with self._store.write() as connection:
            await connection.execute(
                delete(published_to).where(published_to.c.store_id != store_id)
            )
            insertion = await connection.execute(
                _TAKE[connection.dialect.name], {"store_id": store_id}
            )
            # Of several replicas, only the first takes back marks.
            if insertion.first() is None:
                return 0
            return (await connection.execute(forget)).rowcount

    async def forget_stalled(self, before: datetime) -> int:
        """Take back the marks of unfinished prompts published before a time.

        Not of fusions for which the judge has something left to publish.

        Returns:
            How many marks were taken back.
        """
        is_open = select(fusions.c.fusion_id).where(
            fusions.c.is_done == false(), fusions.c.unpublished_since.is_(None)
        )
        statement = update(prompts).where(
            prompts.c.fusion_id.in_(is_open), prompts.c.published_at < before
        )
        async with self._store.write() as connection:
            return (await connection.execute(statement.values(published_at=None))).rowcount

    async def newest(
        self, tenant: str, request_hash: str, since: datetime, now: datetime
    ) -> EarlierRequest | None:
        """Find the newest request with a hash, submitted after a time or before its deadline."""
        values = {"tenant": tenant, "request_hash": request_hash, "since": since, "now": now}
        async with self._store.read() as connection:
            row = (await connection.execute(_NEWEST, values)).one_or_none()
        if row is None:
            return None
        return EarlierRequest(row.fusion_id, row.held_by, row.left_at, bool(row.is_undecided))

    async def get(self, tenant: str, fusion_id: str) -> Prompt | None:
        """Read a prompt of a tenant; None if there is none of that id. Raises TextsDeletedError."""
        # PostgreSQL refuses even to look for a NUL.
        if "\x00" in fusion_id:
            return None
        query = select(prompts.c.body).where(
            prompts.c.tenant == tenant, prompts.c.fusion_id == fusion_id
        )
        async with self._store.read() as connection:
            body = (await connection.execute(query)).scalar()
        if body == "":
            raise TextsDeletedError(fusion_id)
        return Prompt.decode(body) if body else None

    async def leave(self, fusion_id: str, at: datetime) -> None:
        """Note that a fusion's client has left before it was answered."""
        async with self._store.write() as connection:
            await connection.execute(_LEAVE, {"key": fusion_id, "at": at})

    async def hold(self, fusion_id: str, holder: str) -> None:
        """Note that a client waits for a fusion again, at the process `holder`."""
        async with self._store.write() as connection:
            await connection.execute(_HOLD, {"key": fusion_id, "holder": holder})

    async def cancel(self, tenant: str, fusion_ids: Sequence[str], at: datetime) -> list[str]:
        """Mark fusions without an outcome as cancelled; returns their ids, sorted.

        A fusion that is cancelled already keeps the time of its first mark.
        """
        # PostgreSQL refuses even to look for a NUL.
        keys = sorted(key for key in fusion_ids if "\x00" not in key)
        async with self._store.write() as connection:
            rows = await connection.execute(_CANCEL, {"of": tenant, "keys": keys, "at": at})
            return sorted(rows.scalars())

    async def find_cancelled(self, before: datetime, limit: int) -> list[str]:
        """List the ids of fusions cancelled before a time that have no outcome yet."""
        query = (
            select(prompts.c.fusion_id)
            .where(prompts.c.cancelled_at < before, _UNDECIDED)
            .order_by(prompts.c.cancelled_at)
            .limit(limit)
        )
        async with self._store.read() as connection:
            return list((await connection.execute(query)).scalars())


def _rows(
    batch: Sequence[Prompt],
    hashes: Sequence[str],
    traceparents: Sequence[str | None],
    origins: Sequence[RequestIdentity | None],
) -> dict[str, dict[str, Any]]:
    """Rows of `prompts` by fusion; of prompts with equal ids, that of the first."""
    rows: dict[str, dict[str, Any]] = {}
    for prompt, digest, traceparent, origin in zip(
        batch, hashes, traceparents, origins, strict=True
    ):
        row = {**_row(prompt, digest, traceparent), **_identity_columns(origin)}
        rows.setdefault(prompt.fusion_id, row)
    # Sorted, so that transactions with the same prompts do not deadlock.
    return {key: rows[key] for key in sorted(rows)}


def _with_ids(fusion_ids: Set[str], batch: Sequence[Prompt]) -> list[Prompt]:
    """The prompts with these ids, in their order."""
    return [prompt for prompt in batch if prompt.fusion_id in fusion_ids]


def _add_fusions_in(
    connection: Connection, rows: Mapping[str, dict[str, Any]], new_prompts: Sequence[Prompt]
) -> None:
    """Add the fusions of new prompts, and note the images that they refer to.

    The judge only updates rows of `fusions`, so none exists without a submission
    (docs/decisions/0003).
    """
    prompts_by_id = {prompt.fusion_id: prompt for prompt in new_prompts}
    fusion_rows = [_fusion_row(row) for key, row in rows.items() if key in prompts_by_id]
    connection.execute(insert(fusions), fusion_rows)
    add_uses_in(connection, list(prompts_by_id.values()))


def _stored_hashes_in(
    connection: Connection, rows: Mapping[str, dict[str, Any]], own_ids: Set[str]
) -> dict[str, str]:
    """Body hashes by fusion: of our own rows as they are, of all others from the table."""
    hashes = {key: row["body_hash"] for key, row in rows.items() if key in own_ids}
    other_ids = [key for key in rows if key not in own_ids]
    if other_ids:
        query = select(prompts.c.fusion_id, prompts.c.body_hash).where(
            prompts.c.fusion_id.in_(other_ids)
        )
        hashes |= {row.fusion_id: row.body_hash for row in connection.execute(query)}
    return hashes


def _row(prompt: Prompt, digest: str, traceparent: str | None) -> dict[str, Any]:
    return {
        "fusion_id": prompt.fusion_id,
        "tenant": prompt.tenant,
        "batch_id": prompt.batch_id,
        "custom_id": prompt.custom_id,
        "pool": prompt.pool,
        "mode": prompt.mode,
        "residency": prompt.residency,
        "priority": prompt.priority,
        "body": prompt.model_dump_json(),
        "body_hash": digest,
        "prompt_hash": ids.digest(
            "prompt",
            prompt.model_dump_json(include=_HASHED_FIELDS, exclude_defaults=True),
        ).hex(),
        "traceparent": traceparent,
        "submitted_at": prompt.submitted_at,
        "deadline_at": prompt.deadline_at,
    }


def _identity_columns(origin: RequestIdentity | None) -> dict[str, str | None]:
    if origin is None:
        return {"request_hash": None, "held_by": None}
    return {"request_hash": origin.request_hash, "held_by": origin.held_by}


def _fusion_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row of `fusions` for a row of `prompts`."""
    return {"fusion_id": row["fusion_id"], "due_at": row["deadline_at"], "is_done": False}
