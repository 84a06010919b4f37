"""Ends the embedded broker after everybody who uses it has ended: `python -m fusewire_cli.local.guard`.

Its standard input is a pipe whose writing end is held by the runner, and by each service that the runner has
started as a process. The runner writes the broker's process as JSON, a line each time it starts one. The pipe
reaches its end when all of them have ended, however they did: `kill -9` leaves no broker behind, and services
that drain after the runner's death can still store what they have paid for.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterable

from fusewire_cli.local.process import ProcessRecord, end


class Guard:
    """The runner's side of the guard."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def held(self) -> int:
        """The file descriptor that whoever needs the broker keeps open."""
        return self._write

    async def watch(self, broker: ProcessRecord) -> None:
        """Have this broker ended; replaces the one before, and a guard that has ended itself."""
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "fusewire_cli.local.guard",
                stdin=self._read, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        os.write(self._write, f"{broker.encode()}\n".encode())

    @property
    def has_ended(self) -> bool:
        """Whether the guard has ended before its time, and `watch` has to start it again."""
        return self._process is not None and self._process.returncode is not None

    async def stop(self, within_s: float) -> None:
        """Have it end the broker if that still runs, and end itself; it is killed if it has not `within_s`."""
        os.close(self._write)
        os.close(self._read)
        if self._process is None:
            return
        try:
            await asyncio.wait_for(self._process.wait(), within_s)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


def guard(lines: Iterable[bytes]) -> None:
    """Read until the end, then end the process that was named last."""
    broker = None
    for line in lines:
        broker = ProcessRecord.decode(line)
    if broker:
        end([broker], within_s=10)


if __name__ == "__main__":
    # A terminal's closing is for the runner.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    guard(sys.stdin.buffer)
