"""What holds for each request and response: where it may come from, and what a page may load."""

import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fusewire.http_server import is_loopback

POLICY = "; ".join(
    (
        "default-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""No inline script, no inline style, nothing from elsewhere."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not `no-referrer`, with which browsers send forms without their Origin.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]+")
SAFE_METHODS = frozenset({"GET", "HEAD"})


class Guard:
    """Refuses what another web page sends, and adds the headers of every response.

    Args:
        app: what it guards.
        is_open: whether no key is asked for, so that only this machine may ask.
    """

    def __init__(self, app: ASGIApp, *, is_open: bool) -> None:
        self._app = app
        self._is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_static = scope["path"].startswith("/static/")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if not is_static:
                    headers.setdefault("cache-control", "no-store")
            await send(message)

        reason = self._refusal(scope, Headers(scope=scope))
        app = PlainTextResponse(f"{reason}\n", 403) if reason else self._app
        await app(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> str | None:
        """Why a request is refused; None if it is not."""
        host = headers.get("host", "")
        hostname = _hostname(host)
        if not hostname:
            return "the header Host names no host"
        # Another page's script reaches this machine's address under a name of its own (DNS
        # rebinding), and no key would stop it.
        if self._is_open and not is_loopback(hostname):
            return f"'{host[:100]}' is not this machine; open the console by its address"
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            return "the address has a null character, which no database takes"
        if scope["method"] not in SAFE_METHODS and not _is_own(headers, host):
            return "only a form of this console may send this; a proxy must keep the header Host"
        return None


def _is_own(headers: Headers, host: str) -> bool:
    """Whether a page of this console sends a request.

    Browsers say so in Sec-Fetch-Site, where they trust the connection, and else in Origin.
    """
    if (site := headers.get("sec-fetch-site")) is not None:
        return site == "same-origin"
    scheme, _, sender = headers.get("origin", "").partition("://")
    return scheme in ("http", "https") and sender.lower() == host.lower()


def _hostname(host: str) -> str:
    """The name or address in a header Host, without its port; empty if there is none."""
    try:
        return (_HOST.fullmatch(host) and urlsplit(f"//{host}").hostname) or ""
    except ValueError:
        return ""
