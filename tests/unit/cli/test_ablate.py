"""Decide without a member, against what the judge's strategies do if they never had it."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from fusewire.analysis.ablation import Ablation, JudgeInsight, MemberTally, MemberValue, WinRates
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


# -- what is estimated ------------------------------------------------------------------------

WORDS = PlannedJudge(model="m-judge", tier="remote", family="judge")
SAID = {name: Said(text) for name, text in OPEN_ANSWERS.items()}


def judged(winner: str, *verdicts: Verdict, said: Mapping[str, Said] = SAID) -> StoredCase:
    """A fusion of open answers in which a judge chose one, by these verdicts."""
    fusion = play(said, judge=WORDS)
    old = case_of(fusion)
    update = {"winner": winner, "content": said[winner].text, "verdicts": verdicts} | {
        "judge_rung": "strict"
    }
    return replace(old, outcome=old.outcome.model_copy(update=update))


def said_first(winner: str, shown: str = "abc", **fields: object) -> Verdict:
    return Verdict(
        call="v", kind="listwise", judge_model="m-judge", shown=tuple(shown), winner=winner
    ).model_copy(update=fields)


def test_the_winner_stays_where_a_judge_chose_another_member() -> None:
    old = judged("a", said_first("a"), said_first("a"))
    result = recompute_all(old, "bc", NO_RATES)
    assert {(r.basis, r.winner, r.content) for r in result.values()} == {
        ("kept", "a", OPEN_ANSWERS["a"])
    }
    assert all(r.judge_calls == 2 for r in result.values())


@pytest.mark.parametrize(
    ("verdicts", "rates", "winner"),
    [
        # One of the two orders named c.
        ((said_first("a"), said_first("c")), NO_RATES, "c"),
        # A verdict that does not count, and one on the merge, say nothing.
        (
            (
                said_first("a"),
                *[said_first("c", void="picked_control")] * 2,
                *[said_first("c", kind="guard")] * 2,
                said_first("b"),
            ),
            NO_RATES,
            "b",
        ),
        ((said_first("a"),), WinRates([("m-c", "m-b", 9, 8, 0), ("m-b", "m-c", 9, 1, 0)]), "c"),
        ((said_first("a"),), WinRates([("m-b", "m-c", 9, 8, 0), ("m-c", "m-b", 9, 1, 0)]), "b"),
    ],
)
def test_without_the_winner_stored_verdicts_say_who_would_have_won(
    verdicts: Sequence[Verdict], rates: WinRates, winner: str
) -> None:
    result = recompute_all(judged("a", *verdicts), "a", rates)["a"]
    assert (result.basis, result.winner) == ("estimated", winner)


def test_a_judge_by_margin_is_exact_even_without_its_winner() -> None:
    fusion = play(SAID, judge=MARGIN)
    old = case_of(fusion)
    (winner,) = [old.outcome.winner]
    assert winner is not None
    result = recompute_all(old, [winner], NO_RATES)[winner]
    assert result.basis == "recomputed"
    assert result.winner == outcome_of(without(fusion, winner, SAID)).winner != winner


def test_a_merge_and_a_debate_without_a_member_are_unknown() -> None:
    merge = case_of(play(SAID, prompt=make_prompt(mode="merge"), judge=WORDS))
    result = recompute_all(merge, "a", NO_RATES)["a"]
    # Two verdicts of the guard's single answer, and the analysis.
    assert (result.basis, result.judge_calls) == ("unknown", 3)
    debate = case_of(play(SAID, prompt=make_prompt(mode="debate"), judge=WORDS))
    result = recompute_all(debate, "a", NO_RATES)["a"]
    assert (result.basis, result.judge_calls) == ("unknown", 0)


def test_a_debate_that_may_yet_call_members_is_not_judged_again() -> None:
    members = [make_member(name, family="x") for name in "abc"]
    old = case_of(play(SAID, members, make_prompt(mode="debate"), judge=WORDS))
    # Of one family they do not debate, so judges are asked at once.
    results = recompute_all(old, "abc", NO_RATES)
    assert {result.judge_calls for result in results.values()} == {0}
    assert {result.basis for result in results.values()} == {"estimated"}


def test_a_member_that_failed_changes_nothing_not_even_a_merge() -> None:
    said = SAID | {"d": Said(None)}
    old = case_of(play(said, prompt=make_prompt(mode="merge"), judge=WORDS))
    result = recompute_all(old, "d", NO_RATES)["d"]
    assert (result.basis, result.content) == ("recomputed", old.outcome.content)


def test_time_that_the_judge_took_is_not_what_the_panel_waited_for() -> None:
    said = {"a": Said("4", 3.0), "b": Said("5", 1.0)}
    old = case_of(play(said, judge=None, policy=Policy(early_stop=1.0), quorum=1.0))
    slow = old.outcome.finished_at + timedelta(seconds=1)
    old = replace(old, outcome=old.outcome.model_copy(update={"finished_at": slow}))
    assert (saved_ms(old, "a"), saved_ms(old, "b")) == (3000.0, 0.0)


def test_a_second_wave_that_was_never_called_is_unknown() -> None:
    members = [make_member("a"), make_member("b"), make_member("c", wave=1)]
    said = {"a": Said("4"), "b": Said("4"), "c": Said("5")}
    policy = Policy(gate="edge-first", early_stop=0.87)
    old = case_of(play(said, members, policy=policy))
    assert old.outcome.closed_by == "gate"
    results = recompute_all(old, "abc", NO_RATES)
    assert [results[name].basis for name in "abc"] == ["unknown", "unknown", "recomputed"]
    assert results["a"].judge_calls == 0


def test_where_the_judge_was_late_nothing_is_exact() -> None:
    said = {name: Said("4", 1.0 + place) for place, name in enumerate("abc")}
    fusion = play(said, policy=Policy(early_stop=1.0), quorum=1.0)
    assert repeats(case_of(fusion))
    assert fusion.plan is not None
    early = fusion.plan.model_copy(update={"policy": Policy(early_stop=0.87)})
    late = case_of(replace(fusion, plan=early))
    assert not repeats(late)
    assert {r.basis for r in recompute_all(late, "abc", NO_RATES).values()} == {"estimated"}


def test_answers_of_one_turn_close_the_panel_before_a_third_comes() -> None:
    said = {"a": Said("4", 1.0), "b": Said("4", 1.0), "c": Said("5", 3.0)}
    old = case_of(play(said, policy=Policy(early_stop=0.87), quorum=1.0))
    assert old.panel_members == {"a", "b"}
    assert repeats(old)


def test_a_member_that_never_answered_makes_a_longer_wait_an_estimate() -> None:
    said = {"a": Said("4", 1.0), "b": Said("4", 2.0), "c": Said("5", 3.0), "d": Said("4", 4.0)}
    fusion = play(said, policy=Policy(early_stop=0.87))
    assert outcome_of(fusion).closed_by == "likely"
    everything = recompute_all(case_of(fusion), "a", NO_RATES)["a"]
    cancelled = [arrival for arrival in fusion.received if not arrival.is_late]
    less = recompute_all(case_of(replace(fusion, received=cancelled)), "a", NO_RATES)["a"]
    assert (everything.basis, less.basis) == ("recomputed", "estimated")


# -- quality, cost and time -------------------------------------------------------------------


def test_what_an_outcome_says_of_a_member() -> None:
    said = {"a": Said("4", 3.0), "b": Said("5", 1.0), "c": Said("4", 2.0)}
    prompt = make_prompt(gold=Gold(answer="4", match="number"))
    old = case_of(play(said, prompt=prompt, policy=Policy(early_stop=1.0), quorum=1.0))
    results = recompute_all(old, "abc", NO_RATES)
    a, b = (make_ablation(old, name, results[name], NO_RATES) for name in "ab")
    assert (b.basis, b.is_changed, b.is_right, b.is_right_without) == (
        "recomputed",
        False,
        True,
        True,
    )
    # Without a, 4 stands against 5, and a judge would choose.
    assert (a.basis, a.is_right, a.is_right_without, a.options) == ("estimated", True, None, (1, 2))
    assert (a.is_sole_right, a.cost_usd, a.total_usd) == (False, 0.001, 0.003)
    assert (a.saved_ms, b.saved_ms) == (1000.0, 0.0)
    assert (a.agrees, b.agrees) == (None, False)


def test_a_member_that_is_missing_has_an_unknown_cost_and_is_what_the_panel_waited_for() -> None:
    said = {"a": Said("4", 1.0), "b": Said("4", 2.0), "c": Said("4", 59.0)}
    fusion = play(said, policy=Policy(early_stop=1.0), quorum=1.0)
    on_time = [arrival for arrival in fusion.received if not arrival.is_late]
    old = case_of(replace(fusion, received=on_time))
    assert old.outcome.closed_by == "deadline"
    assert saved_ms(old, "c") == pytest.approx(43_000)
    assert saved_ms(old, "b") == 0
    same = Recomputation("recomputed", old.outcome.content, winner=old.outcome.winner)
    assert make_ablation(old, "c", same, NO_RATES).cost_usd is None


# -- judging again ----------------------------------------------------------------------------


def test_the_queue_takes_the_newest_prompts_that_judges_can_tell_more_of() -> None:
    queue = ReplayQueue(1)
    fusion = play(SAID, judge=WORDS)
    old = case_of(fusion)
    results = recompute_all(old, "abc", NO_RATES)
    assert queue.take(fusion, old, results) == {"a", "b", "c"}
    assert queue.take(fusion, old, results) == set()
    submission = json.loads(queue.by_member()["b"][0].body)
    assert [answer["member"] for answer in submission["recorded"]] == ["a", "c"]
    assert submission["custom_id"] == fusion.prompt.fusion_id
    vote = play({name: Said("4") for name in "abc"})
    known = recompute_all(case_of(vote), "abc", NO_RATES)
    assert ReplayQueue(1).take(vote, case_of(vote), known) == set()


def test_a_batch_is_named_by_pool_member_and_rules() -> None:
    name = replay_batch("default", "gpt", "rules")
    assert name.startswith("default.without-gpt.ablate-")
    assert (
        replay_batch("default", "gpt", "rules") == name != replay_batch("default", "gpt", "other")
    )
    longest = [replay_batch("p" * 63, "m" * 62 + last, "rules") for last in "ab"]
    assert len(longest[0]) <= 128
    assert longest[0] != longest[1]


# -- what is printed --------------------------------------------------------------------------


def value(name: str, *ablations: Ablation) -> MemberValue:
    tally = MemberTally(name)
    for ablation in ablations:
        tally.add(ablation)
    return tally.value(JudgeInsight())


def ablation(**fields: Any) -> Ablation:
    defaults: dict[str, Any] = {"member": "a", "basis": "recomputed", "is_changed": False}
    return Ablation(**(defaults | fields))


def test_the_table_fits_a_terminal_and_says_what_each_is_worth() -> None:
    lost = ablation(is_changed=True, is_right=True, is_right_without=False, cost_usd=12.5)
    same = ablation(is_right=True, is_right_without=True, cost_usd=0.1, saved_ms=12_345.0)
    harm = ablation(is_changed=True, is_right=False, is_right_without=True, cost_usd=0.0)
    values = [
        value("a-member-with-a-name-of-many-characters-more-than-fit", *[lost] * 120_000),
        value("idle", *[same] * 100),
        value("harm", *[harm] * 100),
        value("new", *[same] * 29),
        value("guess", *[ablation(basis="kept", is_changed=True, win_rate=0.6)] * 40),
        value("merger", *[ablation(basis="unknown", is_changed=None)] * 40),
        value("free", *[ablation(cost_usd=0.0)] * 40),
    ]
    text = table("default", 120_000, 3, values)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "120,000" in text
    assert "~100.0 %" in text
    assert "~ estimated in part: 40 times" in text.replace("\n  ", " ")
    assert verdict(values[0]).startswith("worth it: without it accuracy falls by 100.0 points (")
    assert verdict(values[1]).startswith("costs and adds nothing seen (loss 0.0 points (-")
    assert verdict(values[2]).startswith("better without it: accuracy then rises by 100.0 points")
    assert verdict(values[3]).startswith("too few to say (n = 29, at least 30 are needed)")
    assert "win rates ~+10.0 points" in verdict(values[4])
    assert verdict(values[5]).startswith("only 0 of 40 outcomes are known without it: --replay")
    assert verdict(values[6]).startswith("is free and adds nothing seen (changed 0.0 % (0.0 to 8.8")
