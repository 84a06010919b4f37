"""Processes, identified by id and start time, as the system gives ids to new processes again."""

import contextlib
import json
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Self

import psutil

POLL_S = 0.02
SAME_START_S = 2.0
"""Start times that differ by less are the same, s: the clock may be adjusted in between."""


@dataclass(frozen=True)
class ProcessRecord:
    """One process. `started` is Unix time, s."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """The process that has this id now; None if there is none."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return None

    @classmethod
    def decode(cls, data: bytes | str) -> Self:
        """Parse what `encode` returned. Raises ValueError, KeyError or TypeError for other text."""
        fields = json.loads(data)
        return cls(int(fields["pid"]), float(fields["started"]))

    def encode(self) -> str:
        """As JSON, on one line."""
        return json.dumps(asdict(self))

    def find(self) -> psutil.Process | None:
        """The process, if it still runs."""
        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.started) < SAME_START_S
            return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


def end(records: Iterable[ProcessRecord], *, within_s: float) -> Sequence[ProcessRecord]:
    """End processes: SIGTERM, and SIGKILL to those that still run after `within_s`.

    Returns:
        Those that were running.
    """
    running = [record for record in records if _send(record, signal.SIGTERM)]
    deadline = time.monotonic() + within_s
    while any(record.find() for record in running) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for record in running:
        _send(record, signal.SIGKILL)
    return running


def _send(record: ProcessRecord, number: signal.Signals) -> bool:
    """Send a signal to a process, if it still runs. Returns whether it does."""
    process = record.find()
    if process is None:
        return False
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)
    return True
