"""The whole of Fusewire on one machine: in one process, or one process per service."""

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import IO, Any

import structlog

from fusewire import provision
from fusewire.bus import Bus, fault
from fusewire.errors import StartupError
from fusewire.lifeline import STOP_S
from fusewire.service import Host, Service, listen
from fusewire.settings import Settings
from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire.topology import FULL_STORAGE_MB, topology
from fusewire_cli.local import process, run_file
from fusewire_cli.local.children import Children
from fusewire_cli.local.guard import Guard
from fusewire_cli.local.nats import EmbeddedNats
from fusewire_cli.local.process import ProcessRecord
from fusewire_cli.local.storage import has_room, measured_mb

log = structlog.get_logger(__name__)

ORDER = ("judge", "worker-edge", "worker-remote", "dispatcher", "ingest")
"""The door opens last and closes first."""
READY_S = 120.0
"""How long services may take until they listen."""
PROBE_EVERY_S = 5.0
PROBES = 4
"""A broker that has stored nothing in so many looks is started again."""
BROKER_S = 1.0
"""How long the broker may take to end, after those that use it."""


def wanted(settings: Settings) -> list[str]:
    """The services that this configuration needs: a worker only where there is a model for it."""
    tiers = {model.kind for model in settings.models.values()}
    return [s for s in ORDER if not s.startswith("worker-") or s.removeprefix("worker-") in tiers]


def storage_mb(settings: Settings) -> int:
    """MiB that all streams together may take. Raises StartupError where the disk has too little room."""
    if settings.nats.storage_mb is not None:
        return settings.nats.storage_mb
    if settings.nats.url != "embedded":
        return FULL_STORAGE_MB
    return measured_mb(EmbeddedNats(settings.data_dir).store)


async def apply_topology(
    settings: Settings, nats_url: str | None = None
) -> list[provision.TopologyChange]:
    """Provision streams, durables and buckets. Raises StartupError when NATS does not answer.

    Args:
        settings: which models and pools there are, and how much room.
        nats_url: where the embedded broker listens.
    """
    nats = settings.nats.model_copy(update={"url": nats_url}) if nats_url else settings.nats
    models = {name: model.kind for name, model in settings.models.items()}
    wanted_topology = topology(models, settings.pools, nats.replicas, storage_mb(settings))
    bus = Bus("ops", nats)
    await bus.connect(timeout_s=5)
    try:
        return await provision.apply(bus.js, wanted_topology)
    finally:
        await bus.stop()


async def upgrade_database(settings: Settings) -> tuple[str | None, str | None]:
    """Migrate. Raises StartupError when the database does not answer."""
    store = Store(settings.database, is_patient=True)
    try:
        await store.ping()
        return await migrate.upgrade(store)
    finally:
        await store.close()


