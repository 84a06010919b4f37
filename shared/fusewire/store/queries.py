"""The read side: the state of fusions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import BindParameter, Connection, bindparam, select

from fusewire import replies
from fusewire.contracts import Answer, Outcome, ToolCall
from fusewire.store.engine import Store
from fusewire.store.tables import candidates, outcomes, prompts

# Built once, as building a statement takes longer than running it.
_KEYS: BindParameter[list[str]] = bindparam("keys", expanding=True)
_STATUSES = (
    select(
        prompts.c.fusion_id,
        prompts.c.batch_id,
        prompts.c.custom_id,
        prompts.c.submitted_at,
        outcomes.c.body,
        outcomes.c.texts_deleted_at,
    )
    .join(outcomes, outcomes.c.fusion_id == prompts.c.fusion_id, isouter=True)
    .where(prompts.c.tenant == bindparam("tenant"), prompts.c.fusion_id.in_(_KEYS))
)
_BODIES = select(
    candidates.c.fusion_id, candidates.c.round, candidates.c.call, candidates.c.body
).where(candidates.c.fusion_id.in_(_KEYS))


CandidateBodies = dict[tuple[str, int, str], str]
"""Candidates' JSON by fusion, round and call."""


@dataclass(frozen=True)
class FusionStatus:
    """The state of a fusion: `outcome` is None while it runs, and after its texts were deleted."""

    fusion_id: str
    batch_id: str | None
    custom_id: str
    submitted_at: datetime
    outcome: Outcome | None
    texts_deleted_at: datetime | None = None


async def standings(
    store: Store, tenant: str, fusion_ids: Sequence[str], *, texts: bool = True
) -> list[FusionStatus]:
    """The state of these fusions, without unknown ones and those of other tenants.

    Args:
        store: the database.
        tenant: the tenant that they must belong to.
        fusion_ids: their ids.
        texts: whether to fill in the text and tool calls of the members' answers.
    """
    # PostgreSQL refuses a parameter with a NUL.
    keys = [key for key in fusion_ids if "\x00" not in key]

    def query(connection: Connection) -> tuple[Sequence[Any], Sequence[Any]]:
        rows = connection.execute(_STATUSES, {"tenant": tenant, "keys": keys}).all()
        ended_ids = [row.fusion_id for row in rows if row.body]
        if not texts or not ended_ids:
            return rows, ()
        return rows, connection.execute(_BODIES, {"keys": ended_ids}).all()

    rows, candidate_rows = await store.run(query, write=False)
    bodies: CandidateBodies = {
        (row.fusion_id, row.round, row.call): row.body for row in candidate_rows
    }
    return [_status(row, bodies, texts=texts) for row in rows]


def _status(row: Any, bodies: CandidateBodies, *, texts: bool) -> FusionStatus:
    outcome = Outcome.decode(row.body) if row.body else None
    if outcome and texts:
        answers = tuple(_with_text(answer, outcome, bodies) for answer in outcome.answers)
        outcome = outcome.model_copy(update={"answers": answers})
    return FusionStatus(
        row.fusion_id,
        row.batch_id,
        row.custom_id,
        row.submitted_at,
        outcome,
        row.texts_deleted_at,
    )


def _with_text(answer: Answer, outcome: Outcome, bodies: CandidateBodies) -> Answer:
    """An answer with the content of its candidate, which the outcome's body leaves out."""
    if answer.round is None or answer.content is not None:
        return answer
    body = bodies.get((outcome.fusion_id, answer.round, answer.call or answer.member))
    if body is None:
        return answer
    # Not validated as a whole: the judge did that when it stored the candidate.
    candidate = json.loads(body)
    calls = tuple(ToolCall.model_validate(call) for call in candidate.get("tool_calls", ()))
    return answer.model_copy(update={"content": candidate.get("content"), "tool_calls": calls})


def as_reply(status: FusionStatus) -> replies.fusions.Fusion:
    """A fusion's state as the API and the command line show it; degradation comes first."""
    base = {
        "id": status.fusion_id,
        "custom_id": status.custom_id,
        "batch_id": status.batch_id,
    }
    if status.outcome is None:
        state = "texts_deleted" if status.texts_deleted_at else "running"
        without_outcome = {**base, "status": state, "submitted_at": status.submitted_at.isoformat()}
        return cast("replies.fusions.Fusion", without_outcome)
    body = status.outcome.model_dump(
        mode="json", exclude={"v", "fusion_id", "custom_id", "batch_id"}
    )
    first = {key: body.pop(key) for key in ("is_degraded", "degraded_reasons", "status")}
    latency_ms = round(status.outcome.latency_ms, 1)
    reply = {**first, **base, **body, "latency_ms": latency_ms}
    return cast("replies.fusions.Fusion", reply)
