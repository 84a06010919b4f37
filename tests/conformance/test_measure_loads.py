"""Loads of a model in processes of their own, as `fusewire model bench` measures them."""

import shutil
from pathlib import Path

import pytest

from fusewire_worker_edge.folder import WEIGHTS, ModelFolderError
from fusewire_worker_edge.measure import measure_loads


def test_loads_are_measured_and_leave_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    loads = measure_loads(tiny_folder, threads=1, room=tmp_path)

    assert loads.prepacked_over_plain_load > 0
    assert loads.replica_over_weights > 0
    assert loads.plain_replica_over_weights > 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_load_is_named_with_the_reason(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "broken"))
    (folder / WEIGHTS).unlink()

    with pytest.raises(ModelFolderError, match=f"'{WEIGHTS}' is missing"):
        measure_loads(folder, threads=1, room=tmp_path)
