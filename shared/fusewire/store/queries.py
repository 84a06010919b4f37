"""The read side: what became of a fusion."""

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

# Built once: to build a statement takes longer than to run it.
_KEYS: BindParameter[list[str]] = bindparam("keys", expanding=True)
_STANDINGS = (
    select(
        prompts.c.fusion_id,
        prompts.c.batch_id,
        prompts.c.custom_id,
        prompts.c.submitted_at,
        outcomes.c.body,
    )
    .join(outcomes, outcomes.c.fusion_id == prompts.c.fusion_id, isouter=True)
    .where(prompts.c.tenant == bindparam("tenant"), prompts.c.fusion_id.in_(_KEYS))
)
_TEXTS = select(
    candidates.c.fusion_id, candidates.c.round, candidates.c.call, candidates.c.body
).where(candidates.c.fusion_id.in_(_KEYS))


Spoken = dict[tuple[str, int, str], str]
"""By fusion, round and call: a candidate's JSON."""


@dataclass(frozen=True)
class FusionStatus:
    """Where a fusion stands: `outcome` is None while it runs."""

    fusion_id: str
    batch_id: str | None
    custom_id: str
    submitted_at: datetime
    outcome: Outcome | None


async def standings(
    store: Store, tenant: str, fusion_ids: Sequence[str], *, texts: bool = True
) -> list[FusionStatus]:
    """Where these fusions stand; unknown ones, and those of other tenants, are left out.

    Args:
        store: the database.
        tenant: whose they must be.
        fusion_ids: which.
        texts: whether to fill in the members' answers, text and tool calls.
    """
    # PostgreSQL refuses even to look for a NUL.
    keys = [key for key in fusion_ids if "\x00" not in key]

    def look(connection: Connection) -> tuple[Sequence[Any], Sequence[Any]]:
        rows = connection.execute(_STANDINGS, {"tenant": tenant, "keys": keys}).all()
        done = [row.fusion_id for row in rows if row.body]
        return rows, connection.execute(_TEXTS, {"keys": done}).all() if texts and done else ()

    rows, said = await store.run(look, write=False)
    spoken: Spoken = {(row.fusion_id, row.round, row.call): row.body for row in said}
    found = []
    for row in rows:
        outcome = Outcome.decode(row.body) if row.body else None
        if outcome and texts:
            outcome = outcome.model_copy(
                update={"answers": tuple(_with_text(a, outcome, spoken) for a in outcome.answers)}
            )
        found.append(
            FusionStatus(row.fusion_id, row.batch_id, row.custom_id, row.submitted_at, outcome)
        )
    return found


def _with_text(answer: Answer, outcome: Outcome, spoken: Spoken) -> Answer:
    if answer.round is None or answer.content is not None:
        return answer
    body = spoken.get((outcome.fusion_id, answer.round, answer.call or answer.member))
    if body is None:
        return answer
    # The judge has checked the whole when it stored it.
    said = json.loads(body)
    calls = tuple(ToolCall.model_validate(call) for call in said.get("tool_calls", ()))
    return answer.model_copy(update={"content": said.get("content"), "tool_calls": calls})


def as_reply(standing: FusionStatus) -> replies.fusions.Fusion:
    """A standing as the API and the command line show it; what is degraded comes first."""
    base = {
        "id": standing.fusion_id,
        "custom_id": standing.custom_id,
        "batch_id": standing.batch_id,
    }
    if standing.outcome is None:
        running = {**base, "status": "running", "submitted_at": standing.submitted_at.isoformat()}
        return cast("replies.fusions.Fusion", running)
    body = standing.outcome.model_dump(
        mode="json", exclude={"v", "fusion_id", "custom_id", "batch_id"}
    )
    first = {key: body.pop(key) for key in ("is_degraded", "degraded_reasons", "status")}
    found = {**first, **base, **body, "latency_ms": round(standing.outcome.latency_ms, 1)}
    return cast("replies.fusions.Fusion", found)
