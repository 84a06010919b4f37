"""Every error in OpenAI's form."""

import math
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from fusewire import replies
from fusewire.errors import TextsDeletedError, Transient
from fusewire_ingest.access import AccessError
from fusewire_ingest.admission.admit import RefusedError
from fusewire_ingest.admission.refusal import BudgetRefusedError
from fusewire_ingest.openai import openrouter as openrouter_shape
from fusewire_ingest.rate_limits import RateLimitError

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
    "outcome_pending": 409,
    "no_answer": 409,
    "budget_exceeded": 402,
}
"""HTTP status of refusals by code; all others are 400."""
TYPES = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}
"""OpenAI's `type` of errors; other statuses have a general one."""
GONE = 499
"""Status for a client that has disconnected, as nginx logs it."""
UNAVAILABLE_S = 2.0
"""Default of `retry-after`, seconds."""
IN_FLIGHT_S = 10.0
"""`retry-after` where a budget is only reserved, and not spent, seconds."""
OPENROUTER_PREFIX = "/api/v1"
_OPENROUTER_SDK = re.compile(r"speakeasy-sdk/.*openrouter", re.IGNORECASE)
_AI_SDK = "ai-sdk/"
"""In the user agent of Vercel's AI SDK, which names OpenRouter's provider only in streams."""

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
        "Fusewire fuses answers in text: "
        "/v1/chat/completions, /v1/responses, /v1/fusions, /v1/batches",
    ),
}
"""Replacements of OpenAI's and Anthropic's addresses that do not exist, by their first part."""


class HttpError(Exception):
    """An error reply to a request."""

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
        """Whether repeating the request is useless, whatever an SDK makes of the status."""
        self.retry_after_s = retry_after_s
        self.headers = headers
        self.about = about
        """The fusion's id, and its members' errors."""
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
    """The client disconnected."""


def is_openrouter(request: Request) -> bool:
    """Whether the client is one of OpenRouter's, by the address or the user agent."""
    agent = request.headers.get("user-agent", "")
    return (
        request.url.path.startswith(OPENROUTER_PREFIX) or _OPENROUTER_SDK.match(agent) is not None
    )


def rejects_null_cost(request: Request) -> bool:
    """Whether the client cannot parse a reply with a cost of null."""
    return _AI_SDK in request.headers.get("user-agent", "")


def body(
    request: Request,
    status: int,
    code: str,
    message: str,
    param: str | None = None,
    *,
    about: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> replies.errors.Error:
    """An error in OpenAI's form.

    Args:
        request: the request.
        status: the HTTP status.
        code: Fusewire's code of the error.
        message: what is wrong, and how to mend it.
        param: the path of the faulty part.
        about: the fusion's id, and its members' errors.
        metadata: further fields for OpenRouter's clients.
    """
    default_type = "invalid_request_error" if status < 500 else "server_error"
    detail: replies.errors.ErrorDetail = {
        "message": message,
        "type": TYPES.get(status, default_type),
        "param": param,
        "code": code,
    }
    # OpenRouter's codes are numbers, and its SDK cannot parse others.
    if is_openrouter(request):
        kind = _OPENROUTER_TYPES.get(status, "invalid_request" if status < 500 else "server")
        detail["code"] = status
        detail["metadata"] = {"code": code, "error_type": kind, **(metadata or {})}
        if about:
            detail["metadata"]["fusion"] = about
    elif about:
        detail["fusion"] = dict(about)
    return {"error": detail}


def error_response(
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
    metadata: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A response in OpenAI's form, with headers that tell SDKs whether and when to retry."""
    response_headers = dict(headers or {})
    if retry_after_s is not None:
        response_headers |= {
            "retry-after": str(math.ceil(retry_after_s)),
            "retry-after-ms": str(math.ceil(retry_after_s * 1000)),
        }
    if is_final or (status < 500 and status != 429):
        response_headers["x-should-retry"] = "false"
    content = body(request, status, code, message, param, about=about, metadata=metadata)
    return JSONResponse(content, status, response_headers)


def _not_found_message(path: str) -> str:
    """The message about an address that does not exist."""
    tail = path.removeprefix(OPENROUTER_PREFIX).removeprefix("/v1").strip("/").partition("/")[0]
    instead = _ELSEWHERE.get(tail)
    message = "there is nothing at this address"
    return f"{message}; {instead}" if instead else message


Handler = Callable[[Request, Any], Awaitable[Response]]


def add_handlers(app: FastAPI) -> None:
    """Register handlers that reply to every exception in OpenAI's form."""

    @app.exception_handler(HttpError)
    async def _error(request: Request, exc: HttpError) -> Response:
        return error_response(
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
    async def _refusal(request: Request, exc: RefusedError) -> Response:
        return error_response(
            request, STATUS.get(exc.code, 400), exc.code, exc.message, exc.param, is_final=True
        )

    @app.exception_handler(BudgetRefusedError)
    async def _budget(request: Request, exc: BudgetRefusedError) -> Response:
        return error_response(
            request,
            STATUS[exc.code],
            exc.code,
            exc.message,
            retry_after_s=IN_FLIGHT_S if exc.fits_later else None,
            is_final=True,
            metadata=openrouter_shape.payment_metadata(exc),
        )

    @app.exception_handler(AccessError)
    async def _no_access(request: Request, exc: AccessError) -> Response:
        headers = {"www-authenticate": "Bearer"} if exc.status == 401 else None
        return error_response(request, exc.status, exc.code, exc.message, headers=headers)

    @app.exception_handler(RateLimitError)
    async def _rate_limited(request: Request, exc: RateLimitError) -> Response:
        request.state.limits = exc.limits
        return error_response(
            request, 429, "rate_limited", exc.message, retry_after_s=exc.retry_after_s
        )

    @app.exception_handler(TextsDeletedError)
    async def _deleted(request: Request, exc: TextsDeletedError) -> Response:
        return error_response(request, 410, "texts_deleted", str(exc), is_final=True)

    @app.exception_handler(Transient)
    async def _unavailable(request: Request, exc: Transient) -> Response:
        # The prompt may be accepted all the same: the reply to its commit may have been lost.
        message = (
            f"{exc}; try again: with the same custom_id or Idempotency-Key nothing is begun twice"
        )
        return error_response(
            request, 503, "unavailable", message, retry_after_s=exc.retry_after_s or UNAVAILABLE_S
        )

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, exc: RequestValidationError) -> Response:
        first = exc.errors()[0]
        name = str(first["loc"][-1])
        return error_response(request, 400, "invalid_request", f"'{name}': {first['msg']}", name)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, exc: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(exc.status_code, "http_error")
        message = {
            404: _not_found_message(request.url.path),
            405: "this address does not take this method",
        }
        return error_response(
            request,
            exc.status_code,
            code,
            message.get(exc.status_code, str(exc.detail)),
            headers=exc.headers,
        )

    @app.exception_handler(ClientDisconnectedError)
    async def _disconnection(_request: Request, _exc: ClientDisconnectedError) -> Response:
        return Response(status_code=GONE)
