"""The interface of a service, and the host that runs one or several of them in a process."""

import asyncio
import contextlib
import gc
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn, Protocol

import structlog
import uvloop
from prometheus_client import generate_latest

from fusewire import lifeline, metrics, telemetry
from fusewire.configuration import ConfigError, load
from fusewire.errors import StartupError, Transient
from fusewire.http_server import (
    App,
    Receive,
    Scope,
    Send,
    Server,
    is_loopback,
    listen,
    listen_operations,
    respond,
    tls,
)
from fusewire.lifeline import STOP_S
from fusewire.settings import Http, Settings

log = structlog.get_logger(__name__)

FAULTY_S = 5.0
"""After this long with faults the process ends, and its supervisor starts it again."""
GARBAGE_THRESHOLDS = (50_000, 20, 50)
"""Thresholds of the three generations, as for `gc.set_threshold`. See `collect_rarely`."""


class Service(Protocol):
    """One of the six services."""

    name: str
    drain_s: float
    """How long it may take to finish its work once it is told to stop."""

    async def start(self) -> None:
        """Connect and begin to work. Raises StartupError when it cannot."""
        ...

    def close(self) -> None:
        """End the requests of waiting clients; called before the HTTP server stops."""
        ...

    async def stop(self) -> None:
        """Take no more work, finish or hand back what was begun, and close all connections."""
        ...

    def faults(self) -> list[str]:
        """Why it cannot work until it is started again; empty while it can."""
        ...

    def unready(self) -> list[str]:
        """Why it should get no work now; empty while it is ready."""
        ...

    def app(self) -> App | None:
        """Its own HTTP interface, if it has one."""
        ...


Reasons = dict[str, list[str]]
"""By service, the reasons why it is not well."""


def _endpoints(reasons: Callable[[str], Reasons], other: App, *, has_metrics: bool) -> App:
    """`/healthz`, `/readyz` and, if `has_metrics`, `/metrics`; other paths go to the other app."""

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "") if scope["type"] == "http" else ""
        if path in ("/healthz", "/readyz"):
            await _report(send, reasons(path))
        elif path == "/metrics" and has_metrics:
            body = generate_latest(metrics.REGISTRY)
            await respond(send, 200, body, b"text/plain; version=0.0.4")
        else:
            await other(scope, receive, send)

    return handle


async def _not_found(scope: Scope, _receive: Receive, send: Send) -> None:
    """The app where there is no other."""
    if scope["type"] == "http":
        await respond(send, 404, b"not found\n", b"text/plain")


async def _report(send: Send, reasons: Reasons) -> None:
    """Respond with the reasons of each service why it is not well, or with ok."""
    lines: list[str] = []
    for name, texts in reasons.items():
        lines += [f"{name}: {text}" for text in texts]
    status = 503 if lines else 200
    body = "\n".join(lines or [f"ok {' '.join(reasons)}"]) + "\n"
    await respond(send, status, body.encode(), b"text/plain; charset=utf-8")


def needs_port(services: Sequence[Service], http: Http) -> bool:
    """Whether the services need `http.port`.

    They do not if nothing but health and metrics would be served there, and those have a port of
    their own.
    """
    return http.operations_port is None or any(service.app() for service in services)


def _first_app(services: Sequence[Service], other_socks: Mapping[str, object]) -> App | None:
    """The app of the services that is served on the main port."""
    apps = [service.app() for service in services if service.name not in other_socks]
    return next(filter(None, apps), None)


def collect_rarely() -> None:
    """Run the cyclic garbage collector rarely, and never on the objects that exist now.

    With Python's own thresholds (700, 10, 10) it looks at all live objects many times a second.
    That took a sixth of the CPU of a fusion, measured at 64 in flight, and freed next to nothing:
    objects that are in no cycle are freed without it.
    """
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def _is_open(http: Http) -> bool:
    """Whether only this machine reaches the API, and without a key."""
    # A proxy may pass on what comes from others to this machine's address.
    return is_loopback(http.host) and http.keys != "required"


