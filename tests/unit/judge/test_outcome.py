"""From a decision to the outcome: who said what, how long it took, what it cost."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from fusewire.contracts import (
    CallFailure,
    Candidate,
    Gold,
    Outcome,
    RecordedAnswer,
    ToolCall,
    Usage,
)
from fusewire.contracts.degraded import DegradedReason
from fusewire.store.queries import FusionStatus, as_reply
from fusewire.testing.factories import OPEN_ANSWERS as OPEN
from fusewire.testing.factories import (
    T0,
    known_usage,
    make_candidate,
    make_member,
    make_plan,
    make_prompt,
    make_round,
)
from fusewire_judge.model import Ask, Case, Decided, Draft, MemberAnswer, Panel, ReceivedCandidate
from fusewire_judge.outcome import (
    build,
    build_cancelled,
    build_cancelled_unplanned,
    build_unplanned,
    cost,
    cost_of_prompts,
    usage,
)
from fusewire_judge.panel import recorded as replay
from fusewire_judge.turn import build_round

if TYPE_CHECKING:
    from conftest import ScriptedFusion

Begin = Callable[..., "ScriptedFusion"]
NOW = T0 + timedelta(seconds=3)
MISSING = DegradedReason("missing", "c", "0.33:quorum")
DRAFT = Draft(
    status="fused",
    content="Paris.",
    winner="b",
    answers=(MemberAnswer("a", 1, "Lyon.", 0, "a"), MemberAnswer("b", 1, "Paris.", 1, "b")),
    lineup=("b", "a"),
    parse_stage="strict",
    reason="It is right.",
    agreement=0.5,
)


def receive(
    *candidates: Candidate, after_rounds: int = 0
) -> dict[tuple[int, str], ReceivedCandidate]:
    return {
        (c.round, c.call): ReceivedCandidate(c, T0 + timedelta(seconds=1), after_rounds)
        for c in candidates
    }


VERDICT = make_candidate("{}", "verdict", round=1, member=None, model="m-judge", cost_usd=0.01)
ANSWERS = (make_candidate("Lyon.", "a"), make_candidate("Berlin.", "b"))


def build_outcome(draft: Draft = DRAFT, judged_s: float | None = 1.5, **overrides: Any) -> Outcome:
    """A debate between `a` and `b`, `c` missing, in which `b` changed its answer."""
    prompt = make_prompt(batch_id="b1")
    fields: dict[str, Any] = {
        "prompt": prompt,
        "plan": make_plan(prompt, planned_at=T0 + timedelta(seconds=0.5)),
        "rounds": (make_round(prompt),),
        "received": receive(*ANSWERS, make_candidate("{}", "b", round=1), VERDICT),
    }
    panel = Panel(
        answers=tuple(MemberAnswer(c.call, 1, c.content or "", 0, c.call) for c in ANSWERS),
        received={c.call: ReceivedCandidate(c, T0, 0) for c in ANSWERS},
        skipped=frozenset(),
        flaws={},
        kind="label",
        closed_by="quorum",
    )
    since = None if judged_s is None else T0 + timedelta(seconds=judged_s)
    return build(Case(**{**fields, **overrides}), Decided(draft, panel), NOW, judged_since=since)


def test_it_says_what_was_asked_and_what_was_decided() -> None:
    outcome = build_outcome()

    assert (outcome.status, outcome.content, outcome.winner) == ("fused", "Paris.", "b")
    assert (outcome.custom_id, outcome.batch_id, outcome.tenant, outcome.pool) == (
        "one",
        "b1",
        "default",
        "default",
    )
    assert (outcome.judge_model, outcome.judge_rung, outcome.reason) == (
        "m-judge",
        "strict",
        "It is right.",
    )
    assert (outcome.submitted_at, outcome.finished_at, outcome.latency_ms) == (T0, NOW, 3000)
    assert (outcome.panel_ms, outcome.judge_ms) == (1000, 1500)
    assert (outcome.rounds, outcome.hedges, outcome.is_replay) == (1, 0, False)
    assert (outcome.closed_by, outcome.answer_kind, outcome.accepted) == ("quorum", "label", None)
    assert outcome.missing_weight == pytest.approx(1 / 3)
    assert outcome.config_hash == "0123456789ab"


def test_what_the_winner_thought_before_the_answer_that_stands_is_kept() -> None:
    first = make_candidate("Berlin.", "b", reasoning="It is large.")
    last = make_candidate("{}", "b", round=1, reasoning="It is on the Seine.")

    assert (
        build_outcome(received=receive(ANSWERS[0], first, last)).reasoning == "It is on the Seine."
    )
    assert (
        build_outcome(
            replace(DRAFT, winner=None), received=receive(ANSWERS[0], first, last)
        ).reasoning
        is None
    )


def test_each_member_s_part_is_the_answer_that_stood_at_the_end() -> None:
    a, b, c = build_outcome().answers

    assert (a.member, a.status, a.round, a.shown_position, a.is_winner) == ("a", "ok", 0, 2, False)
    assert (b.member, b.status, b.round, b.shown_position, b.is_winner) == ("b", "ok", 1, 1, True)
    assert (c.member, c.status, c.round, c.shown_position, c.model) == (
        "c",
        "missing",
        None,
        None,
        "m-c",
    )
    assert a.latency_ms == 1000
    assert a.usage == Usage(prompt_tokens=10, completion_tokens=2)
    # Only what stands in no candidate word for word is kept here.
    assert (a.content, b.content, c.content) == (None, "Paris.", None)


def test_the_first_answers_are_grouped_and_compared(begin: Begin) -> None:
    members = [
        make_member("a"),
        make_member("b", 2, learned={"number": 1.25}),
        *map(make_member, "cde"),
    ]
    play = begin(members=members, policy={"early_stop": 1.0})
    answers = play.says(a="4", b="5", c="4.0", d=OPEN["a"], e="4").outcome().answers

    assert [a.vote_group for a in answers] == [0, 1, 0, None, 0]
    assert [a.agreed for a in answers] == [True, False, True, None, True]
    assert [a.weight for a in answers] == [1.0, 2.5, 1.0, 1.0, 1.0]


def test_open_answers_have_no_groups(begin: Begin) -> None:
    play = begin(judge=None).says(**OPEN)

    assert {(a.vote_group, a.agreed) for a in play.outcome().answers} == {(None, None)}


GOLD = [
    # what, gold, answers, accepted, who is right
    ("right", "4", {"a": "4", "b": "4", "c": "5"}, True, [True, True, False]),
    ("wrong together", "5", {"a": "4", "b": "4", "c": "5"}, False, [False, False, True]),
    ("one failed", "5", {"a": "5", "b": "5", "c": "!timeout"}, True, [True, True, False]),
    (
        "all failed",
        "5",
        {"a": "!timeout", "b": "!timeout", "c": "!timeout"},
        False,
        [False, False, False],
    ),
]


@pytest.mark.parametrize(
    ("gold", "answers", "accepted", "right"), [r[1:] for r in GOLD], ids=[r[0] for r in GOLD]
)
def test_a_label_tells_who_is_right(
    begin: Begin, gold: str, answers: dict[str, str], accepted: bool, right: list[bool]
) -> None:
    outcome = begin(prompt={"gold": Gold(answer=gold, match="number")}).says(**answers).outcome()

    assert outcome.accepted is accepted
    assert [a.is_right for a in outcome.answers] == right


def test_a_failed_member_says_why(begin: Begin) -> None:
    outcome = begin().says(a="4", b="!rate_limited", c="4").outcome()

    assert [(a.status, a.error_code) for a in outcome.answers] == [
        ("ok", None), ("error", "rate_limited"), ("ok", None)
    ]  # fmt: skip
    assert outcome.missing_weight == pytest.approx(1 / 3)


def test_an_answer_that_came_too_late_did_not_take_part_but_is_paid_for() -> None:
    late = receive(make_candidate("Madrid.", "c"), after_rounds=1)

    outcome = build_outcome(
        replace(DRAFT, degraded=(MISSING,)),
        received=receive(*ANSWERS, VERDICT) | late,
    )

    assert outcome.answers[2].status == "missing"
    assert known_usage(outcome).prompt_tokens == 40
    assert outcome.is_degraded


def test_a_sum_with_an_unknown_part_is_unknown() -> None:
    candidates = receive(
        *(answer.model_copy(update={"usage": None, "cost_usd": None}) for answer in ANSWERS[:1]),
        *ANSWERS[1:],
    )
    outcome = build_outcome(received=candidates)

    assert (outcome.usage, outcome.cost_usd) == (None, None)
    assert [answer.usage is None for answer in outcome.answers] == [True, False, False]


def test_usage_and_cost_are_of_all_calls() -> None:
    outcome = build_outcome()

    assert outcome.usage == Usage(prompt_tokens=40, completion_tokens=8)
    assert outcome.cost_usd == pytest.approx(0.013)
    assert known_usage(outcome.answers[1]).prompt_tokens == 20


COSTS: list[tuple[str, list[dict[str, Any]], float | None]] = [
    ("nothing", [], 0),
    ("known", [{"cost_usd": 0.5}, {"cost_usd": 0.25}], 0.75),
    ("edge calls are free", [{"cost_usd": 0.0}, {"cost_usd": 0.25}], 0.25),
    ("one price unknown", [{"cost_usd": 0.5}, {"cost_usd": None}], None),
    ("an answer without usage and price", [{"cost_usd": None, "usage": Usage()}], None),
    ("a failure that cost nothing", [{"cost_usd": 0.5}, {"fails": "connect_error"}], 0.5),
    ("a failure that used tokens", [{"fails": "timeout", "usage": Usage(prompt_tokens=3)}], None),
]


@pytest.mark.parametrize(
    ("calls", "expected"), [row[1:] for row in COSTS], ids=[row[0] for row in COSTS]
)
def test_an_unknown_price_makes_the_cost_unknown(
    calls: list[dict[str, Any]], expected: float | None
) -> None:
    assert cost([make_candidate(**call) for call in calls]) == expected


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        (
            [
                {"cost_usd": 0.5, "cost_prompt_usd": 0.125},
                {"cost_usd": 0.25, "cost_prompt_usd": 0.25},
            ],
            0.375,
        ),
        ([{"cost_usd": 0.5, "cost_prompt_usd": 0.125}, {"cost_usd": 0.0}], 0.125),
        ([{"cost_usd": 0.5, "cost_prompt_usd": 0.125}, {"cost_usd": 0.25}], None),
        ([{"cost_usd": 0.5, "cost_prompt_usd": 0.125}, {"cost_usd": None}], None),
    ],
    ids=["known", "an edge call", "not apart", "one price unknown"],
)
def test_what_prompts_cost_is_told_where_it_is_known_of_all(
    calls: list[dict[str, Any]], expected: float | None
) -> None:
    assert cost_of_prompts([make_candidate(**call) for call in calls]) == expected


def test_usage_of_nobody_is_nothing() -> None:
    assert usage([]) == Usage()


# -- a replay ---------------------------------------------------------------------------------


def test_recorded_answers_take_part_and_cost_nothing(begin: Begin) -> None:
    recorded = (
        RecordedAnswer(
            member="a", model="m-a", content="4", prompt_tokens=9, latency_ms=1500, cost_usd=2.0
        ),
        RecordedAnswer(member="b", model="m-b", content="5", cost_usd=2.0),
        RecordedAnswer(member="c", model="m-c", error_code="rate_limited"),
    )
    play = begin(prompt={"recorded": recorded})
    for candidate in replay.candidates(play.prompt, play.plan, T0):
        play.hear(candidate)
    play.asks()
    play.judge_says("b")

    outcome = play.outcome(0)

    assert (outcome.content, outcome.is_replay, outcome.hedges) == ("5", True, 0)
    assert outcome.cost_usd == pytest.approx(0.002)  # the judge's two calls
    assert outcome.usage == Usage(prompt_tokens=20, completion_tokens=4)
    assert [(a.status, a.error_code, a.latency_ms, a.cost_usd) for a in outcome.answers] == [
        ("ok", None, 1500.0, 2.0), ("ok", None, 0.0, 2.0), ("error", "rate_limited", 0.0, 0)
    ]  # fmt: skip


RECORDED = [
    ("an answer", {"content": "4"}, None, "4"),
    ("nothing", {}, "server_error", None),
    ("a code of ours", {"error_code": "timeout"}, "timeout", None),
    ("another's code", {"error_code": "boom"}, "server_error", None),
    ("a code beside a text", {"content": "4", "error_code": "truncated"}, "truncated", None),
]


@pytest.mark.parametrize(
    ("fields", "code", "content"), [r[1:] for r in RECORDED], ids=[r[0] for r in RECORDED]
)
def test_what_was_recorded(fields: dict[str, Any], code: str | None, content: str | None) -> None:
    prompt = make_prompt(recorded=(RecordedAnswer(member="a", model="m-a", **fields),))

    (candidate,) = replay.candidates(prompt, make_plan(prompt), NOW)

    assert (candidate.error.code if candidate.error else None, candidate.content) == (code, content)
    assert (candidate.provider, candidate.attempts, candidate.finished_at) == ("recorded", 0, NOW)


def test_a_recorded_answer_is_a_whole_candidate() -> None:
    calls = (ToolCall(id="c1", name="clock", arguments="{}"),)
    known = {"member": "a", "model": "m-a", "prompt_tokens": 9, "completion_tokens": 4}
    answer = RecordedAnswer(**known, content="4", tool_calls=calls, latency_ms=1500, cost_usd=2.0)
    prompt = make_prompt(recorded=(answer,))
    expected = make_candidate(
        "4",
        "a",
        prompt=prompt,
        provider="recorded",
        tool_calls=calls,
        finish_reason="stop",
        usage={"prompt_tokens": 9, "completion_tokens": 4},
        cost_usd=2.0,
        price_version=None,
        attempts=0,
        started_at=NOW - timedelta(seconds=1.5),
        finished_at=NOW,
    )
    assert list(replay.candidates(prompt, make_plan(prompt), NOW)) == [expected]

    failed = answer.model_copy(update={"error_code": "timeout"})
    prompt = make_prompt(recorded=(failed,))
    (candidate,) = replay.candidates(prompt, make_plan(prompt), NOW)
    assert candidate == expected.model_copy(
        update={
            "content": None,
            "tool_calls": (),
            "finish_reason": None,
            "error": CallFailure(code="timeout", message="as recorded", retryable=False),
        }
    )


# -- what it says first -----------------------------------------------------------------------

DEGRADED = [
    (Draft("fused", "x"), False, ()),
    (Draft("voted", "x", degraded=(MISSING,)), True, (MISSING,)),
    (Draft("single", "x"), False, ()),
    (Draft("failed", error="all"), True, ()),
    (Draft("expired", error="late"), True, ()),
]


@pytest.mark.parametrize(
    ("draft", "is_degraded", "reasons"), DEGRADED, ids=lambda d: getattr(d, "status", None)
)
def test_degraded(draft: Draft, is_degraded: bool, reasons: tuple[str, ...]) -> None:
    outcome = build_outcome(draft)

    assert (outcome.is_degraded, outcome.degraded_reasons) == (is_degraded, reasons)


def test_what_is_degraded_stands_first_wherever_an_outcome_is_shown() -> None:
    outcome = build_outcome(replace(DRAFT, degraded=(MISSING,)))
    standing = FusionStatus(
        outcome.fusion_id, outcome.batch_id, outcome.custom_id, outcome.submitted_at, outcome
    )

    assert list(as_reply(standing))[:3] == ["is_degraded", "degraded_reasons", "status"]
    assert as_reply(standing)["latency_ms"] == 3000
    wire = list(json.loads(outcome.encode()))
    assert wire.index("is_degraded") < wire.index("content")
    assert "outcome" not in as_reply(replace(standing, outcome=None))
    assert as_reply(replace(standing, outcome=None))["status"] == "running"


def test_without_a_judge_call_there_is_no_judge() -> None:
    outcome = build_outcome(rounds=(), judged_s=None)

    assert (outcome.judge_model, outcome.judge_ms, outcome.rounds) == (None, None, 0)
    assert outcome.panel_ms == 2500


def test_a_debate_without_a_judge_call_names_no_judge(begin: Begin) -> None:
    play = begin("debate", debate_rounds=1).says(a="4", b="5", c="6")
    play.asks()
    play.rebuts(a=("I misread what was asked.", "5"), b=("", "5"), c=("", "6"))

    outcome = play.outcome(1)

    assert (outcome.judge_model, outcome.rounds, outcome.content) == (None, 1, "5")
    assert [(a.content, a.vote_group) for a in outcome.answers] == [("5", 0), (None, 1), (None, 2)]


def test_what_was_never_planned_expires() -> None:
    prompt = make_prompt()
    outcome = build_unplanned(prompt, prompt.deadline_at)

    assert (outcome.status, outcome.is_degraded, outcome.degraded_reasons) == (
        "expired",
        True,
        ("never_planned",),
    )
    assert (outcome.cost_usd, outcome.answers, outcome.latency_ms) == (0.0, (), 60_000)
    assert Outcome.decode(outcome.encode()) == outcome


# -- why an answer ended ----------------------------------------------------------------------


def test_an_answer_ends_as_the_candidate_that_it_shows(begin: Begin) -> None:
    play = (
        begin().says(c="!timeout").say("a", OPEN["a"], finish_reason="length").say("b", OPEN["b"])
    )
    play.asks()
    outcome = play.judge_says("a").outcome()

    assert [a.finish_reason for a in outcome.answers] == ["length", "stop", None]


def test_after_a_debate_it_ends_as_the_last_word_did() -> None:
    cut = make_candidate("{}", "b", round=1, finish_reason="length")
    a, b, _ = build_outcome(received=receive(*ANSWERS, cut, VERDICT)).answers

    assert (a.finish_reason, b.finish_reason) == ("stop", "length")


def test_a_failure_says_how_it_ended_too(begin: Begin) -> None:
    play = (
        begin(members="ab", judge=None)
        .says(a="4")
        .say("b", "!refused", finish_reason="content_filter")
    )

    assert [a.finish_reason for a in play.outcome().answers] == ["stop", "content_filter"]


# -- cancelled --------------------------------------------------------------------------------


def broken_off(play: "ScriptedFusion", judged_s: float | None = None) -> Outcome:
    since = None if judged_s is None else T0 + timedelta(seconds=judged_s)
    return build_cancelled(play.case, NOW, judged_since=since)


def test_a_cancelled_fusion_has_no_answer_but_those_that_came(begin: Begin) -> None:
    outcome = broken_off(
        begin(prompt={"gold": Gold(answer="4", match="number")}).says(a="4", b="!timeout")
    )

    assert (outcome.status, outcome.error, outcome.content, outcome.winner) == (
        "cancelled", "cancelled by the client", None, None
    )  # fmt: skip
    assert (outcome.is_degraded, outcome.degraded_reasons) == (False, ())
    assert [(a.member, a.status, a.finish_reason) for a in outcome.answers] == [
        ("a", "ok", "stop"), ("b", "error", None), ("c", "missing", None)
    ]  # fmt: skip
    assert not any(a.is_winner for a in outcome.answers)
    assert (outcome.cost_usd, known_usage(outcome).prompt_tokens) == (0.001, 10)
    assert outcome.closed_by is None
    # It is no evidence of who is right, or slow.
    assert (outcome.answer_kind, outcome.accepted) == (None, None)


def test_a_cancelled_fusion_counts_what_the_judge_was_paid(begin: Begin) -> None:
    play = begin().says(**OPEN)
    play.asks()
    play.judge_says("a")
    calls = len(play.verdict_calls())

    outcome = broken_off(play, judged_s=1.5)

    assert (outcome.status, outcome.rounds, outcome.judge_model) == ("cancelled", 1, "m-judge")
    assert outcome.cost_usd == pytest.approx(0.001 * (3 + calls))
    assert (outcome.judge_ms, outcome.panel_ms) == (1500, 1500)


def test_a_cost_that_is_unknown_stays_so_when_it_is_cancelled(begin: Begin) -> None:
    assert broken_off(begin().say("a", "4", cost_usd=None)).cost_usd is None


def test_members_that_a_gate_held_back_were_not_asked(begin: Begin) -> None:
    members = [make_member("a", tier="edge", samples=3), make_member("b", wave=1)]
    outcome = broken_off(begin(members=members, policy={"gate": "edge-first"}).says(a="4"))

    assert [a.status for a in outcome.answers] == ["ok", "unasked"]


def test_one_that_was_never_planned_is_cancelled_all_the_same() -> None:
    prompt = make_prompt(batch_id="b1")
    outcome = build_cancelled_unplanned(prompt, NOW)

    assert (outcome.status, outcome.is_degraded, outcome.error) == (
        "cancelled",
        False,
        "cancelled by the client",
    )
    assert (outcome.fusion_id, outcome.batch_id, outcome.custom_id) == (
        prompt.fusion_id,
        "b1",
        "one",
    )
    assert (outcome.answers, outcome.cost_usd, outcome.finished_at) == ((), 0.0, NOW)


def test_a_round_is_as_deep_as_its_prompt_and_says_to_which_store_it_is_published(
    begin: Begin,
) -> None:
    play = begin(prompt={"depth": 2}).says(**OPEN)
    decision = play.decide()
    assert isinstance(decision, Ask)

    round_ = build_round(play.case, decision, "s1")

    assert (round_.depth, round_.store_id) == (2, "s1")
