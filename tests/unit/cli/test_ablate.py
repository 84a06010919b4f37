"""Decide without a member, against what the judge's strategies do if they never had it."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from fusewire.analysis.ablation import Ablation, MemberTally, MemberValue, WinRates
from fusewire.contracts import (
    Call,
    Candidate,
    Gold,
    Outcome,
    Plan,
    PlannedJudge,
    PlannedMember,
    Prompt,
    Round,
    Verdict,
)
from fusewire.contracts.plan import Policy
from fusewire.store.history import History, StoredCandidate
from fusewire.testing.factories import (
    OPEN_ANSWERS,
    make_candidate,
    make_member,
    make_plan,
    make_prompt,
    make_round,
)
from fusewire_cli.ablate.command import parse_since
from fusewire_cli.ablate.course import StoredCase, stored_case
from fusewire_cli.ablate.drawing import WIDTH, table, verdict
from fusewire_cli.ablate.evidence import make_ablation, saved_ms
from fusewire_cli.ablate.recomputation import Recomputation, recompute_all, repeats
from fusewire_cli.ablate.replay import ReplayQueue, replay_batch
from fusewire_judge.model import Ask, Case, Decided, ReceivedCandidate, Wait
from fusewire_judge.outcome import build
from fusewire_judge.strategies.decide import decide

NO_RATES = WinRates(())
MARGIN = PlannedJudge(model="m-judge", tier="edge", family="judge", by_margin=True)
JUDGE_S = 0.1


@dataclass(frozen=True)
class Said:
    """What a member says, and when."""

    text: str | None
    """None for a failure."""
    after_s: float = 1.0


@dataclass
class Course:
    """The course of a fusion whose members and judges always say the same."""

    prompt: Prompt
    plan: Plan
    answers: Mapping[str, Said]
    rounds: list[tuple[Round, datetime]] = field(default_factory=list)
    received: dict[tuple[int, str], ReceivedCandidate] = field(default_factory=dict)
    events: list[tuple[datetime, Candidate]] = field(default_factory=list)

    def run(self) -> History:
        """Let the judge's strategies decide as candidates come; what comes later is late."""
        now = self.plan.planned_at
        for member in self.plan.members:
            if not member.wave:
                self._send(member.name, 0, member.name, now)
        decision = self._decide(now)
        while not isinstance(decision, Decided):
            now = self._next(decision, now)
            decision = self._decide(now)
        return self._history(decision, now)

    def _next(self, decision: Wait | Ask, now: datetime) -> datetime:
        if isinstance(decision, Ask):
            self._publish(decision, now)
            return now
        if self.events and self.events[0][0] <= decision.until:
            now, candidate = self.events.pop(0)
            self.received[candidate.round, candidate.call] = ReceivedCandidate(
                candidate, now, len(self.rounds)
            )
            return now
        return decision.until

    def _case(self) -> Case:
        return Case(
            self.prompt, self.plan, tuple(round_ for round_, _ in self.rounds), self.received
        )

    def _decide(self, now: datetime) -> Wait | Ask | Decided:
        return decide(self._case(), now)

    def _publish(self, ask: Ask, now: datetime) -> None:
        round_ = make_round(self.prompt, ask.calls, round=ask.number, deadline_at=ask.until)
        self.rounds.append((round_, now))
        for call in ask.calls:
            if call.member is not None:
                self._send(call.member, ask.number, call.name, now)
            else:
                self._judge(call, ask.number, now)

    def _send(self, member: str, number: int, call: str, now: datetime) -> None:
        said = self.answers[member]
        candidate = make_candidate(
            said.text,
            call,
            prompt=self.prompt,
            member=member,
            round=number,
            fails="timeout" if said.text is None else None,
        )
        self._add(now + timedelta(seconds=said.after_s), candidate)

    def _judge(self, call: Call, number: int, now: datetime) -> None:
        """By margin: the longer, the more probable. In words: whoever is shown first."""
        candidate = make_candidate(
            '{"reason": "first", "winner": "A"}',
            call.name,
            prompt=self.prompt,
            member=None,
            model=call.model,
            round=number,
            choice_logprobs=tuple(-10.0 / len(text) for text in call.choices),
        )
        self._add(now + timedelta(seconds=JUDGE_S), candidate)

    def _add(self, at: datetime, candidate: Candidate) -> None:
        self.events.append((at, candidate))
        self.events.sort(key=lambda event: (event[0], event[1].call))

    def _history(self, decision: Decided, now: datetime) -> History:
        since = [at for round_, at in self.rounds if not round_.is_panel]
        outcome = build(self._case(), decision, now, judged_since=min(since, default=None))
        received = [
            StoredCandidate(r.candidate, r.received_at, False, r.after_rounds)
            for r in self.received.values()
        ]
        received += [
            StoredCandidate(candidate, at, True, len(self.rounds)) for at, candidate in self.events
        ]
        return History(self.prompt, None, None, self.plan, self.rounds, received, outcome)


def play(
    answers: Mapping[str, Said],
    members: Sequence[PlannedMember] | None = None,
    prompt: Prompt | None = None,
    **plan: object,
) -> History:
    prompt = prompt or make_prompt()
    members = members or [make_member(name) for name in answers]
    return Course(prompt, make_plan(prompt, members, **plan), answers).run()


def case_of(fusion: History) -> StoredCase:
    old = stored_case(fusion)
    assert old is not None
    return old


def outcome_of(fusion: History) -> Outcome:
    assert fusion.outcome is not None
    return fusion.outcome


def without(fusion: History, member: str, answers: Mapping[str, Said]) -> History:
    """The same fusion, had the pool never had the member."""
    assert fusion.plan is not None
    members = tuple(m for m in fusion.plan.members if m.name != member)
    plan = fusion.plan.model_copy(update={"members": members})
    return Course(fusion.prompt, plan, answers).run()


def drawn_fusion(rng: random.Random) -> tuple[History, dict[str, Said]]:
    texts = ["4", "5", "6", *OPEN_ANSWERS.values(), None]
    chances = [4, 3, 1, 0.4, 0.4, 0.4, 0.7]
    answers = {name: Said(rng.choices(texts, chances)[0], rng.uniform(0.1, 3.0)) for name in "abcd"}
    is_gated = rng.random() < 0.3
    members = [
        make_member(
            name,
            rng.choice([1.0, 1.0, 2.0]),
            learned={"number": rng.choice([0.5, 1.0, 1.7])},
            wave=int(is_gated and name in "cd"),
        )
        for name in "abcd"
    ]
    judge = rng.choice([MARGIN, MARGIN, None])
    policy = Policy(gate="edge-first" if is_gated else "none", early_stop=rng.choice([1.0, 0.87]))
    fusion = play(
        answers,
        members,
        judge=judge,
        policy=policy,
        quorum=rng.choice([0.5, 1.0]),
    )
    return fusion, answers


@pytest.mark.parametrize("seed", range(4))
def test_what_is_recomputed_is_what_a_pool_without_the_member_decides(seed: int) -> None:
    rng = random.Random(seed)
    exact = 0
    for _ in range(150):
        fusion, answers = drawn_fusion(rng)
        old = case_of(fusion)
        assert repeats(old)
        for name, result in recompute_all(old, "abcd", NO_RATES).items():
            if result.basis == "recomputed":
                expected = outcome_of(without(fusion, name, answers))
                assert (result.winner, result.content) == (expected.winner, expected.content)
                exact += 1
    assert exact > 500
