"""The verdict of a comparison, on prompts with planted differences."""

import random
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import fmean
from typing import Any, Literal

import pytest

from fusewire.analysis.compare import Judgement, Pair, Side
from fusewire.analysis.compare.intervals import (
    Z95,
    log_ratio,
    mean_difference,
    points,
    quantile,
    tail_mean,
)
from fusewire.analysis.compare.verdict import Header, judge_header
from fusewire.analysis.measures import LEAST_N, paired_difference

T0 = datetime(2026, 11, 1, tzinfo=UTC)
ALIKE = Side("o", True, True, True, False, 0.001, 100.0)


def make_pair(
    number: int, a: Side, b: Side, choice: Literal["a", "b", "tie"] | None = None
) -> Pair:
    judgement = Judgement(a.outcome_id, choice, False, f"sentence {number}", "j", 0.5, ("j",))
    return Pair(f"p{number}", T0 + timedelta(hours=number), "open", a, b, judgement)


def planted(
    seed: int,
    n: int,
    *,
    accuracy: tuple[float, float] = (0.7, 0.7),
    price: float = 1.0,
    slowness: float = 1.0,
    source: Literal["labels", "judge"] = "labels",
) -> list[Pair]:
    """Pairs whose prompts are hard or easy for both, with heavy-tailed costs and latencies."""
    rng = random.Random(seed)
    pairs = []
    for number in range(n):
        ease = rng.uniform(-0.25, 0.25)
        cost, latency = rng.lognormvariate(-7, 1), rng.lognormvariate(6, 0.5)
        rights = [rng.random() < p + ease for p in accuracy]
        choice: Literal["a", "b", "tie"] = "a" if rights[0] else "b"
        a, b = (
            replace(
                ALIKE,
                is_right=right if source == "labels" else None,
                cost_usd=cost * factor * rng.lognormvariate(0, 1.2),
                latency_ms=latency * slow * rng.lognormvariate(0, 0.8),
            )
            for right, factor, slow in zip(rights, (1.0, price), (1.0, slowness), strict=True)
        )
        verdict = "tie" if rights[0] == rights[1] else choice
        pairs.append(make_pair(number, a, b, verdict if source == "judge" else None))
    return pairs


def decide(pairs: list[Pair], margin: float = 3.0) -> Header:
    return judge_header(pairs, margin)


def fixed(gains: int, losses: int, ties: int, **b: Any) -> list[Pair]:
    """Pairs that only B, only A, and both are right on."""
    sides = [(False, True)] * gains + [(True, False)] * losses + [(True, True)] * ties
    return [
        make_pair(number, replace(ALIKE, is_right=a), replace(ALIKE, is_right=right, **b))
        for number, (a, right) in enumerate(sides)
    ]


# -- what is alike, and what is not -----------------------------------------------------------


@pytest.mark.parametrize("margin", [3.0, 50.0])
def test_two_that_are_alike_are_too_close(margin: float) -> None:
    """With the wide margin all depends on the reasons: three looks must not make false ones."""
    decisions = Counter(decide(planted(seed, 400), margin).decision for seed in range(100))

    assert decisions["TOO CLOSE"] >= 95


@pytest.mark.parametrize("source", ["labels", "judge"])
def test_a_better_one_is_shipped(source: Literal["labels", "judge"]) -> None:
    for seed in range(5):
        header = decide(planted(seed, 2000, accuracy=(0.62, 0.70), source=source))

        assert (header.decision, header.reasons_b[0]) == ("SHIP B", "better")
        assert header.quality_source == source
        assert header.n_more is None


def test_a_cheaper_one_is_shipped_if_it_is_no_worse_than_the_margin() -> None:
    decisions = Counter(decide(planted(seed, 5000, price=0.7)).decision for seed in range(5))

    assert decisions["SHIP B"] >= 4
    assert not decisions["SHIP A"]


def test_a_cheaper_one_that_is_worse_is_not_shipped() -> None:
    header = decide(planted(1, 2000, accuracy=(0.70, 0.62), price=0.5))

    assert header.decision == "SHIP A"
    assert header.reasons_a == ("better",)
    assert "cheaper" in header.reasons_b


