"""Prepacked weights: a copy of a model's weights in the layout of this processor's kernels.

Without it, every process packs the weights into memory of its own when it loads a model. With it,
a process maps the file, and all replicas on a machine share its pages. The first one makes it:

`python -m fusewire_worker_edge.engine.prepacked FOLDER CACHE`

A process of its own, as its memory is room for a moment only. An entry of the cache is used only
by the onnxruntime, the processor and the model that it was made with and for.
"""

import argparse
import hashlib
import json
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnxruntime as ort
from onnx import ModelProto
from pydantic import BaseModel, ConfigDict, ValidationError

from fusewire_worker_edge.folder import (
    GRAPH,
    MANIFEST,
    WEIGHTS,
    FileEntry,
    ModelFolderError,
    build_folder,
    hash_file,
    lock_folder,
    verify,
)
from fusewire_worker_edge.graph_check import DOMAINS, graph_problem

RECORD = "prepacked.json"
SIZE_OVER_WEIGHTS = 2.5
"""Room that an entry may take: onnxruntime keeps the plain weights beside the packed ones. 1.8 to
2.4 times the weights were seen."""


class _Record(BaseModel):
    """What an entry was made from, and its files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    folder: str
    files: dict[str, FileEntry]


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """Whether there are prepacked weights for a model.

    Args:
        state: `used` if they were there, `made` if they are new, `off` if there are none.
        graph: the graph to load; None if `off`.
        reason: why there are none.
    """

    state: Literal["used", "made", "off"]
    graph: Path | None = None
    reason: str = ""


def processor_flags(cpuinfo: str) -> str:
    """Return the instruction sets of the first processor in the text of /proc/cpuinfo, sorted."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return " ".join(sorted(value.split()))
    return ""


def key_of(folder: Path) -> str:
    """Return the hash of all that the packed layout depends on: other weights have another."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = processor_flags(cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else ""
    parts = {
        "onnxruntime": ort.__version__,
        "processor": [platform.machine(), flags or platform.processor()],
        "manifest": hash_file(folder, MANIFEST).sha256,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def obtain(folder: Path, cache: Path) -> PackedWeights:
    """Find the prepacked weights of a model folder in a cache folder, or make them.

    Waits while another process makes them.
    """
    folder = folder.resolve()
    try:
        key = key_of(folder)
    except ModelFolderError as exc:
        return PackedWeights("off", reason=str(exc))
    entry = _entry(folder, cache, key)
    if _problem(entry, key) is None:
        return PackedWeights("used", entry / GRAPH)
    maker = subprocess.run(  # noqa: S603 - our own module
        [sys.executable, "-P", "-m", __name__, str(folder), str(cache)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if maker.returncode:
        lines = maker.stderr.strip().splitlines() or [f"its maker ended with {maker.returncode}"]
        return PackedWeights("off", reason=lines[-1])
    return PackedWeights("made", entry / GRAPH)


def discard(graph: Path) -> None:
    """Delete the entry of a graph that could not be used."""
    shutil.rmtree(graph.parent, ignore_errors=True)


def make(folder: Path, cache: Path) -> None:
    """Make the prepacked weights of a model folder unless they are there.

    Raises:
        ModelFolderError: the folder cannot be used, or there is no room.
        OSError: the cache cannot be written.
    """
    key = key_of(folder)
    entry = _entry(folder, cache, key)
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock_folder(entry, "prepack"):
        if _problem(entry, key) is None:
            return
        shutil.rmtree(entry, ignore_errors=True)
        _delete_stale(folder, cache, key)
        manifest = verify(folder)
        _check_room(cache, manifest.size)
        with build_folder(entry) as partial:
            _pack(folder, partial)
            files = {name: hash_file(partial, name) for name in (GRAPH, WEIGHTS)}
            record = _Record(key=key, folder=str(folder), files=files)
            (partial / RECORD).write_text(record.model_dump_json(), encoding="utf-8")


def _entry(folder: Path, cache: Path, key: str) -> Path:
    return cache / f"{folder.name}-{key[:16]}"


def _read_record(entry: Path) -> _Record | None:
    try:
        return _Record.model_validate_json((entry / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None


def _problem(entry: Path, key: str) -> str | None:
    """Why an entry cannot be used, or None."""
    record = _read_record(entry)
    if record is None:
        return "there is none, or its record cannot be read"
    if record.key != key:
        return "it was made for something else"
    if record.files.keys() != {GRAPH, WEIGHTS}:
        return "its record names other files"
    try:
        for name, expected in record.files.items():
            # Its size first, which costs nothing.
            if (entry / name).stat().st_size != expected.size or hash_file(entry, name) != expected:
                return f"'{name}' is not what was written"
        return graph_problem((entry / GRAPH).read_bytes(), (WEIGHTS,))
    except (OSError, ModelFolderError) as exc:
        return str(exc)


def _delete_stale(folder: Path, cache: Path, key: str) -> None:
    """Delete what was made of the same folder for other weights, onnxruntime or processor.

    A process that has mapped it keeps its pages.
    """
    for path in cache.glob(f"{folder.name}-*"):
        record = _read_record(path)
        if record and record.folder == str(folder) and record.key != key:
            shutil.rmtree(path, ignore_errors=True)


def _check_room(cache: Path, size: int) -> None:
    room = int(size * SIZE_OVER_WEIGHTS)
    free = shutil.disk_usage(cache).free
    if free < room:
        raise ModelFolderError(
            cache,
            f"prepacked weights may take {room // 10**6} MB, and {free // 10**6} MB are free",
            "free some, or name another folder with `prepacked_dir`",
        )


def _pack(folder: Path, target: Path) -> None:
    session = ort.SessionOptions()
    session.log_severity_level = 3
    session.intra_op_num_threads = 1
    session.optimized_model_filepath = str(target / GRAPH)
    for name, value in (
        ("session.optimized_model_external_initializers_file_name", WEIGHTS),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        session.add_session_config_entry(name, value)
    try:
        ort.InferenceSession(folder / GRAPH, session, providers=["CPUExecutionProvider"])
    except Exception as exc:  # noqa: BLE001 - onnxruntime's own exceptions share no base class
        raise ModelFolderError(
            folder, f"onnxruntime {ort.__version__} does not pack its weights: {exc}"
        ) from None
    _keep_known_domains(target / GRAPH)


def _keep_known_domains(graph: Path) -> None:
    """Delete the other operator domains, used or not: onnxruntime names all that it has."""
    model = ModelProto.FromString(graph.read_bytes())
    domains = [entry for entry in model.opset_import if entry.domain in DOMAINS]
    del model.opset_import[:]
    model.opset_import.extend(domains)
    graph.write_bytes(model.SerializeToString())


def main() -> None:
    """Make an entry; exit with 1 and the reason as the last line if there cannot be one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("cache", type=Path)
    arguments = parser.parse_args()
    try:
        make(arguments.folder, arguments.cache)
    except (ModelFolderError, OSError) as exc:
        sys.exit(" ".join(str(exc).split()))


if __name__ == "__main__":
    main()
