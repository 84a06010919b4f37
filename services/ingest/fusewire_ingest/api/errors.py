"""Every error in OpenAI's shape, and every response with an id."""

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from fusewire import replies
from fusewire.bus import fault
from fusewire.errors import Transient
from fusewire_ingest.access import AccessError
from fusewire_ingest.admission.admit import RefusedError

log = structlog.get_logger(__name__)

STATUS = {
    "prompt_too_large": 413,
    "custom_id_conflict": 409,
    "unknown_pool": 404,
    "model_not_found": 404,
    "unknown_file": 404,
    "unknown_response": 404,
    "file_too_large": 413,
    "file_in_use": 409,
    "idempotency_conflict": 409,
    "batch_state": 409,
    "budget_exceeded": 429,
}
"""Of refusals; all others are 400."""
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""OpenAI's names; else it is the request's fault or the server's."""
GONE = 499
"""For a client that nobody can answer any more."""
UNAVAILABLE_S = 2.0
OPENROUTER_PREFIX = "/api/v1"
_OPENROUTER_SDK = re.compile(r"speakeasy-sdk/.*openrouter", re.IGNORECASE)
_AI_SDK = "ai-sdk/"
"""In the name of Vercel's AI SDK; it names OpenRouter's provider in requests for a stream alone."""


_ELSEWHERE = {
    "completions": "send the prompt as a message to /v1/chat/completions",
    **dict.fromkeys(
        ("assistants", "threads"), "keep the conversation yourself, or go on with /v1/responses"
    ),
    **dict.fromkeys(("messages", "complete"), "send the conversation to /v1/chat/completions"),
    **dict.fromkeys(
        (
            "embeddings",
            "images",
            "audio",
            "moderations",
            "fine_tuning",
            "vector_stores",
            "realtime",
            "videos",
        ),
        "Fusewire fuses answers in text: /v1/chat/completions, /v1/responses, /v1/fusions, /v1/batches",
    ),
}
"""What stands in for addresses of OpenAI's and Anthropic's that are not there, by their first part."""


class HttpError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        is_final: bool = False,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.is_final = is_final
        """Whether the same request would end in the same, whatever its status says to an SDK."""
        self.retry_after_s = retry_after_s
        self.headers = headers
        self.about = about
        """The fusion that it is about, and its members' errors."""
        super().__init__(message)


_OPENROUTER_TYPES = {
    401: "authentication",
    402: "payment_required",
    403: "permission_denied",
    404: "not_found",
    409: "precondition_failed",
    413: "payload_too_large",
    429: "rate_limit_exceeded",
    502: "provider_unavailable",
    503: "provider_overloaded",
    504: "timeout",
}


class ClientDisconnectedError(Exception):
    """The client went away."""


def is_openrouter(request: Request) -> bool:
    """Whether a client of OpenRouter's asks: at its address, or by its name."""
    agent = request.headers.get("user-agent", "")
    return (
        request.url.path.startswith(OPENROUTER_PREFIX) or _OPENROUTER_SDK.match(agent) is not None
    )


def takes_no_null_cost(request: Request) -> bool:
    """Whether a client asks that cannot read a reply whose cost is null."""
    return _AI_SDK in request.headers.get("user-agent", "")


def body(
    request: Request,
    status: int,
    code: str,
    message: str,
    param: str | None = None,
    *,
    about: Mapping[str, Any] | None = None,
) -> replies.errors.Error:
    """An error in OpenAI's shape."""
    default = "invalid_request_error" if status < 500 else "server_error"
    found: replies.errors.ErrorDetail = {
        "message": message,
        "type": TYPES.get(status, default),
        "param": param,
        "code": code,
    }
    # Codes are numbers at OpenRouter, and its SDK cannot read others.
    if is_openrouter(request):
        kind = _OPENROUTER_TYPES.get(status, "invalid_request" if status < 500 else "server")
        found["code"] = status
        found["metadata"] = {
            "code": code,
            "error_type": kind,
            **({"fusion": about} if about else {}),
        }
    elif about:
        found["fusion"] = dict(about)
    return {"error": found}


