"""Who is better, from counts of comparisons of two: strengths, win rates and cycles. Pure.

Needs evalica, of the extra `fusewire-cli[analyst]`, for the strengths alone.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import combinations

from fusewire.analysis.measures import LEAST_N, Interval, Rate, rate

RESAMPLES = 1000


@dataclass(frozen=True)
class PairResult:
    """A comparison of two models. Of a tie, either is the winner."""

    winner: str
    loser: str
    is_tie: bool = False


@dataclass(frozen=True)
class PairGroup:
    """Outcomes whose comparisons had the same results: `count` of them."""

    results: tuple[PairResult, ...]
    count: int = 1


@dataclass(frozen=True)
class PairCount:
    """How two models fared against each other. `model` sorts before `opponent`."""

    model: str
    opponent: str
    wins: int
    losses: int
    ties: int

    @property
    def n(self) -> int:
        """Comparisons."""
        return self.wins + self.losses + self.ties


@dataclass(frozen=True)
class Strength:
    """A model's strength: its odds against a model of average strength, which has 1.

    `interval` is None where the model has fewer than LEAST_N comparisons, or none that ties it,
    over others, to most of the models.
    """

    model: str
    n: int
    interval: Interval | None


@dataclass(frozen=True)
class MatrixCell:
    """How often a model beat another one; ties count as half."""

    model: str
    opponent: str
    ties: int
    rate: Rate


def pair_counts(rows: Iterable[Mapping[str, object]]) -> tuple[PairCount, ...]:
    """The pairs of rows of `v_win_matrix`, which hold each in both directions.

    Rows of the same two models, as of several days or pools, are added up.
    """
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in rows:
        model, opponent = str(row["model"]), str(row["opponent"])
        n, wins, ties = (int(str(row[name])) for name in ("n", "wins", "ties"))
        if model < opponent:
            counts = sums[model, opponent]
            counts[0] += wins
            counts[1] += n - wins - ties
            counts[2] += ties
    return tuple(PairCount(*pair, *counts) for pair, counts in sorted(sums.items()) if sum(counts))


def matrix(pairs: Iterable[PairCount]) -> tuple[MatrixCell, ...]:
    """Win rates in both directions, with score intervals."""
    cells = []
    for pair in pairs:
        half_ties = pair.ties / 2
        there = rate(pair.wins + half_ties, pair.n)
        back = rate(pair.losses + half_ties, pair.n)
        cells.append(MatrixCell(pair.model, pair.opponent, pair.ties, there))
        cells.append(MatrixCell(pair.opponent, pair.model, pair.ties, back))
    return tuple(sorted(cells, key=lambda cell: (cell.model, cell.opponent)))


def count_pairs(groups: Iterable[PairGroup]) -> tuple[PairCount, ...]:
    """How often each model beat each other one."""
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for group in groups:
        for pair, place in map(_place, group.results):
            sums[pair][place] += group.count
    return tuple(PairCount(*pair, *counts) for pair, counts in sorted(sums.items()))


def _place(result: PairResult) -> tuple[tuple[str, str], int]:
    """The pair in its order, and 0, 1 or 2: the first one won, lost or tied."""
    pair = (min(result.winner, result.loser), max(result.winner, result.loser))
    if result.is_tie:
        return pair, 2
    return pair, 0 if pair[0] == result.winner else 1


def strengths(
    groups: Sequence[PairGroup], *, seed: int, resamples: int = RESAMPLES
) -> tuple[Strength, ...]:
    """Strengths by Bradley and Terry with bootstrap 95 % intervals, the strongest model first.

    Strengths are those under which the counts are most likely (Bradley and Terry, "Rank analysis
    of incomplete block designs", Biometrika 39, 1952), found by evalica. A tie is half a win for
    each, so ties pull strengths towards each other. Each side of every compared pair gets half a
    win on top (Haldane's and Anscombe's correction of log odds), so that a model that always won
    has a finite strength. The scale has a geometric mean of 1 over the models that are tied
    together.

    Where a verdict names the best of several answers, its winner counts as the winner over each
    other: with one winner per set that estimates the same strengths (Azari Soufiani and others,
    "Generalized method-of-moments for rank aggregation", NIPS 2013, on top-k breakings).

    Intervals are percentiles of a bootstrap of outcomes: as many outcomes as there are, are drawn
    with replacement, each with all its comparisons, by a multinomial draw over the groups of those
    that had the same. Comparisons of one outcome depend on each other: drawn apart, they would
    make intervals that are too narrow.

    Models that no chain of comparisons ties to the largest group have no common scale with it, and
    get no strength.

    Args:
        groups: outcomes, by the results of their comparisons.
        seed: of the bootstrap.
        resamples: draws of the bootstrap.

    Raises:
        ModuleNotFoundError: evalica is not installed.
    """
    pairs = count_pairs(groups)
    n_by_model: dict[str, int] = defaultdict(int)
    for pair in pairs:
        n_by_model[pair.model] += pair.n
        n_by_model[pair.opponent] += pair.n
    intervals = _intervals(groups, _largest_group(pairs), seed, resamples)
    ranks = [
        Strength(model, n, intervals.get(model) if n >= LEAST_N else None)
        for model, n in n_by_model.items()
    ]
    return tuple(sorted(ranks, key=_rank_key))


def _rank_key(rank: Strength) -> tuple[float, str]:
    # Rounded: equal models differ by as much as the solution is inexact.
    return -round(rank.interval.value, 4) if rank.interval else 0.0, rank.model


def _intervals(
    groups: Iterable[PairGroup], models: frozenset[str], seed: int, resamples: int
) -> dict[str, Interval]:
    from fusewire.analysis.bootstrap import (  # noqa: PLC0415 - evalica and pandas, of an extra
        SampleUnit,
        strength_intervals,
    )

    units = []
    for group in groups:
        results = tuple(_place(it) for it in group.results if it.winner in models)
        if results and group.count:
            units.append(SampleUnit(results, group.count))
    return strength_intervals(units, seed=seed, resamples=resamples) if units else {}


def _largest_group(pairs: Iterable[PairCount]) -> frozenset[str]:
    """The most models that chains of comparisons tie together."""
    groups: list[frozenset[str]] = []
    for pair in pairs:
        both = frozenset({pair.model, pair.opponent})
        touching = [group for group in groups if group & both]
        groups = [group for group in groups if not group & both]
        groups.append(both.union(*touching))
    return max(groups, key=lambda group: (len(group), sorted(group)), default=frozenset())


def _is_ring(models: tuple[str, str, str], beats: Mapping[str, set[str]]) -> bool:
    first, second, third = models
    return second in beats[first] and third in beats[second] and first in beats[third]


def cycles(pairs: Iterable[PairCount]) -> tuple[tuple[str, ...], ...]:
    """Models that beat each other in a ring, each clearly: no ranking of them is true.

    A pair is clear if it has LEAST_N comparisons and its interval does not hold one half. All
    rings of three are named; where there are none, one longer ring if there is any.
    """
    beats: dict[str, set[str]] = defaultdict(set)
    for cell in matrix(pairs):
        if cell.rate.value is not None and cell.rate.low > 0.5:
            beats[cell.model].add(cell.opponent)
    rings = []
    for first, second, third in combinations(sorted(beats), 3):
        both_ways = ((first, second, third), (first, third, second))
        rings += [ring for ring in both_ways if _is_ring(ring, beats)]
    if rings:
        return tuple(rings)
    try:
        TopologicalSorter(beats).prepare()
    except CycleError as exc:
        ring: list[str] = exc.args[1]
        # graphlib names each after the ones it waits for, and the first again at the end.
        return (tuple(reversed(ring[1:])),)
    return ()
