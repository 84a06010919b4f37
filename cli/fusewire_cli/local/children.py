"""The services as processes of their own, none of which outlives the runner."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterable

import structlog

from fusewire.errors import StartupError
from fusewire.lifeline import LIFELINE_ENV
from fusewire.service import LISTEN_ENV
from fusewire.settings import CONFIG_ENV, Settings

log = structlog.get_logger(__name__)

JUDGE_S = 1.0
"""What is kept of the time to stop for the judge, which ends last: it decides what workers bring while they drain."""


class Children:
    """One process for each service.

    Args:
        settings: what they run with.
        sock: bound; ingest listens on it. It stays open here, so that nobody else gets its port.
        held: a file descriptor that each of them inherits, and so keeps open as long as it lives.
    """

    def __init__(self, settings: Settings, sock: socket.socket, held: int) -> None:
        self._settings = settings
        self._config = settings.data_dir / "effective.json"
        self._sock = sock
        self._held = held
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        # The writing end stays in this process alone: see fusewire.lifeline.
        self._lifeline, self._alive = os.pipe()

    @property
    def pids(self) -> dict[str, int]:
        """By the service's name."""
        return {name: process.pid for name, process in self._processes.items()}

    def ended(self) -> dict[str, int]:
        """Exit codes of those that have ended, by the service's name."""
        return {
            name: p.returncode for name, p in self._processes.items() if p.returncode is not None
        }

    async def start(self, names: Iterable[str]) -> None:
        """Start services; returns before they are ready."""
        self._config.touch(mode=0o600)
        self._config.write_text(self._settings.model_dump_json())
        for name in names:
            await self.spawn(name)

    async def ready(self, host: str, within_s: float) -> None:
        """Wait until ingest listens.

        Raises:
            StartupError: a service has ended, or ingest does not listen in time.
        """
        end = asyncio.get_running_loop().time() + within_s
        port = self._sock.getsockname()[1]
        while not await _listens(host, port):
            for name, code in self.ended().items():
                raise StartupError(
                    f"{name} ended with exit code {code}", "its message stands above"
                )
            if asyncio.get_running_loop().time() > end:
                raise StartupError(
                    f"ingest did not listen within {within_s:g} s",
                    "see the log for what holds it up",
                )
            await asyncio.sleep(0.05)

    async def spawn(self, name: str) -> None:
        """Start one service, or start it again."""
        # What is configured by FUSEWIRE_… stands in the file already, and would win over it.
        env = {k: v for k, v in os.environ.items() if not (k.startswith("FUSEWIRE_") and "__" in k)}
        env[CONFIG_ENV] = str(self._config)
        env[LIFELINE_ENV] = str(self._lifeline)
        env["FUSEWIRE_HTTP__PORT"] = "0"
        passed = [self._lifeline, self._held]
        if name == "ingest":
            env[LISTEN_ENV] = str(self._sock.fileno())
            passed.append(self._sock.fileno())
        module = f"fusewire_{name.replace('-', '_')}"
        self._processes[name] = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, env=env, stdin=asyncio.subprocess.DEVNULL,
            # A terminal's Ctrl-C is for the runner, which tells them.
            start_new_session=True,
            pass_fds=passed,
        )  # fmt: skip

    async def stop(self, within_s: float) -> None:
        """Let them drain, the judge last, and kill what has not ended `within_s`."""
        end = asyncio.get_running_loop().time() + within_s
        first = [process for name, process in self._processes.items() if name != "judge"]
        last = [process for name, process in self._processes.items() if name == "judge"]
        await _end(first, end - JUDGE_S)
        await _end(last, end)
        self._sock.close()
        os.close(self._alive)
        os.close(self._lifeline)


async def _end(processes: list[asyncio.subprocess.Process], end: float) -> None:
    """Ask processes to end, and kill those that live at `end` (the loop's time)."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(end):
            await asyncio.gather(*(process.wait() for process in processes))
    for process in processes:
        if process.returncode is None:
            log.warning("up.killed", pid=process.pid)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _listens(host: str, port: int) -> bool:
    try:
        _reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
