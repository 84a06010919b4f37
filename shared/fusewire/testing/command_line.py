"""For tests: the `fusewire` command as a process of its own, in a folder of its own."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fusewire.testing.eventually import PATIENCE_S, until
from fusewire.testing.processes import bound
from fusewire.testing.warm import WarmStart, is_warm

END_S = 60.0
"""How long an ended command may take to be gone."""
FUSEWIRE = Path(sys.executable).parent / "fusewire"
"""The installed command."""


class Command:
    """A command that runs, at the head of a session of its own.

    What it writes goes to files: nothing that has inherited them can make a test wait for their
    end.
    """

    def __init__(
        self, pid: int, poll: Callable[[], int | None], stdout: IO[str], stderr: IO[str]
    ) -> None:
        self.pid = pid
        self._poll = poll
        self._stdout = stdout
        self._stderr = stderr

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return Path(self._stdout.name).read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        """What it has written so far."""
        return Path(self._stderr.name).read_text(encoding="utf-8")

    @property
    def returncode(self) -> int | None:
        """Its exit code, or the negative number of the signal that ended it; None while it runs."""
        return self._poll()

    def wait(self, seconds: float = PATIENCE_S) -> int:
        """Wait for its end; returns the exit code.

        Raises:
            AssertionError: it still runs.
        """
        end = time.monotonic() + seconds
        while (code := self._poll()) is None:
            assert time.monotonic() < end, (
                f"{self.pid} still runs after {seconds:g} s: {self.stderr[-2000:]}"
            )
            time.sleep(0.01)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self._poll() is None:
            os.kill(self.pid, number)

    def end(self) -> None:
        """End it and its session, whatever it does."""
        self.send_signal(signal.SIGTERM)
        with contextlib.suppress(AssertionError):
            self.wait(END_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait(END_S)


@functools.cache
def _warm() -> WarmStart | None:
    """What starts commands quickly; one for each test process."""
    return WarmStart() if sys.platform == "linux" else None


@contextlib.contextmanager
def background(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None, stdin: str = ""
) -> Iterator[Command]:
    """A command that runs beside the test, and is ended with the block."""
    with _files(stdin) as (stdin_file, out, err):
        warm = _warm() if env is not None and is_warm(command, env) else None
        if warm and env is not None:
            pid = warm.start(command, cwd, env, [file.fileno() for file in (stdin_file, out, err)])
            running = Command(pid, functools.partial(_poll, pid, {}), out, err)
        else:
            process = subprocess.Popen(
                bound(command),
                cwd=cwd,
                env=env,
                stdin=stdin_file,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            running = Command(process.pid, process.poll, out, err)
        try:
            yield running
        finally:
            running.end()


def _poll(pid: int, exit_codes: dict[int, int]) -> int | None:
    if pid not in exit_codes:
        ended_pid, status = os.waitpid(pid, os.WNOHANG)
        if not ended_pid:
            return None
        exit_codes[pid] = os.waitstatus_to_exitcode(status)
    return exit_codes[pid]


@contextlib.contextmanager
def _files(stdin: str) -> Iterator[tuple[IO[str], IO[str], IO[str]]]:
    with contextlib.ExitStack() as stack:
        stdin_file, out, err = (
            stack.enter_context(
                tempfile.NamedTemporaryFile("w+", encoding="utf-8", prefix=f"fusewire-{name}-")
            )
            for name in ("stdin", "stdout", "stderr")
        )
        stdin_file.write(stdin)
        stdin_file.seek(0)
        yield stdin_file, out, err


@dataclass(frozen=True)
class Cli:
    """Runs `fusewire` in a folder of its own."""

    folder: Path
    env: Mapping[str, str]

    def run(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        with self.start(*args, stdin=stdin) as command:
            code = command.wait()
            return subprocess.CompletedProcess(args, code, command.stdout, command.stderr)

    @contextlib.contextmanager
    def start(self, *args: str, stdin: str = "") -> Iterator[Command]:
        """Run in the background."""
        with background(
            [str(FUSEWIRE), *args], cwd=self.folder, env=self.env, stdin=stdin
        ) as command:
            yield command


def address(cli: Cli, command: Command) -> str:
    """Where the `fusewire up` of a folder listens, once it does."""
    file = cli.folder / ".fusewire" / "up.json"
    until(lambda: file.exists() or command.returncode is not None, "the run file")
    assert file.exists(), f"the stack did not start: {command.stderr}"
    return str(json.loads(file.read_text())["url"])


@dataclass(frozen=True)
class FakeServer:
    """The fake model server, as a process."""

    port: int

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


def bare(folder: Path, **extra: str) -> Cli:
    """A command line without any FUSEWIRE_ variable of the machine's."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("FUSEWIRE_")}
    return Cli(folder, {**env, **extra, "NO_COLOR": "1"})


def write_lines(path: Path, count: int) -> list[str]:
    """Write a batch; returns its custom_ids."""
    names = [f"q{number:03}" for number in range(count)]
    path.write_text(
        "".join(json.dumps({"custom_id": n, "prompt": f"question {n}"}) + "\n" for n in names)
    )
    return names
