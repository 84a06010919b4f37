"""The outermost layer of the API: an id for each response, and a reply to each unhandled error."""

import asyncio
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from fusewire.bus import fault
from fusewire.metrics import count_request
from fusewire_ingest.admission.rates import Limits
from fusewire_ingest.api.errors import error_response

log = structlog.get_logger(__name__)


class ErrorMiddleware:
    """The outermost layer: counts requests, gives each an id, and replies to unhandled errors.

    Replies to callers with rate limits tell what is left of them (`request.state.limits`).
    """

    def __init__(
        self,
        app: ASGIApp,
        new_id: Callable[[], str],
        rate_headers: Callable[[Limits], Mapping[str, str]],
    ) -> None:
        self._app = app
        self._new_id = new_id
        self._rate_headers = rate_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = time.perf_counter()
        request_id = self._new_id()
        is_head = scope["method"] == "HEAD"
        scope = _normalize(scope)

        def headers() -> Mapping[str, str]:
            return {
                "x-request-id": request_id,
                **self._rate_headers(scope["state"].get("limits", {})),
            }

        response = _ResponseStream(send, headers, is_head=is_head)
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, response.send)
            except ClientDisconnect:
                log.debug("api.client_gone")
            except asyncio.CancelledError:
                # Only the web server cancels: requests that still run at the end of its time to
                # stop. Not raised again, as it would log that as a fault.
                log.warning("api.cut_off", path=_route(scope))
                message = "this Fusewire stops; send the request again"
                error = error_response(Request(scope), 503, "draining", message, retry_after_s=1)
                await response.send_first(error, scope, receive)
            except Exception as exc:  # noqa: BLE001 - what no handler knows is a fault of ours, and hides its text
                # Not raised again: the web server would log its text, which may hold a prompt.
                log.error("api.broken", fault=fault(exc), path=_route(scope))  # noqa: TRY400 - no text of its
                message = f"Fusewire failed; the log has more under {request_id}"
                error = error_response(Request(scope), 500, "internal_error", message)
                await response.send_first(error, scope, receive)
            finally:
                seconds = time.perf_counter() - started_at
                count_request(scope["method"], _route(scope), response.status, seconds)


class _ResponseStream:
    """Sends one response, with further headers, and without a body if the request is HEAD."""

    def __init__(
        self, send: Send, headers: Callable[[], Mapping[str, str]], *, is_head: bool
    ) -> None:
        self._send = send
        self._headers = headers
        """The headers to add, as they are when the response begins."""
        self._is_head = is_head
        self.status: int | None = None
        """The status that was sent; None as long as none was."""

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """ASGI's send."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                *((name.encode(), value.encode()) for name, value in self._headers().items()),
            ]
        elif self._is_head:
            message = {**message, "body": b""}
        await self._send(message)

    async def send_first(self, response: Response, scope: Scope, receive: Receive) -> None:
        """Send a response unless one has begun; the web server then closes the connection."""
        if self.status is None:
            await response(scope, receive, self.send)


def _normalize(scope: Scope) -> Scope:
    """Drop a slash at the end of the path, turn HEAD into GET, and give it a state of its own."""
    method = scope["method"]
    return {
        **scope,
        "path": scope["path"].rstrip("/") or "/",
        "method": "GET" if method == "HEAD" else method,
        "state": dict(scope.get("state", {})),
    }


def _route(scope: Scope) -> str:
    """The route's pattern, without the client's parameters."""
    return str(getattr(scope.get("route"), "path", ""))
