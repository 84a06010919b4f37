"""A process that loads a model as an engine does, and says what that took.

`python -m fusewire_worker_edge.measure.replica FOLDER OPTIONS`

OPTIONS are `EngineOptions` as JSON. Prints a `ReplicaMeasurement` as JSON, and keeps the model
until its input ends: memory is private or shared only beside other replicas.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

from fusewire_worker_edge.engine.child import load
from fusewire_worker_edge.engine.options import EngineOptions


@dataclasses.dataclass(frozen=True, slots=True)
class ReplicaMeasurement:
    """What a load took.

    Args:
        cpu_s: CPU time of all threads, from the check of the folder to that of the golden answer;
            without the interpreter's start.
        private_bytes: memory that the load added and that no other process has too.
        prepacked: `used`, `made` or `off`; None if no prepacked weights were wanted.
        reason: why they are off.
    """

    cpu_s: float
    private_bytes: int
    prepacked: str | None = None
    reason: str = ""


def _private_bytes() -> int:
    """Memory of this process that no other one has mapped."""
    total = 0
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name in ("Private_Clean", "Private_Dirty"):
            total += int(value.split()[0]) * 1024
    return total


def main() -> None:
    """Load, print, and wait for the end of the input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("options", type=lambda text: EngineOptions(**json.loads(text)))
    arguments = parser.parse_args()
    memory, began = _private_bytes(), time.process_time()
    model = load(arguments.folder, arguments.options)
    weights = model.weights
    cpu_s = time.process_time() - began
    result = ReplicaMeasurement(
        cpu_s,
        _private_bytes() - memory,
        weights.state if weights else None,
        weights.reason if weights else "",
    )
    sys.stdout.write(json.dumps(dataclasses.asdict(result)) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    # Until here, so that its memory is not freed before it is measured.
    del model


if __name__ == "__main__":
    main()
