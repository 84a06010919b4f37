"""The course of a stored fusion if a member had never been in the pool. Pure.

Candidates come when they came, and the judge's own strategies decide at each of them: when the
panel closes, whether a gate opens, how a vote ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain

from fusewire.contracts import Call, Candidate, Outcome, Round
from fusewire.store.history import History
from fusewire_judge.model import Ask, Case, Decided, Panel, ReceivedCandidate, Wait
from fusewire_judge.panel.convene import convene
from fusewire_judge.strategies.decide import decide

Event = tuple[datetime, Candidate]


@dataclass(frozen=True)
class StoredCase:
    """A fusion with an outcome, as the judge saw it when it decided."""

    case: Case
    outcome: Outcome
    events: Sequence[Event]
    """All candidates with the times at which they were stored, late ones too."""
    requested_at: Mapping[int, datetime]
    """By round, when it was requested."""

    @property
    def closed_at(self) -> datetime:
        """When the panel had closed: at the first request of the strategy, else at the outcome."""
        requests = [
            self.requested_at[round_.round] for round_ in self.case.rounds if not round_.is_panel
        ]
        return min(requests, default=self.outcome.finished_at)

    @property
    def panel_members(self) -> frozenset[str]:
        """The members whose answers the outcome was made of."""
        return frozenset(a.member for a in self.outcome.answers if a.weight is not None)

    def later_replies(self) -> list[tuple[timedelta, Candidate]]:
        """Candidates of later calls to members, each with how long it took."""
        rounds = {round_.round for round_ in self.case.panel_rounds}
        return [
            (at - self.requested_at[candidate.round], candidate)
            for at, candidate in self.events
            if candidate.round in rounds
        ]


def stored_case(fusion: History) -> StoredCase | None:
    """The case of a fusion; None if it was never planned, was cancelled, or has no panel."""
    plan, outcome = fusion.plan, fusion.outcome
    if plan is None or outcome is None or outcome.status == "cancelled" or not outcome.answers:
        return None
    in_time = {
        (arrival.candidate.round, arrival.candidate.call): ReceivedCandidate(
            arrival.candidate, arrival.received_at, arrival.after_rounds
        )
        for arrival in fusion.received
        if not arrival.is_late
    }
    return StoredCase(
        case=Case(fusion.prompt, plan, tuple(round_ for round_, _ in fusion.rounds), in_time),
        outcome=outcome,
        events=[(arrival.received_at, arrival.candidate) for arrival in fusion.received],
        requested_at={round_.round: at for round_, at in fusion.rounds},
    )


@dataclass(frozen=True)
class CourseEnd:
    """Where a course ends: at an outcome, or at calls whose replies are not stored."""

    case: Case
    decision: Ask | Decided
    panel: Panel | None
    """None if members are to be called, or if there are none."""
    is_complete: bool
    """Whether nothing that the course waited for is missing in what is stored."""


class Course:
    """Follows a fusion without a member; with None, as it was.

    Args:
        old: the fusion.
        member: who is left out.
    """

    def __init__(self, old: StoredCase, member: str | None) -> None:
        plan = old.case.plan
        members = tuple(m for m in plan.members if m.name != member)
        self._old = old
        self._case = Case(old.case.prompt, plan.model_copy(update={"members": members}), (), {})
        self._names = {m.name for m in members}
        self._events = sorted(
            (event for event in old.events if self._is_first(event[1])), key=_event_order
        )
        self._now = plan.planned_at

    def _is_first(self, candidate: Candidate) -> bool:
        return candidate.round == 0 and candidate.member in self._names

    def follow(self) -> CourseEnd | None:
        """Follow the course to its end; None if it never ends."""
        self._skip_first()
        while True:
            decision = decide(self._case, self._now)
            if isinstance(decision, Wait):
                if not self._advance(decision.until):
                    return None
            elif isinstance(decision, Decided) or not self._answer(decision):
                return self._end(decision)

    def _skip_first(self) -> None:
        """Go on to the second candidate at once where no rule looks at fewer.

        Neither a quorum nor a vote ends on one answer of several. This takes a third off the time.
        """
        plan = self._case.plan
        if any(m.wave or m.hedge_after_s is not None for m in plan.members):
            return
        enough = min(2, len(plan.members))
        # One turn of the judge may have received both at once, and the third later.
        while len(self._case.received) < enough and self._advance(plan.panel_deadline_at):
            pass

    def _advance(self, until: datetime) -> bool:
        """Go on to the next candidates, or to the end of the wait; False if there is neither."""
        if self._events and self._events[0][0] <= until:
            self._now = max(self._events[0][0], self._now)
            self._deliver()
            return True
        is_later = until > self._now
        self._now = max(until, self._now)
        return is_later

    def _deliver(self) -> None:
        """Receive what was stored by now; candidates of one transaction have the same time."""
        arrivals = dict(self._case.received)
        while self._events and self._events[0][0] <= self._now:
            _, candidate = self._events.pop(0)
            arrivals[candidate.round, candidate.call] = ReceivedCandidate(
                candidate, self._now, len(self._case.rounds)
            )
        self._case = replace(self._case, received=arrivals)

    def _answer(self, ask: Ask) -> bool:
        """Answer calls from what is stored; False if that cannot be."""
        if all(call.kind == "answer" for call in ask.calls):
            replies = self._members_replies(ask)
        elif all(call.kind == "verdict" and call.choices for call in ask.calls):
            replies = self._margin_replies(ask)
        else:
            replies = None
        if replies is None:
            return False
        self._case = replace(
            self._case, rounds=(*self._case.rounds, self._round(ask.calls, ask.number, ask.until))
        )
        self._events = sorted([*self._events, *replies], key=_event_order)
        return True

    def _round(self, calls: Sequence[Call], number: int, deadline_at: datetime) -> Round:
        plan = self._case.plan
        return Round(
            fusion_id=plan.fusion_id,
            round=number,
            tenant=plan.tenant,
            pool=plan.pool,
            calls=tuple(calls),
            residency=plan.residency,
            priority=plan.priority,
            seed=plan.seed,
            deadline_at=deadline_at,
        )

    def _members_replies(self, ask: Ask) -> list[Event] | None:
        """The replies of a second wave, as quick as they were.

        None if it was never called. A hedge may be missing: its member is answered for already.
        """
        called_names = {call.name for call in self._old.case.panel_calls}
        second_wave = {member.name for member in self._case.plan.members if member.wave}
        if any(call.name in second_wave - called_names for call in ask.calls):
            return None
        names = {call.name for call in ask.calls}
        return [
            (self._now + delay, candidate.model_copy(update={"round": ask.number}))
            for delay, candidate in self._old.later_replies()
            if candidate.call in names
        ]

    def _margin_replies(self, ask: Ask) -> list[Event] | None:
        """What judges by margin would reply: they rate each answer by itself, and have rated it.

        None if one has not.
        """
        ratings, samples = _ratings(self._old.case)
        replies: list[Event] = []
        for call in ask.calls:
            logprobs = [ratings.get((call.model, text)) for text in call.choices]
            if None in logprobs:
                return None
            fields = {
                "round": ask.number,
                "call": call.name,
                "choice_logprobs": tuple(logprobs),
            }
            replies.append((self._now, samples[call.model].model_copy(update=fields)))
        return replies

    def _end(self, decision: Ask | Decided) -> CourseEnd:
        panel: Panel | Wait | Ask | None = None
        if isinstance(decision, Decided):
            panel = decision.panel
        elif self._names:
            panel = convene(self._case, self._now)
        is_longer = self._now > self._old.closed_at
        return CourseEnd(
            case=self._case,
            decision=decision,
            panel=panel if isinstance(panel, Panel) else None,
            is_complete=not (is_longer and self._has_missing()),
        )

    def _has_missing(self) -> bool:
        """Whether a member was called of which nothing is stored."""
        present = {candidate.member for _, candidate in self._old.events}
        absent = {a.member for a in self._old.outcome.answers if a.status == "unasked"}
        return bool(self._names - present - absent)


def _event_order(event: Event) -> tuple[datetime, int, str]:
    at, candidate = event
    return at, candidate.round, candidate.call


def _ratings(case: Case) -> tuple[dict[tuple[str, str], float], dict[str, Candidate]]:
    """By model and text, the log probability; and by model, a candidate that held some."""
    ratings: dict[tuple[str, str], float] = {}
    samples: dict[str, Candidate] = {}
    calls = chain.from_iterable(_numbered_calls(round_) for round_ in case.rounds)
    for number, call in calls:
        arrival = case.received.get((number, call.name))
        if arrival and arrival.candidate.choice_logprobs:
            samples[call.model] = arrival.candidate
            # One that rated another number of texts was void.
            rated_texts = zip(call.choices, arrival.candidate.choice_logprobs, strict=False)
            ratings |= {(call.model, text): logprob for text, logprob in rated_texts}
    return ratings, samples


def _numbered_calls(round_: Round) -> list[tuple[int, Call]]:
    return [(round_.round, call) for call in round_.calls]
