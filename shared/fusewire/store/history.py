"""The read side: everything that is stored about one fusion."""

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, or_, select

from fusewire.contracts import Candidate, Outcome, Plan, Prompt, Round
from fusewire.errors import TextsDeletedError
from fusewire.store.engine import Store
from fusewire.store.tables import candidates, fusions, outcomes, prompts, rounds

PAGE = 200
"""How many fusions of a batch are read at once."""


@dataclass(frozen=True)
class StoredCandidate:
    """A candidate, and when it was stored."""

    candidate: Candidate
    received_at: datetime
    is_late: bool
    after_rounds: int = 0
    """How many rounds had been published by then."""


@dataclass(frozen=True)
class History:
    """One fusion. `plan` and `outcome` are None until they are stored."""

    prompt: Prompt
    published_at: datetime | None
    cancelled_at: datetime | None
    plan: Plan | None
    rounds: Sequence[tuple[Round, datetime]]
    """Each with the time at which the judge requested it."""
    received: Sequence[StoredCandidate]
    outcome: Outcome | None


async def history(store: Store, fusion_ids: Sequence[str]) -> History | None:
    """The newest fusion with one of these ids; None if there is none.

    Raises Transient, or TextsDeletedError.
    """
    newest = _PROMPTS.where(prompts.c.fusion_id.in_(fusion_ids))
    newest = newest.order_by(prompts.c.submitted_at.desc()).limit(1)
    histories = await store.run(lambda connection: _read(connection, newest), write=False)
    return histories[0] if histories else None


@dataclass(frozen=True)
class PoolQuery:
    """Which outcomes of a pool to read; None does not restrict."""

    pool: str
    since: datetime | None = None
    tenant: str | None = None
    batch_id: str | None = None
    """With a batch, outcomes of recorded answers are read too; without one they are left out, since
    they hold answers that other outcomes hold already."""


async def pool_histories(
    store: Store, query: PoolQuery, limit: int
) -> AsyncIterator[list[History]]:
    """The newest fusions of a pool that have an outcome, in pages, the newest first.

    Raises Transient.
    """
    newest = _of_pool(query)
    remaining = limit
    after = None
    while remaining > 0:
        page = newest.limit(min(PAGE, remaining))
        if after is not None:
            page = page.where(_is_after(after))
        histories = await store.run(partial(_read, query=page), write=False)
        if not histories:
            return
        yield histories
        remaining -= len(histories)
        after = histories[-1].outcome


def _of_pool(query: PoolQuery) -> Select[Any]:
    newest = _PROMPTS.where(outcomes.c.pool == query.pool)
    if query.since is not None:
        newest = newest.where(outcomes.c.finished_at >= query.since)
    if query.tenant is not None:
        newest = newest.where(outcomes.c.tenant == query.tenant)
    if query.batch_id is not None:
        newest = newest.where(outcomes.c.batch_id == query.batch_id)
    else:
        newest = newest.where(outcomes.c.is_replay.is_(False))
    return newest.order_by(outcomes.c.finished_at.desc(), outcomes.c.fusion_id.desc())


def _is_after(outcome: Outcome) -> ColumnElement[bool]:
    """The condition of what follows an outcome in that order."""
    at, fusion_id = outcomes.c.finished_at, outcomes.c.fusion_id
    return and_(
        # The bound that an index can use.
        at <= outcome.finished_at,
        or_(at < outcome.finished_at, fusion_id < outcome.fusion_id),
    )


async def batch_histories(store: Store, tenant: str, batch_id: str) -> list[History]:
    """All fusions of a batch, in the order of their ids. Raises Transient or TextsDeletedError."""
    of_batch = _PROMPTS.where(prompts.c.tenant == tenant, prompts.c.batch_id == batch_id)
    of_batch = of_batch.order_by(prompts.c.fusion_id).limit(PAGE)
    histories: list[History] = []
    after = ""
    while True:
        page = of_batch.where(prompts.c.fusion_id > after)
        page_histories = await store.run(partial(_read, query=page), write=False)
        if not page_histories:
            return histories
        histories += page_histories
        after = histories[-1].prompt.fusion_id


_PROMPTS = (
    select(
        prompts.c.fusion_id,
        prompts.c.body,
        prompts.c.published_at,
        prompts.c.cancelled_at,
        fusions.c.plan,
        outcomes.c.body.label("outcome"),
        outcomes.c.texts_deleted_at,
    )
    .join(fusions, fusions.c.fusion_id == prompts.c.fusion_id)
    .join(outcomes, outcomes.c.fusion_id == prompts.c.fusion_id, isouter=True)
)


def _read(connection: Connection, query: Select[Any]) -> list[History]:
    """The histories of the prompts that a query selects, in its order."""
    prompt_rows = connection.execute(query).all()
    for row in prompt_rows:
        if row.texts_deleted_at:
            raise TextsDeletedError(row.fusion_id)
    fusion_ids = [row.fusion_id for row in prompt_rows]
    rounds_by_fusion = _rounds(connection, fusion_ids)
    candidates_by_fusion = _candidates(connection, fusion_ids)
    return [
        History(
            prompt=Prompt.decode(row.body),
            published_at=row.published_at,
            cancelled_at=row.cancelled_at,
            plan=Plan.decode(row.plan) if row.plan else None,
            rounds=rounds_by_fusion[row.fusion_id],
            received=candidates_by_fusion[row.fusion_id],
            outcome=Outcome.decode(row.outcome) if row.outcome else None,
        )
        for row in prompt_rows
    ]


def _rounds(
    connection: Connection, fusion_ids: Sequence[str]
) -> Mapping[str, list[tuple[Round, datetime]]]:
    rows = connection.execute(
        select(rounds.c.fusion_id, rounds.c.body, rounds.c.asked_at)
        .where(rounds.c.fusion_id.in_(fusion_ids))
        .order_by(rounds.c.round)
    )
    by_fusion: defaultdict[str, list[tuple[Round, datetime]]] = defaultdict(list)
    for row in rows:
        by_fusion[row.fusion_id].append((Round.decode(row.body), row.asked_at))
    return by_fusion


def _candidates(
    connection: Connection, fusion_ids: Sequence[str]
) -> Mapping[str, list[StoredCandidate]]:
    columns = candidates.c
    rows = connection.execute(
        select(
            columns.fusion_id,
            columns.body,
            columns.received_at,
            columns.is_late,
            columns.after_rounds,
        )
        .where(columns.fusion_id.in_(fusion_ids))
        .order_by(columns.received_at, columns.round, columns.call)
    )
    by_fusion: defaultdict[str, list[StoredCandidate]] = defaultdict(list)
    for row in rows:
        candidate = StoredCandidate(
            Candidate.decode(row.body), row.received_at, row.is_late, row.after_rounds
        )
        by_fusion[row.fusion_id].append(candidate)
    return by_fusion