class Host:
    """Runs services and their HTTP servers until told to stop.

    Health and metrics are served beside the services' app; with `http.operations_port`, health on
    both ports, and metrics there alone, as an app that others can reach asks for keys to its own.

    Args:
        services: in the order in which they start; the first is stopped last.
        sock: the bound socket to listen on; None if `needs_port` says so.
        http: settings of the HTTP servers.
        other_socks: bound sockets of services whose app is not served on `sock`, by name.

    Raises:
        StartupError: TLS cannot be served as it is configured, or the operations port is taken.
    """

    def __init__(
        self,
        services: Sequence[Service],
        sock: socket.socket | None,
        http: Http | None = None,
        other_socks: Mapping[str, socket.socket] = MappingProxyType({}),
    ) -> None:
        self._services = list(services)
        self._running_services: list[Service] = []
        self._drain_s = max(service.drain_s for service in services)
        self._is_stopping = False
        self._servers: dict[str, Server] = {}
        """By the name of the port."""
        self._operations_server: Server | None = None
        self._http = http = http or Http()
        self._tls = tls(http)
        operations_sock = listen_operations(http)
        if operations_sock:
            endpoints = _endpoints(self._reasons, _not_found, has_metrics=True)
            # Plain HTTP: probes and scrapers know no certificate of ours.
            self._operations_server = Server(endpoints, operations_sock, None, http.keep_alive_s)
        if sock:
            app = _first_app(services, other_socks)
            has_metrics = not operations_sock and (app is None or _is_open(http))
            self._add_server("port", app, sock, has_metrics=has_metrics)
        for service in services:
            if other_sock := other_socks.get(service.name):
                name = f"{service.name}_port"
                self._add_server(name, service.app(), other_sock, has_metrics=False)

    def _add_server(
        self, name: str, app: App | None, sock: socket.socket, *, has_metrics: bool
    ) -> None:
        endpoints = _endpoints(self._reasons, app or _not_found, has_metrics=has_metrics)
        self._servers[name] = Server(endpoints, sock, self._tls, self._http.keep_alive_s)

    def _reasons(self, path: str) -> Reasons:
        """Each service's faults, and for `/readyz` also why it should get no work now."""
        if self._is_stopping:
            # Loops that have ended are no fault now; a drain that hangs has its own time limit.
            notice = ["it drains and stops"] if path == "/readyz" else []
            return {service.name: notice for service in self._services}
        is_readiness = path == "/readyz"
        return {
            service.name: service.faults() + (service.unready() if is_readiness else [])
            for service in self._services
        }

    async def start(self) -> None:
        """Start the services in order, then serve HTTP."""
        try:
            for service in self._services:
                # Appended first: a service that fails while it starts has connections to close.
                self._running_services.append(service)
                await service.start()
            collect_rarely()
        except BaseException:
            await self.stop()
            raise
        ports = {}
        servers = dict(self._servers)
        if self._operations_server:
            servers["operations_port"] = self._operations_server
        for name, server in servers.items():
            server.start()
            ports[name] = server.port
        log.info("service.started", services=[s.name for s in self._services], **ports)

    async def faulty(self) -> list[str]:
        """Wait until a service has had faults for `FAULTY_S`, and return them."""
        loop = asyncio.get_running_loop()
        since: float | None = None
        while True:
            await asyncio.sleep(FAULTY_S / 5)
            faults = self._faults()
            if not faults:
                since = None
                continue
            since = since or loop.time()
            if loop.time() - since >= FAULTY_S:
                log.error("service.faulty", faults=faults)
                return faults

    def _faults(self) -> list[str]:
        faults: list[str] = []
        for service in self._running_services:
            faults += [f"{service.name}: {fault}" for fault in service.faults()]
        return faults

    async def stop(self) -> None:
        """Stop the HTTP server, then all services but the first at once, then the first.

        Health and metrics on a port of their own are served until all have stopped.

        A service that does not stop in time, for instance because its database is locked, is
        cancelled. Nothing is lost: its messages are delivered again.
        """
        end = asyncio.get_running_loop().time() + self._drain_s + STOP_S - 1
        self._is_stopping = True
        for service in self._running_services:
            service.close()
        await asyncio.gather(*(server.stop() for server in self._servers.values()))
        first, rest = self._running_services[:1], self._running_services[1:]
        # The first, the judge, decides on the answers that workers bring while they drain.
        await _stop(rest, end - 1)
        await _stop(first, end)
        if self._operations_server:
            await self._operations_server.stop()
        log.info("service.stopped", services=[s.name for s in self._services])


