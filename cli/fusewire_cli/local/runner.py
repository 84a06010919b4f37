"""Runs all of Fusewire on one machine: in one process, or one process per service."""

import asyncio
import contextlib
import fcntl
import functools
import os
import socket
from collections.abc import Callable
from importlib.metadata import EntryPoints, entry_points
from typing import IO, Any

import structlog

from fusewire import provision
from fusewire.bus import Bus, fault
from fusewire.errors import StartupError
from fusewire.http_server import listen, listen_console
from fusewire.lifeline import STOP_S
from fusewire.service import Host, Service
from fusewire.settings import Nats, Settings
from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire.topology import FULL_STORAGE_MB, Topology, site_topology, topology
from fusewire_cli import local_models
from fusewire_cli.local import process, run_file
from fusewire_cli.local.children import Children
from fusewire_cli.local.guard import Guard
from fusewire_cli.local.nats import EmbeddedNats
from fusewire_cli.local.process import ProcessRecord
from fusewire_cli.local.storage import has_room, measured_mb

log = structlog.get_logger(__name__)

ORDER = ("judge", "worker-edge", "worker-remote", "dispatcher", "console", "ingest")
"""The order in which services start; ingest, which accepts prompts, starts last."""
READY_S = 120.0
"""How long ingest and console may take until they listen, s."""
PROBE_EVERY_S = 5.0
PROBES = 4
"""A broker that has failed this many probes in a row is restarted."""
BROKER_S = 1.0
"""How long the broker may take to end after the services, s."""


def service_names(settings: Settings) -> list[str]:
    """The services that this configuration needs: a worker only if there is a model for it."""
    tiers = {model.kind for model in settings.models.values()}
    absent_names = {"worker-edge", "worker-remote"} - {f"worker-{tier}" for tier in tiers}
    if not settings.console.enabled:
        absent_names.add("console")
    return [name for name in ORDER if name not in absent_names]


def storage_mb(settings: Settings) -> int:
    """The MiB that all streams together may take.

    Raises:
        StartupError: the disk of the embedded broker has too little room.
    """
    if settings.nats.storage_mb is not None:
        return settings.nats.storage_mb
    if settings.nats.url != "embedded":
        return FULL_STORAGE_MB
    return measured_mb(EmbeddedNats(settings.data_dir).store)


def _hub_topology(settings: Settings) -> Topology:
    models = {name: model.kind for name, model in settings.models.items()}
    return topology(models, settings.pools, settings.nats.replicas, storage_mb(settings))


async def apply_topology(
    settings: Settings, nats: Nats | None = None
) -> list[provision.TopologyChange]:
    """Provision streams, durables and buckets.

    Args:
        settings: models, pools, and the room for streams.
        nats: how to connect to the embedded broker; None takes the configured one.

    Returns:
        What was changed, and what was not.

    Raises:
        StartupError: NATS does not answer.
    """
    nats = nats or settings.nats
    target = site_topology() if nats.site else _hub_topology(settings)
    bus = Bus("ops", nats)
    await bus.connect(timeout_s=5)
    try:
        return await provision.apply(bus.js_of(target.streams[0].name), target)
    finally:
        await bus.stop()


async def upgrade_database(
    settings: Settings, *, allow_newer: bool = False
) -> tuple[str | None, str | None]:
    """Migrate the database; see `migrate.upgrade`. Returns the schema version before and after.

    Raises:
        StartupError: the database does not answer, or has a newer schema.
    """
    store = Store(settings.database, is_patient=True)
    try:
        await store.ping()
        return await migrate.upgrade(store, allow_newer=allow_newer)
    finally:
        await store.close()


