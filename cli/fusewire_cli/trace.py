"""`fusewire trace`: how one fusion came to its outcome, step by step."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from fusewire.contracts import Candidate, Outcome, Plan, Round, Route, Verdict
from fusewire.ids import fusion_id
from fusewire.store.engine import Store
from fusewire.store.history import History, StoredCandidate
from fusewire.store.history import history as read_history
from fusewire_cli.screen import RowFormat, fail, rows
from fusewire_cli.session import settings

BAR = 24
"""The width of the bar that shows when a call ran, in characters."""


@dataclass(frozen=True)
class Step:
    """One line of a trace.

    Attributes:
        at_ms: when it happened or a call began, ms since the prompt was accepted.
        took_ms: how long a call took, ms; None if it is no call.
        step: what happened.
        who: the member, or the call of the judge.
        model: the model that was called.
        result: the result of the step.
        tokens_in: tokens of a call's prompt.
        tokens_out: tokens of its answer.
        cost_usd: its cost; None if no price is known.
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


def steps(history: History) -> list[Step]:
    """What happened, in order of time. Holds no text of prompts or answers."""
    start = history.prompt.submitted_at
    return sorted(_steps(history, start), key=lambda step: step.at_ms)


def _steps(history: History, start: datetime) -> Iterator[Step]:
    prompt, outcome = history.prompt, history.outcome
    request = f"{prompt.mode}, pool {prompt.pool}, priority {prompt.priority}"
    yield Step(0.0, None, "accepted", result=request)
    if history.published_at:
        yield Step(_ms(start, history.published_at), None, "published")
    if history.plan:
        planned_ms = _ms(start, history.plan.planned_at)
        yield Step(planned_ms, None, "planned", result=_plan_text(history.plan))
    verdicts = {verdict.call: verdict for verdict in outcome.verdicts} if outcome else {}
    for round_, asked_at in history.rounds:
        yield Step(_ms(start, asked_at), None, "asked", result=_round_text(round_))
    for candidate in history.received:
        yield _call(candidate, verdicts.get(candidate.candidate.call), start)
    if history.cancelled_at:
        yield Step(_ms(start, history.cancelled_at), None, "cancelled")
    if outcome:
        finished_ms, winner = _ms(start, outcome.finished_at), outcome.winner or ""
        yield Step(finished_ms, None, "outcome", winner, result=_outcome_text(outcome))


def _plan_text(plan: Plan) -> str:
    parts = [f"{len(plan.members)} members", f"quorum {plan.quorum:g}"]
    parts += [f"{member.name} left out ({member.reason})" for member in plan.excluded]
    if plan.route:
        parts += _route_texts(plan, plan.route)
    return ", ".join(parts)


def _route_texts(plan: Plan, route: Route) -> list[str]:
    """What a learned route has chosen."""
    names = [member.name for member in plan.members if member.name not in route.members]
    if not names:
        return [f"route: all are asked ({route.reason})"]
    return [f"{name} {route.text}" for name in names]


def _round_text(round_: Round) -> str:
    count = len(round_.calls)
    kinds = ", ".join(sorted({call.kind for call in round_.calls}))
    return f"round {round_.round}: {count} {'call' if count == 1 else 'calls'} ({kinds})"


def _call(received_candidate: StoredCandidate, verdict: Verdict | None, start: datetime) -> Step:
    candidate = received_candidate.candidate
    usage = candidate.usage
    return Step(
        _ms(start, candidate.started_at),
        round(candidate.latency_ms, 1),
        "late answer" if received_candidate.is_late else "call",
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


def _outcome_text(outcome: Outcome) -> str:
    parts: list[str] = [outcome.status]
    if outcome.closed_by:
        parts.append(f"closed by {outcome.closed_by}")
    if outcome.guard:
        parts.append(f"guard: {outcome.guard}")
    return ", ".join([*parts, *outcome.degraded_reasons])


def _ms(start: datetime, at: datetime) -> float:
    return round((at - start).total_seconds() * 1000, 1)


def trace(name: str, *, tenant: str, batch: str | None, as_json: bool) -> None:
    """Print the steps of a fusion, by its id, or by its custom_id within a tenant and a batch."""
    history = asyncio.run(_load([name, fusion_id(tenant, batch, name)]))
    if history is None:
        fail(
            f"no fusion '{name}' of tenant '{tenant}' is stored in this database",
            "give the id that its submission returned, or its custom_id with --tenant and --batch",
        )
    all_steps = steps(history)
    if as_json:
        step_fields = [asdict(step) for step in all_steps]
        print(json.dumps({"id": history.prompt.fusion_id, "steps": step_fields}))
        return
    end_ms = max(step.at_ms + (step.took_ms or 0) for step in all_steps)
    columns = ["at ms", "took", "", "step", "who", "model", "result", "tokens", "usd"]
    rows(columns, [_row(step, end_ms) for step in all_steps], RowFormat.table)


async def _load(ids: Sequence[str]) -> History | None:
    store = Store(settings().database)
    try:
        await store.ping()
        return await read_history(store, ids)
    finally:
        await store.close()


def _row(step: Step, end_ms: float) -> list[str]:
    tokens = "" if step.tokens_in is None else f"{step.tokens_in}+{step.tokens_out}"
    cost = "" if step.cost_usd is None else f"{step.cost_usd:.6f}".rstrip("0").rstrip(".")
    took = "" if step.took_ms is None else f"{step.took_ms:.0f}"
    return [
        f"{step.at_ms:.0f}",
        took,
        _bar(step, end_ms),
        step.step,
        step.who,
        step.model,
        step.result,
        tokens,
        cost,
    ]


def _bar(step: Step, end_ms: float) -> str:
    """A bar that shows when a call ran within the whole fusion; empty if it is no call."""
    if step.took_ms is None or not end_ms:
        return ""
    begin = int(step.at_ms / end_ms * BAR)
    length = max(1, round(step.took_ms / end_ms * BAR))
    return " " * begin + "━" * min(length, BAR - begin)
