"""The tiny model, loaded."""

from pathlib import Path

import pytest

from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.folder import verify


@pytest.fixture(scope="session")
def tiny_generator(tiny_folder: Path) -> Generator:
    """That model, loaded into this process."""
    return Generator(tiny_folder, verify(tiny_folder), EngineOptions(threads=1))
