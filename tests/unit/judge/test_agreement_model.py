"""The model of agreement: what it says of patterns, what it finds in them, and the weights."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire_judge.learning.agreement_model import AgreementModel, Pattern, fit
from fusewire_judge.learning.weights import MIN_OBSERVATIONS, vote_weights

Groups = tuple[tuple[str, ...], ...]


def partitions(members: str) -> list[Groups]:
    """All ways in which members can agree."""
    if not members:
        return [()]
    first, rest = members[0], members[1:]
    found: list[Groups] = []
    for groups in partitions(rest):
        found.append(((first,), *groups))
        for place, group in enumerate(groups):
            found.append((*groups[:place], (first, *group), *groups[place + 1 :]))
    return found


def world(a: float, b: float, c: float, *, collision: float, spread: float = 1.1) -> AgreementModel:
    """Three members of given abilities; about 0.5 is right on six prompts of ten."""
    return AgreementModel({"a": a, "b": b, "c": c}, spread, collision)


LOPSIDED = world(-0.5, -0.3, 2.1, collision=0.4)
BALANCED = world(0.5, 0.7, 1.0, collision=0.2)


def draw(truth: AgreementModel, count: int, seed: str, *, labels: bool) -> Counter[Pattern]:
    """Patterns of members whose errors are as the model has them.

    Each wrong answer after the first is an earlier one by Ewens' formula.
    """
    rng = random.Random(seed)
    theta = (1 - truth.collision) / truth.collision
    patterns: Counter[Pattern] = Counter()
    for _ in range(count):
        difficulty = rng.gauss(0, 1)
        right, wrong = [], list[list[str]]()
        for member, ability in truth.abilities.items():
            if rng.random() < 1 / (1 + math.exp(truth.spread * difficulty - ability)):
                right.append(member)
                continue
            sizes = [float(len(group)) for group in wrong]
            place = rng.choices(range(len(wrong) + 1), [*sizes, theta])[0]
            if place == len(wrong):
                wrong.append([])
            wrong[place].append(member)
        groups = [tuple(right), *map(tuple, wrong)] if right else list(map(tuple, wrong))
        label = (0 if right else -1) if labels else None
        patterns[Pattern(tuple(groups), label)] += 1
    return patterns


@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(-3, 3), min_size=4),
    st.floats(0.3, 3),
    st.floats(0.05, 0.95),
)
def test_the_probabilities_of_all_patterns_add_up_to_one(
    abilities: dict[str, float], spread: float, collision: float
) -> None:
    model = AgreementModel(abilities, spread, collision)

    total = sum(sum(map(sum, model.scenarios(groups))) for groups in partitions("abcd"))

    # The pattern in which all are wrong is one scenario for each partition, as it should be.
    assert total == pytest.approx(1.0)


def test_who_agrees_is_more_probably_right() -> None:
    model = AgreementModel(dict.fromkeys("abc", 0.6))

    together, alone = model.chances((("a", "b"), ("c",)))

    assert together > 0.7 > alone
    assert together + alone < 1


def test_agreement_is_worth_less_where_wrong_answers_coincide() -> None:
    chances = [
        AgreementModel({"a": -0.4, "b": -0.2, "c": 1.5}, collision=collision).chances(
            (("a", "b"), ("c",))
        )
        for collision in (0.05, 0.9)
    ]

    assert chances[0][0] > chances[0][1]
    assert chances[1][0] < chances[1][1]


@pytest.mark.parametrize("spread", [0.3, 1.5])
@pytest.mark.parametrize("collision", [0.1, 0.6])
def test_labels_show_how_often_each_is_right_and_wrong_ones_coincide(
    collision: float, spread: float
) -> None:
    truth = world(-0.3, 0.2, 1.5, collision=collision, spread=spread)

    model = fit(draw(truth, 3000, "labels", labels=True))

    assert {m: model.accuracy(m) for m in "abc"} == pytest.approx(
        {m: truth.accuracy(m) for m in "abc"}, abs=0.04
    )
    assert model.collision == pytest.approx(collision, abs=0.07)
    assert model.spread == pytest.approx(spread, abs=0.4)


def test_agreement_alone_shows_who_is_best() -> None:
    model = fit(draw(world(0.0, 0.5, 1.8, collision=0.2), 500, "agreement", labels=False))

    assert sorted("abc", key=lambda m: model.abilities[m]) == ["a", "b", "c"]


def test_a_fit_that_goes_on_from_an_earlier_one_ends_in_the_same_place() -> None:
    patterns = draw(BALANCED, 400, "warm", labels=True)

    cold = fit(patterns)
    warm = fit(patterns, fit(draw(LOPSIDED, 90, "other", labels=True)))

    for member in "abc":
        assert cold.accuracy(member) == pytest.approx(warm.accuracy(member), abs=0.005)


TWO_ALIKE = Counter({Pattern((("a",), ("b", "c"))): 60, Pattern((("a",), ("b",), ("c",))): 60})
"""b and c agree with each other alone, as of three edge models: nothing shows which is better."""


@pytest.mark.parametrize(("better", "worse"), ["bc", "cb"])
def test_who_is_expected_to_be_better_is_where_agreement_cannot_tell(
    better: str, worse: str
) -> None:
    plain = fit(TWO_ALIKE)
    expecting = fit(TWO_ALIKE, configured_weights={better: 2.0, worse: 1.0, "a": 0.5})

    assert plain.abilities["b"] == pytest.approx(plain.abilities["c"])
    assert expecting.abilities[better] > expecting.abilities[worse] + 0.3


def test_only_ratios_of_what_is_expected_count() -> None:
    tenfold = dict.fromkeys("abc", 10.0)
    assert fit(TWO_ALIKE, configured_weights=tenfold).abilities == pytest.approx(
        fit(TWO_ALIKE).abilities
    )


def test_labels_soon_tell_more_than_what_is_expected() -> None:
    patterns = draw(world(1.5, 0.0, -0.5, collision=0.2), 300, "wrongly", labels=True)

    model = fit(patterns, configured_weights={"a": 0.5, "b": 1.0, "c": 2.0})

    assert sorted("abc", key=lambda m: model.abilities[m]) == ["c", "b", "a"]


# -- the weights of votes ----------------------------------------------------------------------


def test_a_configured_weight_counts_once() -> None:
    """Multiplied with what is learned, it is what would be learned with the same prior."""
    member_weights = {"a": 0.5, "b": 1.0, "c": 4.0}
    model = fit(TWO_ALIKE, configured_weights=member_weights)

    factors = vote_weights(model, TWO_ALIKE, member_weights)
    weights = vote_weights(model, TWO_ALIKE)

    ratio = sum(member_weights.values()) / 3
    assert {m: member_weights[m] * factors[m] for m in "abc"} == pytest.approx(
        {m: ratio * weights[m] for m in "abc"}
    )


def learn(patterns: Counter[Pattern]) -> dict[str, float]:
    return vote_weights(fit(patterns), patterns)


def test_below_twenty_observations_a_vote_counts_once() -> None:
    few = Counter({Pattern((("a",), ("b",)), 0): MIN_OBSERVATIONS - 1})

    assert learn(few) == {"a": 1.0, "b": 1.0}
    assert learn(few + Counter({Pattern((("a",),), 0): 1}))["b"] == 1.0
    assert learn(Counter()) == {}


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "agreement"])
def test_two_weak_members_that_agree_do_not_outvote_one_far_better(labels: bool) -> None:
    weights = learn(draw(LOPSIDED, 800, "lopsided", labels=labels))

    assert weights["a"] + weights["b"] < weights["c"]


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "agreement"])
def test_members_that_are_about_as_good_outvote_each_other(labels: bool) -> None:
    weights = learn(draw(BALANCED, 800, "balanced", labels=labels))

    for one in weights:
        assert sum(weights.values()) - weights[one] > weights[one]


@given(st.permutations("abc"))
def test_the_order_of_members_does_not_matter(order: list[str]) -> None:
    names = dict(zip("abc", order, strict=True))
    patterns = draw(BALANCED, 200, "order", labels=True)
    renamed: Counter[Pattern] = Counter()
    for pattern, count in patterns.items():
        groups = tuple(tuple(names[member] for member in group) for group in pattern.groups)
        renamed[Pattern(groups, pattern.right)] += count

    plain, other = learn(patterns), learn(renamed)

    for member, name in names.items():
        assert math.isclose(plain[member], other[name], abs_tol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_weights_have_a_mean_of_one(seed: int) -> None:
    weights = learn(draw(LOPSIDED, 300, f"{seed}", labels=True))

    assert sum(weights.values()) / 3 == pytest.approx(1.0)
    assert min(weights.values()) > 0
