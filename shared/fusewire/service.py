"""What every service is, and the loop that runs one or several of them in a process."""

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
"""Names the file descriptor of a bound socket: a port that was closed for a moment may be another's."""
HTTP_STOP_S = 3
"""How long requests under way may take to end; who waits for an outcome asks again."""
FAULTY_S = 5.0
"""A service with faults for so long ends its process, which its supervisor then starts again."""
GARBAGE_THRESHOLDS = (50_000, 20, 50)
"""How many objects more than were freed start a collection of each generation. See `collect_rarely`."""

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Service(Protocol):
    """One of the five services."""

    name: str
    drain_s: float
    """How long it may take to finish what it has begun once it is told to stop."""

    async def start(self) -> None:
        """Connect and begin to work. Raises StartupError when it cannot."""
        ...

    def close(self) -> None:
        """Let clients go that wait for something; called before the HTTP server stops."""
        ...

    async def stop(self) -> None:
        """Take no more work, finish or hand back what was begun, let go of everything."""
        ...

    def faults(self) -> list[str]:
        """Why it can do nothing any more until it is started again; empty while it can."""
        ...

    def unready(self) -> list[str]:
        """Why it should get no work now; empty while it is ready."""
        ...

    def app(self) -> App | None:
        """Its own HTTP interface, if it has one."""
        ...


def operations(services: Sequence[Service], *, is_public: bool = False) -> App:
    """`/healthz`, `/readyz` and `/metrics` of all services in the process; everything else goes to their own app.

    Where `is_public`, an app of their own is asked for `/metrics` too: it knows who may read them.
    """
    doors = [door for s in services if (door := s.app()) is not None]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "") if scope["type"] == "http" else ""
        if path == "/healthz":
            await _report(send, {s.name: s.faults() for s in services})
        elif path == "/readyz":
            await _report(send, {s.name: s.faults() + s.unready() for s in services})
        elif path == "/metrics" and not (doors and is_public):
            await _respond(
                send, 200, generate_latest(telemetry.REGISTRY), b"text/plain; version=0.0.4"
            )
        elif doors:
            await doors[0](scope, receive, send)
        elif scope["type"] == "http":
            await _respond(send, 404, b"not found\n", b"text/plain")

    return app


async def _report(send: Send, complaints: dict[str, list[str]]) -> None:
    bad = [f"{name}: {text}" for name, texts in complaints.items() for text in texts]
    body = "\n".join(bad or [f"ok {' '.join(complaints)}"]) + "\n"
    await _respond(send, 503 if bad else 200, body.encode(), b"text/plain; charset=utf-8")


