"""One turn of the judge: how each fusion of a transaction is decided, and what follows from it.

Pure but for a log. A turn takes the messages of one batch, decides every fusion that they
concern in one transaction, and is published after its commit.
"""

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

EncodedRound = tuple[Round, str]
"""A round, and its JSON."""

TIMER_WITHIN = timedelta(seconds=10)
"""A due time further off than this is left to the sweep, which comes every second.

Most fusions end long before their deadline. Each timer would be a durable message, and another
one when it fires for nothing.
"""
MOST_ROUND_BYTES = 800_000
"""The most that a round's JSON may have: the dispatcher's tasks, which are larger, have to fit
NATS's messages of 1 MiB."""


@dataclass
class TurnResult:
    """What one transaction leads to: what it stores, and what is published after its commit."""

    now: datetime
    timer_fired: bool
    """Whether an expired due time has triggered it, so that the fusions' timers are used up."""
    store_id: str = ""
    """The broker's store that rounds are published to."""
    outcomes: list[tuple[Outcome, FusionRecord]] = field(default_factory=list)
    rounds: list[EncodedRound] = field(default_factory=list)
    oversized_rounds: list[tuple[EncodedRound, list[Candidate]]] = field(default_factory=list)
    """Rounds that fit no message, with the failures of their calls."""
    due: dict[str, tuple[datetime, datetime | None]] = field(default_factory=dict)
    """By fusion, when the sweep looks at it, and when its timer fires."""
    timers: dict[str, datetime] = field(default_factory=dict)
    """By fusion, the timer to set."""
    repeats: list[Round | Outcome] = field(default_factory=list)
    """Messages that an earlier transaction stored, and that may not be on the broker."""
    marks: dict[str, datetime] = field(default_factory=dict)
    """By fusion, the mark to remove once the broker has what is published here."""
    open_records: dict[str, FusionRecord] = field(default_factory=dict)
    """The fusions that are still open, as the transaction leaves them."""


def decide_fusion(fusion_id: str, record: FusionRecord, turn: TurnResult) -> None:
    """Decide one fusion, and add what follows from it to the turn."""
    plan = record.plan
    if plan is None:
        _end_unplanned(record, turn)
        return
    record = replace(record, received=_planned_candidates(record, plan))
    # The mark in SQL decides, whoever was told of it or not (docs/decisions/0019).
    if record.is_cancelled:
        case = _case(record, plan)
        final = outcome.build_cancelled(case, turn.now, judged_since=record.asked_at)
        turn.outcomes.append((final, record))
        return
    decision, record = _decide(record, plan, turn)
    if isinstance(decision, Decided):
        case = _case(record, plan)
        final = outcome.build(case, decision, turn.now, judged_since=record.asked_at)
        turn.outcomes.append((final, record))
        return
    _set_due(fusion_id, record, decision.until, turn)


def _end_unplanned(record: FusionRecord, turn: TurnResult) -> None:
    """End a fusion without a plan if it is cancelled or too late."""
    prompt = record.prompt
    if record.is_cancelled:
        turn.outcomes.append((outcome.build_cancelled_unplanned(prompt, turn.now), record))
    elif turn.now >= prompt.deadline_at:
        turn.outcomes.append((outcome.build_unplanned(prompt, turn.now), record))


def _case(record: FusionRecord, plan: Plan) -> Case:
    return Case(record.prompt, plan, record.rounds, record.received)


def _decide(
    record: FusionRecord, plan: Plan, turn: TurnResult
) -> tuple[Wait | Ask | Decided, FusionRecord]:
    """Run the strategy; add a round that it asks for to the turn.

    The calls of a round that fits no message fail at once, and the strategy goes on with
    their failures: published again and again the round would only wait for the deadline.
    """
    while True:
        case = _case(record, plan)
        decision = decide(case, turn.now)
        if not isinstance(decision, Ask):
            return decision, record
        round_ = build_round(case, decision, turn.store_id)
        body = round_.model_dump_json()
        if _is_sendable(body):
            turn.rounds.append((round_, body))
            return decision, record
        failures = [
            _oversize_failure(case, round_, call, len(body), turn.now) for call in round_.calls
        ]
        turn.oversized_rounds.append(((round_, body), failures))
        record = record.with_round(round_, 0, turn.now)
        for failure in failures:
            record = record.with_candidate(failure, 0, turn.now)


def _set_due(fusion_id: str, record: FusionRecord, until: datetime, turn: TurnResult) -> None:
    """Have the fusion looked at again at this time, by a timer if that is soon."""
    timer_at = None if turn.timer_fired else record.timer_at
    is_soon = until - turn.now <= TIMER_WITHIN
    # A timer that is set for a later time is moved; one for an earlier time fires, finds
    # nothing to do, and is set anew.
    if is_soon and (timer_at is None or until < timer_at):
        turn.timers[fusion_id] = timer_at = until
    if (until, timer_at) != (record.due_at, record.timer_at):
        turn.due[fusion_id] = (until, timer_at)


def _planned_candidates(
    record: FusionRecord, plan: Plan
) -> dict[tuple[int, str], ReceivedCandidate]:
    """Return the received candidates, without those of tasks that nobody planned."""
    models = _planned_models(record, plan)
    candidates: dict[tuple[int, str], ReceivedCandidate] = {}
    for key, received_candidate in record.received.items():
        if models.get(key) == received_candidate.candidate.model:
            candidates[key] = received_candidate
        else:
            log.warning(
                "judge.candidate_refused",
                fusion_id=record.prompt.fusion_id,
                round=key[0],
                call=key[1],
            )
    return candidates


def _planned_models(record: FusionRecord, plan: Plan) -> dict[tuple[int, str], str]:
    """Return the model of each call that the plan or a round names, by round and call."""
    models: dict[tuple[int, str], str] = {}
    for member in plan.members:
        if member.wave == 0:
            models.update(((0, call), member.model) for call in member.calls)
    for round_ in record.rounds:
        models.update(((round_.round, call.name), call.model) for call in round_.calls)
    return models


def build_round(case: Case, ask: Ask, store_id: str) -> Round:
    """Build the round that a strategy asks for, to be published to a broker's store."""
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
    # No character has more than four bytes, so short texts need not be encoded to know it.
    return 4 * len(body) <= MOST_ROUND_BYTES or len(body.encode()) <= MOST_ROUND_BYTES


def sendable_rounds(rounds: Iterable[EncodedRound]) -> list[Round]:
    """Return the rounds that fit a message; the calls of the others have failed already."""
    return [round_ for round_, body in rounds if _is_sendable(body)]


def _oversize_failure(case: Case, round_: Round, call: Call, size: int, now: datetime) -> Candidate:
    """Build the failed candidate of a call whose round fits no message."""
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
