"""Submissions in SQL: written here and nowhere else."""

import asyncio
from collections.abc import Callable, Sequence
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
from fusewire.errors import Transient
from fusewire.store.engine import Store
from fusewire.store.tables import fusions, outcomes, prompts, published_to
from fusewire_ingest.admission.admit import body_hash
from fusewire_ingest.admission.refusal import RefusedError
from fusewire_ingest.repository.budgets import Budgets
from fusewire_ingest.repository.images import add_uses_in

# Built once: to build a statement takes longer than to run it.
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
    """By what a request is found again when its client sends it once more.

    Attributes:
        request_hash: equal for the same request of the same client.
        held_by: the ingest process that its client waits at.
    """

    request_hash: str
    held_by: str


@dataclass(frozen=True)
class EarlierRequest:
    """An earlier request that was the same.

    Attributes:
        fusion_id: what answers it.
        held_by: the ingest process that its client waits at, or waited.
        left_at: when its client left before it was answered; None where it did not.
        is_undecided: whether it has no outcome yet.
    """

    fusion_id: str
    held_by: str | None
    left_at: datetime | None
    is_undecided: bool


@dataclass(frozen=True)
class Acceptance:
    """The fate of one submitted prompt."""

    prompt: Prompt
    is_new: bool
    is_conflict: bool
    """The custom_id is taken by a prompt with another body."""
    refused: RefusedError | None = None
    """Why the tenant's budget does not allow it: `budget_exceeded` or `price_unknown`. It is not stored."""

    @property
    def is_over_budget(self) -> bool:
        """Whether it could be accepted when more of the budget is free."""
        return self.refused is not None and self.refused.code == "budget_exceeded"


_ASKED = {"messages", "sampling", "tools", "tool_choice", "parallel_tool_calls"}
"""What makes two prompts the same to analysts, whoever sent them to whatever pool."""


