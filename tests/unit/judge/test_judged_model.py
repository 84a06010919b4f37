"""What is learned of members from verdicts, and what it is worth in a ballot."""

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from fusewire.contracts import PlannedJudge, Verdict
from fusewire.testing.factories import OPEN_ANSWERS as OPEN
from fusewire.testing.factories import make_member, make_plan
from fusewire_judge.judging.tally import Tally
from fusewire_judge.learning.judged_model import (
    EDGE,
    LEAST_EDGE,
    MAX_ODDS,
    MIN_ODDS,
    MOST_EDGE,
    Preference,
    VerdictResult,
    fit_log_odds,
    learn_verdict_edge,
    odds_weights,
)
from fusewire_judge.learning.statistics import (
    Statistics,
    StoredAnswer,
    StoredHistory,
    StoredVerdict,
    learn_statistics,
)
from fusewire_judge.learning.weights import MIN_OBSERVATIONS, SuccessCount
from fusewire_judge.model import Draft

if TYPE_CHECKING:
    from conftest import ScriptedFusion

Begin = Callable[..., "ScriptedFusion"]


def draw(accuracies: dict[str, float], count: int, seed: str) -> Counter[Preference]:
    """What a judge names that prefers the right one of two four times in five."""
    rng = random.Random(seed)
    shown = tuple(sorted(accuracies))
    preferences: Counter[Preference] = Counter()
    for _ in range(count):
        merits = [4.0 if rng.random() < accuracies[member] else 1.0 for member in shown]
        preferences[Preference(shown, rng.choices(shown, merits)[0])] += 1
    return preferences


# -- learning ------------------------------------------------------------------------------------


def test_verdicts_show_how_far_members_are_apart() -> None:
    accuracies = {"a": 0.45, "b": 0.55, "c": 0.8}

    log_odds = fit_log_odds(draw(accuracies, 4000, "apart"), {})

    true_log_odds = {m: math.log(p / (1 - p)) for m, p in accuracies.items()}
    for member in "ab":
        assert log_odds["c"] - log_odds[member] == pytest.approx(
            true_log_odds["c"] - true_log_odds[member], abs=0.5
        )


def test_labels_show_how_often_each_is_right() -> None:
    log_odds = fit_log_odds({}, {"a": SuccessCount(300, 700), "b": SuccessCount(800, 200)})

    assert log_odds["a"] == pytest.approx(math.log(3 / 7), abs=0.02)
    assert log_odds["b"] == pytest.approx(math.log(4), abs=0.02)


def test_weights_are_odds_with_a_mean_of_one() -> None:
    weights = odds_weights({}, {"a": SuccessCount(500, 500), "b": SuccessCount(600, 400)})

    assert weights["b"] / weights["a"] == pytest.approx(1.5, abs=0.02)
    assert sum(weights.values()) / 2 == pytest.approx(1.0)


def test_weights_are_clipped() -> None:
    strong = {f"m{i}": SuccessCount(1, 999) for i in range(9)} | {"a": SuccessCount(999, 1)}

    weights = odds_weights({}, strong)

    assert weights["a"] == MAX_ODDS
    assert weights["m0"] == MIN_ODDS


@pytest.mark.parametrize("count", [2 * MIN_OBSERVATIONS - 1, 2 * MIN_OBSERVATIONS])
def test_below_twenty_opinions_a_weight_is_one(count: int) -> None:
    opinions = {Preference(("a", "b"), "a"): count / 2}

    weights = odds_weights(opinions, {})

    assert (weights["a"] > 1 > weights["b"]) is (count == 2 * MIN_OBSERVATIONS)
    assert count == 2 * MIN_OBSERVATIONS or set(weights.values()) == {1.0}


def verdicts(
    winner: str, fusions: range, kind: str = "open", judge: str = "j"
) -> list[StoredVerdict]:
    """Of two orders each."""
    return [
        StoredVerdict("p", f"f{number}", kind, judge, shown, winner)
        for number in fusions
        for shown in (("a", "b"), ("b", "a"))
    ]


def labels(right: str, fusions: range) -> list[StoredAnswer]:
    return [
        StoredAnswer("p", f"f{number}", "open", member, member == right, None, None)
        for number in fusions
        for member in "ab"
    ]


def test_a_label_is_believed_over_the_verdicts_beside_it() -> None:
    beside = StoredHistory(labels("b", range(30)), verdicts("a", range(30)))
    alone = StoredHistory(labels("b", range(30)))

    weights = learn_statistics(beside).weights["p", "open"]

    assert weights["b"] > 1 > weights["a"]
    assert weights == learn_statistics(alone).weights["p", "open"]


