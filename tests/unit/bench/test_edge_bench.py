"""The folder with random weights that the bench measures: it loads as any other does."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fusewire_worker_edge.engine.child import load_checked
from fusewire_worker_edge.engine.options import EngineOptions

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def random_weights() -> Any:
    """The bench is a package beside its folder's other scripts; nothing else imports it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield import_module("edge.random_weights")


def test_a_folder_with_random_weights_loads_and_says_what_it_is(
    random_weights: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "random-tiny"
    random_weights.make_random_folder("random-tiny", folder, tiny_folder)

    generator = load_checked(folder, EngineOptions(threads=1, slots=1))
    assert generator.manifest.name == "random-tiny"
    assert "random" in generator.manifest.source.name
    # Neither flat nor overflowing: a product keeps the variance of what it is multiplied with.
    rows = generator.logits([5, 6, 7, 8])
    assert 0.2 < rows.std() < 5


def test_the_seven_billion_are_mistrals(random_weights: Any) -> None:
    source = random_weights.RandomSource("random-7b")
    weights = sum(
        rows * (source.shape.hidden if "down" not in name else 14_336)
        for name, rows in source.matrix_rows.items()
    )
    assert weights == pytest.approx(7.25e9, rel=0.01)