class Submissions:
    """The `prompts` table.

    Args:
        store: the database.
        budgets: what is asked before a prompt is accepted.
        has_room: raises Transient where nothing may be accepted.
    """

    def __init__(
        self,
        store: Store,
        budgets: Budgets | None = None,
        has_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._has_room = has_room
        self._budgets = budgets

    async def add(
        self,
        batch: Sequence[Prompt],
        traceparents: Sequence[str | None],
        origins: Sequence[RequestIdentity | None] | None = None,
    ) -> list[Acceptance]:
        """Commit prompts in one transaction; a repetition is recognised, not stored again.

        Args:
            batch: the prompts.
            traceparents: the trace of each, if it has one.
            origins: by which each is found again when its client sends it once more.

        Raises:
            Transient: nothing was committed.
        """
        await self.ready()
        return await self._store.run(
            lambda connection: self.add_in(connection, batch, traceparents, origins), write=True
        )

    async def ready(self) -> None:
        """Load what `add_in` must not wait for. Raises Transient where nothing may be accepted."""
        self._has_room()
        if self._budgets:
            await self._budgets.start()

    def add_in(
        self,
        connection: Connection,
        batch: Sequence[Prompt],
        traceparents: Sequence[str | None],
        origins: Sequence[RequestIdentity | None] | None = None,
    ) -> list[Acceptance]:
        """Like `add`, within a transaction of the caller's, once `ready`."""
        rows: dict[str, dict[str, Any]] = {}
        hashes = [body_hash(p) for p in batch]
        found = origins or [None] * len(batch)
        for prompt, hashed, traceparent, origin in zip(
            batch, hashes, traceparents, found, strict=True
        ):
            rows.setdefault(
                prompt.fusion_id, {**_row(prompt, hashed, traceparent), **_found_by(origin)}
            )
        ordered = [rows[key] for key in sorted(rows)]
        fresh = set(connection.execute(_ADD[connection.dialect.name], ordered).scalars())
        # Stored first: only what is new is paid for, and of two that store it at once one waits here.
        refused = self._refused(connection, [p for p in batch if p.fusion_id in fresh])
        if refused:
            connection.execute(_REMOVE, {"keys": list(refused)})
            fresh -= refused.keys()
        if fresh:
            # The judge only ever updates this row: a fusion that no one submitted cannot come to be.
            opened = [_opened(row) for row in ordered if row["fusion_id"] in fresh]
            connection.execute(insert(fusions), opened)
            add_uses_in(
                connection, list({p.fusion_id: p for p in batch if p.fusion_id in fresh}.values())
            )
        known = {
            key: row["body_hash"] for key, row in rows.items() if key in fresh or key in refused
        }
        if stale := [key for key in rows if key not in known]:
            stored = connection.execute(
                select(prompts.c.fusion_id, prompts.c.body_hash).where(
                    prompts.c.fusion_id.in_(stale)
                )
            )
            known |= {row.fusion_id: row.body_hash for row in stored}
        accepted = []
        for prompt, hashed in zip(batch, hashes, strict=True):
            is_new = prompt.fusion_id in fresh
            fresh.discard(prompt.fusion_id)
            is_conflict = known[prompt.fusion_id] != hashed
            accepted.append(Acceptance(prompt, is_new, is_conflict, refused.get(prompt.fusion_id)))
        return accepted

    def _refused(self, connection: Connection, batch: Sequence[Prompt]) -> dict[str, RefusedError]:
        if self._budgets is None or not batch:
            return {}
        return self._budgets.reserve_in(
            connection, list({p.fusion_id: p for p in reversed(batch)}.values())[::-1]
        )

    async def settle(self) -> int:
        """Settle the budgets of what has ended; see Budgets."""
        if self._budgets is None:
            return 0
        return await self._budgets.settle() + await self._budgets.settle_late()

    async def mark_published(self, fusion_ids: Sequence[str], at: datetime, store_id: str) -> None:
        """This store of the broker has them; nothing is marked where another one is published to meanwhile."""
        marked = {"keys": list(fusion_ids), "at": at, "store_id": store_id}
        await self._store.run(lambda connection: connection.execute(_MARK, marked), write=True)

    async def unpublished(self, before: datetime, limit: int) -> list[tuple[Prompt, str | None]]:
        """Prompts committed before a time that the broker does not have, oldest first."""
        query = (
            select(prompts.c.body, prompts.c.traceparent)
            .where(
                prompts.c.published_at.is_(None),
                prompts.c.submitted_at < before,
                prompts.c.cancelled_at.is_(None),
            )
            .order_by(prompts.c.submitted_at)
            .limit(limit)
        )
        async with self._store.read() as connection:
            return [(Prompt.decode(body), trace) for body, trace in await connection.execute(query)]

    async def publish_to(self, store_id: str) -> int:
        """Note the broker's store that prompts are published to.

        Where it is another one than before, take back the mark of unfinished prompts: they were in that one.

        Returns:
            How many.
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
            taken = await connection.execute(_TAKE[connection.dialect.name], {"store_id": store_id})
            # Of several replicas one is the first.
            return (await connection.execute(forget)).rowcount if taken.first() else 0

    async def forget_stalled(self, before: datetime) -> int:
        """Take back the mark of unfinished prompts published before a time, of which the judge publishes nothing now.

        Returns:
            How many.
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
        """The newest of the requests that were the same, submitted after a time or not yet at its deadline."""
        wanted = {"tenant": tenant, "request_hash": request_hash, "since": since, "now": now}
        async with self._store.read() as connection:
            row = (await connection.execute(_NEWEST, wanted)).one_or_none()
        return (
            EarlierRequest(row.fusion_id, row.held_by, row.left_at, bool(row.is_undecided))
            if row
            else None
        )

    async def get(self, tenant: str, fusion_id: str) -> Prompt | None:
        """A prompt of a tenant's."""
        wanted = select(prompts.c.body).where(
            prompts.c.tenant == tenant, prompts.c.fusion_id == fusion_id
        )
        async with self._store.read() as connection:
            body = (await connection.execute(wanted)).scalar()
        return Prompt.decode(body) if body else None

    async def leave(self, fusion_id: str, at: datetime) -> None:
        """Its client has left before it was answered."""
        async with self._store.write() as connection:
            await connection.execute(_LEAVE, {"key": fusion_id, "at": at})

    async def hold(self, fusion_id: str, holder: str) -> None:
        """A client waits for it again, at this process."""
        async with self._store.write() as connection:
            await connection.execute(_HOLD, {"key": fusion_id, "holder": holder})

    async def cancel(self, tenant: str, fusion_ids: Sequence[str], at: datetime) -> list[str]:
        """Mark those that have no outcome yet; returns them. One that is marked keeps its first mark."""
        # PostgreSQL refuses even to look for a NUL.
        keys = sorted(key for key in fusion_ids if "\x00" not in key)
        async with self._store.write() as connection:
            found = await connection.execute(_CANCEL, {"of": tenant, "keys": keys, "at": at})
            return sorted(found.scalars())

    async def cancelled(self, before: datetime, limit: int) -> list[str]:
        """Fusions marked before a time that have no outcome yet."""
        query = (
            select(prompts.c.fusion_id)
            .where(prompts.c.cancelled_at < before, _UNDECIDED)
            .order_by(prompts.c.cancelled_at)
            .limit(limit)
        )
        async with self._store.read() as connection:
            return list((await connection.execute(query)).scalars())


def _row(prompt: Prompt, hashed: str, traceparent: str | None) -> dict[str, Any]:
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
        "body_hash": hashed,
        "prompt_hash": ids.digest(
            "prompt",
            prompt.model_dump_json(include=_ASKED, exclude_defaults=True),
        ).hex(),
        "traceparent": traceparent,
        "submitted_at": prompt.submitted_at,
        "deadline_at": prompt.deadline_at,
    }


