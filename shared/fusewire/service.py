"""The interface of a service, and the host that runs one or several of them in a process."""

import asyncio
import contextlib
import gc
import ipaddress
import os
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn, Protocol

import structlog
import uvicorn
import uvloop
from prometheus_client import generate_latest

from fusewire import lifeline, telemetry
from fusewire.errors import StartupError, Transient
from fusewire.lifeline import STOP_S
from fusewire.settings import ConfigError, Http, Settings, load

log = structlog.get_logger(__name__)

LISTEN_ENV = "FUSEWIRE_LISTEN_FD"
"""Environment variable with the file descriptor of a bound socket: a port that was closed for a
moment may be taken by another process."""
HTTP_STOP_S = 3
"""How long requests under way may take to end; a client that waits for an outcome asks again."""
FAULTY_S = 5.0
"""After this long with faults the process ends, and its supervisor starts it again."""
GARBAGE_THRESHOLDS = (50_000, 20, 50)
"""Thresholds of the three generations, as for `gc.set_threshold`. See `collect_rarely`."""

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Service(Protocol):
    """One of the five services."""

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


def operations(services: Sequence[Service], *, is_public: bool = False) -> App:
    """`/healthz`, `/readyz` and `/metrics` of all services; other paths go to a service's own app.

    If `is_public`, that app serves `/metrics` too, as it knows who may read them.
    """
    apps = [app for service in services if (app := service.app()) is not None]
    own_app = (*apps, _not_found)[0]
    has_metrics = not apps or not is_public

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "") if scope["type"] == "http" else ""
        if path in ("/healthz", "/readyz"):
            await _report(send, _reasons(services, path))
        elif path == "/metrics" and has_metrics:
            metrics = generate_latest(telemetry.REGISTRY)
            await _respond(send, 200, metrics, b"text/plain; version=0.0.4")
        else:
            await own_app(scope, receive, send)

    return handle


def _reasons(services: Sequence[Service], path: str) -> dict[str, list[str]]:
    """Each service's faults, and for `/readyz` also why it should get no work now."""
    if path == "/readyz":
        return {service.name: service.faults() + service.unready() for service in services}
    return {service.name: service.faults() for service in services}


async def _not_found(scope: Scope, _receive: Receive, send: Send) -> None:
    """The app of a process whose services have none."""
    if scope["type"] == "http":
        await _respond(send, 404, b"not found\n", b"text/plain")


async def _report(send: Send, reasons: dict[str, list[str]]) -> None:
    """Respond with the reasons of each service why it is not well, or with ok."""
    lines: list[str] = []
    for name, texts in reasons.items():
        lines += [f"{name}: {text}" for text in texts]
    status = 503 if lines else 200
    body = "\n".join(lines or [f"ok {' '.join(reasons)}"]) + "\n"
    await _respond(send, status, body.encode(), b"text/plain; charset=utf-8")


async def _respond(send: Send, status: int, body: bytes, content_type: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on this address."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def tls(http: Http) -> ssl.SSLContext | None:
    """The server's TLS context; None if TLS is not configured.

    Raises:
        StartupError: certificate and key are not both set, cannot be read, or do not match.
    """
    cert, key = http.tls_cert, http.tls_key
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise StartupError("[http] has one of tls_cert and tls_key", "set both, or neither")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # Without a password, an encrypted key would prompt on the terminal.
        context.load_cert_chain(cert, key, password="")
    except (OSError, ValueError) as exc:
        reason: str | None = "no PEM pair without password"
        if isinstance(exc, FileNotFoundError | PermissionError):
            reason = exc.strerror
        raise StartupError(
            f"the certificate {cert} with the key {key} cannot be used: {reason}",
            "mend [http] tls_cert (the whole chain) and tls_key (not encrypted)",
        ) from None
    return context


def listen(http: Http) -> socket.socket:
    """Bind the HTTP port, or take the socket that the parent process has bound.

    Raises:
        StartupError: the port is taken, or may not be used.
    """
    if (descriptor := os.environ.pop(LISTEN_ENV, None)) is not None:
        sock = socket.socket(fileno=int(descriptor))
        sock.set_inheritable(False)
        return sock
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    # A restart must not wait for the connections of the process before to be forgotten.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((http.host, http.port))
    except OSError as exc:
        sock.close()
        raise StartupError(
            f"port {http.port} on {http.host} cannot be used: {exc.strerror}",
            "set FUSEWIRE_HTTP__PORT to another port (0 takes any free one)",
        ) from None
    return sock


def collect_rarely() -> None:
    """Run the cyclic garbage collector rarely, and never on the objects that exist now.

    With Python's own thresholds (700, 10, 10) it looks at all live objects many times a second.
    That took a sixth of the CPU of a fusion, measured at 64 in flight, and freed next to nothing:
    objects that are in no cycle are freed without it.
    """
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


class Host:
    """Runs services and their one HTTP server until told to stop.

    Args:
        services: in the order in which they start; the first is stopped last.
        sock: the bound socket to listen on.
        http: settings of the HTTP server.

    Raises:
        StartupError: TLS cannot be served as it is configured.
    """

    def __init__(
        self, services: Sequence[Service], sock: socket.socket, http: Http | None = None
    ) -> None:
        self._services = list(services)
        self._sock = sock
        self._running_services: list[Service] = []
        self._drain_s = max(service.drain_s for service in services)
        http = http or Http()
        context = tls(http)
        config = uvicorn.Config(
            operations(services, is_public=not is_loopback(http.host)),
            log_config=None,
            lifespan="off",
            access_log=False,
            timeout_graceful_shutdown=HTTP_STOP_S,
            timeout_keep_alive=http.keep_alive_s,
            # Uvicorn's own context allows outdated ciphers by default.
            ssl_context_factory=(lambda *_: context) if context else None,
        )
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

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
        # From here on no connection is refused: until uvicorn is up, it waits in the backlog.
        self._sock.listen(1024)
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._sock]), name="http")
        log.info(
            "service.started",
            services=[s.name for s in self._services],
            port=self._sock.getsockname()[1],
        )

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

        A service that does not stop in time, for instance because its database is locked, is
        cancelled. Nothing is lost: its messages are delivered again.
        """
        end = asyncio.get_running_loop().time() + self._drain_s + STOP_S - 1
        for service in self._running_services:
            service.close()
        self._server.should_exit = True
        if self._serving:
            await asyncio.gather(self._serving, return_exceptions=True)
        self._sock.close()
        first, rest = self._running_services[:1], self._running_services[1:]
        # The first, the judge, decides on the answers that workers bring while they drain.
        await _stop(rest, end - 1)
        await _stop(first, end)
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


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handling, as `run` handles signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


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
    host = Host(services, listen(http), http)
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
