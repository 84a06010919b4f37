"""How much a judge's checks say, learned from labels and from agreement."""

import math
from collections.abc import Sequence

import pytest

from fusewire.contracts import PlannedJudge
from fusewire.testing.factories import make_plan
from fusewire_judge.learning.check_model import MOST_EDGE, ORDINARY, CheckEvidence, learn_edges
from fusewire_judge.learning.statistics import (
    Statistics,
    StoredAnswer,
    StoredCheck,
    StoredHistory,
    learn_statistics,
)


def test_without_checks_a_judge_is_ordinary() -> None:
    edges = learn_edges([])
    assert (edges.passing, edges.failing) == pytest.approx((math.log(85 / 45), math.log(15 / 55)))


CASES = [
    # what, passes of 1000 right ones, of 1000 wrong ones, passing, failing
    ("a good one", 900, 100, math.log(0.9 / 0.1), math.log(0.1 / 0.9)),
    ("one that passes all", 1000, 1000, 0.0, -1.3),
    ("a strict one", 300, 30, math.log(0.3 / 0.03), math.log(0.7 / 0.97)),
    ("one that tosses a coin", 500, 500, 0.0, 0.0),
    ("one that is wrong is not believed in reverse", 100, 900, 0.0, 0.0),
]


@pytest.mark.parametrize(
    ("right", "wrong", "passing", "failing"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_edges_are_learned_from_labels(
    right: int, wrong: int, passing: float, failing: float
) -> None:
    checks = [(1.0, float(n < right)) for n in range(1000)]
    checks += [(0.0, float(n < wrong)) for n in range(1000)]

    edges = learn_edges(checks)

    assert edges.passing == pytest.approx(passing, abs=0.3)
    assert edges.failing == pytest.approx(failing, abs=0.3)


def test_no_check_decides_alone() -> None:
    edges = learn_edges([(1.0, 1.0)] * 100_000 + [(0.0, 0.0)] * 100_000)
    assert edges == CheckEvidence(MOST_EDGE, -MOST_EDGE)


def test_few_checks_change_little() -> None:
    edges = learn_edges([(1.0, 0.0), (0.0, 1.0)])
    assert edges.passing == pytest.approx(math.log(17 / 10), abs=1e-9)


def answers(
    fusion: str, groups: Sequence[int | None], right: Sequence[bool | None] | None = None
) -> list[StoredAnswer]:
    labels = right or [None] * len(groups)
    return [
        StoredAnswer("default", fusion, "number", name, label, group, None)
        for name, group, label in zip("abc", groups, labels, strict=True)
    ]


def checks(fusion: str, passing: str, times: int = 1) -> list[StoredCheck]:
    return [
        StoredCheck("default", fusion, "number", "j", member, member in passing)
        for member in "abc" * times
    ]


def test_labels_say_whether_checks_are_right() -> None:
    rows, said = [], []
    for number in range(200):
        rows += answers(f"f{number}", (0, 1, 2), (True, False, False))
        said += checks(f"f{number}", "a")

    edges = learn_statistics(StoredHistory(rows, checks=said)).check_edges["default", "j"]

    assert edges.passing > 2 * ORDINARY.passing
    assert edges.failing < 1.3 * ORDINARY.failing


def test_agreement_says_it_where_there_are_no_labels() -> None:
    rows, agreeing, opposed = [], [], []
    for number in range(300):
        rows += answers(f"f{number}", (0, 0, 1) if number % 3 else (0, 0, 0))
        agreeing += checks(f"f{number}", "ab")
        opposed += checks(f"f{number}", "c")

    good = learn_statistics(StoredHistory(rows, checks=agreeing)).check_edges["default", "j"]
    bad = learn_statistics(StoredHistory(rows, checks=opposed)).check_edges["default", "j"]

    assert good.passing > ORDINARY.passing
    assert bad == CheckEvidence(0.0, 0.0)


def test_several_checks_of_an_answer_are_one() -> None:
    rows = answers("f", (0, 1, 2), (True, False, False))
    once = learn_statistics(StoredHistory(rows, checks=checks("f", "a"))).check_edges
    often = learn_statistics(StoredHistory(rows, checks=checks("f", "a", times=5))).check_edges
    assert once == often != {}


def test_answers_of_which_nothing_is_known_teach_nothing() -> None:
    rows = answers("f", (None, None, None))
    assert learn_statistics(StoredHistory(rows, checks=checks("f", "a"))).check_edges == {}


def judge(model: str) -> PlannedJudge:
    return PlannedJudge(model=model, tier="remote", family=model)


def test_a_plan_is_given_what_the_checks_of_its_judges_say() -> None:
    statistics = Statistics(
        check_edges={
            ("default", "x"): CheckEvidence(2.0, -1.0),
            ("other", "y"): CheckEvidence(3.0, -3.0),
        }
    )
    plan = make_plan(judge=judge("x"), jury=(judge("x"), judge("y")))

    after = statistics.snapshot_onto(plan, may_hedge=False)
    replay = statistics.snapshot_onto(plan, may_hedge=False, is_replay=True)

    assert after.judge
    assert (after.judge.pass_edge, after.judge.fail_edge) == (2.0, -1.0)
    assert [(juror.pass_edge, juror.fail_edge) for juror in after.jury] == [
        (2.0, -1.0),
        (None, None),
    ]
    assert replay.judge == plan.judge