def _found_by(origin: RequestIdentity | None) -> dict[str, str | None]:
    if origin is None:
        return {"request_hash": None, "held_by": None}
    return {"request_hash": origin.request_hash, "held_by": origin.held_by}


def _opened(row: dict[str, Any]) -> dict[str, Any]:
    return {"fusion_id": row["fusion_id"], "due_at": row["deadline_at"], "is_done": False}


@dataclass(frozen=True)
class _Waiting:
    batch: Sequence[Prompt]
    traceparent: str | None
    origin: RequestIdentity | None
    done: asyncio.Future[list[Acceptance]]


class GroupCommit:
    """Commits what arrives while the last commit runs as one transaction: one fsync for many clients."""

    def __init__(self, submissions: Submissions, most: int = 500) -> None:
        self._submissions = submissions
        self._most = most
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._open: set[asyncio.Future[list[Acceptance]]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to commit."""
        self._task = asyncio.create_task(self._run(), name="ingest-commit")

    def faults(self) -> list[str]:
        """Why nothing is committed any more; empty while it is."""
        return ["ingest-commit has ended"] if self._task and self._task.done() else []

    async def stop(self) -> None:
        """End; whoever still waits gets a Transient."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for done in self._open:
            if not done.done():
                done.set_exception(Transient("ingest is stopping"))

    async def add(
        self,
        batch: Sequence[Prompt],
        traceparent: str | None = None,
        origin: RequestIdentity | None = None,
    ) -> list[Acceptance]:
        """Like Submissions.add."""
        done: asyncio.Future[list[Acceptance]] = asyncio.get_running_loop().create_future()
        self._open.add(done)
        self._queue.put_nowait(_Waiting(batch, traceparent, origin, done))
        try:
            return await done
        finally:
            self._open.discard(done)

    async def _run(self) -> None:
        while True:
            waiting = [await self._queue.get()]
            size = len(waiting[0].batch)
            while not self._queue.empty() and size < self._most:
                waiting.append(self._queue.get_nowait())
                size += len(waiting[-1].batch)
            await self._commit(waiting)

    async def _commit(self, waiting: Sequence[_Waiting]) -> None:
        prompts_ = [p for w in waiting for p in w.batch]
        traces = [w.traceparent for w in waiting for _ in w.batch]
        origins = [w.origin for w in waiting for _ in w.batch]
        try:
            accepted = await self._submissions.add(prompts_, traces, origins)
        except Exception as exc:  # noqa: BLE001 - it belongs to those who wait
            if len(waiting) > 1 and not isinstance(exc, Transient):
                # Something is wrong with one of them: the others must not pay for it.
                for one in waiting:
                    await self._commit([one])
                return
            for one in waiting:
                if not one.done.done():
                    one.done.set_exception(exc)
            return
        rest = iter(accepted)
        for one in waiting:
            share = [next(rest) for _ in one.batch]
            if not one.done.done():
                one.done.set_result(share)
