"""Planted strengths come back from counts of comparisons, and cycles are seen."""

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from fusewire.analysis.ranking import (
    PairCount,
    PairGroup,
    PairResult,
    Strength,
    count_pairs,
    cycles,
    matrix,
    pair_counts,
    strengths,
)

PLANTED = {"a": 2.0, "b": 1.25, "c": 0.8, "d": 0.5}
"""With a geometric mean of 1."""
SEEDS = int(os.environ.get("PLANTED_SEEDS", "30"))


def play(planted: Mapping[str, float], n: int, seed: int) -> list[PairCount]:
    """What `n` comparisons of each two models come to."""
    generator = np.random.default_rng(seed)
    models = sorted(planted)
    pairs = []
    for number, model in enumerate(models):
        for opponent in models[number + 1 :]:
            chance = planted[model] / (planted[model] + planted[opponent])
            wins = int(generator.binomial(n, chance))
            pairs.append(PairCount(model, opponent, wins, n - wins, 0))
    return pairs


def grouped(pairs: Sequence[PairCount]) -> list[PairGroup]:
    """Outcomes with one comparison each."""
    groups = []
    for pair in pairs:
        groups.append(PairGroup((PairResult(pair.model, pair.opponent),), pair.wins))
        groups.append(PairGroup((PairResult(pair.opponent, pair.model),), pair.losses))
        groups.append(PairGroup((PairResult(pair.model, pair.opponent, is_tie=True),), pair.ties))
    return groups


def choose_best(planted: Mapping[str, float], n: int, seed: int) -> list[PairGroup]:
    """`n` verdicts that name the best of all answers at once."""
    models = sorted(planted)
    shares = np.array([planted[model] for model in models])
    wins = np.random.default_rng(seed).multinomial(n, shares / shares.sum())
    groups = []
    for winner, count in zip(models, wins, strict=True):
        losers = [model for model in models if model != winner]
        groups.append(PairGroup(tuple(PairResult(winner, loser) for loser in losers), int(count)))
    return groups


def by_model(ranks: tuple[Strength, ...]) -> dict[str, Strength]:
    return {rank.model: rank for rank in ranks}


def compare_two(planted: Mapping[str, float], n: int, seed: int) -> list[PairGroup]:
    return grouped(play(planted, n, seed))


@pytest.mark.slow
@pytest.mark.parametrize(("draw", "n"), [(compare_two, 60), (choose_best, 300)])
def test_planted_strengths_are_inside_their_intervals_about_95_times_in_100(
    draw: Callable[[Mapping[str, float], int, int], list[PairGroup]], n: int
) -> None:
    insides = []
    for seed in range(SEEDS):
        for rank in strengths(draw(PLANTED, n, seed), seed=seed, resamples=60):
            assert rank.interval
            insides.append(rank.interval.low <= PLANTED[rank.model] <= rank.interval.high)
    assert len(insides) == 4 * SEEDS
    # Three standard errors of a share of that many seeds.
    assert np.mean(insides) == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / SEEDS))


def test_an_interval_shrinks_with_the_root_of_n() -> None:
    few, many = (
        by_model(strengths(grouped(play(PLANTED, n, 1)), seed=1))["a"].interval for n in (100, 1600)
    )
    assert few
    assert many
    assert np.log(few.high / few.low) / np.log(many.high / many.low) == pytest.approx(4, rel=0.15)


def test_the_same_seed_gives_the_same_intervals() -> None:
    pairs = grouped(play(PLANTED, 50, 3))
    assert strengths(pairs, seed=1, resamples=50) == strengths(pairs, seed=1, resamples=50)
    assert strengths(pairs, seed=1, resamples=50) != strengths(pairs, seed=2, resamples=50)


def test_the_strength_of_two_models_is_what_their_counts_say() -> None:
    """With half a win on top: 60.5 / 40.5 between them, so the root of it from the middle."""
    first, second = strengths(grouped([PairCount("a", "b", 50, 30, 20)]), seed=1)
    assert first.interval
    assert second.interval
    assert first.interval.value == pytest.approx((60.5 / 40.5) ** 0.5, rel=1e-4)
    assert first.interval.value * second.interval.value == pytest.approx(1)


