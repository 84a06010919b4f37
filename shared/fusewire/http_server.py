"""HTTP servers on sockets that are bound beforehand, so that a taken port is told at once."""

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from fusewire.errors import StartupError
from fusewire.settings import Console, Http

LISTEN_ENV = "FUSEWIRE_LISTEN_FD"
"""Environment variable with the file descriptor of a bound socket: a port that was closed for a
moment may be taken by another process."""
STOP_S = 3
"""How long requests under way may take to end; a client that waits for an outcome asks again."""

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on this address."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def needs_keys(http: Http) -> bool:
    """Whether API and console require keys."""
    return http.keys == "required" or not is_loopback(http.host)


def check_encryption(http: Http) -> None:
    """Raise StartupError if keys and prompts would cross a network unencrypted."""
    if not is_loopback(http.host) and http.tls_cert is None and not http.allow_insecure:
        raise StartupError(
            f"http.host is {http.host}, which others than this machine can reach, and there is no"
            " TLS: keys and prompts would cross the network in the clear",
            "set [http] tls_cert and tls_key; or where a proxy before it has TLS, allow_insecure ="
            " true (fusewire up --behind-proxy); or host = '127.0.0.1'",
        )


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
    return _bind(http.host, http.port, "FUSEWIRE_HTTP__PORT")


def listen_console(http: Http, console: Console, api_port: int) -> socket.socket:
    """Bind the console's port beside that of the API, in this process.

    Raises:
        StartupError: the port is taken, or may not be used.
    """
    port = console.port_beside(http.port and api_port, http.operations_port)
    return _bind(http.host, port, "FUSEWIRE_CONSOLE__PORT")


def listen_operations(http: Http) -> socket.socket | None:
    """Bind the port of health and metrics; None if they have no port of their own.

    Raises:
        StartupError: the port is taken, or may not be used.
    """
    if http.operations_port is None:
        return None
    return _bind(http.host, http.operations_port, "FUSEWIRE_HTTP__OPERATIONS_PORT")


def _bind(host: str, port: int, variable: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    # A restart must not wait for the connections of the process before to be forgotten.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as exc:
        sock.close()
        raise StartupError(
            f"port {port} on {host} cannot be used: {exc.strerror}",
            f"set {variable} to another port (0 takes any free one)",
        ) from None
    return sock


async def respond(send: Send, status: int, body: bytes, content_type: bytes) -> None:
    """Send a whole response."""
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Server:
    """A server of one app on one bound socket.

    Args:
        app: what it serves.
        sock: the bound socket.
        context: for HTTPS; None serves plain HTTP.
        keep_alive_s: how long an idle connection is kept open.
    """

    def __init__(
        self, app: App, sock: socket.socket, context: ssl.SSLContext | None, keep_alive_s: int
    ) -> None:
        self._sock = sock
        config = uvicorn.Config(
            app,
            log_config=None,
            lifespan="off",
            access_log=False,
            timeout_graceful_shutdown=STOP_S,
            timeout_keep_alive=keep_alive_s,
            # Uvicorn's own context allows outdated ciphers by default.
            ssl_context_factory=(lambda *_: context) if context else None,
        )
        self._server = _UvicornServer(config)
        self._serving: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that it is bound to."""
        return int(self._sock.getsockname()[1])

    def start(self) -> None:
        """Take connections from now on: until uvicorn is up, they wait in the backlog."""
        self._sock.listen(1024)
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._sock]), name="http")

    async def stop(self) -> None:
        """Take no more connections, and end those that there are within `STOP_S`."""
        self._server.should_exit = True
        if self._serving:
            await asyncio.gather(self._serving, return_exceptions=True)
        self._sock.close()


class _UvicornServer(uvicorn.Server):
    """Uvicorn without its own signal handling, as `service.run` handles signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield
