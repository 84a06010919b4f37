"""What prepacked weights save: CPU time of a load, and memory of a second replica."""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.folder import WEIGHTS, ModelFolderError
from fusewire_worker_edge.measure.replica import ReplicaMeasurement

_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class StartMeasurement:
    """Loads with prepacked weights, relative to loads without. Medians of `_ROUNDS` in turn."""

    prepacked_over_plain_load: float
    """CPU time, the checks of hashes and of the golden answer included."""
    replica_over_weights: float
    """Private memory of a second replica with prepacked weights, relative to the weights."""
    plain_replica_over_weights: float
    """The same without prepacked weights."""


@contextmanager
def _replica(folder: Path, options: EngineOptions) -> Iterator[ReplicaMeasurement]:
    """A process that has loaded the model. It ends with the block, and with this process."""
    command = [
        sys.executable, "-P", "-m", "fusewire_worker_edge.measure.replica",
        str(folder), json.dumps(dataclasses.asdict(options)),
    ]  # fmt: skip
    with subprocess.Popen(  # noqa: S603 - our own module
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise ValueError("the process has no pipes")
        try:
            line = process.stdout.readline()
            if not line:
                lines = process.stderr.read().strip().splitlines()
                raise ModelFolderError(folder, f"it does not load: {lines[-1] if lines else ''}")
            yield ReplicaMeasurement(**json.loads(line))
        finally:
            process.stdin.close()


def measure_loads(
    folder: Path, *, threads: int | None = None, room: Path | None = None
) -> StartMeasurement:
    """Load a model in processes of its own, plain and prepacked in turn.

    Args:
        folder: the model folder.
        threads: threads of the engine; None uses all processors of this process.
        room: where to put the prepacked weights for a while; None takes the folder for temporary
            files (`TMPDIR`). They take 1.8 to 2.4 times the weights.

    Raises:
        ModelFolderError: the folder cannot be used, or there is no room.
    """
    options = EngineOptions(threads=threads)
    plain_replicas, replicas = [], []
    with tempfile.TemporaryDirectory(dir=room) as cache:
        prepacked_options = dataclasses.replace(options, prepacked_dir=cache)
        # The first one makes the weights, and shares their pages with those after it.
        with _replica(folder, prepacked_options) as first:
            if first.prepacked == "off":
                raise ModelFolderError(Path(cache), first.reason, "name another folder with TMPDIR")
            for _ in range(_ROUNDS):
                with _replica(folder, prepacked_options) as replica:
                    replicas.append(replica)
                with _replica(folder, options) as replica:
                    plain_replicas.append(replica)
    size = (folder / WEIGHTS).stat().st_size
    return StartMeasurement(
        prepacked_over_plain_load=statistics.median(
            replica.cpu_s / plain_replica.cpu_s
            for replica, plain_replica in zip(replicas, plain_replicas, strict=True)
        ),
        replica_over_weights=_private_bytes(replicas) / size,
        plain_replica_over_weights=_private_bytes(plain_replicas) / size,
    )


def _private_bytes(replicas: Sequence[ReplicaMeasurement]) -> float:
    return statistics.median(replica.private_bytes for replica in replicas)