def test_a_model_that_always_won_has_a_finite_strength() -> None:
    pairs = [PairCount("a", "b", 40, 0, 0), PairCount("b", "c", 20, 20, 0)]
    ranks = strengths(grouped(pairs), seed=1)
    best = by_model(ranks)["a"].interval
    assert ranks[0].model == "a"
    assert best
    assert 1 < best.low <= best.value <= best.high < 1000


def test_few_comparisons_give_no_strength() -> None:
    pairs = [PairCount("a", "b", 20, 9, 0), PairCount("a", "c", 9, 9, 0)]
    ranks = by_model(strengths(grouped(pairs), seed=1))
    assert ranks["a"].interval
    assert (ranks["b"].n, ranks["b"].interval) == (29, None)
    assert ranks["c"].interval is None


def test_models_that_nothing_ties_to_the_rest_have_no_strength() -> None:
    pairs = [*play(PLANTED, 50, 1), PairCount("x", "y", 60, 40, 0)]
    ranks = by_model(strengths(grouped(pairs), seed=1, resamples=50))
    assert {model for model, rank in ranks.items() if rank.interval is None} == {"x", "y"}
    assert ranks["x"].n == 100


def test_no_comparisons_give_no_ranking() -> None:
    assert strengths([], seed=1) == ()
    assert matrix([]) == ()
    assert cycles([]) == ()


def test_rows_of_both_directions_are_counted_once_and_added_up() -> None:
    rows = [
        {"model": "a", "opponent": "b", "n": 10, "wins": 6, "ties": 1},
        {"model": "b", "opponent": "a", "n": 10, "wins": 3, "ties": 1},
        {"model": "b", "opponent": "a", "n": 5, "wins": 5, "ties": 0},
        {"model": "a", "opponent": "b", "n": 5, "wins": 0, "ties": 0},
    ]
    assert pair_counts(rows) == (PairCount("a", "b", 6, 8, 1),)


def test_groups_are_counted_whichever_way_they_name_a_pair() -> None:
    groups = [
        PairGroup((PairResult("b", "a"), PairResult("b", "c")), 3),
        PairGroup((PairResult("a", "b"),), 2),
        PairGroup((PairResult("b", "a", is_tie=True),), 4),
    ]
    assert count_pairs(groups) == (PairCount("a", "b", 2, 3, 4), PairCount("b", "c", 3, 0, 0))


def test_a_matrix_has_both_directions_with_ties_as_half() -> None:
    there, back = matrix([PairCount("a", "b", 60, 30, 10)])
    assert (there.model, there.rate.value, there.rate.n) == ("a", 0.65, 100)
    assert (back.model, back.rate.value, back.ties) == ("b", 0.35, 10)
    assert there.rate.low == pytest.approx(1 - back.rate.high)
    few, _ = matrix([PairCount("a", "b", 20, 9, 0)])
    assert (few.rate.value, few.rate.n) == (None, 29)


RING = [
    PairCount("a", "b", 70, 30, 0),
    PairCount("b", "c", 70, 30, 0),
    PairCount("a", "c", 30, 70, 0),
]


def test_a_ring_of_clear_pairs_is_named() -> None:
    assert cycles(RING) == (("a", "b", "c"),)
    other_way = [PairCount(pair.model, pair.opponent, pair.losses, pair.wins, 0) for pair in RING]
    assert cycles(other_way) == (("a", "c", "b"),)


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(PairCount("a", "c", 45, 55, 0), id="not clear"),
        pytest.param(PairCount("a", "c", 2, 27, 0), id="too few"),
        pytest.param(PairCount("a", "c", 70, 30, 0), id="no ring"),
    ],
)
def test_a_ring_needs_three_clear_pairs(pair: PairCount) -> None:
    assert cycles([*RING[:2], pair]) == ()


def test_a_longer_ring_is_named_where_there_is_none_of_three() -> None:
    pairs = [
        PairCount("a", "b", 70, 30, 0),
        PairCount("b", "c", 70, 30, 0),
        PairCount("c", "d", 70, 30, 0),
        PairCount("a", "d", 30, 70, 0),
    ]
    (ring,) = cycles(pairs)
    assert ring in [
        ("a", "b", "c", "d"),
        ("b", "c", "d", "a"),
        ("c", "d", "a", "b"),
        ("d", "a", "b", "c"),
    ]


def test_planted_strengths_make_a_cycle_in_few_seeds() -> None:
    rings = [bool(cycles(play(PLANTED, 100, seed))) for seed in range(200)]
    assert sum(rings) <= 2
