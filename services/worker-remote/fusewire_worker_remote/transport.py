"""HTTP to providers: one session, and what each way to fail on the wire means."""

import asyncio
from types import SimpleNamespace

import aiohttp

from fusewire_worker_remote.errors import Failure, truncated
from fusewire_worker_remote.providers.base import HttpRequest, HttpResponse

MAX_BODY_BYTES = 2 * 1024 * 1024
"""Above this a response is not read on. An answer has to fit a bus message, which takes half of it."""

_CONNECT_S = 10.0


class Transport:
    """Posts requests. Follows no redirect and heeds no proxy variable: only the configured address is called."""

    def __init__(self, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._max_body_bytes = max_body_bytes
        self._session: aiohttp.ClientSession | None = None

    async def post(self, request: HttpRequest, timeout_s: float) -> HttpResponse | Failure:
        """Send and read whole. Whatever goes wrong is a failure, which knows whether bytes had been sent."""
        sent = SimpleNamespace(any=False)
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._open().post(
                    request.url,
                    data=request.body,
                    headers=request.headers,
                    allow_redirects=False,
                    trace_request_ctx=sent,
                ) as response,
            ):
                try:
                    body = await self._read(response.content)
                except aiohttp.ClientError:
                    return truncated("the connection closed within the response")
                if body is None:
                    what = f"the response exceeds {self._max_body_bytes} bytes"
                    return Failure("answer_too_large", what, retryable=False, billed=True)
                headers = {name.lower(): value for name, value in response.headers.items()}
                return HttpResponse(response.status, headers, body)
        except (TimeoutError, aiohttp.ClientError, OSError) as exc:
            return _broken(exc, sent=sent.any, timeout_s=timeout_s)

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            tracing = aiohttp.TraceConfig()
            tracing.on_request_headers_sent.append(_mark_sent)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # each model has a limit of its own
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                trace_configs=[tracing],
            )
        return self._session

    async def _read(self, content: aiohttp.StreamReader) -> bytes | None:
        """The whole body, or None if it is too large."""
        chunks: list[bytes] = []
        size = 0
        async for chunk in content.iter_any():
            size += len(chunk)
            if size > self._max_body_bytes:
                return None
            chunks.append(chunk)
        return b"".join(chunks)


async def _mark_sent(
    _session: aiohttp.ClientSession, context: SimpleNamespace, _params: aiohttp.TraceRequestHeadersSentParams
) -> None:
    """Comes right before the first byte is written: unmarked means that nothing left this machine."""
    context.trace_request_ctx.any = True


def _broken(exc: Exception, *, sent: bool, timeout_s: float) -> Failure:
    if not sent:
        return Failure("connect_error", f"not connected ({type(exc).__name__})", retryable=True)
    if isinstance(exc, TimeoutError):
        return Failure("timeout", f"no answer within {timeout_s:.3g} s", retryable=True, ambiguous=True)
    return Failure("truncated", f"the connection broke ({type(exc).__name__})", retryable=True, ambiguous=True)