def error(
    request: Request,
    status: int,
    code: str,
    message: str,
    param: str | None = None,
    *,
    retry_after_s: float | None = None,
    is_final: bool = False,
    headers: Mapping[str, str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> JSONResponse:
    """A response in OpenAI's shape, with what SDKs want to know before they try again by themselves."""
    told = dict(headers or {})
    if retry_after_s is not None:
        told |= {
            "retry-after": str(math.ceil(retry_after_s)),
            "retry-after-ms": str(math.ceil(retry_after_s * 1000)),
        }
    if is_final or (status < 500 and status != 429):
        told["x-should-retry"] = "false"
    return JSONResponse(body(request, status, code, message, param, about=about), status, told)


class ErrorMiddleware:
    """The outermost layer: gives each response an id, and answers for what nobody foresaw."""

    def __init__(self, app: ASGIApp, new_id: Callable[[], str]) -> None:
        self._app = app
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = self._new_id()
        is_begun = False
        is_head = scope["method"] == "HEAD"
        # An address with a slash at its end is the same, and HEAD is GET without the body.
        scope = {
            **scope,
            "path": scope["path"].rstrip("/") or "/",
            "method": "GET" if is_head else scope["method"],
        }

        async def named(message: MutableMapping[str, Any]) -> None:
            nonlocal is_begun
            if message["type"] == "http.response.start":
                is_begun = True
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                ]
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, named)
            except ClientDisconnect:
                log.debug("api.client_gone")
            except asyncio.CancelledError:
                # Only the web server does that, to what is still under way when its time to stop is over. It would
                # take it for a fault.
                log.warning("api.cut_off", path=_route(scope))
                if not is_begun:
                    told = error(
                        Request(scope),
                        503,
                        "draining",
                        "this Fusewire stops; send the request again",
                        retry_after_s=1,
                    )
                    await told(scope, receive, named)
            except Exception as exc:  # noqa: BLE001 - what no handler knows is a fault of ours, and hides its text
                # Further out, the web server would log it with its text, which may hold a prompt.
                log.error("api.broken", fault=fault(exc), path=_route(scope))  # noqa: TRY400 - no text of its
                if not is_begun:
                    told = error(
                        Request(scope),
                        500,
                        "internal_error",
                        f"Fusewire failed; the log has more under {request_id}",
                    )
                    await told(scope, receive, named)
                # Else it ends without its end, and the web server closes the connection.


def _route(scope: Scope) -> str:
    """The route's pattern, without what a client filled in."""
    return str(getattr(scope.get("route"), "path", ""))


def _absent(path: str) -> str:
    """What to say of an address at which there is nothing."""
    tail = path.removeprefix(OPENROUTER_PREFIX).removeprefix("/v1").strip("/").partition("/")[0]
    instead = _ELSEWHERE.get(tail)
    return (
        f"there is nothing at this address; {instead}"
        if instead
        else "there is nothing at this address"
    )


Handler = Callable[[Request, Any], Awaitable[Response]]


def handle(app: FastAPI) -> None:
    """Teach an application to answer with them."""

    @app.exception_handler(HttpError)
    async def _error(request: Request, exc: HttpError) -> Response:
        return error(
            request,
            exc.status,
            exc.code,
            exc.message,
            retry_after_s=exc.retry_after_s,
            is_final=exc.is_final,
            headers=exc.headers,
            about=exc.about,
        )

    @app.exception_handler(RefusedError)
    async def _refused(request: Request, exc: RefusedError) -> Response:
        return error(
            request, STATUS.get(exc.code, 400), exc.code, exc.message, exc.param, is_final=True
        )

    @app.exception_handler(AccessError)
    async def _no_access(request: Request, exc: AccessError) -> Response:
        headers = {"www-authenticate": "Bearer"} if exc.status == 401 else None
        return error(
            request,
            exc.status,
            exc.code,
            exc.message,
            retry_after_s=exc.retry_after_s,
            headers=headers,
        )

    @app.exception_handler(Transient)
    async def _unavailable(request: Request, exc: Transient) -> Response:
        # A commit whose answer was lost may have been one: nobody knows that nothing was accepted.
        message = (
            f"{exc}; try again: with the same custom_id or Idempotency-Key nothing is begun twice"
        )
        return error(
            request, 503, "unavailable", message, retry_after_s=exc.retry_after_s or UNAVAILABLE_S
        )

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, exc: RequestValidationError) -> Response:
        first = exc.errors()[0]
        name = str(first["loc"][-1])
        return error(request, 400, "invalid_request", f"'{name}': {first['msg']}", name)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, exc: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(exc.status_code, "http_error")
        message = {404: _absent(request.url.path), 405: "this address does not take this method"}
        return error(
            request,
            exc.status_code,
            code,
            message.get(exc.status_code, str(exc.detail)),
            headers=exc.headers,
        )

    @app.exception_handler(ClientDisconnectedError)
    async def _gone(_request: Request, _exc: ClientDisconnectedError) -> Response:
        return Response(status_code=GONE)
