"""Ends the embedded broker after all who use it: `python -m fusewire_cli.local.guard`.

Its standard input is a pipe. The runner holds the writing end, and so does each service that the
runner has started as a process. Each broker that is started writes its process id to it, a line,
before it is one: whoever starts it may be killed in between. The pipe reaches its end when all of
them have ended, however they did: `kill -9` leaves no broker behind, and services that drain after
the runner's death can still store what they have paid for (docs/decisions/0032).
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterable

from fusewire_cli.local.process import ProcessRecord, end

_ANNOUNCE = """
import os, sys
guard = int(sys.argv[1])
os.write(guard, b"%d\\n" % os.getpid())
os.close(guard)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Guard:
    """The runner's side of the guard."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def keep_open_fd(self) -> int:
        """The file descriptor that every user of the broker keeps open while it runs."""
        return self._write

    async def start(self) -> None:
        """Start the guard, if it does not run: before the broker, to watch it at once."""
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "fusewire_cli.local.guard",
                stdin=self._read,
                stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    def watch(self, pid: int) -> None:
        """Guard the broker that has this id, in place of the last."""
        os.write(self._write, f"{pid}\n".encode())

    def wrap(self, *command: str) -> tuple[str, ...]:
        """The command that names its process to the guard and then becomes another one.

        It has to inherit `keep_open_fd`, which it closes.
        """
        return (sys.executable, "-ISc", _ANNOUNCE, str(self._write), *command)

    @property
    def has_ended(self) -> bool:
        """Whether the guard has ended before its time, so that it has to be started again."""
        return self._process is not None and self._process.returncode is not None

    async def stop(self, within_s: float) -> None:
        """Let it end the broker, if that still runs, and itself; kill it after `within_s`."""
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
    """Read the pipe to its end, then end the process that was named last."""
    broker = None
    for line in lines:
        broker = ProcessRecord.of(int(line)) or broker
    if broker:
        end([broker], within_s=10)


if __name__ == "__main__":
    # A closing terminal ends the runner, which then decides about the broker.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    guard(sys.stdin.buffer)
