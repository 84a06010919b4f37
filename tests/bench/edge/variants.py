"""Decoding with other threads, affinities and memory pages, in turn, each in a process of its own.

`python -m edge.variants FOLDER THREADS PROCESSORS` measures once, and prints it as JSON; PROCESSORS
is a list as `0,1`, to pin one thread to each, or `-`.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from fusewire_worker_edge.engine.model import OnnxModel
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.folder import read_manifest

_STEPS = 40
_PROMPT = range(100, 132)
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""glibc then asks the system for huge pages (`MADV_HUGEPAGE`) for what it allocates."""


@dataclass(frozen=True, slots=True)
class Variant:
    """How a process decodes."""

    threads: int
    is_pinned: bool = False
    has_huge_pages: bool = False


VARIANTS = {
    "two threads": Variant(2),
    "one thread": Variant(1),
    "two pinned threads": Variant(2, is_pinned=True),
    "two threads, huge pages": Variant(2, has_huge_pages=True),
}


def _pin(processors: list[int]) -> None:
    """Pin this thread, and those that onnxruntime starts, to one processor each."""
    options_class = ort.SessionOptions

    def pinned_options() -> ort.SessionOptions:
        options = options_class()
        # One list for each thread but the calling one; it counts processors from 1.
        places = ";".join(str(processor + 1) for processor in processors[1:])
        options.add_session_config_entry("session.intra_op_thread_affinities", places)
        return options

    # The engine makes its options of this name.
    ort.SessionOptions = pinned_options
    os.sched_setaffinity(0, processors[:1])


def _decode(folder: Path, threads: int) -> dict[str, float]:
    """Decode one sequence."""
    loaded = OnnxModel(folder, read_manifest(folder), EngineOptions(threads=threads, slots=1))
    loaded.prefill(0, list(_PROMPT), 0)
    length = len(_PROMPT)
    for _ in range(4):
        loaded.decode([100], [length])
    began, cpu = time.perf_counter(), time.process_time()
    for step in range(_STEPS):
        loaded.decode([100], [length + step])
    return {
        "tok_s": _STEPS / (time.perf_counter() - began),
        "cpu_ms": 1000 * (time.process_time() - cpu) / _STEPS,
        "huge_pages_mb": _huge_pages_mb(),
    }


def _huge_pages_mb() -> float:
    rollup = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    (line,) = [line for line in rollup.splitlines() if line.startswith("AnonHugePages")]
    return int(line.split()[1]) / 1000


def _measure(folder: Path, variant: Variant) -> dict[str, float]:
    processors = sorted(os.sched_getaffinity(0))[: variant.threads]
    pins = ",".join(map(str, processors)) if variant.is_pinned else "-"
    command = [sys.executable, "-m", "edge.variants", str(folder), str(variant.threads), pins]
    environment = os.environ | (_HUGE_PAGES if variant.has_huge_pages else {})
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(result.stdout))


def compare(folder: Path, rounds: int) -> dict[str, Any]:
    """Figures of each variant, round by round, and its speed over the first one's."""
    figures: dict[str, Any] = {}
    for _ in range(rounds):
        speeds = {}
        for name, variant in VARIANTS.items():
            for figure, value in _measure(folder, variant).items():
                figures.setdefault(f"{name}: {figure}", []).append(value)
            speeds[name] = figures[f"{name}: tok_s"][-1]
        first, *others = speeds
        for name in others:
            figures.setdefault(f"{name}: over {first}", []).append(speeds[name] / speeds[first])
    return figures


def main() -> None:
    """Measure in this process."""
    folder, threads, pins = sys.argv[1:]
    if pins != "-":
        _pin([int(processor) for processor in pins.split(",")])
    sys.stdout.write(json.dumps(_decode(Path(folder), int(threads))))


if __name__ == "__main__":
    main()
