"""The whole of Fusewire on one machine: in one process, or one process per service."""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import entry_points
from typing import IO

import structlog

from fusewire import provision
from fusewire.bus import Bus
from fusewire.errors import StartupError
from fusewire.service import Host, Service, listen
from fusewire.settings import CONFIG_ENV, Settings
from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire.topology import topology
from fusewire_cli.local.nats import EmbeddedNats

log = structlog.get_logger(__name__)

ORDER = ("judge", "worker-edge", "worker-remote", "dispatcher", "ingest")
"""The door opens last and closes first."""
RUN_FILE = "up.json"


def wanted(settings: Settings) -> list[str]:
    """The services that this configuration needs: a worker only where there is a model for it."""
    tiers = {model.kind for model in settings.models.values()}
    return [s for s in ORDER if not s.startswith("worker-") or s.removeprefix("worker-") in tiers]


def running(settings: Settings) -> str | None:
    """The address of the stack that runs on this data folder, if one does."""
    return _run_file(settings, "url")


def running_nats(settings: Settings) -> str | None:
    """The address of that stack's broker."""
    return _run_file(settings, "nats")


def _run_file(settings: Settings, key: str) -> str | None:
    try:
        found = json.loads((settings.data_dir / RUN_FILE).read_text())
        os.kill(found["pid"], 0)
        return str(found[key])
    except (OSError, ValueError, KeyError, TypeError):
        return None


async def apply_topology(settings: Settings) -> list[provision.Change]:
    """Provision streams, durables and buckets. Raises StartupError when NATS does not answer."""
    bus = Bus("ops", settings.nats)
    await bus.connect(timeout_s=5)
    try:
        models = {name: model.kind for name, model in settings.models.items()}
        return await provision.apply(bus.js, topology(models, settings.nats.replicas))
    finally:
        await bus.stop()


async def upgrade_database(settings: Settings) -> tuple[str | None, str | None]:
    """Migrate. Raises StartupError when the database does not answer."""
    store = Store(settings.database)
    try:
        await store.ping()
        return await migrate.upgrade(store)
    finally:
        await store.close()


class Stack:
    """Broker, migrations, topology, services; and their end in the opposite order."""

    def __init__(self, settings: Settings, *, processes: bool = False) -> None:
        self._settings = settings
        self._processes = processes
        self._nats = EmbeddedNats(settings.data_dir) if settings.nats.url == "embedded" else None
        self._lock: IO[str] | None = None
        self._host: Host | None = None
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._watch: asyncio.Task[None] | None = None
        self._stopping = False
        self.url = ""

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the broker and, where they are processes, of the services."""
        found = {name: child.pid for name, child in self._children.items()}
        return {**found, **({"nats": self._nats.pid} if self._nats else {})}

    async def start(self) -> None:
        """Start everything. Raises StartupError with what is wrong, and leaves nothing running."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        self._settings.data_dir.mkdir(parents=True, exist_ok=True)
        self._take_folder()
        sock = listen(self._settings.http)
        host, port = sock.getsockname()[:2]
        scheme = "https" if self._settings.http.tls_cert else "http"
        self.url = f"{scheme}://{host}:{port}"
        try:
            if self._nats:
                await self._nats.start()
                nats = self._settings.nats.model_copy(update={"url": self._nats.url})
                self._settings = self._settings.model_copy(update={"nats": nats})
            await upgrade_database(self._settings)
            await apply_topology(self._settings)
            if self._processes:
                sock.close()
                await self._start_children(port)
            else:
                services = [_build(name, self._settings) for name in wanted(self._settings)]
                self._host = Host(services, sock, self._settings.http)
                await self._host.start()
        except BaseException:
            sock.close()
            raise
        self._watch = asyncio.create_task(self._supervise(), name="supervise")
        run = {
            "pid": os.getpid(),
            "url": self.url,
            "nats": self._settings.nats.url,
            "started_at": datetime.now(UTC).isoformat(),
            "pids": self.pids,
        }
        (self._settings.data_dir / RUN_FILE).write_text(json.dumps(run))

    def _take_folder(self) -> None:
        self._lock = (self._settings.data_dir / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StartupError(
                f"another Fusewire runs on the data folder {self._settings.data_dir}",
                "use that one, stop it, or set FUSEWIRE_DATA_DIR",
            ) from None

    async def _start_children(self, port: int) -> None:
        config = self._settings.data_dir / "effective.json"
        config.touch(mode=0o600)
        config.write_text(self._settings.model_dump_json())
        for name in wanted(self._settings):
            await self._spawn(name, port)
        async with asyncio.timeout(60):
            while not await _answers(self._settings.http.host, port):
                for name, child in self._children.items():
                    if child.returncode is not None:
                        raise StartupError(
                            f"{name} ended with exit code {child.returncode}", "its message stands above"
                        )
                await asyncio.sleep(0.05)

    async def _spawn(self, name: str, port: int) -> None:
        # What is configured by FUSEWIRE_… stands in the file already, and would win over it.
        env = {k: v for k, v in os.environ.items() if not (k.startswith("FUSEWIRE_") and "__" in k)}
        env |= {CONFIG_ENV: str(self._settings.data_dir / "effective.json")}
        env["FUSEWIRE_HTTP__PORT"] = str(port if name == "ingest" else 0)
        module = f"fusewire_{name.replace('-', '_')}"
        self._children[name] = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, env=env, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
        )

    async def _supervise(self) -> None:
        """Start again whatever has died."""
        port = int(self.url.rpartition(":")[2])
        while True:
            await asyncio.sleep(0.2)
            if self._nats and not self._nats.running:
                log.warning("up.restarted", what="nats-server")
                with contextlib.suppress(StartupError):
                    await self._nats.start()
                    # A wiped store comes back empty; this makes it whole and changes nothing else.
                    await apply_topology(self._settings)
            for name, child in list(self._children.items()):
                if child.returncode is not None and not self._stopping:
                    log.warning("up.restarted", what=name, exit_code=child.returncode)
                    await self._spawn(name, port)

    async def stop(self) -> None:
        """Drain and end everything."""
        self._stopping = True
        if self._watch:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._host:
            await self._host.stop()
        for name in reversed(ORDER):
            if name in self._children:
                await _end(self._children[name], self._settings.limits.drain_s + 10)
        if self._nats:
            await self._nats.stop()
        if self._lock and self._watch:
            (self._settings.data_dir / RUN_FILE).unlink(missing_ok=True)
        if self._lock:
            self._lock.close()


async def _end(child: asyncio.subprocess.Process, within_s: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(child.wait(), within_s)
    except TimeoutError:
        child.kill()
        await child.wait()


async def _answers(host: str, port: int) -> bool:
    try:
        _reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def _build(name: str, settings: Settings) -> Service:
    (point,) = entry_points(group="fusewire.services", name=name)
    build: Callable[[Settings], Service] = point.load()
    return build(settings)
