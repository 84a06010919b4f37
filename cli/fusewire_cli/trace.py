"""`fusewire trace`: how one fusion came to its outcome, step by step."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from fusewire.contracts import Candidate, Outcome, Round, Verdict
from fusewire.ids import fusion_id
from fusewire.store.engine import Store
from fusewire.store.history import History, StoredCandidate, history
from fusewire_cli.screen import RowFormat, fail, rows
from fusewire_cli.session import settings

BAR = 24
"""Characters of the picture of a call's time."""


@dataclass(frozen=True)
class Step:
    """One line of a trace.

    Attributes:
        at_ms: when it happened, or a call began, since the prompt was accepted.
        took_ms: how long a call took; None for what is no call.
        step: what happened.
        who: the member, or the call of the judge.
        model: which was called.
        result: what came of it.
        tokens_in: of a call's prompt.
        tokens_out: of its answer.
        cost_usd: of it; None where no price is known.
    """

    at_ms: float
    took_ms: float | None
    step: str
    who: str = ""
    model: str = ""
    result: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None
    cost_usd: float | None = None


def steps(found: History) -> list[Step]:
    """What happened, in order of time. Holds no text of prompts or answers."""
    start = found.prompt.submitted_at
    return sorted(_steps(found, start), key=lambda step: step.at_ms)


def _steps(found: History, start: datetime) -> Iterator[Step]:
    prompt = found.prompt
    yield Step(
        0.0,
        None,
        "accepted",
        result=f"{prompt.mode}, pool {prompt.pool}, priority {prompt.priority}",
    )
    if found.published_at:
        yield Step(_ms(start, found.published_at), None, "published")
    if found.plan:
        plan = found.plan
        left_out = [f"{member.name} left out ({member.reason})" for member in plan.excluded]
        told = ", ".join([f"{len(plan.members)} members", f"quorum {plan.quorum:g}", *left_out])
        yield Step(_ms(start, plan.planned_at), None, "planned", result=told)
    verdicts = (
        {verdict.call: verdict for verdict in found.outcome.verdicts} if found.outcome else {}
    )
    for round_, asked_at in found.rounds:
        yield Step(_ms(start, asked_at), None, "asked", result=_asked(round_))
    for received in found.received:
        yield _call(received, verdicts.get(received.candidate.call), start)
    if found.cancelled_at:
        yield Step(_ms(start, found.cancelled_at), None, "cancelled")
    if found.outcome:
        outcome = found.outcome
        yield Step(
            _ms(start, outcome.finished_at),
            None,
            "outcome",
            outcome.winner or "",
            "",
            _ended(outcome),
        )


def _asked(round_: Round) -> str:
    count = len(round_.calls)
    kinds = ", ".join(sorted({call.kind for call in round_.calls}))
    return f"round {round_.round}: {count} {'call' if count == 1 else 'calls'} ({kinds})"


def _call(received: StoredCandidate, verdict: Verdict | None, start: datetime) -> Step:
    candidate = received.candidate
    usage = candidate.usage
    return Step(
        _ms(start, candidate.started_at),
        round(candidate.latency_ms, 1),
        "late answer" if received.is_late else "call",
        candidate.member or candidate.call,
        candidate.model,
        ", ".join(_results(candidate, verdict)),
        usage.prompt_tokens if usage else None,
        usage.completion_tokens if usage else None,
        candidate.cost_usd,
    )


def _results(candidate: Candidate, verdict: Verdict | None) -> Iterator[str]:
    yield candidate.error.code if candidate.error else "ok"
    if candidate.attempts > 1:
        yield f"{candidate.attempts} attempts"
    if candidate.maybe_paid_twice:
        yield "may be paid twice"
    if verdict:
        yield f"void: {verdict.void}" if verdict.void else f"for {verdict.winner}"


def _ended(outcome: Outcome) -> str:
    told: list[str] = [outcome.status]
    if outcome.closed_by:
        told.append(f"closed by {outcome.closed_by}")
    if outcome.guard:
        told.append(f"guard: {outcome.guard}")
    return ", ".join([*told, *outcome.degraded_reasons])


def _ms(start: datetime, at: datetime) -> float:
    return round((at - start).total_seconds() * 1000, 1)


def trace(name: str, *, tenant: str, batch: str | None, as_json: bool) -> None:
    """Print the steps of a fusion, by its id, or by its custom_id within a tenant and a batch."""
    found = asyncio.run(_found([name, fusion_id(tenant, batch, name)]))
    if found is None:
        fail(
            f"no fusion '{name}' of tenant '{tenant}' is stored in this database",
            "give the id that its submission returned, or its custom_id with --tenant and --batch",
        )
    taken = steps(found)
    if as_json:
        print(json.dumps({"id": found.prompt.fusion_id, "steps": [asdict(step) for step in taken]}))
        return
    end = max(step.at_ms + (step.took_ms or 0) for step in taken)
    columns = ["at ms", "took", "", "step", "who", "model", "result", "tokens", "usd"]
    rows(columns, [_row(step, end) for step in taken], RowFormat.table)


async def _found(ids: Sequence[str]) -> History | None:
    store = Store(settings().database)
    try:
        await store.ping()
        return await history(store, ids)
    finally:
        await store.close()


def _row(step: Step, end: float) -> list[str]:
    tokens = "" if step.tokens_in is None else f"{step.tokens_in}+{step.tokens_out}"
    cost = "" if step.cost_usd is None else f"{step.cost_usd:.6f}".rstrip("0").rstrip(".")
    took = "" if step.took_ms is None else f"{step.took_ms:.0f}"
    return [
        f"{step.at_ms:.0f}",
        took,
        _bar(step, end),
        step.step,
        step.who,
        step.model,
        step.result,
        tokens,
        cost,
    ]


def _bar(step: Step, end: float) -> str:
    """When a call ran, as a part of the whole fusion."""
    if step.took_ms is None or not end:
        return ""
    begin = int(step.at_ms / end * BAR)
    length = max(1, round(step.took_ms / end * BAR))
    return " " * begin + "━" * min(length, BAR - begin)
