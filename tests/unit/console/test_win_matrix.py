"""Win matrices from rows of views."""

from typing import Any

import pytest

from fusewire.analysis.measures import rate
from fusewire.analysis.ranking import MatrixCell
from fusewire_console.figures.win_matrix import MOST_MODELS, describe, shade, win_matrices


def both(model: str, opponent: str, wins: int, n: int, judge: str = "j") -> list[dict[str, Any]]:
    """The rows of two models in `v_win_matrix`, without ties."""
    return [
        {"judge_model": judge, "model": a, "opponent": b, "n": n, "wins": w, "ties": 0}
        for a, b, w in ((model, opponent, wins), (opponent, model, n - wins))
    ]


def test_the_model_that_wins_most_is_first_and_each_direction_has_its_rate() -> None:
    rows = [*both("a", "b", 20, 100), *both("a", "c", 40, 100), *both("b", "c", 90, 100)]
    (matrix,) = win_matrices(rows, [], [])
    assert (matrix.judge, matrix.models, matrix.n_left_out) == ("j", ("b", "c", "a"), 0)
    assert matrix.cells["a", "b"].rate.value == 0.2
    assert matrix.cells["b", "a"].rate.value == 0.8
    assert ("a", "a") not in matrix.cells
    assert matrix.cycles == ()


def test_each_judge_has_its_matrix_and_its_flags() -> None:
    rows = [*both("a", "b", 20, 40), *both("a", "b", 30, 40, "k")]
    biases = [
        {"judge_model": "k", "own_family_shown": 3},
        {"judge_model": "j", "own_family_shown": 0},
    ]
    first, second = win_matrices(rows, biases, [{"model": "j"}])
    assert (first.judge, first.is_self_graded, first.has_own_family) == ("j", True, False)
    assert (second.judge, second.is_self_graded, second.has_own_family) == ("k", False, True)


def test_a_ring_is_named() -> None:
    rows = [*both("a", "b", 80, 100), *both("b", "c", 80, 100), *both("c", "a", 80, 100)]
    (matrix,) = win_matrices(rows, [], [])
    assert matrix.cycles == (("a", "b", "c"),)


def test_of_many_models_those_with_most_comparisons_are_shown() -> None:
    rows = []
    for number in range(MOST_MODELS + 3):
        rows += both("base", f"m{number:02}", 5, 10 + number)
    (matrix,) = win_matrices(rows, [], [])
    assert (len(matrix.models), matrix.n_left_out) == (MOST_MODELS, 4)
    assert "base" in matrix.models
    assert "m00" not in matrix.models


@pytest.mark.parametrize(
    ("wins", "n", "expected_shade", "words"),
    [
        (29, 29, "", "too few comparisons"),
        (15, 30, "", "no difference seen"),
        (56, 100, "won-1", "no difference seen"),
        (70, 100, "won-2", "clearly better"),
        (20, 100, "lost-3", "clearly worse"),
        (100, 100, "won-3", "clearly better"),
    ],
)
def test_a_cell_has_a_shade_and_the_words_for_it(
    wins: int, n: int, expected_shade: str, words: str
) -> None:
    cell = MatrixCell("a", "b", 0, rate(wins, n))
    assert (shade(cell), describe(cell)) == (expected_shade, words)
