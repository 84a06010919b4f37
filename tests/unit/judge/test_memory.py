"""Statistics learned from stored outcomes: weights, latencies, quarantine; and the hedge budget."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.contracts import PlannedJudge, Policy
from fusewire.testing.factories import make_member, make_plan, make_round
from fusewire_judge.handlers import HedgeBudget
from fusewire_judge.learning.statistics import (
    CONTROLS_REMEMBERED,
    Statistics,
    StoredAnswer,
    remember,
)
from fusewire_judge.learning.weights import LEAST, LEAST_SEEN, MOST, SuccessCount, learned

# -- weights ----------------------------------------------------------------------------------


def test_below_twenty_observations_a_weight_is_one() -> None:
    standings = {"a": SuccessCount(19, 0), "b": SuccessCount(0, 19), "c": SuccessCount()}

    assert learned(standings, SuccessCount()) == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert learned({"a": SuccessCount(19, 0), "b": SuccessCount(20, 0)}, SuccessCount()) == {
        "a": 1.0,
        "b": 1.0,
    }


def test_weights_are_log_odds_with_a_mean_of_one() -> None:
    weights = learned({"a": SuccessCount(29, 9), "b": SuccessCount(19, 19)}, SuccessCount(0, 0))

    strong, weak = (
        math.log(3 * 4),
        math.log(1 * 4),
    )  # wrong answers are taken to coincide one time in four
    assert weights == pytest.approx(
        {"a": strong / ((strong + weak) / 2), "b": weak / ((strong + weak) / 2)}
    )


def test_wrong_answers_that_seldom_coincide_make_a_weak_member_worth_more() -> None:
    standings = {"a": SuccessCount(60, 40), "b": SuccessCount(30, 70)}

    often, seldom = (
        learned(standings, SuccessCount(*stored_answer)) for stored_answer in ((90, 10), (0, 100))
    )

    assert often["b"] < seldom["b"] < seldom["a"] < often["a"]
    # Two that agree outweigh the best one alone where coincidence is rare.
    assert 2 * seldom["b"] > seldom["a"]


def test_weights_are_clipped() -> None:
    many = {f"m{i}": SuccessCount(10, 90) for i in range(9)}

    weights = learned({**many, "a": SuccessCount(10_000, 0)}, SuccessCount(99, 1))

    assert weights["a"] == MOST
    assert weights["m0"] == LEAST


def test_members_that_know_nothing_weigh_the_same() -> None:
    assert learned({"a": SuccessCount(0, 50), "b": SuccessCount(1, 49)}, SuccessCount(300, 0)) == {
        "a": 1.0,
        "b": 1.0,
    }
    assert learned({}, SuccessCount()) == {}


@given(
    st.dictionaries(
        st.sampled_from("abcd"),
        st.builds(SuccessCount, st.integers(0, 99), st.integers(0, 99)),
        max_size=4,
    ),
    st.builds(SuccessCount, st.integers(0, 99), st.integers(0, 99)),
)
def test_weights_follow_the_share_of_right_answers(
    standings: dict[str, SuccessCount], collisions: SuccessCount
) -> None:
    weights = learned(standings, collisions)

    assert set(weights) == set(standings)
    assert all(LEAST <= weight <= MOST for weight in weights.values())
    known_members = [n for n, s in standings.items() if s.seen >= LEAST_SEEN]
    for a in known_members:
        for b in known_members:
            if (standings[a].yes + 1) * (standings[b].no + 1) > (standings[b].yes + 1) * (
                standings[a].no + 1
            ):
                assert weights[a] >= weights[b]


# -- what is remembered -----------------------------------------------------------------------


def stored_answer(member: str = "a", fusion: int = 0, **overrides: Any) -> StoredAnswer:
    fields = {
        "agreed": None,
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
    return dict(remember(rows, {}).weights.get(key, {}))


def run(a: dict[str, Any], b: dict[str, Any], count: int = 40) -> list[StoredAnswer]:
    answers = []
    for i in range(count):
        answers += [stored_answer("a", i, **a), stored_answer("b", i, **b)]
    return answers


def test_a_label_is_believed_over_the_majority() -> None:
    weights = learned_weights(
        run({"agreed": True, "is_right": False}, {"agreed": False, "is_right": True})
    )

    assert weights["b"] > 1 > weights["a"]


def test_without_a_label_the_majority_stands_in() -> None:
    weights = learned_weights(run({"agreed": True}, {"agreed": False}))

    assert weights["a"] > 1 > weights["b"]


def test_what_is_neither_right_nor_agreed_teaches_nothing() -> None:
    assert learned_weights(run({}, {})) == {}


def test_each_pool_and_kind_is_for_itself() -> None:
    right, wrong = {"is_right": True}, {"is_right": False}
    rows = [
        *run(right, wrong),
        *(stored_answer("a", i, kind="label", is_right=False) for i in range(40)),
    ]
    rows += [stored_answer("a", i, pool="q", is_right=False) for i in range(40)]

    weights = remember(rows, {}).weights

    assert weights["p", "number"]["a"] > 1
    assert weights["p", "label"] == weights["q", "number"] == {"a": 1.0}


def test_wrong_answers_that_are_the_same_are_counted_as_collisions() -> None:
    def weights(groups: tuple[int, int]) -> dict[str, float]:
        wrong = []
        for i in range(60):
            for name, group in zip("ab", groups, strict=True):
                wrong.append(stored_answer(name, i, is_right=False, vote_group=group))
        return learned_weights(
            [
                *wrong,
                *(stored_answer("a", i, is_right=True) for i in range(100, 200)),
                *(stored_answer("b", i, is_right=True) for i in range(100, 120)),
            ]
        )

    # Where wrong answers differ, being right at random is worth something; where they are the
    # same, nothing.
    assert weights((1, 1))["b"] == LEAST
    assert weights((1, 2))["b"] > LEAST


def test_latencies_are_sorted_by_pool_and_member() -> None:
    rows = [stored_answer(latency_ms=ms) for ms in (30.0, 10.0, 20.0)] + [
        stored_answer("b", latency_ms=5.0),
        stored_answer("b"),
    ]

    assert remember(rows, {}).latencies == {("p", "a"): [10.0, 20.0, 30.0], ("p", "b"): [5.0]}


PICKS = [
    # what, picks (newest first), out
    ("none", [False] * 50, False),
    ("one, the only one", [True], False),
    ("two of two", [True, True], True),
    ("two of forty is a twentieth", [True, True] + [False] * 38, False),
    ("two of thirty-nine is more", [True, True] + [False] * 37, True),
    ("three of fifty", [True] * 3 + [False] * 47, True),
    ("two of fifty", [True] * 2 + [False] * 48, False),
    ("long ago", [False] * CONTROLS_REMEMBERED + [True] * 50, False),
    ("never asked", [], False),
]


@pytest.mark.parametrize(("picks", "out"), [r[1:] for r in PICKS], ids=[r[0] for r in PICKS])
def test_a_judge_that_picks_controls_is_quarantined(picks: list[bool], out: bool) -> None:
    assert remember([], {"j": picks, "good": [False]}).quarantined == (
        frozenset({"j"}) if out else frozenset()
    )


# -- the stamp --------------------------------------------------------------------------------


def judge(model: str) -> PlannedJudge:
    return PlannedJudge(model=model, tier="remote", family=model)


def plan_with(
    memory: Statistics, *, may_hedge: bool = False, is_replay: bool = False, **plan: Any
) -> Any:
    return memory.stamp(make_plan(**plan), may_hedge=may_hedge, is_replay=is_replay)


def test_a_plan_is_stamped_with_the_weights_of_its_pool() -> None:
    weights = {
        ("default", "number"): {"a": 2.0},
        ("default", "label"): {"a": 0.5, "z": 1.0},
        ("other", "number"): {"b": 3.0},
    }
    memory = Statistics(weights=weights)

    a, b, _ = plan_with(memory).members

    assert (a.learned, b.learned) == ({"number": 2.0, "label": 0.5}, {})
    assert (a.weight_for("number"), b.weight_for("number")) == (2.0, 1.0)


def test_a_replay_is_weighed_as_it_was_recorded() -> None:
    memory = Statistics(weights={("default", "number"): {"a": 2.0}}, quarantined=frozenset({"x"}))

    weights = plan_with(memory, is_replay=True, judge=judge("x"))

    assert weights.members[0].learned == {}
    assert weights.judge is None


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
    weights = plan_with(
        Statistics(quarantined=frozenset(out)),
        judge=judge(sole) if sole else None,
        jury=tuple(map(judge, jury)),
    )

    assert (weights.judge.model if weights.judge else None) == then
    assert "".join(juror.model for juror in weights.jury) == jury_then
    assert sorted(e.name for e in weights.excluded) == excluded
    assert {e.reason for e in weights.excluded} <= {"quarantined"}


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
    ("share", "times", "may", "is_mute", "seconds"),
    [r[1:] for r in HEDGES],
    ids=[r[0] for r in HEDGES],
)
def test_when_a_member_is_late(
    share: float, times: list[float], may: bool, is_mute: bool, seconds: float | None
) -> None:
    memory = Statistics(latencies={("default", "a"): times})
    members = [make_member("a", is_mute=is_mute), make_member("b")]

    a, b = plan_with(memory, may_hedge=may, members=members, policy=Policy(hedge=share)).members

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
    budget, grant_count = HedgeBudget(), 0
    for _ in range(2000):
        if budget.grant(TENTH):
            budget.spend([second_calls(1)])
            grant_count += 1

    assert 390 <= grant_count <= 400