async def _stop(services: Sequence[Service], end: float) -> None:
    """Stop services side by side, until `end` (the loop's time) at the latest."""
    tasks = {asyncio.create_task(service.stop()): service.name for service in services}
    if not tasks:
        return
    timeout = max(0.0, end - asyncio.get_running_loop().time())
    finished_tasks, late_tasks = await asyncio.wait(tasks, timeout=timeout)
    for task in late_tasks:
        task.cancel()
        log.warning("service.stop_timed_out", service=tasks[task])
    for task in finished_tasks:
        if error := task.exception():
            log.warning("service.stop_failed", service=tasks[task], fault=type(error).__name__)


def end_stalled(trace: list[str]) -> NoReturn:
    """End this process, as its event loop has stalled; its supervisor starts it again.

    The message that stalled it is redelivered, and dead-lettered after `bus.CRASHES` such ends.
    """
    log.error("service.stalled", trace=trace)
    os._exit(1)


async def run(services: Sequence[Service], http: Http) -> list[str]:
    """Run until a signal, the end of the parent process, or a fault of a service; then drain.

    Signals are SIGTERM, SIGINT and SIGHUP.

    Returns:
        The faults; empty after a signal.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    drain_s = max(service.drain_s for service in services)

    def ask_to_stop() -> None:
        # The time limit has a thread of its own: the event loop may be blocked, and at its end the
        # interpreter would wait for blocked threads (docs/decisions/0032).
        lifeline.end_within(drain_s + STOP_S)
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            loop.call_soon_threadsafe(stop.set)

    for sig in lifeline.stop_signals():
        loop.add_signal_handler(sig, ask_to_stop)
    lifeline.on_parent_end(ask_to_stop)
    lifeline.on_stall(loop, end_stalled)
    host = Host(services, listen(http) if needs_port(services, http) else None, http)
    starting = asyncio.create_task(host.start(), name="start")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return []
    starting.result()
    failing = asyncio.create_task(host.faulty(), name="faulty")
    await asyncio.wait((stopping, failing), return_when=asyncio.FIRST_COMPLETED)
    if failing.done():
        lifeline.end_within(drain_s + STOP_S)
    await host.stop()
    failing.cancel()
    (faults,) = await asyncio.gather(failing, return_exceptions=True)
    return faults if isinstance(faults, list) else []


def main(name: str, build: Callable[[Settings], Service]) -> NoReturn:
    """Run one service as a process of its own: `python -m fusewire_<name>`.

    Exits with 0 after a signal, 2 if the configuration cannot be used, 5 if the stored data cannot
    be used, and 1 after a fault.
    """
    try:
        settings = load()
        telemetry.configure(settings.log, settings.telemetry, service=name)
        faults = uvloop.run(run([build(settings)], settings.http))
    except ConfigError as exc:
        for problem in exc.problems:
            sys.stderr.write(f"fusewire: {exc.source}: {problem}\n")
        sys.stderr.write(f"fusewire: {exc.hint}\n")
        sys.exit(2)
    except StartupError as exc:
        sys.stderr.write(f"fusewire: {exc.what}\nfusewire: {exc.mend}\n")
        sys.exit(exc.exit_code)
    except Transient as exc:
        sys.stderr.write(f"fusewire: {exc}\n")
        sys.exit(1)
    sys.exit(1 if faults else 0)
