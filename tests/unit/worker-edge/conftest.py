"""A llama with random weights, two layers and a byte vocabulary: the whole path in seconds, no download."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusewire.testing.tiny_gguf import write_gguf
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.folder import verify
from fusewire_worker_edge.importers.convert import import_gguf

MakeGguf = Callable[..., Path]


@pytest.fixture(scope="session")
def make_gguf(tmp_path_factory: pytest.TempPathFactory) -> MakeGguf:
    """Writes a tiny model: `types` by the end of a tensor's name, `tied` embeddings, `metadata`, `drop`, `add`."""

    def make(
        types: dict[str, str] | None = None,
        *,
        tied: bool = True,
        metadata: dict[str, Any] | None = None,
        drop: str = "",
        add: str = "",
    ) -> Path:
        path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
        chosen = {**(types or {"token_embd": "Q8_0"}), **({} if types and "" in types else {"": "Q4_1"})}
        write_gguf(path, chosen, tied=tied, metadata=metadata or {}, drop=drop, add=add)
        return path

    return make


@pytest.fixture(scope="session")
def tiny_gguf(make_gguf: MakeGguf) -> Path:
    """The types of the model that the product pulls: Q4_1, and Q8_0 for the tied embedding."""
    return make_gguf()


@pytest.fixture(scope="session")
def tiny_folder(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model as a folder. Never written to: tests that damage one copy it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    import_gguf(tiny_gguf, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_generator(tiny_folder: Path) -> Generator:
    """That model, loaded into this process."""
    return Generator(tiny_folder, verify(tiny_folder), EngineOptions(threads=1))