async def _respond(send: Send, status: int, body: bytes, content_type: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def tls(http: Http) -> ssl.SSLContext | None:
    """The server's side of TLS; None where it is not configured.

    Raises:
        StartupError: certificate and key are not both given, cannot be read, or do not belong together.
    """
    cert, key = http.tls_cert, http.tls_key
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise StartupError("[http] has one of tls_cert and tls_key", "set both, or neither")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # An encrypted key would be asked for on the terminal.
        context.load_cert_chain(cert, key, password="")
    except (OSError, ValueError) as exc:
        reason = (
            exc.strerror
            if isinstance(exc, FileNotFoundError | PermissionError)
            else "no PEM pair without password"
        )
        raise StartupError(
            f"the certificate {cert} with the key {key} cannot be used: {reason}",
            "mend [http] tls_cert (the whole chain) and tls_key (not encrypted)",
        ) from None
    return context


def listen(http: Http) -> socket.socket:
    """Bind the HTTP port, or take the socket that whoever started this process has bound.

    Raises:
        StartupError: it is taken, or may not be used.
    """
    if (named := os.environ.pop(LISTEN_ENV, None)) is not None:
        bound = socket.socket(fileno=int(named))
        bound.set_inheritable(False)
        return bound
    family = socket.AF_INET6 if ":" in http.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
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
    """Look for cycles of garbage rarely, and not among what was made until now.

    Python's own thresholds (700, 10, 10) look at all that is alive many times a second. That took a sixth of
    the CPU of a fusion, measured at 64 in flight, for next to no garbage: what is not in a cycle is freed
    without it.
    """
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


class Host:
    """Runs services and their one HTTP server until told to stop.

    Args:
        services: in the order in which they start; the first is stopped last.
        sock: where to listen.
        http: how to listen.

    Raises:
        StartupError: TLS cannot be served as it is configured.
    """

    def __init__(
        self, services: Sequence[Service], sock: socket.socket, http: Http | None = None
    ) -> None:
        self._services = list(services)
        self._sock = sock
        self._started: list[Service] = []
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
            # Uvicorn's own takes the ciphers of 1999 as its default.
            ssl_context_factory=(lambda *_: context) if context else None,
        )
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the services in order, then serve HTTP."""
        try:
            for service in self._services:
                # One that fails in the middle has connections to close, too.
                self._started.append(service)
                await service.start()
            collect_rarely()
        except BaseException:
            await self.stop()
            raise
        # From here on nobody is turned away: what comes before uvicorn is up waits in the backlog.
        self._sock.listen(1024)
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._sock]), name="http")
        log.info(
            "service.started",
            services=[s.name for s in self._services],
            port=self._sock.getsockname()[1],
        )

    async def faulty(self) -> list[str]:
        """Wait until a service can do nothing any more, and return why."""
        loop = asyncio.get_running_loop()
        since: float | None = None
        while True:
            await asyncio.sleep(FAULTY_S / 5)
            found = [
                f"{service.name}: {fault}"
                for service in self._started
                for fault in service.faults()
            ]
            if not found:
                since = None
                continue
            since = since or loop.time()
            if loop.time() - since >= FAULTY_S:
                log.error("service.faulty", faults=found)
                return found

    async def stop(self) -> None:
        """Stop: the door closes first, then all services but the first drain at once, then the first.

        What does not stop in time, such as a service whose database is locked, is given up. Nothing is lost:
        what it had begun is begun again by the next one.
        """
        end = asyncio.get_running_loop().time() + self._drain_s + STOP_S - 1
        for service in self._started:
            service.close()
        self._server.should_exit = True
        if self._serving:
            await asyncio.gather(self._serving, return_exceptions=True)
        self._sock.close()
        first, rest = self._started[:1], self._started[1:]
        await _stop(rest, end - 1)
        await _stop(first, end)
        log.info("service.stopped", services=[s.name for s in self._services])


async def _stop(services: Sequence[Service], end: float) -> None:
    """Stop services side by side, until `end` (the loop's time) at the latest."""
    tasks = {asyncio.create_task(service.stop()): service.name for service in services}
    if not tasks:
        return
    done, late = await asyncio.wait(
        tasks, timeout=max(0.0, end - asyncio.get_running_loop().time())
    )
    for task in late:
        task.cancel()
        log.warning("service.stop_timed_out", service=tasks[task])
    for task in done:
        if error := task.exception():
            log.warning("service.stop_failed", service=tasks[task], fault=type(error).__name__)


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handling: the host has the only one."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


def end_stalled(trace: list[str]) -> NoReturn:
    """End this process, whose event loop stands still; whoever started it starts it again.

    What stalled it is delivered again, and laid aside when processes have ended of it again and again.
    """
    log.error("service.stalled", trace=trace)
    os._exit(1)


async def run(services: Sequence[Service], http: Http) -> list[str]:
    """Run until SIGTERM, SIGINT, SIGHUP, the end of the parent process, or a fault of a service; then drain.

    Returns:
        The faults; empty after a signal.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    drain_s = max(service.drain_s for service in services)

    def ask_to_stop() -> None:
        # In a thread of its own: the event loop may be blocked, and the interpreter waits for threads that are.
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
    found = await asyncio.gather(failing, return_exceptions=True)
    return found[0] if isinstance(found[0], list) else []


def main(name: str, build: Callable[[Settings], Service]) -> NoReturn:
    """Run one service as a process of its own: `python -m fusewire_<name>`.

    Exits with 0 after a signal, 2 when it cannot run as it is configured, 5 when what is stored cannot be used, 1 where
    it can do nothing any more.
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
