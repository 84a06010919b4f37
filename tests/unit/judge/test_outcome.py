"""From a draft to the outcome: who said what, how long it took, what it cost."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from fusewire.contracts import Candidate, Outcome, Usage
from fusewire.store.queries import Standing, shown
from fusewire.testing.factories import T0, make_candidate, make_plan, make_prompt, make_round
from fusewire_judge.fusion.case import Case, Draft, Heard, Said
from fusewire_judge.outcome import build, cost, unplanned, usage

NOW = T0 + timedelta(seconds=3)
DRAFT = Draft(
    status="fused",
    content="Paris.",
    winner="b",
    said=(Said("a", 1, "Lyon.", 0), Said("b", 1, "Paris.", 1)),
    shown=("b", "a"),
    rung="strict",
    reason="It is right.",
    agreement=0.5,
)


def heard(*candidates: Candidate, after_rounds: int = 0) -> dict[tuple[int, str], Heard]:
    return {(c.round, c.call): Heard(c, T0 + timedelta(seconds=1), after_rounds) for c in candidates}


VERDICT = make_candidate("{}", "verdict", round=1, member=None, model="m-judge", cost_usd=0.01)


def built(draft: Draft = DRAFT, judged: float | None = 1.5, **given: Any) -> Outcome:
    prompt = make_prompt(batch_id="b1")
    fields: dict[str, Any] = {
        "prompt": prompt,
        "plan": make_plan(prompt, planned_at=T0 + timedelta(seconds=0.5)),
        "rounds": (make_round(prompt),),
        "heard": heard(
            make_candidate("Lyon.", "a"),
            make_candidate("Berlin.", "b"),
            make_candidate("Paris.", "b", round=1),
            VERDICT,
        ),
    }
    since = None if judged is None else T0 + timedelta(seconds=judged)
    return build(Case(**{**fields, **given}), draft, NOW, judged_since=since)


def test_it_says_what_was_asked_and_what_was_decided() -> None:
    outcome = built()

    assert (outcome.status, outcome.content, outcome.winner) == ("fused", "Paris.", "b")
    assert (outcome.custom_id, outcome.batch_id, outcome.tenant, outcome.pool) == ("one", "b1", "default", "default")
    assert (outcome.judge_model, outcome.judge_rung, outcome.reason) == ("m-judge", "strict", "It is right.")
    assert (outcome.submitted_at, outcome.finished_at, outcome.latency_ms) == (T0, NOW, 3000)
    assert (outcome.panel_ms, outcome.judge_ms) == (1000, 1500)
    assert outcome.rounds == 1
    assert outcome.config_hash == "0123456789ab"


def test_each_member_s_part_is_the_answer_that_stood_at_the_end() -> None:
    a, b, c = built().answers

    assert (a.member, a.status, a.round, a.shown_position, a.is_winner) == ("a", "ok", 0, 2, False)
    assert (b.member, b.status, b.round, b.shown_position, b.is_winner) == ("b", "ok", 1, 1, True)
    assert (c.member, c.status, c.round, c.shown_position, c.model) == ("c", "missing", None, None, "m-c")
    assert a.latency_ms == 1000
    assert a.usage == Usage(prompt_tokens=10, completion_tokens=2)
    assert {x.content for x in (a, b, c)} == {None}


def test_a_failed_member_says_why() -> None:
    outcome = built(heard=heard(make_candidate("Paris.", "b"), make_candidate(call="c", fails="rate_limited")))

    assert [(x.status, x.error_code) for x in outcome.answers] == [
        ("missing", None),
        ("missing", None),  # what stood for `b` was said in round 1, which nobody has heard
        ("error", "rate_limited"),
    ]


def test_an_answer_that_came_too_late_did_not_take_part() -> None:
    late = heard(make_candidate("Madrid.", "c"), after_rounds=1)
    on_time = heard(make_candidate("Lyon.", "a"), make_candidate("Paris.", "b", round=1))

    outcome = built(replace(DRAFT, degraded=("missing:c",)), heard=on_time | late)

    assert outcome.answers[2].status == "missing"
    assert outcome.usage.prompt_tokens == 30  # but it was paid for


def test_usage_and_cost_are_of_all_calls() -> None:
    outcome = built()

    assert outcome.usage == Usage(prompt_tokens=40, completion_tokens=8)
    assert outcome.cost_usd == pytest.approx(0.013)


COSTS: list[tuple[str, list[dict[str, Any]], float | None]] = [
    ("nothing", [], 0),
    ("known", [{"cost_usd": 0.5}, {"cost_usd": 0.25}], 0.75),
    ("edge calls are free", [{"cost_usd": 0.0}, {"cost_usd": 0.25}], 0.25),
    ("one price unknown", [{"cost_usd": 0.5}, {"cost_usd": None}], None),
    ("an answer without usage and price", [{"cost_usd": None, "usage": Usage()}], None),
    ("a failure that cost nothing", [{"cost_usd": 0.5}, {"fails": "connect_error"}], 0.5),
    ("a failure that used tokens", [{"fails": "timeout", "usage": Usage(prompt_tokens=3)}], None),
]


@pytest.mark.parametrize(("calls", "expected"), [row[1:] for row in COSTS], ids=[row[0] for row in COSTS])
def test_an_unknown_price_makes_the_cost_unknown(calls: list[dict[str, Any]], expected: float | None) -> None:
    assert cost([make_candidate(**call) for call in calls]) == expected


def test_usage_of_nobody_is_nothing() -> None:
    assert usage([]) == Usage()


DEGRADED = [
    (Draft("fused", "x"), False, ()),
    (Draft("voted", "x", degraded=("missing:c",)), True, ("missing:c",)),
    (Draft("single", "x"), False, ()),
    (Draft("failed", error="all"), True, ()),
    (Draft("expired", error="late"), True, ()),
]


@pytest.mark.parametrize(("draft", "is_degraded", "reasons"), DEGRADED, ids=lambda d: getattr(d, "status", None))
def test_degraded(draft: Draft, is_degraded: bool, reasons: tuple[str, ...]) -> None:
    outcome = built(draft)

    assert (outcome.is_degraded, outcome.degraded_reasons) == (is_degraded, reasons)


def test_what_is_degraded_stands_first_wherever_an_outcome_is_shown() -> None:
    outcome = built(replace(DRAFT, degraded=("missing:c",)))
    standing = Standing(outcome.fusion_id, outcome.batch_id, outcome.custom_id, outcome.submitted_at, outcome)

    assert list(shown(standing))[:3] == ["is_degraded", "degraded_reasons", "status"]
    assert shown(standing)["latency_ms"] == 3000
    wire = list(json.loads(outcome.encode()))
    assert wire.index("is_degraded") < wire.index("content")
    assert "outcome" not in shown(replace(standing, outcome=None))
    assert shown(replace(standing, outcome=None))["status"] == "running"


def test_without_a_judge_call_there_is_no_judge() -> None:
    outcome = built(rounds=(), judged=None)

    assert (outcome.judge_model, outcome.judge_ms, outcome.rounds) == (None, None, 0)
    assert outcome.panel_ms == 2500


def test_what_was_never_planned_expires() -> None:
    prompt = make_prompt()
    outcome = unplanned(prompt, prompt.deadline_at)

    assert (outcome.status, outcome.is_degraded, outcome.degraded_reasons) == ("expired", True, ("never_planned",))
    assert (outcome.cost_usd, outcome.answers, outcome.latency_ms) == (0.0, (), 60_000)
    assert Outcome.decode(outcome.encode()) == outcome