def test_verdicts_without_labels_are_learned_from() -> None:
    data = StoredHistory(labels("b", range(10)), verdicts("a", range(10, 60)))

    weights = learn_statistics(data).weights["p", "open"]

    assert weights["a"] > 1 > weights["b"]


def test_verdicts_on_closed_answers_teach_nothing() -> None:
    """A vote that was tied is no sample of what members answer."""
    data = StoredHistory(verdicts=verdicts("a", range(60), kind="number"))

    assert learn_statistics(data).weights == {}


# -- how much a judge's verdicts say ---------------------------------------------------------------


def of_pairs(right: float, wrong: float) -> dict[VerdictResult, float]:
    """On pairs of a right and a wrong answer."""
    return {VerdictResult(1, 1, True): right, VerdictResult(1, 1, False): wrong}


EDGES = [
    # what, verdicts, edge
    ("nothing known", {}, EDGE),
    ("an ordinary judge", of_pairs(800, 200), EDGE),
    ("20 verdicts count as much as the ordinary judge", of_pairs(10, 10), math.log(26 / 14)),
    ("a better one", of_pairs(920, 80), math.log(936 / 84)),
    ("one that is never wrong", of_pairs(10_000, 0), MOST_EDGE),
    ("one that guesses", of_pairs(5_000, 5_000), LEAST_EDGE),
    ("one that is mostly wrong", of_pairs(10, 990), LEAST_EDGE),
    ("all right", {VerdictResult(2, 0, True): 9}, EDGE),
    ("all wrong", {VerdictResult(0, 2, False): 9}, EDGE),
    (
        "one right of three, which guessing finds in a third of cases",
        {VerdictResult(1, 2, True): 60_000, VerdictResult(1, 2, False): 40_000},
        math.log(3),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("seen", "edge"), [r[1:] for r in EDGES], ids=[r[0] for r in EDGES])
def test_labels_show_how_much_a_verdict_says(seen: dict[VerdictResult, float], edge: float) -> None:
    assert learn_verdict_edge(seen) == pytest.approx(edge, abs=1e-3)


def test_each_judge_has_an_edge_of_its_own() -> None:
    fusions = range(50)
    good, bad = verdicts("a", fusions, judge="good"), verdicts("b", fusions, judge="bad")

    edges = learn_statistics(StoredHistory(labels("a", fusions), [*good, *bad])).verdict_edges

    # Of two orders each, which are one opinion.
    assert edges["p", "good"] == learn_verdict_edge(of_pairs(50, 0))
    assert edges["p", "bad"] == learn_verdict_edge(of_pairs(0, 50))


def test_verdicts_teach_no_edge_where_an_answer_has_no_label() -> None:
    known_answers = [label for label in labels("a", range(50)) if label.member == "a"]

    data = StoredHistory(known_answers, verdicts("a", range(50)))

    assert learn_statistics(data).verdict_edges == {}


def test_a_good_judge_says_more_about_members() -> None:
    fusions = range(100, 160)
    distances = []
    for winner in "ab":
        labelled = verdicts(winner, range(100))
        data = StoredHistory(labels("a", range(100)), [*labelled, *verdicts("a", fusions)])
        alone = StoredHistory(labels("a", range(100)))
        with_verdicts, without = (
            learn_statistics(history).weights["p", "open"] for history in (data, alone)
        )
        distances.append(with_verdicts["a"] / without["a"])

    assert distances[0] > distances[1]


def judge_of(model: str) -> PlannedJudge:
    return PlannedJudge(model=model, tier="remote", family=model)


def test_a_plan_is_given_what_the_verdicts_of_its_judges_say() -> None:
    statistics = Statistics(verdict_edges={("default", "x"): 2.0, ("other", "y"): 0.5})
    plan = make_plan(judge=judge_of("x"), jury=(judge_of("x"), judge_of("y")))

    after = statistics.snapshot_onto(plan, may_hedge=False)
    replay = statistics.snapshot_onto(plan, may_hedge=False, is_replay=True)

    assert after.judge
    assert after.judge.verdict_edge == 2.0
    assert [juror.verdict_edge for juror in after.jury] == [2.0, None]
    assert replay.judge == plan.judge


# -- the ballot ----------------------------------------------------------------------------------


def verdict(winner: str, judge: str = "j", **fields: object) -> Verdict:
    values = {"call": "c", "kind": "listwise", "judge_model": judge, "shown": ("a", "b", "c")}
    return Verdict.model_validate({**values, "winner": winner, **fields})


def tally(*winners: tuple[str, str], edges: dict[str, float] | None = None) -> Tally:
    """Of verdicts: the winner, and the judge that named it."""
    edge_of = dict.fromkeys("jk", EDGE) | (edges or {})
    wins = {m: sum(edge_of[judge] for winner, judge in winners if winner == m) for m in "abc"}
    weight = sum(edge_of[judge] for _, judge in winners)
    named = tuple(verdict(winner, judge) for winner, judge in winners)
    judges = {judge: edge_of[judge] for _, judge in winners}
    return Tally(wins, dict.fromkeys("abc", weight), judges, named)


BOTH = math.exp(EDGE)
"""The odds for which a verdict in both orders makes up."""
BALLOTS = [
    # what, verdicts, odds of a, b and c, leaders
    ("no odds", (("a", "j"), ("a", "j")), (1, 1, 1), ["a"]),
    ("no odds, a split", (("a", "j"), ("b", "j")), (1, 1, 1), ["a", "b"]),
    ("odds decide a split", (("a", "j"), ("b", "j")), (1, 1.1, 1), ["b"]),
    ("a little less than the verdict", (("a", "j"), ("a", "j")), (1, 1, BOTH * 0.99), ["a"]),
    ("a little more than the verdict", (("a", "j"), ("a", "j")), (1, 1, BOTH * 1.01), ["c"]),
    ("one order is half of it", (("a", "j"), ("b", "j")), (1, 1, BOTH**0.5 * 1.01), ["c"]),
    ("two judges are twice of it", (("a", "j"), ("a", "k")), (1, 1, BOTH * 1.01), ["a"]),
]


@pytest.mark.parametrize(
    ("winners", "odds", "leaders"), [r[1:] for r in BALLOTS], ids=[r[0] for r in BALLOTS]
)
def test_a_verdict_is_evidence(
    winners: tuple[tuple[str, str], ...], odds: tuple[float, ...], leaders: list[str]
) -> None:
    assert tally(*winners).leaders(dict(zip("abc", odds, strict=True))) == leaders


def test_the_better_of_two_judges_that_disagree_is_followed() -> None:
    assert tally(("a", "j"), ("b", "k"), edges={"k": EDGE * 1.1}).leaders() == ["b"]


def test_a_judge_that_says_little_gives_way_to_the_odds() -> None:
    odds = {"a": 1.0, "b": 1.2, "c": 1.0}

    assert tally(("a", "j")).leaders(odds) == ["a"]
    assert tally(("a", "j"), edges={"j": LEAST_EDGE}).leaders(odds) == ["b"]


def test_a_judge_by_margin_has_weighed_the_odds_already() -> None:
    by_margin = verdict("a", logprobs=(-1.0, -2.0, -3.0))

    found = Tally({"a": 1, "b": 0, "c": 0}, dict.fromkeys("abc", 1), {"j": 1.0}, (by_margin,))

    assert found.leaders({"a": 0.25, "b": 0.25, "c": 4.0}) == ["a"]


def test_without_a_verdict_nobody_leads() -> None:
    assert Tally().leaders({"a": 4.0}) == []


def judged(play: "ScriptedFusion", winner: str) -> Draft:
    """Open answers of three members, of which the judge names one in both orders."""
    play.says(**OPEN).asks()
    return play.judge_says(winner).ends()


def test_a_member_that_is_right_far_more_often_is_chosen_against_the_verdict(begin: Begin) -> None:
    members = [make_member("a"), make_member("b", learned={"open": 0.4}), make_member("c")]
    strong = [make_member("a", learned={"open": 3.0}), *members[1:]]

    close, far = (judged(begin(members=pool), "b") for pool in (members, strong))

    assert (close.winner, far.winner, far.status) == ("b", "a", "selected")
    assert far.reason == "right so often that no verdict outweighs it"


def test_what_a_judge_s_verdicts_have_shown_to_say_is_weighed_against_the_odds(
    begin: Begin,
) -> None:
    members = [make_member("a", learned={"open": 2.0}), make_member("b"), make_member("c")]
    judge = PlannedJudge(model="m-judge", tier="remote", family="judge", verdict_edge=0.5)
    ordinary, weak = begin(members=members), begin(members=members, judge=judge)

    assert [judged(play, "b").winner for play in (ordinary, weak)] == ["b", "a"]


def test_configured_weights_are_no_odds(begin: Begin) -> None:
    members = [make_member("a", 50.0), make_member("b"), make_member("c")]

    assert judged(begin(members=members), "b").winner == "b"


def test_a_tie_of_closed_answers_is_for_the_judge_alone(begin: Begin) -> None:
    """Who is right more often on open prompts need not be on these."""
    learned = {"number": 1.0, "open": 4.0}
    members = [
        make_member("a", learned=learned),
        make_member("b", learned={"number": 1.0, "open": 0.25}),
    ]
    play = begin(members=members).says(a="4", b="5")
    play.asks()

    assert play.judge_says("b").ends().winner == "b"
