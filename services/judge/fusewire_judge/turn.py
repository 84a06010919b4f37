"""One turn of the judge: what a transaction leads to, and how each of its fusions is decided. Pure but for a log."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import structlog

from fusewire.contracts import Call, CallFailure, Candidate, Outcome, Plan, Round
from fusewire.ids import task_id
from fusewire_judge import outcome
from fusewire_judge.model import Ask, Case, Decided, ReceivedCandidate, Wait
from fusewire_judge.recent import FusionRecord
from fusewire_judge.strategies.decide import decide

log = structlog.get_logger(__name__)

Written = tuple[Round, str]
"""A round, and its JSON."""

TIMER_WITHIN = timedelta(seconds=10)
"""A due time further off than this is left to the sweep, which comes every second: most fusions end long before their
deadline, and each timer would be a durable message, and another when it fires for nothing."""
MOST_ROUND_BYTES = 800_000
"""Of a round's JSON: dispatcher's tasks, which are larger, have to fit NATS's messages of 1 MiB."""


@dataclass
class TurnResult:
    """What one transaction leads to: what it stores, and what is published after its commit."""

    now: datetime
    fired: bool
    """Whether it was a due time that brought these fusions here, so that their timers are spent."""
    store_id: str = ""
    """The broker's store that rounds are published to."""
    made: list[tuple[Outcome, FusionRecord]] = field(default_factory=list)
    asked: list[Written] = field(default_factory=list)
    unsent: list[tuple[Written, list[Candidate]]] = field(default_factory=list)
    """Rounds that no message holds, with what came of their calls."""
    due: dict[str, tuple[datetime, datetime | None]] = field(default_factory=dict)
    timers: dict[str, datetime] = field(default_factory=dict)
    again: list[Round | Outcome] = field(default_factory=list)
    """Stored by an earlier transaction, and perhaps not on the broker."""
    marks: dict[str, datetime] = field(default_factory=dict)
    """By fusion, the mark that is taken off once the broker has what is published here."""
    left: dict[str, FusionRecord] = field(default_factory=dict)
    """The fusions that are still open, as the transaction leaves them."""


def decide_one(key: str, record: FusionRecord, work: TurnResult) -> None:
    """Decide one fusion, and note in `work` what follows."""
    plan = record.plan
    if plan is None:
        if record.is_cancelled:
            work.made.append((outcome.cancelled_unplanned(record.prompt, work.now), record))
        elif work.now >= record.prompt.deadline_at:
            work.made.append((outcome.unplanned(record.prompt, work.now), record))
        return
    record = replace(record, received=_planned(record, plan))
    case = Case(record.prompt, plan, record.rounds, record.received)
    if record.is_cancelled:
        work.made.append((outcome.cancelled(case, work.now, judged_since=record.asked_at), record))
        return
    while isinstance(decision := decide(case, work.now), Ask):
        round_ = _round(case, decision, work.store_id)
        body = round_.model_dump_json()
        if _is_sendable(body):
            work.asked.append((round_, body))
            break
        # Published again and again it would only wait for the deadline: what it asks for has failed.
        failures = [_unsent(case, round_, call, len(body), work.now) for call in round_.calls]
        work.unsent.append(((round_, body), failures))
        record = record.asked(round_, 0, work.now)
        for failure in failures:
            record = record.told(failure, 0, work.now)
        case = Case(record.prompt, plan, record.rounds, record.received)
    if isinstance(decision, Decided):
        made = outcome.build(case, decision, work.now, judged_since=record.asked_at)
        work.made.append((made, record))
        return
    if isinstance(decision, Ask):
        decision = Wait(decision.until)
    timer = None if work.fired else record.timer_at
    if decision.until - work.now <= TIMER_WITHIN and (timer is None or decision.until < timer):
        # One set for a later time is moved; one for an earlier time fires, finds nothing, and is set anew.
        work.timers[key] = timer = decision.until
    if (decision.until, timer) != (record.due_at, record.timer_at):
        work.due[key] = (decision.until, timer)


def _planned(record: FusionRecord, plan: Plan) -> dict[tuple[int, str], ReceivedCandidate]:
    """What was heard, without candidates of tasks that nobody planned."""
    wanted = {(0, call): m.model for m in plan.members if m.wave == 0 for call in m.calls}
    wanted |= {(r.round, c.name): c.model for r in record.rounds for c in r.calls}
    kept = {}
    for key, heard in record.received.items():
        if wanted.get(key) == heard.candidate.model:
            kept[key] = heard
        else:
            log.warning(
                "judge.candidate_refused",
                fusion_id=record.prompt.fusion_id,
                round=key[0],
                call=key[1],
            )
    return kept


def _round(case: Case, ask: Ask, store_id: str) -> Round:
    plan = case.plan
    return Round(
        fusion_id=plan.fusion_id,
        round=ask.number,
        tenant=plan.tenant,
        pool=plan.pool,
        calls=ask.calls,
        residency=plan.residency,
        priority=plan.priority,
        seed=plan.seed,
        depth=case.prompt.depth,
        store_id=store_id,
        deadline_at=plan.panel_deadline_at if ask.calls[0].kind == "answer" else plan.deadline_at,
    )


def _is_sendable(body: str) -> bool:
    # No character has more than four bytes: short ones need not be encoded for it.
    return 4 * len(body) <= MOST_ROUND_BYTES or len(body.encode()) <= MOST_ROUND_BYTES


def sendable(rounds: Iterable[Written]) -> list[Round]:
    """Those that fit a message; the calls of the others have failed already."""
    return [round_ for round_, body in rounds if _is_sendable(body)]


def _unsent(case: Case, round_: Round, call: Call, size: int, now: datetime) -> Candidate:
    tiers = {member.name: member.tier for member in case.plan.members}
    message = f"the round has {size} bytes, the limit is {MOST_ROUND_BYTES}"
    return Candidate(
        task_id=task_id(round_.fusion_id, round_.round, call.name),
        fusion_id=round_.fusion_id,
        round=round_.round,
        call=call.name,
        member=call.member,
        model=call.model,
        tier=tiers.get(call.member or "", "remote"),
        provider="none",
        error=CallFailure(code="context_length_exceeded", message=message, retryable=False),
        cost_usd=0.0,
        attempts=0,
        started_at=now,
        finished_at=now,
    )
