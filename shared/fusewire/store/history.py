"""The read side: everything that is stored about one fusion."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, select

from fusewire.contracts import Candidate, Outcome, Plan, Prompt, Round
from fusewire.store.engine import Store
from fusewire.store.tables import candidates, fusions, outcomes, prompts, rounds


@dataclass(frozen=True)
class StoredCandidate:
    """A candidate, and when it was stored."""

    candidate: Candidate
    received_at: datetime
    is_late: bool


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
    """The newest fusion with one of these ids; None if there is none. Raises Transient."""

    def query(connection: Connection) -> History | None:
        row = connection.execute(_PROMPT, {"keys": fusion_ids}).one_or_none()
        return _read(connection, row) if row else None

    return await store.run(query, write=False)


_PROMPT = (
    select(
        prompts.c.fusion_id,
        prompts.c.body,
        prompts.c.published_at,
        prompts.c.cancelled_at,
        fusions.c.plan,
        outcomes.c.body.label("outcome"),
    )
    .join(fusions, fusions.c.fusion_id == prompts.c.fusion_id)
    .join(outcomes, outcomes.c.fusion_id == prompts.c.fusion_id, isouter=True)
    .where(prompts.c.fusion_id.in_(bindparam("keys", expanding=True)))
    .order_by(prompts.c.submitted_at.desc())
    .limit(1)
)


def _read(connection: Connection, prompt_row: Any) -> History:
    round_rows = connection.execute(
        select(rounds.c.body, rounds.c.asked_at)
        .where(rounds.c.fusion_id == prompt_row.fusion_id)
        .order_by(rounds.c.round)
    )
    candidate_rows = connection.execute(
        select(candidates.c.body, candidates.c.received_at, candidates.c.is_late)
        .where(candidates.c.fusion_id == prompt_row.fusion_id)
        .order_by(candidates.c.received_at, candidates.c.round, candidates.c.call)
    )
    return History(
        prompt=Prompt.decode(prompt_row.body),
        published_at=prompt_row.published_at,
        cancelled_at=prompt_row.cancelled_at,
        plan=Plan.decode(prompt_row.plan) if prompt_row.plan else None,
        rounds=[(Round.decode(row.body), row.asked_at) for row in round_rows],
        received=[
            StoredCandidate(Candidate.decode(row.body), row.received_at, row.is_late)
            for row in candidate_rows
        ],
        outcome=Outcome.decode(prompt_row.outcome) if prompt_row.outcome else None,
    )
