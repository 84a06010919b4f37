"""A fusion's steps, from what is stored of it."""

from datetime import datetime, timedelta
from typing import Any

from fusewire.contracts import CallFailure, ExcludedMember, Verdict
from fusewire.store.history import History, StoredCandidate
from fusewire.testing.factories import (
    T0,
    make_candidate,
    make_outcome,
    make_plan,
    make_prompt,
    make_round,
)
from fusewire_cli.trace import Step, steps

PROMPT = make_prompt()


def after(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def test_what_was_only_accepted_has_one_step() -> None:
    history = History(PROMPT, None, None, None, (), (), None)
    assert steps(history) == [
        Step(0.0, None, "accepted", result="best-of, pool default, priority normal")
    ]


def test_a_fusion_s_steps_are_in_the_order_of_time_and_say_what_came_of_each() -> None:
    plan = make_plan(PROMPT).model_copy(
        update={
            "planned_at": after(0.02),
            "excluded": (ExcludedMember(name="d", reason="no_images"),),
        }
    )
    first = make_candidate(
        "s3cr3t", "a", prompt=PROMPT, started_at=after(0.1), finished_at=after(0.6), attempts=2
    )
    failed = make_candidate(
        None, "b", prompt=PROMPT, started_at=after(0.1), finished_at=after(0.2)
    ).model_copy(
        update={
            "error": CallFailure(code="timeout", message="too late", retryable=True),
            "usage": None,
            "maybe_paid_twice": True,
        }
    )
    ran = {"started_at": after(0.7), "finished_at": after(0.9)}
    judge_call: dict[str, Any] = {"round": 1, "member": None, "model": "j", **ran}
    verdict = make_candidate("{}", "verdict-1-1", prompt=PROMPT, **judge_call)
    late = make_candidate("s3cr3t", "c", prompt=PROMPT, started_at=after(0.1), finished_at=after(2))
    vote = Verdict(call="verdict-1-1", kind="pair", judge_model="j", shown=("a", "c"), winner="a")
    outcome = make_outcome(
        PROMPT,
        finished_at=after(1),
        status="fused",
        closed_by="quorum",
        verdicts=(vote,),
        is_degraded=True,
        degraded_reasons=("missing:c:0.33:quorum",),
    )
    history = History(
        PROMPT,
        after(0.01),
        None,
        plan,
        [(make_round(PROMPT), after(0.65))],
        [StoredCandidate(c, c.finished_at, c is late) for c in (failed, first, verdict, late)],
        outcome,
    )

    all_steps = steps(history)

    assert [(s.at_ms, s.took_ms, s.step, s.who, s.result) for s in all_steps] == [
        (0.0, None, "accepted", "", "best-of, pool default, priority normal"),
        (10.0, None, "published", "", ""),
        (20.0, None, "planned", "", "3 members, quorum 0.67, d left out (no_images)"),
        (100.0, 100.0, "call", "b", "timeout, may be paid twice"),
        (100.0, 500.0, "call", "a", "ok, 2 attempts"),
        (100.0, 1900.0, "late answer", "c", "ok"),
        (650.0, None, "asked", "", "round 1: 1 call (verdict)"),
        (700.0, 200.0, "call", "verdict-1-1", "ok, for a"),
        (1000.0, None, "outcome", "a", "fused, closed by quorum, missing:c:0.33:quorum"),
    ]
    assert (all_steps[3].tokens_in, all_steps[4].tokens_in is None) == (None, False)
    assert "s3cr3t" not in str(all_steps)
