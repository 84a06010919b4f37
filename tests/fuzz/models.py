"""Fuzz what reads model files: a hostile one must be refused by name. `make fuzz`.

Coverage guides the changes (libFuzzer through atheris), from whole tiny files. An input that was
not refused as it should be is left in build/fuzz, with the traceback on the screen.
"""

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import atheris  # type: ignore[import-untyped]  # it publishes none

with atheris.instrument_imports(include=["fusewire_worker_edge"]):
    from fusewire_worker_edge.importers import ModelImportError
    from fusewire_worker_edge.importers.gguf import GgufFile
    from fusewire_worker_edge.importers.gguf_header import MAGIC
    from fusewire_worker_edge.importers.snapshot import Snapshot

from fusewire.testing.tiny_gguf import write_gguf
from fusewire.testing.tiny_snapshot import write_snapshot

BUILD = Path(__file__).parents[2] / "build" / "fuzz"
MEMORY_MB, INPUT_S = 2048, 20
"""More memory or time for one input is a fault as well."""

Target = Callable[[bytes, Path], None]


def gguf(data: bytes, folder: Path) -> None:
    """A GGUF file: its header, and all of its tensors."""
    file = folder / "model.gguf"
    file.write_bytes(data if data[:4] == MAGIC else MAGIC + data)
    source = GgufFile(file)
    for name in source.names:
        source.floats(name)
        if columns := source.columns(name):
            source.matrix(name, columns)


def safetensors(data: bytes, folder: Path) -> None:
    """The weights of a snapshot that is whole but for them."""
    (folder / "model.safetensors").write_bytes(data)
    source = Snapshot(folder)
    for name in source.names:
        source.floats(name)


def config(data: bytes, folder: Path) -> None:
    """The configuration of a snapshot that is whole but for it."""
    (folder / "config.json").write_bytes(data)
    Snapshot(folder)


TARGETS: dict[str, Target] = {"gguf": gguf, "safetensors": safetensors, "config": config}


def seeds(name: str, folder: Path, corpus: Path) -> None:
    """Write whole inputs into `corpus`, and into `folder` what stands around them."""
    if name == "gguf":
        for architecture in ("llama", "qwen3", "gemma3"):
            path = corpus / f"{architecture}.gguf"
            write_gguf(
                path,
                {"": "Q8_0"},
                is_tied=True,
                metadata={"architecture": architecture},
                drop="",
                add="",
            )
        return
    for architecture in ("llama", "phi3", "gemma3"):
        write_snapshot(corpus.parent / architecture, architecture)
        for path in (corpus.parent / architecture).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
            if path.stem == name or path.suffix == f".{name}":
                (corpus / f"{architecture}{path.suffix}").write_bytes(path.read_bytes())


def main() -> None:
    """Fuzz one target until its time or runs are over; exits with 1 if an input passed."""
    parser = argparse.ArgumentParser(description="Fuzz what reads model files.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=0, help="how long; 0 is without end")
    parser.add_argument("--runs", type=int, default=-1, help="how many inputs; -1 is without end")
    parser.add_argument(
        "--folder",
        type=Path,
        default=BUILD,
        help="where to work, and to leave what was not refused",
    )
    options = parser.parse_args()
    # Here and not in a temporary folder: libFuzzer ends the process, and nothing would remove it.
    root = options.folder / options.target
    shutil.rmtree(root, ignore_errors=True)
    folder, corpus = root / "model", root / "corpus"
    folder.mkdir(parents=True)
    corpus.mkdir()
    seeds(options.target, folder, corpus)
    target = TARGETS[options.target]

    def one(data: bytes) -> None:
        try:
            target(data, folder)
        except ModelImportError as exc:
            if not str(exc):
                raise AssertionError("it was refused without a reason") from exc

    largest = max(path.stat().st_size for path in corpus.iterdir())
    limits = [f"-max_len={2 * largest}", f"-rss_limit_mb={MEMORY_MB}", f"-timeout={INPUT_S}"]
    lasts = [
        f"-max_total_time={options.seconds}",
        f"-runs={options.runs}",
        f"-artifact_prefix={options.folder}/",
    ]
    atheris.Setup([sys.argv[0], str(corpus), *limits, *lasts], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