class Stack:
    """Broker, migrations, topology, services; and their end in the opposite order.

    Nothing of it outlives this process, whatever ends it: see `Guard` and `Children`.
    """

    def __init__(self, settings: Settings, *, processes: bool = False) -> None:
        self._settings = settings
        self._processes = processes
        self._nats = EmbeddedNats(settings.data_dir) if settings.nats.url == "embedded" else None
        self._guard: Guard | None = None
        self._lock: IO[str] | None = None
        self._host: Host | None = None
        self._children: Children | None = None
        self._watch: asyncio.Task[None] | None = None
        self._broker_watch: asyncio.Task[None] | None = None
        self._drain_s = settings.limits.drain_s
        if "worker-remote" in wanted(settings):
            self._drain_s = max(self._drain_s, settings.limits.call_drain_s)
        self.url = ""

    @property
    def stop_s(self) -> float:
        """How long `stop` takes at most, s."""
        return self._drain_s + STOP_S

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the broker and, where they are processes, of the services."""
        found = self._children.pids if self._children else {}
        return {**found, **({"nats": self._nats.pid} if self._nats else {})}

    async def start(self) -> None:
        """Start everything. Raises StartupError with what is wrong, and leaves nothing running."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        data_dir = self._settings.data_dir
        data_dir.mkdir(parents=True, exist_ok=True)
        self._take_folder()
        self._guard = Guard()
        await self._end_leftovers()
        sock = listen(self._settings.http)
        host, port = sock.getsockname()[:2]
        scheme = "https" if self._settings.http.tls_cert else "http"
        self.url = f"{scheme}://{host}:{port}"
        try:
            nats_url = await self._start_broker()
            await upgrade_database(self._settings)
            await apply_topology(self._settings, nats_url)
            await self._start_services(self._with_broker(nats_url), sock)
        except BaseException:
            sock.close()
            raise
        self._watch = asyncio.create_task(self._supervise(), name="supervise")
        if self._nats:
            self._broker_watch = asyncio.create_task(
                self._watch_broker(self._nats), name="watch-broker"
            )
        me = ProcessRecord.of(os.getpid())
        assert me is not None
        run_file.write(
            data_dir, me, url=self.url, nats=nats_url or self._settings.nats.url, pids=self.pids
        )

    def _take_folder(self) -> None:
        self._lock = (self._settings.data_dir / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StartupError(
                f"another Fusewire runs on the data folder {self._settings.data_dir}",
                "use that one, stop it, or set FUSEWIRE_DATA_DIR",
            ) from None

    async def _end_leftovers(self) -> None:
        """End what a runner on this folder has left behind, as after a crash of the whole machine's session."""
        noted = run_file.noted_processes(self._settings.data_dir)
        for left in noted:
            # In the order in which they were noted: services may still store what they have paid for.
            if await asyncio.to_thread(process.end, [left], within_s=self.stop_s):
                log.warning("up.leftover_ended", pid=left.pid)

    async def _start_broker(self) -> str | None:
        """Start the embedded broker, if that is configured, and returns its address."""
        if self._nats is None:
            return None
        await self._nats.start()
        await self._note_processes()
        return self._nats.url

    async def _note_processes(self) -> None:
        broker = ProcessRecord.of(self._nats.pid) if self._nats else None
        if broker and self._guard:
            await self._guard.watch(broker)
        services = [
            ProcessRecord.of(pid)
            for pid in (self._children.pids.values() if self._children else ())
        ]
        run_file.note_processes(self._settings.data_dir, filter(None, [*services, broker]))

    def _with_broker(self, nats_url: str | None) -> Settings:
        if nats_url is None:
            return self._settings
        nats = self._settings.nats.model_copy(update={"url": nats_url})
        return self._settings.model_copy(update={"nats": nats})

    async def _start_services(self, settings: Settings, sock: socket.socket) -> None:
        names = wanted(settings)
        if not self._processes:
            self._host = Host([_build(name, settings) for name in names], sock, settings.http)
            await self._host.start()
            return
        assert self._guard is not None
        self._children = Children(settings, sock, self._guard.held)
        await self._children.start(names)
        await self._note_processes()
        await self._children.ready(settings.http.host, READY_S)

    async def faulty(self) -> list[str]:
        """Wait until this process can do nothing any more, and return why."""
        assert self._watch is not None
        watches: set[asyncio.Future[Any]] = {
            self._watch,
            *([self._broker_watch] if self._broker_watch else []),
        }
        faulty = {asyncio.ensure_future(self._host.faulty())} if self._host else set()
        try:
            done, _ = await asyncio.wait(watches | faulty, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in faulty:
                wait.cancel()
        return ["nobody watches the services any more"] if watches & done else done.pop().result()

    async def _supervise(self) -> None:
        """Start again whatever has died, whatever happens meanwhile."""
        while True:
            await asyncio.sleep(0.2)
            try:
                await self._restart_ended()
            except Exception as exc:  # noqa: BLE001 - without it nothing would ever be started again
                log.error("up.restart_failed", fault=fault(exc))  # noqa: TRY400 - no text of its
                await asyncio.sleep(1)

    async def _watch_broker(self, broker: EmbeddedNats) -> None:
        """End a broker that lives and stores nothing, where there is room: `_restart_ended` starts it again."""
        me = asyncio.current_task()
        assert me is not None
        missed = 0
        # nats-py keeps a cancellation to itself that comes while it closes a connection.
        while not me.cancelling():
            await asyncio.sleep(PROBE_EVERY_S)
            missed = 0 if await broker.answers() else missed + 1
            if missed >= PROBES and has_room(broker.store):
                log.warning("up.broker_stuck", seconds=round(missed * PROBE_EVERY_S))
                broker.kill()
                missed = 0

    async def _restart_ended(self) -> None:
        restarted = self._guard is not None and self._guard.has_ended
        if self._nats and not self._nats.running:
            log.warning("up.restarted", what="nats-server")
            with contextlib.suppress(StartupError):
                await self._nats.start()
                restarted = True
                # A wiped store comes back empty; this makes it whole and changes nothing else.
                await apply_topology(self._settings, self._nats.url)
        if self._children:
            for name, code in self._children.ended().items():
                log.warning("up.restarted", what=name, exit_code=code)
                await self._children.spawn(name)
                restarted = True
        if restarted:
            await self._note_processes()

    async def stop(self) -> None:
        """Drain and end everything, within `stop_s`."""
        end = asyncio.get_running_loop().time() + self.stop_s
        for task in (self._watch, self._broker_watch):
            if task:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._host:
            await self._host.stop()
        if self._children:
            await self._children.stop(self.stop_s - 2 * BROKER_S)
        left_s = end - asyncio.get_running_loop().time()
        if self._nats:
            await self._nats.stop(max(BROKER_S, left_s - BROKER_S))
        if self._guard:
            await self._guard.stop(BROKER_S)
        if self._lock:
            if self._watch:
                run_file.remove(self._settings.data_dir)
            self._lock.close()


def _build(name: str, settings: Settings) -> Service:
    (point,) = entry_points(group="fusewire.services", name=name)
    build: Callable[[Settings], Service] = point.load()
    return build(settings)
