"""Bootstrap intervals of Bradley-Terry strengths. Needs evalica: see `ranking.strengths`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import evalica
import numpy as np
from numpy.typing import NDArray

from fusewire.analysis.measures import Interval

CORRECTION = 0.5
"""Wins that each side of every compared pair gets on top."""
ITERATIONS = 10_000
WIN, LOSS, TIE = 0, 1, 2

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SampleUnit:
    """What is drawn together: results of one pair each, and how often they came together.

    `results` has pairs of two models, and WIN, LOSS or TIE of the first of them.
    """

    results: tuple[tuple[tuple[str, str], int], ...]
    count: int


class StrengthSolver:
    """Solves for the strengths of the same pairs with other and other counts."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        # Three rows for each pair: wins, losses and ties, whose weights are the counts.
        self._first = np.repeat([first for first, _ in pairs], 3).tolist()
        self._second = np.repeat([second for _, second in pairs], 3).tolist()
        self._winners = [evalica.Winner.X, evalica.Winner.Y, evalica.Winner.Draw] * len(pairs)
        self._correction = np.tile([CORRECTION, CORRECTION, 0.0], len(pairs))
        _, _, self._index = evalica.indexing(self._first, self._second)
        self.models: list[str] = list(self._index)

    def solve(self, counts: Floats) -> Floats:
        """Strengths in the order of `models`, with a geometric mean of 1.

        Args:
            counts: wins, losses and ties of each pair, of shape (3 · pairs).
        """
        scores = evalica.bradley_terry(
            self._first,
            self._second,
            self._winners,
            index=self._index,
            weights=counts + self._correction,
            limit=ITERATIONS,
        ).scores
        values = scores.reindex(self._index).to_numpy(dtype=float)
        return np.asarray(values / np.exp(np.log(values).mean()))


def strength_intervals(
    units: Sequence[SampleUnit], *, seed: int, resamples: int
) -> dict[str, Interval]:
    """The strength of each model with its interval.

    Args:
        units: at least one, all of models that comparisons tie together.
        seed: of the bootstrap.
        resamples: draws of the bootstrap.
    """
    results = chain.from_iterable(unit.results for unit in units)
    pairs = sorted({pair for pair, _ in results})
    solver = StrengthSolver(pairs)
    design = _design(units, {pair: number for number, pair in enumerate(pairs)})
    counts = np.array([unit.count for unit in units], dtype=float)
    n = int(counts.sum())
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    strengths = np.array([solver.solve(draw @ design) for draw in draws])
    lows, highs = np.percentile(strengths, [2.5, 97.5], axis=0)
    values = solver.solve(counts @ design)
    return {
        # A lopsided bootstrap can leave the estimate itself outside.
        model: Interval(float(value), float(min(low, value)), float(max(high, value)))
        for model, value, low, high in zip(solver.models, values, lows, highs, strict=True)
    }


def _design(units: Sequence[SampleUnit], numbers: Mapping[tuple[str, str], int]) -> Floats:
    """Results per unit, of shape (units, 3 · pairs)."""
    design = np.zeros((len(units), 3 * len(numbers)))
    for row, unit in zip(design, units, strict=True):
        for pair, result in unit.results:
            row[3 * numbers[pair] + result] += 1
    return design