class Stack:
    """Broker, migrations, topology and services; they stop in the opposite order.

    No process of it outlives this one, whatever ends it: see `Guard` and `Children`.
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
        if "worker-remote" in service_names(settings):
            self._drain_s = max(self._drain_s, settings.limits.call_drain_s)
        self.url = ""
        self.console_url: str | None = None

    @property
    def stop_s(self) -> float:
        """How long `stop` takes at most, s."""
        return self._drain_s + STOP_S

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the broker and, where they are processes, of the services."""
        pids = dict(self._children.pids) if self._children else {}
        if self._nats:
            pids["nats"] = self._nats.pid
        return pids

    async def start(self) -> None:
        """Start everything. If that fails, nothing is left running.

        Raises:
            StartupError: what is wrong.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        if "worker-edge" in service_names(self._settings) and not local_models.are_supported():
            raise StartupError(local_models.WHAT, local_models.MEND)
        data_dir = self._settings.data_dir
        data_dir.mkdir(parents=True, exist_ok=True)
        self._take_folder()
        self._guard = Guard()
        await self._end_leftovers()
        socks = self._bind()
        try:
            nats = await self._start_broker()
            await upgrade_database(self._settings)
            await apply_topology(self._settings, nats)
            await self._start_services(self._with_addresses(nats), socks)
        except BaseException:
            for sock in socks.values():
                sock.close()
            raise
        self._watch = asyncio.create_task(self._supervise(), name="supervise")
        if self._nats:
            self._broker_watch = asyncio.create_task(
                self._watch_broker(self._nats), name="watch-broker"
            )
        me = ProcessRecord.of(os.getpid())
        assert me is not None
        run_file.write(data_dir, me, url=self.url, nats=nats.url, pids=self.pids)

    def _bind(self) -> dict[str, socket.socket]:
        """Bind the ports of services with an app, so that a taken one is told at once."""
        http, console = self._settings.http, self._settings.console
        socks = {"ingest": listen(http)}
        self.url = self._url(socks["ingest"])
        if console.enabled:
            try:
                api_port = socks["ingest"].getsockname()[1]
                socks["console"] = listen_console(http, console, api_port)
            except StartupError:
                socks["ingest"].close()
                raise
            self.console_url = self._url(socks["console"])
        return socks

    def _url(self, sock: socket.socket) -> str:
        host, port = sock.getsockname()[:2]
        scheme = "https" if self._settings.http.tls_cert else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def _take_folder(self) -> None:
        """Lock the data folder. Raises StartupError if another Fusewire has it."""
        self._lock = (self._settings.data_dir / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StartupError(
                f"another Fusewire runs on the data folder {self._settings.data_dir}",
                "use that one, stop it, or set FUSEWIRE_DATA_DIR",
            ) from None

    async def _end_leftovers(self) -> None:
        """End the processes that the last runner on this folder left behind, as after a crash."""
        leftovers = run_file.noted_processes(self._settings.data_dir)
        for leftover in leftovers:
            # One by one, the broker last: services may still store what they have paid for
            # (docs/decisions/0032).
            if await asyncio.to_thread(process.end, [leftover], within_s=self.stop_s):
                log.warning("up.leftover_ended", pid=leftover.pid)

    async def _start_broker(self) -> Nats:
        """Start the embedded broker, if it is configured. Returns how to connect to the broker."""
        if self._nats is None:
            return self._settings.nats
        assert self._guard is not None
        await self._guard.start()
        await self._nats.start(self._guard)
        self._note_processes()
        return self._nats.connection(self._settings.nats)

    def _note_processes(self) -> None:
        """Tell the run file which processes there are now."""
        broker = ProcessRecord.of(self._nats.pid) if self._nats else None
        pids = self._children.pids.values() if self._children else ()
        services = [ProcessRecord.of(pid) for pid in pids]
        run_file.note_processes(self._settings.data_dir, filter(None, [*services, broker]))

    def _with_addresses(self, nats: Nats) -> Settings:
        """The configuration with the addresses of the API and of the broker."""
        console = self._settings.console
        if console.api_url is None:
            console = console.model_copy(update={"api_url": self.url})
        return self._settings.model_copy(update={"nats": nats, "console": console})

    async def _start_services(self, settings: Settings, socks: dict[str, socket.socket]) -> None:
        names = service_names(settings)
        if not self._processes:
            services = [build_service(name, settings) for name in names]
            other_socks = {name: sock for name, sock in socks.items() if name != "ingest"}
            self._host = Host(services, socks["ingest"], settings.http, other_socks)
            await self._host.start()
            return
        assert self._guard is not None
        self._children = Children(settings, socks, self._guard.keep_open_fd)
        await self._children.start(names)
        self._note_processes()
        await self._children.ready(settings.http.host, READY_S)

    async def faulty(self) -> list[str]:
        """Wait until the stack cannot go on. Returns why."""
        assert self._watch is not None
        watches: set[asyncio.Future[Any]] = {self._watch}
        if self._broker_watch:
            watches.add(self._broker_watch)
        host_waits = {asyncio.ensure_future(self._host.faulty())} if self._host else set()
        try:
            ended_waits, _ = await asyncio.wait(
                watches | host_waits, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for host_wait in host_waits:
                host_wait.cancel()
        if watches & ended_waits:
            return ["nobody watches the services any more"]
        return ended_waits.pop().result()

    async def _supervise(self) -> None:
        """Restart what has died, for as long as the stack runs."""
        while True:
            await asyncio.sleep(0.2)
            try:
                await self._restart_ended()
            except Exception as exc:  # noqa: BLE001 - without it nothing would ever be started again
                log.error("up.restart_failed", fault=fault(exc))  # noqa: TRY400 - no text of its
                await asyncio.sleep(1)

    async def _watch_broker(self, broker: EmbeddedNats) -> None:
        """Kill a broker that runs but stores nothing although there is room.

        `_restart_ended` then restarts it.
        """
        me = asyncio.current_task()
        assert me is not None
        failed_probes = 0
        # nats-py swallows a cancellation that comes while it closes a connection.
        while not me.cancelling():
            await asyncio.sleep(PROBE_EVERY_S)
            failed_probes = 0 if await broker.stores() else failed_probes + 1
            if failed_probes >= PROBES and has_room(broker.store):
                log.warning("up.broker_stuck", seconds=round(failed_probes * PROBE_EVERY_S))
                broker.kill()
                failed_probes = 0

    async def _restart_ended(self) -> None:
        has_changed = False
        if self._nats and self._guard and self._guard.has_ended:
            await self._guard.start()
            if self._nats.is_running:
                self._guard.watch(self._nats.pid)
        if self._nats and not self._nats.is_running:
            log.warning("up.restarted", what="nats-server")
            with contextlib.suppress(StartupError):
                await self._nats.start(self._guard)
                has_changed = True
                # If its store was wiped, the streams are missing; otherwise this changes nothing.
                await apply_topology(self._settings, self._nats.connection(self._settings.nats))
        if self._children:
            for name, code in self._children.exit_codes().items():
                log.warning("up.restarted", what=name, exit_code=code)
                await self._children.spawn(name)
                has_changed = True
        if has_changed:
            self._note_processes()

    async def stop(self) -> None:
        """Drain and stop everything, within `stop_s`."""
        deadline = asyncio.get_running_loop().time() + self.stop_s
        for task in (self._watch, self._broker_watch):
            if task:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._host:
            await self._host.stop()
        if self._children:
            # What is left is for the broker and the guard, which end after the services.
            await self._children.stop(self.stop_s - 2 * BROKER_S)
        left_s = deadline - asyncio.get_running_loop().time()
        if self._nats:
            await self._nats.stop(max(BROKER_S, left_s - BROKER_S))
        if self._guard:
            await self._guard.stop(BROKER_S)
        if self._lock:
            if self._watch:
                run_file.remove(self._settings.data_dir)
            self._lock.close()


def build_service(name: str, settings: Settings) -> Service:
    """The service of this name, not started."""
    build: Callable[[Settings], Service] = _entry_points()[name].load()
    return build(settings)


@functools.cache
def _entry_points() -> EntryPoints:
    """All services; finding them reads the metadata of each package that is installed."""
    return entry_points(group="fusewire.services")
