"""Bootstrap intervals of Bradley-Terry strengths. Needs evalica: see `ranking.strengths`."""

from collections.abc import Sequence

import evalica
import numpy as np
from numpy.typing import NDArray

from fusewire.analysis.measures import Interval

CORRECTION = 0.5
"""Wins that each side of every compared pair gets on top."""
ITERATIONS = 10_000

Floats = NDArray[np.float64]


class StrengthSolver:
    """Solves for the strengths of the same pairs with other and other counts."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        # Three rows for each pair: wins, losses and ties, whose weights are the counts.
        self._first = np.repeat([first for first, _ in pairs], 3).tolist()
        self._second = np.repeat([second for _, second in pairs], 3).tolist()
        self._winners = [evalica.Winner.X, evalica.Winner.Y, evalica.Winner.Draw] * len(pairs)
        _, _, self._index = evalica.indexing(self._first, self._second)
        self.models: list[str] = list(self._index)

    def solve(self, counts: Floats) -> Floats:
        """Strengths in the order of `models`, with a geometric mean of 1.

        Args:
            counts: wins, losses and ties of each pair, of shape (pairs, 3).
        """
        scores = evalica.bradley_terry(
            self._first,
            self._second,
            self._winners,
            index=self._index,
            weights=(counts + np.array([CORRECTION, CORRECTION, 0.0])).ravel(),
            limit=ITERATIONS,
        ).scores
        values = scores.reindex(self._index).to_numpy(dtype=float)
        return np.asarray(values / np.exp(np.log(values).mean()))


def strength_intervals(
    counts_by_pair: Sequence[tuple[tuple[str, str], tuple[int, int, int]]],
    *,
    seed: int,
    resamples: int,
) -> dict[str, Interval]:
    """The strength of each model that is in a pair, with its interval.

    Args:
        counts_by_pair: two models each, and the first one's wins, losses and ties against the
            second.
        seed: of the bootstrap.
        resamples: draws of the bootstrap.
    """
    solver = StrengthSolver([pair for pair, _ in counts_by_pair])
    counts = np.array([counts for _, counts in counts_by_pair], dtype=float)
    n = int(counts.sum())
    draws = np.random.default_rng(seed).multinomial(n, counts.ravel() / n, size=resamples)
    strengths = np.array([solver.solve(draw.reshape(counts.shape)) for draw in draws])
    lows, highs = np.percentile(strengths, [2.5, 97.5], axis=0)
    values = solver.solve(counts)
    return {
        # A lopsided bootstrap can leave the estimate itself outside.
        model: Interval(float(value), float(min(low, value)), float(max(high, value)))
        for model, value, low, high in zip(solver.models, values, lows, highs, strict=True)
    }
