"""Runs each service as a process of its own; none outlives the runner."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterable, Mapping

import structlog

from fusewire.configuration import CONFIG_ENV
from fusewire.errors import StartupError
from fusewire.http_server import LISTEN_ENV
from fusewire.lifeline import LIFELINE_ENV
from fusewire.settings import Settings

log = structlog.get_logger(__name__)

JUDGE_S = 1.0
"""Share of the time to stop that is left to the judge, s.

It ends last: it decides on the answers that workers bring while they drain.
"""


class Children:
    """The processes of the services, one each.

    Args:
        settings: the configuration they run with.
        socks: by service, the bound socket on which it listens; ingest has one. They stay open
            here too, so that no other process gets the port of a service that is restarted.
        keep_open_fd: a file descriptor that each of them inherits and keeps open while it lives.
    """

    def __init__(
        self, settings: Settings, socks: Mapping[str, socket.socket], keep_open_fd: int
    ) -> None:
        self._settings = settings
        self._config = settings.data_dir / "effective.json"
        self._socks = socks
        self._keep_open_fd = keep_open_fd
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        # The writing end stays in this process alone: see fusewire.lifeline.
        self._lifeline, self._alive = os.pipe()

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by the service's name."""
        return {name: process.pid for name, process in self._processes.items()}

    def exit_codes(self) -> dict[str, int]:
        """Exit codes of the services that have ended, by name."""
        return {
            name: process.returncode
            for name, process in self._processes.items()
            if process.returncode is not None
        }

    async def start(self, names: Iterable[str]) -> None:
        """Start services; returns before they are ready."""
        # With these rights before it holds anything: an address in it may have a password.
        self._config.touch(mode=0o600)
        # One process alone can have the operations port, which `spawn` gives to ingest.
        http = self._settings.http.model_copy(update={"operations_port": None})
        self._config.write_text(self._settings.model_copy(update={"http": http}).model_dump_json())
        for name in names:
            await self.spawn(name)

    async def ready(self, host: str, within_s: float) -> None:
        """Wait until all services that have a socket listen on it.

        Raises:
            StartupError: a service has ended, or one does not listen in time.
        """
        deadline = asyncio.get_running_loop().time() + within_s
        for name, sock in self._socks.items():
            while not await _listens(host, sock.getsockname()[1]):
                self._check_start(name, deadline)
                await asyncio.sleep(0.05)

    def _check_start(self, awaited_name: str, deadline: float) -> None:
        """Raise StartupError if a service has ended, or the deadline (loop's time) is over."""
        for name, code in self.exit_codes().items():
            raise StartupError(f"{name} ended with exit code {code}", "its message stands above")
        if asyncio.get_running_loop().time() > deadline:
            raise StartupError(
                f"{awaited_name} did not listen in time", "see the log for what holds it up"
            )

    async def spawn(self, name: str) -> None:
        """Start one service, or start it again."""
        # The file holds what FUSEWIRE_…__… variables configure, with the runner's changes;
        # the variables would override those.
        env = {k: v for k, v in os.environ.items() if not (k.startswith("FUSEWIRE_") and "__" in k)}
        env[CONFIG_ENV] = str(self._config)
        env[LIFELINE_ENV] = str(self._lifeline)
        env["FUSEWIRE_HTTP__PORT"] = "0"
        inherited_fds = [self._lifeline, self._keep_open_fd]
        if sock := self._socks.get(name):
            env[LISTEN_ENV] = str(sock.fileno())
            inherited_fds.append(sock.fileno())
        if name == "ingest" and (port := self._settings.http.operations_port) is not None:
            env["FUSEWIRE_HTTP__OPERATIONS_PORT"] = str(port)
        module = f"fusewire_{name.replace('-', '_')}"
        self._processes[name] = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, env=env, stdin=asyncio.subprocess.DEVNULL,
            # A terminal's Ctrl-C is for the runner alone, which then stops them in order.
            start_new_session=True,
            pass_fds=inherited_fds,
        )  # fmt: skip

    async def stop(self, within_s: float) -> None:
        """Let the services drain, the judge last; kill those that still run after `within_s`."""
        deadline = asyncio.get_running_loop().time() + within_s
        first = [process for name, process in self._processes.items() if name != "judge"]
        last = [process for name, process in self._processes.items() if name == "judge"]
        await _end(first, deadline - JUDGE_S)
        await _end(last, deadline)
        for sock in self._socks.values():
            sock.close()
        os.close(self._alive)
        os.close(self._lifeline)


async def _end(processes: list[asyncio.subprocess.Process], deadline: float) -> None:
    """Ask processes to end; kill those that still run at the deadline (the loop's time)."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
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