def test_a_faster_one_is_shipped() -> None:
    assert decide(planted(3, 5000, slowness=0.7)).decision == "SHIP B"


def test_turned_round_the_verdict_is_of_the_other() -> None:
    pairs = planted(2, 2000, accuracy=(0.62, 0.70))
    turned = [replace(pair, a=pair.b, b=pair.a) for pair in pairs]

    header, opposite = decide(pairs), decide(turned)

    assert (header.decision, opposite.decision) == ("SHIP B", "SHIP A")
    assert header.quality.interval is not None
    assert opposite.quality.interval is not None
    assert header.quality.interval.low == pytest.approx(-opposite.quality.interval.high)


def test_one_cheaper_and_the_other_faster_is_a_choice_of_theirs() -> None:
    pairs = fixed(10, 10, 400, cost_usd=0.0005, latency_ms=200.0)

    header = decide(pairs)

    assert header.decision == "TOO CLOSE"
    assert header.n_more is None
    assert header.because == "A is faster, B is cheaper: a choice of what matters more"


def test_equal_within_the_margin_needs_no_more_prompts() -> None:
    header = decide(fixed(10, 10, 4000))

    assert (header.decision, header.n_more) == ("TOO CLOSE", None)
    assert header.because.startswith("the two are equal within 3 points")


# -- the borders of the rule --------------------------------------------------------------------


def test_a_lower_bound_at_the_margin_is_not_above_it() -> None:
    pairs = fixed(40, 60, 900, cost_usd=0.0005)
    interval = decide(pairs).quality.interval
    assert interval is not None

    assert decide(pairs, margin=-interval.low).decision == "TOO CLOSE"
    assert decide(pairs, margin=-interval.low + 1e-9).decision == "SHIP B"


def test_a_difference_that_is_sure_at_95_but_not_at_99_percent_is_no_reason() -> None:
    header = decide(fixed(60, 37, 300), margin=50)

    assert header.quality.interval is not None
    assert header.quality.interval.low > 0
    assert header.reasons_b == ()
    assert header.decision == "TOO CLOSE"


def test_few_prompts_tell_nothing() -> None:
    header = decide(fixed(LEAST_N - 1, 0, 0))

    assert header.decision == "TOO CLOSE"
    assert header.quality.interval is None
    assert header.because == "only 29 prompts tell which is better; 30 are the least"
    assert decide(fixed(LEAST_N, 0, 0)).decision == "SHIP B"


def test_nothing_tells_without_labels_and_verdicts() -> None:
    pairs = [
        replace(pair, a=replace(pair.a, is_right=None), b=replace(pair.b, is_right=None))
        for pair in fixed(0, 0, 400, cost_usd=0.0001)
    ]

    header = decide(pairs)

    assert (header.decision, header.quality_source, header.n_more) == ("TOO CLOSE", None, None)
    assert header.reasons_b == ("cheaper",)
    assert decide([]).decision == "TOO CLOSE"


def test_an_unknown_price_is_no_price() -> None:
    header = decide(fixed(0, 0, 400, cost_usd=None))

    assert (header.cost.n, header.cost.interval) == (0, None)
    assert header.reasons_b == ()


def test_a_price_of_zero_is_a_price() -> None:
    header = decide(fixed(5, 5, 2000, cost_usd=0.0))

    assert header.reasons_b == ("cheaper",)
    assert header.cost.b == 0
    assert header.decision == "SHIP B"


def test_labels_come_before_verdicts_if_enough_prompts_have_one() -> None:
    with_both = [
        replace(pair, judgement=replace(pair.judgement, choice="a")) for pair in fixed(40, 0, 0)
    ]
    header = decide(with_both)
    assert (header.quality_source, header.decision) == ("labels", "SHIP B")

    verdicts_only = [
        replace(pair, a=replace(pair.a, is_right=None)) for pair in with_both[LEAST_N - 1 :]
    ]
    more = [replace(pair, b=replace(pair.b, is_right=None)) for pair in with_both]
    assert decide(verdicts_only + more).quality_source == "judge"
    assert decide(with_both[: LEAST_N - 1] + more).decision == "SHIP A"


