"""Pairs from rows of the views."""

from datetime import UTC, datetime
from typing import Any

import pytest

from fusewire.analysis.compare import Names, Rules, compare, map_votes, pair_models, pair_pools

MODELS = Names("models", "x", "y")
POOLS = Names("pools", "p", "q")


def outcome(number: int, **columns: Any) -> dict[str, Any]:
    """A row of v_outcome."""
    return {
        "outcome_id": f"o{number}",
        "prompt_hash": f"h{number}",
        "finished_at": datetime(2026, 11, 1, number, tzinfo=UTC),
        "answer_kind": "open",
        "agreement": 0.5,
        "reason": "It cites its source.",
        "judge_model": "j",
        "verdict_parse": "strict",
        "is_replay": False,
        "accepted": None,
        "status": "selected",
        "cost_usd": 0.01,
        "latency_ms": 900.0,
    } | columns


def answers(number: int, *models: str, **columns: Any) -> list[dict[str, Any]]:
    """Rows of v_answer of one outcome."""
    answer = {"status": "ok", "attempts": 1, "is_right": None, "n_members": 3, "n_right": 0}
    return [
        outcome(number) | answer | {"model": model, "member": model} | columns
        for model in models or ("x", "y")
    ]


def verdict(
    number: int, winner: str, *, first: str = "x", judge: str = "j", **columns: Any
) -> dict[str, Any]:
    """A row of v_pair."""
    second = "y" if first == "x" else "x"
    return {
        "outcome_id": f"o{number}",
        "judge_model": judge,
        "model_a": first,
        "model_b": second,
        "verdict": "A" if winner == first else "B",
        "is_consistent": None,
        "is_by_margin": False,
    } | columns


def choices(*verdicts: dict[str, Any]) -> tuple[Any, bool]:
    (pair,) = pair_models(MODELS, answers(1), verdicts)
    return pair.judgement.choice, pair.judgement.is_flip


def test_models_are_paired_by_outcome() -> None:
    rows = answers(2) + answers(1) + answers(3, "x") + answers(4, "y", "z")

    pairs = pair_models(MODELS, rows, [])

    assert [pair.a.outcome_id for pair in pairs] == ["o1", "o2"]
    assert pairs[0].judgement.reason == "It cites its source."


def test_a_model_that_was_not_asked_is_no_pair() -> None:
    assert not pair_models(MODELS, answers(1, "x") + answers(1, "y", status="unasked"), [])


def test_a_failure_is_wrong_where_there_is_a_label() -> None:
    rows = answers(1, "x", accepted=True, is_right=True) + answers(
        1, "y", accepted=True, status="error", is_right=None
    )

    (pair,) = pair_models(MODELS, rows, [])

    assert (pair.a.is_right, pair.b.is_right, pair.by_label) == (True, False, -1)
    assert (pair.b.is_answered, pair.b.is_clean, pair.b.latency_ms) == (False, False, None)
    (without,) = pair_models(MODELS, answers(1, is_right=True), [])
    assert without.by_label is None


def test_wrong_where_all_others_are_right() -> None:
    rows = answers(1, "x", accepted=True, is_right=True) + answers(
        1, "y", accepted=1, is_right=0, n_right=2
    )
    (pair,) = pair_models(MODELS, rows, [])
    assert (pair.a.is_alone_wrong, pair.b.is_alone_wrong) == (False, True)

    of_two = [row | {"n_members": 2, "n_right": 1} for row in rows]
    (pair,) = pair_models(MODELS, of_two, [])
    assert not pair.b.is_alone_wrong


def test_a_second_try_is_an_answer_that_is_not_clean() -> None:
    (pair,) = pair_models(MODELS, answers(1, "x") + answers(1, "y", attempts=2), [])
    assert (pair.a.is_clean, pair.b.is_clean, pair.b.is_answered) == (True, False, True)


@pytest.mark.parametrize("true", [True, 1])
def test_a_verdict_counts_if_its_swap_confirms_it_or_it_is_by_margin(true: Any) -> None:
    both = (
        verdict(1, "y", is_consistent=true),
        verdict(1, "y", first="y", is_consistent=true),
    )
    assert choices(*both) == ("b", False)
    assert choices(verdict(1, "x", is_by_margin=true)) == ("a", False)
    assert choices(verdict(1, "x")) == (None, False)
    assert choices() == (None, False)


@pytest.mark.parametrize("false", [False, 0])
def test_two_orders_with_another_winner_each_are_a_tie(false: Any) -> None:
    both = (
        verdict(1, "x", is_consistent=false),
        verdict(1, "y", first="y", is_consistent=false),
    )
    assert choices(*both) == ("tie", True)
    # In the other order a third answer won: that says nothing of these two.
    assert choices(both[0]) == (None, False)


