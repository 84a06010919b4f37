"""Processes known by id and start time, so that another one that has been given the id is left alone."""

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
"""Start times are read from the system's clock, which may be adjusted in between."""


@dataclass(frozen=True)
class ProcessRecord:
    """One process. `started` is Unix time, s."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """The process that has this id now."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return None

    @classmethod
    def decode(cls, data: bytes | str) -> Self:
        """Raises ValueError where it is none."""
        found = json.loads(data)
        return cls(int(found["pid"]), float(found["started"]))

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


def end(known: Iterable[ProcessRecord], *, within_s: float) -> Sequence[ProcessRecord]:
    """End those that still run: SIGTERM, and SIGKILL to what has not ended `within_s`. Returns what was ended."""
    found = [one for one in known if _send(one, signal.SIGTERM)]
    until = time.monotonic() + within_s
    while any(one.find() for one in found) and time.monotonic() < until:
        time.sleep(POLL_S)
    for one in found:
        _send(one, signal.SIGKILL)
    return found


def _send(known: ProcessRecord, number: signal.Signals) -> bool:
    """Send a signal to a process, if it still runs. Returns whether it does."""
    process = known.find()
    if process is None:
        return False
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)
    return True