# -- how many more ------------------------------------------------------------------------------


def test_the_prompts_that_are_needed_decide_it_most_times() -> None:
    """As many more as the header names settle a difference of the margin four times in five."""
    header = decide(fixed(40, 40, 320))
    # p = 81/402, z of 99 % and of 80 %: (2.5758 √p + 0.8416 √(p - 0.0009))² / 0.0009, less 400.
    assert header.n_more == 2212
    needs = decide(planted(5, 400, accuracy=(0.685, 0.715)))
    assert needs.n_more is not None

    seeds = range(20, 32)
    n = 400 + needs.n_more
    sure = sum(
        "better" in decide(planted(seed, n, accuracy=(0.685, 0.715))).reasons_b for seed in seeds
    )

    assert sure >= 0.6 * len(seeds)


def test_to_show_that_a_cheaper_one_is_not_worse_takes_a_lead_into_account() -> None:
    # (1.96 + 0.8416)² · p / 0.0009 with p = 81/402, less 400.
    assert decide(fixed(40, 40, 320, cost_usd=0.0005)).n_more == 1358
    behind = decide(fixed(38, 42, 320, cost_usd=0.0005)).n_more
    assert behind is not None
    assert behind > 1358
    # Behind by more than the margin: more prompts would show that all the more clearly.
    assert decide(fixed(33, 47, 320, cost_usd=0.0005)).n_more is None


# -- intervals ------------------------------------------------------------------------------------


def test_points_are_the_paired_difference_at_other_levels() -> None:
    choices = [1] * 40 + [-1] * 25 + [0] * 200
    expected = paired_difference([c > 0 for c in choices], [c < 0 for c in choices])

    interval = points(choices)

    assert (interval.value, interval.low, interval.high) == pytest.approx(
        (100 * expected.value, 100 * expected.low, 100 * expected.high)
    )
    assert points(choices, 2.5758).low < interval.low


def test_a_mean_difference() -> None:
    # By hand: mean 2, standard deviation 1, so 2 ± 1.96 / √3.
    interval = mean_difference([1.0, 2.0, 3.0])
    assert (interval.value, interval.low) == pytest.approx((2.0, 2.0 - Z95 / 3**0.5))


def test_a_quantile_lies_between_order_statistics() -> None:
    values = [float(number) for number in range(1, 101)]
    # Conover 1999: the median of 100 lies between the 40th and the 61st value.
    median = quantile(values, 0.5)
    assert (median.value, median.low, median.high) == (50, 40, 61)
    assert quantile(values, 0.95).value == 95
    assert quantile([7.0], 0.95).high == 7
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_a_quantile_interval_holds_the_median_95_times_in_100() -> None:
    rng = random.Random(4)
    hits = 0
    for _ in range(400):
        interval = quantile([rng.lognormvariate(0, 2) for _ in range(100)], 0.5)
        hits += interval.low <= 1 <= interval.high
    assert 0.93 <= hits / 400 <= 0.99


def test_a_tail_mean() -> None:
    values = [0.0] * 90 + [0.5] * 7 + [1.0] * 3
    mean, moves = tail_mean(values, 0.05)
    # The worst five: three of 1 and two of 0.5.
    assert mean == pytest.approx(0.8)
    assert fmean(moves) == pytest.approx(0)


def test_a_ratio_of_sums() -> None:
    ratio = log_ratio([2.0, 4.0], [1.0, 1.0])
    assert ratio is not None
    assert ratio[0] == pytest.approx(1.0986, abs=1e-4)
    assert ratio[1] == pytest.approx([2 / 3 - 1, 4 / 3 - 1])
    assert log_ratio([1.0], [0.0]) is None


def test_a_higher_level_is_wider() -> None:
    pairs = planted(9, 300)
    for look in (decide(pairs).quality, decide(pairs).cost, decide(pairs).latency):
        assert look.interval is not None
        assert look.strict is not None
        bounds = [look.strict.low, look.interval.low, look.interval.value]
        assert all(low <= high for low, high in pairwise(bounds))
        assert look.strict.low < look.interval.low