def test_judges_decide_by_majority() -> None:
    said = [verdict(1, "y", judge=judge, is_by_margin=True) for judge in "jk"]
    against = verdict(1, "x", judge="l", is_by_margin=True)

    assert choices(*said, against) == ("b", False)
    assert choices(said[0], against) == ("tie", False)
    (pair,) = pair_models(MODELS, answers(1), [*said, against])
    assert pair.judgement.judges == ("j", "k", "l")


def test_an_answer_that_is_judged_again_counts_once() -> None:
    rows = [
        *answers(1, prompt_hash="h"),
        *answers(2, prompt_hash="h", is_replay=True),
        *answers(3, prompt_hash="h", is_replay=True),
        *answers(4, prompt_hash="k", is_replay=True),
        *answers(5, prompt_hash="k", is_replay=1),
    ]
    pairs = pair_models(MODELS, rows, [verdict(2, "y", is_by_margin=True)])

    assert [pair.a.outcome_id for pair in pairs] == ["o1", "o5"]
    assert pairs[0].judgement.choice == "b", "from the replay: the outcome itself has no verdict"
    own = [verdict(2, "y", is_by_margin=True), verdict(1, "x", is_by_margin=True)]
    assert pair_models(MODELS, rows, own)[0].judgement.choice == "a"


def test_a_prompt_that_is_given_every_night_counts_once() -> None:
    rows = answers(1, prompt_hash="h") + answers(2, prompt_hash="h") + answers(3)

    comparison = compare(MODELS, Rules(), pair_models(MODELS, rows, []), [])

    assert comparison.n == 2


def test_pools_are_paired_by_their_newest_outcomes_of_a_prompt() -> None:
    rows = [
        outcome(1, pool="p", prompt_hash="h", accepted=True),
        outcome(2, pool="p", prompt_hash="h", accepted=False),
        outcome(3, pool="q", prompt_hash="h", accepted=True),
        outcome(4, pool="p", prompt_hash="h", accepted=True, is_replay=True),
        outcome(5, pool="q", prompt_hash="other"),
        outcome(6, pool="p", prompt_hash="k", status="cancelled"),
        outcome(7, pool="q", prompt_hash="k"),
    ]

    (pair,) = pair_pools(POOLS, rows)

    assert (pair.a.outcome_id, pair.b.outcome_id, pair.by_label) == ("o2", "o3", 1)


def test_an_outcome_of_a_rule_is_not_clean() -> None:
    rows = [
        outcome(1, pool="p", prompt_hash="h", verdict_parse=None),
        outcome(2, pool="q", prompt_hash="h", verdict_parse="fallback"),
    ]
    (pair,) = pair_pools(POOLS, rows)
    assert (pair.a.is_clean, pair.b.is_clean, pair.b.is_answered) == (True, False, True)
    assert pair.judgement.judge_model is None, "a rule wrote the sentence"
    rows[1]["status"] = "failed"
    assert not pair_pools(POOLS, rows)[0].b.is_answered


def test_times_as_sqlite_writes_them() -> None:
    rows = [row | {"finished_at": "2026-11-02 10:00:00.000000"} for row in answers(1)]
    (pair,) = pair_models(MODELS, rows, [])
    assert pair.at == datetime(2026, 11, 2, 10, tzinfo=UTC)


def test_whom_a_vote_is_for() -> None:
    votes: list[dict[str, Any]] = [
        {"choice": "m1", "choice_model": "x", "winner_model": "y"},
        {"choice": "fused", "choice_model": None, "winner_model": "y"},
        {"choice": "tie", "choice_model": None, "winner_model": "x"},
        {"choice": "none", "choice_model": None, "winner_model": "x"},
        {"choice": "m3", "choice_model": "z", "winner_model": "x"},
        {"choice": "fused", "choice_model": None, "winner_model": None},
    ]
    rows = [vote | {"outcome_id": "o1", "pool": "p", "agrees": None} for vote in votes]
    found = [vote.choice for vote in map_votes(MODELS, rows)]
    assert found == ["a", "b", "tie", "other", "other", "other"]

    of_pools = [
        {"outcome_id": "o", "choice": "fused", "pool": pool, "agrees": agrees}
        for pool, agrees in [("p", True), ("q", 1), ("q", False)]
    ]
    assert [vote.choice for vote in map_votes(POOLS, of_pools)] == ["a", "b", "other"]
