"""Win matrices: how often each model beat each other one, as a judge saw it. Pure."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusewire.analysis.ranking import MatrixCell, cycles, matrix, pair_counts
from fusewire.analysis.reports.leaderboard import is_self_graded
from fusewire.analysis.reports.rows import group

MOST_MODELS = 16
"""As many as a pool can have; a matrix of more would be too large a page."""
_STEPS = (0.3, 0.15, 0.05)
"""How far from one half a win rate lies that gets the strongest, a middle, the faintest shade."""

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class WinMatrix:
    """The comparisons of a pool's models as one judge judged them."""

    judge: str
    is_self_graded: bool
    """Whether the judge graded outcomes that it decided itself."""
    has_own_family: bool
    """Whether its own family was among the answers."""
    models: tuple[str, ...]
    """The one that won the largest share of its comparisons first."""
    n_left_out: int
    """Models with fewer comparisons than all of `models`."""
    cells: Mapping[tuple[str, str], MatrixCell]
    """By model and opponent; those that never met have none."""
    cycles: tuple[tuple[str, ...], ...]
    """Models that beat each other in a ring."""


def win_matrices(pairs: Rows, biases: Rows, deciders: Rows) -> tuple[WinMatrix, ...]:
    """The matrix of each judge of one pool, by the judge's name.

    Args:
        pairs: rows of `v_win_matrix`.
        biases: rows of `v_judge_bias`.
        deciders: rows with `model`: who decided outcomes of the pool.
    """
    own_family_shown = {row["judge_model"]: row["own_family_shown"] or 0 for row in biases}
    matrices = []
    for (judge,), judge_pairs in group(pairs, "judge_model").items():
        counts = pair_counts(judge_pairs)
        cells = {(cell.model, cell.opponent): cell for cell in matrix(counts)}
        models = _models(cells)
        matrices.append(
            WinMatrix(
                judge=judge,
                is_self_graded=is_self_graded(judge, deciders),
                has_own_family=own_family_shown.get(judge, 0) > 0,
                models=models[0],
                n_left_out=models[1],
                cells=cells,
                cycles=cycles(counts),
            )
        )
    return tuple(matrices)


def _models(cells: Mapping[tuple[str, str], MatrixCell]) -> tuple[tuple[str, ...], int]:
    """The models that are shown, in their order, and how many are not."""
    wins: dict[str, float] = defaultdict(float)
    n: dict[str, int] = defaultdict(int)
    for cell in cells.values():
        wins[cell.model] += cell.rate.count
        n[cell.model] += cell.rate.n
    most_compared = sorted(n, key=lambda model: (-n[model], model))[:MOST_MODELS]
    order = sorted(most_compared, key=lambda model: (-wins[model] / n[model], model))
    return tuple(order), len(n) - len(order)


def shade(cell: MatrixCell) -> str:
    """The class of a cell's colour: `won-1` to `won-3`, `lost-1` to `lost-3`, or none.

    None where there are too few comparisons, or about as many were won as lost.
    """
    if cell.rate.value is None:
        return ""
    distance = cell.rate.value - 0.5
    strength = sum(abs(distance) >= step for step in _STEPS)
    return f"{'won' if distance > 0 else 'lost'}-{strength}" if strength else ""


def describe(cell: MatrixCell) -> str:
    """What a cell says, in words that stand for its colour."""
    if cell.rate.value is None:
        return "too few comparisons"
    if cell.rate.low > 0.5:
        return "clearly better"
    if cell.rate.high < 0.5:
        return "clearly worse"
    return "no difference seen"
