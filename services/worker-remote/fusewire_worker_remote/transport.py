"""HTTP to providers: sessions, and the failure that each fault of a connection means."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace

import aiohttp

from fusewire.contracts import ErrorCode
from fusewire_worker_remote.addresses import forbidden, open_socket
from fusewire_worker_remote.errors import Failure, truncation
from fusewire_worker_remote.large_body import BlobSource, LargeBody, with_large_parts
from fusewire_worker_remote.providers.base import HttpRequest, HttpResponse
from fusewire_worker_remote.providers.reading import looks_like_events

MAX_BODY_BYTES = 2 * 1024 * 1024
"""Most bytes that are read of a response.

An answer has to fit a bus message, which holds half as many.
"""

MAX_STREAM_BYTES = 32 * MAX_BODY_BYTES
"""Most bytes that are read of a stream, in which some hundred bytes surround each token."""

_CONNECT_S = 10.0

ChunkReader = Callable[[bytes], Awaitable[bool]]
"""Takes the next bytes of a stream; returns whether the rest of it can be ignored."""


class Transport:
    """Posts requests.

    Only the configured address is called: no redirects, no proxy variables, no metadata services.

    Args:
        max_body_bytes: most bytes of a response that is no stream.
        images: the store of large parts; None if no request has any.
    """

    def __init__(
        self, max_body_bytes: int = MAX_BODY_BYTES, images: BlobSource | None = None
    ) -> None:
        self._images = images
        self._max_body_bytes = max_body_bytes
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def post(
        self,
        request: HttpRequest,
        timeout_s: float,
        reader: ChunkReader | None = None,
        images: Mapping[str, str] | None = None,
    ) -> HttpResponse | Failure:
        """Send a request and read its response.

        Every fault is returned as a failure. It is ambiguous if bytes had been sent
        (docs/decisions/0020).

        Args:
            request: the request to send.
            timeout_s: seconds for the whole exchange.
            reader: takes the body as it comes if it is a stream of events; any other body is read
                whole.
            images: names of large parts, by the mark that stands for each in the request.
        """
        body = await self._with_large_parts(request, images or {})
        if isinstance(body, Failure):
            return body
        length = {"Content-Length": str(body.size)} if isinstance(body, LargeBody) else {}
        trace = SimpleNamespace(is_sent=False)
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._open(is_streamed=reader is not None).post(
                    request.url,
                    data=body,
                    headers={**request.headers, **length},
                    allow_redirects=False,
                    trace_request_ctx=trace,
                ) as response,
            ):
                # An error is no stream, even where one was asked for.
                if reader is None or not response.ok:
                    return await self._read_whole(response, b"")
                first_chunk = await response.content.readany()
                if _is_stream(response, first_chunk):
                    return await self._read_stream(response, first_chunk, reader)
                return await self._read_whole(response, first_chunk)
        except (TimeoutError, aiohttp.ClientError, OSError) as exc:
            body_failure = body.failure if isinstance(body, LargeBody) else None
            failure = body_failure or forbidden(exc)
            return failure or _wire_failure(exc, is_sent=trace.is_sent, timeout_s=timeout_s)

    async def _with_large_parts(
        self, request: HttpRequest, names: Mapping[str, str]
    ) -> bytes | LargeBody | Failure:
        if not names:
            return request.body
        if self._images is None:
            return Failure(
                "bad_request",
                "there is no store to read its images and long texts from",
                retryable=False,
                origin="store",
            )
        return await with_large_parts(request.body, names, self._images)

    async def aclose(self) -> None:
        """Close every connection."""
        for session in self._sessions.values():
            await session.close()

    def _open(self, *, is_streamed: bool) -> aiohttp.ClientSession:
        if is_streamed not in self._sessions:
            tracing = aiohttp.TraceConfig()
            tracing.on_request_headers_sent.append(_mark_sent)
            # No limit here: each model has a limit of its own. Streams close their connection:
            # llama.cpp's server closes it after each stream without saying so, and a call begun on
            # it meanwhile fails like one whose answer was lost, which may be paid for.
            connector = aiohttp.TCPConnector(
                limit=0, force_close=is_streamed, socket_factory=open_socket
            )
            self._sessions[is_streamed] = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                trace_configs=[tracing],
            )
        return self._sessions[is_streamed]

    async def _read_whole(
        self, response: aiohttp.ClientResponse, first_chunk: bytes
    ) -> HttpResponse | Failure:
        chunks = [first_chunk]
        size = len(first_chunk)
        try:
            async for chunk in response.content.iter_any():
                size += len(chunk)
                if size > self._max_body_bytes:
                    return _too_large(self._max_body_bytes)
                chunks.append(chunk)
        except aiohttp.ClientError:
            return _break("the connection closed within the response")
        return HttpResponse(response.status, _headers(response), b"".join(chunks))

    async def _read_stream(
        self, response: aiohttp.ClientResponse, first_chunk: bytes, reader: ChunkReader
    ) -> HttpResponse | Failure:
        size = len(first_chunk)
        try:
            is_over = await reader(first_chunk)
            async for chunk in response.content.iter_any():
                if is_over:
                    break
                size += len(chunk)
                if size > MAX_STREAM_BYTES:
                    return _too_large(MAX_STREAM_BYTES)
                is_over = await reader(chunk)
        except aiohttp.ClientError:
            return _break("the connection closed within the stream")
        return HttpResponse(response.status, _headers(response), b"", is_streamed=True)


def _is_stream(response: aiohttp.ClientResponse, first_chunk: bytes) -> bool:
    if "event-stream" in response.headers.get("content-type", ""):
        return True
    # Some servers stream events under another type.
    return looks_like_events(first_chunk)


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _too_large(max_bytes: int) -> Failure:
    message = f"the response exceeds {max_bytes} bytes"
    return Failure("answer_too_large", message, retryable=False, billed=True)


async def _mark_sent(
    _session: aiohttp.ClientSession,
    context: SimpleNamespace,
    _params: aiohttp.TraceRequestHeadersSentParams,
) -> None:
    """Note, right before the first byte is written, that bytes may have left this machine."""
    context.trace_request_ctx.is_sent = True


def _break(message: str) -> Failure:
    return replace(truncation(message), origin="connection")


def _wire_failure(exc: Exception, *, is_sent: bool, timeout_s: float) -> Failure:
    fault = type(exc).__name__
    code: ErrorCode
    if not is_sent:
        code, message = "connect_error", f"not connected ({fault})"
    elif isinstance(exc, TimeoutError):
        code, message = "timeout", f"no answer within {timeout_s:.3g} s"
    else:
        code, message = "truncated", f"the connection broke ({fault})"
    return Failure(code, message, retryable=True, ambiguous=is_sent, origin="connection")
