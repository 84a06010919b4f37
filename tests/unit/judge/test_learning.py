"""What is learned from stored outcomes, its snapshot onto plans, and the hedge budget."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.contracts import PlannedJudge, Policy
from fusewire.testing.factories import make_member, make_plan, make_round
from fusewire_judge.learning.hedge_budget import HedgeBudget
from fusewire_judge.learning.statistics import (
    CONTROL_WINDOW,
    Statistics,
    StoredAnswer,
    StoredHistory,
    learn_statistics,
)
from fusewire_judge.learning.weights import (
    MAX_WEIGHT,
    MIN_OBSERVATIONS,
    MIN_WEIGHT,
    SuccessCount,
    record_weights,
)

# -- weights of what is not voted on -----------------------------------------------------------


def test_below_twenty_observations_a_weight_is_one() -> None:
    counts = {"a": SuccessCount(19, 0), "b": SuccessCount(0, 19), "c": SuccessCount()}

    assert record_weights(counts) == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert record_weights({"a": SuccessCount(19, 0), "b": SuccessCount(20, 0)}) == {
        "a": 1.0,
        "b": 1.0,
    }


def test_weights_are_log_odds_with_a_mean_of_one() -> None:
    weights = record_weights({"a": SuccessCount(29, 9), "b": SuccessCount(19, 19)})

    # Wrong answers are taken to coincide one time in four.
    strong, weak = math.log(3 * 4), math.log(1 * 4)
    assert weights == pytest.approx(
        {"a": strong / ((strong + weak) / 2), "b": weak / ((strong + weak) / 2)}
    )


def test_weights_are_clipped() -> None:
    many = {f"m{i}": SuccessCount(10, 90) for i in range(9)}

    weights = record_weights({**many, "a": SuccessCount(10_000, 0)})

    assert weights["a"] == MAX_WEIGHT
    assert weights["m0"] == MIN_WEIGHT


def test_members_that_know_nothing_weigh_the_same() -> None:
    assert record_weights({"a": SuccessCount(0, 50), "b": SuccessCount(1, 49)}) == {
        "a": 1.0,
        "b": 1.0,
    }
    assert record_weights({}) == {}


@given(
    st.dictionaries(
        st.sampled_from("abcd"),
        st.builds(SuccessCount, st.integers(0, 99), st.integers(0, 99)),
        max_size=4,
    ),
)
def test_weights_follow_the_share_of_right_answers(counts: dict[str, SuccessCount]) -> None:
    weights = record_weights(counts)

    assert set(weights) == set(counts)
    assert all(MIN_WEIGHT <= weight <= MAX_WEIGHT for weight in weights.values())
    members = [n for n, s in counts.items() if s.total >= MIN_OBSERVATIONS]
    for a in members:
        for b in members:
            odds_a = (counts[a].yes + 1) * (counts[b].no + 1)
            odds_b = (counts[b].yes + 1) * (counts[a].no + 1)
            if odds_a > odds_b:
                assert weights[a] >= weights[b]


# -- statistics --------------------------------------------------------------------------------


def stored_answer(member: str = "a", fusion: int = 0, **overrides: Any) -> StoredAnswer:
    fields = {
        "is_right": None,
        "vote_group": None,
        "latency_ms": None,
        "pool": "p",
        "kind": "number",
    }
    return StoredAnswer(fusion_id=f"f{fusion}", member=member, **{**fields, **overrides})


def learned_weights(
    rows: list[StoredAnswer], key: tuple[str, str] = ("p", "number")
) -> dict[str, float]:
    return dict(learn_statistics(StoredHistory(rows)).weights.get(key, {}))


def answers_of_two(a: dict[str, Any], b: dict[str, Any], count: int = 40) -> list[StoredAnswer]:
    answers: list[StoredAnswer] = []
    for i in range(count):
        answers += [stored_answer("a", i, **a), stored_answer("b", i, **b)]
    return answers


def votes_of(*rows: tuple[str, str | None, int]) -> list[StoredAnswer]:
    """Votes of members named by letters, so often: `aab` if the first two agree.

    The label is the letter of the answer that was right, "-" if none was.
    """
    answers: list[StoredAnswer] = []
    fusions = itertools.count()
    for pattern, right, count in rows:
        for fusion in itertools.islice(fusions, count):
            answers += [
                stored_answer(
                    member,
                    fusion,
                    vote_group=ord(letter),
                    is_right=None if right is None else letter == right,
                )
                for member, letter in zip("abcd", pattern, strict=False)
            ]
    return answers


def test_a_label_is_believed_over_the_majority() -> None:
    weights = learned_weights(votes_of(("xxy", "y", 40)))

    assert weights["c"] > weights["a"] + weights["b"]


def test_without_a_label_the_majority_stands_in() -> None:
    weights = learned_weights(votes_of(("xxy", None, 40), ("xxx", None, 40)))

    assert weights["a"] == pytest.approx(weights["b"])
    assert weights["a"] > 1 > weights["c"]


def test_what_has_neither_label_nor_vote_teaches_nothing() -> None:
    assert learned_weights(answers_of_two({}, {})) == {}


def test_labels_weigh_what_is_not_voted_on() -> None:
    weights = learned_weights(answers_of_two({"is_right": True}, {"is_right": False}))

    assert weights["a"] > 1 > weights["b"]


def test_two_that_were_right_against_the_best_outvote_it_and_two_that_were_wrong_do_not() -> None:
    alone_right = ("xyz", "z", 60)

    trusted = learned_weights(votes_of(alone_right, ("xxz", "x", 30), ("zzz", "z", 30)))
    beaten = learned_weights(votes_of(alone_right, ("xxz", "z", 30), ("zzz", "z", 30)))

    assert trusted["a"] + trusted["b"] > trusted["c"] > trusted["a"]
    assert beaten["a"] + beaten["b"] < beaten["c"]


def test_what_is_learned_begins_from_the_configured_weights_of_the_pool() -> None:
    rows = votes_of(("xyy", None, 60), ("xyz", None, 60))
    member_weights = {"a": 1.0, "b": 3.0, "c": 1.0}

    def votes(weights: dict[str, dict[str, float]]) -> dict[str, float]:
        found = learn_statistics(StoredHistory(rows, configured_weights=weights)).weights
        return {m: member_weights[m] * factor for m, factor in found["p", "number"].items()}

    own, other = votes({"p": member_weights}), votes({"q": member_weights})

    assert own["c"] < own["b"] < 2 * own["c"], "expected to be better, which counts once"
    assert 2 * other["c"] < other["b"] < 3 * other["c"], "no other pool's weights"


def test_votes_that_have_not_changed_are_not_fitted_anew() -> None:
    rows = votes_of(("xxy", "x", 30), ("xyz", "y", 10))

    first = learn_statistics(StoredHistory(rows))
    second = learn_statistics(StoredHistory(rows), first.votes)
    third = learn_statistics(StoredHistory(rows[:-3]), first.votes)

    assert second.votes["p", "number"] is first.votes["p", "number"]
    assert third.votes["p", "number"] is not first.votes["p", "number"]


def test_each_pool_and_kind_is_for_itself() -> None:
    right, wrong = {"is_right": True}, {"is_right": False}
    rows = [
        *answers_of_two(right, wrong),
        *(stored_answer("a", i, kind="label", is_right=False) for i in range(40)),
    ]
    rows += [stored_answer("a", i, pool="q", is_right=False) for i in range(40)]

    weights = learn_statistics(StoredHistory(rows)).weights

    assert weights["p", "number"]["a"] > 1
    assert weights["p", "label"] == weights["q", "number"] == {"a": 1.0}


def test_latencies_are_sorted_by_pool_and_member() -> None:
    rows = [stored_answer(latency_ms=ms) for ms in (30.0, 10.0, 20.0)] + [
        stored_answer("b", latency_ms=5.0),
        stored_answer("b"),
    ]

    assert learn_statistics(StoredHistory(rows)).latencies == {
        ("p", "a"): [10.0, 20.0, 30.0],
        ("p", "b"): [5.0],
    }


PICKS = [
    # what, picks (newest first), out
    ("none", [False] * 50, False),
    ("one, the only one", [True], False),
    ("two of two", [True, True], True),
    ("two of forty is a twentieth", [True, True] + [False] * 38, False),
    ("two of thirty-nine is more", [True, True] + [False] * 37, True),
    ("three of fifty", [True] * 3 + [False] * 47, True),
    ("two of fifty", [True] * 2 + [False] * 48, False),
    ("long ago", [False] * CONTROL_WINDOW + [True] * 50, False),
    ("never asked", [], False),
]


@pytest.mark.parametrize(("picks", "out"), [r[1:] for r in PICKS], ids=[r[0] for r in PICKS])
def test_a_judge_that_picks_controls_is_quarantined(picks: list[bool], out: bool) -> None:
    assert learn_statistics(
        StoredHistory(control_picks={"j": picks, "good": [False]})
    ).quarantined == (frozenset({"j"}) if out else frozenset())


# -- the snapshot onto a plan ------------------------------------------------------------------


def judge(model: str) -> PlannedJudge:
    return PlannedJudge(model=model, tier="remote", family=model)


def snapshot(
    statistics: Statistics, *, may_hedge: bool = False, is_replay: bool = False, **plan: Any
) -> Any:
    return statistics.snapshot_onto(make_plan(**plan), may_hedge=may_hedge, is_replay=is_replay)


def test_a_plan_is_given_the_weights_of_its_pool() -> None:
    statistics = Statistics(
        weights={
            ("default", "number"): {"a": 2.0},
            ("default", "label"): {"a": 0.5, "z": 1.0},
            ("other", "number"): {"b": 3.0},
        }
    )

    a, b, _ = snapshot(statistics).members

    assert (a.learned, b.learned) == ({"number": 2.0, "label": 0.5}, {})
    assert (a.weight_for("number"), b.weight_for("number")) == (2.0, 1.0)


def test_a_replay_is_weighed_as_it_was_recorded() -> None:
    statistics = Statistics(
        weights={("default", "number"): {"a": 2.0}}, quarantined=frozenset({"x"})
    )

    plan = snapshot(statistics, is_replay=True, judge=judge("x"))

    assert plan.members[0].learned == {}
    assert plan.judge is None


JUDGES = [
    # what, judge, jury, quarantined, judge then, jury then, excluded
    ("nobody", "x", "", "", "x", "", []),
    ("the judge", "x", "", "x", None, "", ["judge"]),
    ("a juror", "x", "yz", "y", "x", "z", ["juror-y"]),
    ("the judge of a jury", "x", "yz", "x", "y", "yz", ["judge"]),
    ("a judge that is a juror too", "x", "xyz", "x", "y", "yz", ["judge"]),
    ("all of them", "x", "yz", "xyz", None, "", ["judge", "juror-y", "juror-z"]),
    ("somebody else's", "x", "yz", "q", "x", "yz", []),
    ("there is none", "", "", "x", None, "", []),
]


@pytest.mark.parametrize(
    ("sole", "jury", "out", "then", "jury_then", "excluded"),
    [r[1:] for r in JUDGES],
    ids=[r[0] for r in JUDGES],
)
def test_a_quarantined_judge_is_left_out(
    sole: str, jury: str, out: str, then: str | None, jury_then: str, excluded: list[str]
) -> None:
    plan = snapshot(
        Statistics(quarantined=frozenset(out)),
        judge=judge(sole) if sole else None,
        jury=tuple(map(judge, jury)),
    )

    assert (plan.judge.model if plan.judge else None) == then
    assert "".join(juror.model for juror in plan.jury) == jury_then
    assert sorted(e.name for e in plan.excluded) == excluded
    assert {e.reason for e in plan.excluded} <= {"quarantined"}


TIMES = [float(ms) for ms in range(1000, 101_000, 1000)]
HEDGES = [
    # what, share, times, may, mute, seconds
    ("the slowest tenth", 0.1, TIMES, True, False, 91.0),
    ("the slowest half", 0.5, TIMES, True, False, 51.0),
    ("a share of nothing is the slowest", 0.001, TIMES[:20], True, False, 20.0),
    ("no share", 0.0, TIMES, True, False, None),
    ("no credit", 0.1, TIMES, False, False, None),
    ("too little is known", 0.1, TIMES[:19], True, False, None),
    ("nobody to ask", 0.1, TIMES, True, True, None),
]


@pytest.mark.parametrize(
    ("share", "times", "may", "is_replay_only", "seconds"),
    [r[1:] for r in HEDGES],
    ids=[r[0] for r in HEDGES],
)
def test_when_a_member_is_late(
    share: float, times: list[float], may: bool, is_replay_only: bool, seconds: float | None
) -> None:
    statistics = Statistics(latencies={("default", "a"): times})
    members = [make_member("a", is_replay_only=is_replay_only), make_member("b")]

    a, b = snapshot(statistics, may_hedge=may, members=members, policy=Policy(hedge=share)).members

    assert (a.hedge_after_s, b.hedge_after_s) == (seconds, None)


# -- the budget -------------------------------------------------------------------------------

TENTH = make_plan(members="ab", policy=Policy(hedge=0.1))


def second_calls(count: int, pool: str = "default") -> Any:
    call = make_round().calls[0]
    return make_round(
        calls=[call.model_copy(update={"name": f"m{i}=h"}) for i in range(count)], pool=pool
    )


def test_second_calls_are_a_share_of_first_ones() -> None:
    budget = HedgeBudget()

    assert [budget.grant(TENTH) for _ in range(6)] == [False] * 4 + [True] * 2
    budget.spend([second_calls(1)])
    assert [budget.grant(TENTH) for _ in range(4)] == [False] * 3 + [True]


def test_what_is_owed_is_paid_first() -> None:
    budget = HedgeBudget()
    budget.spend([second_calls(2)])

    grants = [budget.grant(TENTH) for _ in range(16)]

    assert (any(grants[:14]), grants[-1]) == (False, True)


def test_little_is_saved_up() -> None:
    budget = HedgeBudget()
    for _ in range(1000):
        budget.grant(TENTH)
    budget.spend([second_calls(10)])

    assert not budget.grant(TENTH)


def test_pools_have_budgets_of_their_own_and_other_calls_cost_none() -> None:
    budget = HedgeBudget()
    for _ in range(10):
        budget.grant(TENTH)
    budget.spend([second_calls(9, pool="other"), make_round()])

    assert budget.grant(TENTH)
    assert not budget.grant(make_plan(pool="other", policy=Policy(hedge=0.5)))


def test_over_a_long_time_the_share_is_kept() -> None:
    budget, hedges = HedgeBudget(), 0
    for _ in range(2000):
        if budget.grant(TENTH):
            budget.spend([second_calls(1)])
            hedges += 1

    assert 390 <= hedges <= 400
