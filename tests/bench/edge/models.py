"""The models to measure: their files and their folders, made on first use, in build/."""

import os
from pathlib import Path

from edge.random_weights import SHAPES, make_random_folder
from fusewire_worker_edge.catalogue import CATALOGUE
from fusewire_worker_edge.importers.convert import import_model
from fusewire_worker_edge.pull import weights

BUILD = Path(__file__).parents[3] / "build"
SMALLEST = "smollm2-135m"
MODELS = (SMALLEST, "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b")
ROOM = BUILD / "models"


def gguf(name: str) -> Path:
    """The GGUF file of a model of the catalogue, downloaded once."""
    return weights(CATALOGUE[name], BUILD / "gguf" / name, lambda *_: None)


def model_folder(name: str) -> Path:
    """The folder of a model of the catalogue, or of one with random weights."""
    folder = ROOM / name
    if not folder.exists():
        ROOM.mkdir(parents=True, exist_ok=True)
        if name in SHAPES:
            make_random_folder(name, folder, model_folder(SMALLEST))
        else:
            import_model(gguf(name), folder)
    return folder


def thread_count() -> int:
    """The threads of both sides: all processors that this process may use."""
    return len(os.sched_getaffinity(0))
