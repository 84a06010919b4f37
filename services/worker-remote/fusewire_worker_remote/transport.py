"""HTTP to providers: sessions, and what each way to fail on the wire means."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace

import aiohttp

from fusewire_worker_remote.errors import Failure, truncated
from fusewire_worker_remote.large_body import BlobSource, LargeBody, with_large_parts
from fusewire_worker_remote.providers.base import HttpRequest, HttpResponse
from fusewire_worker_remote.providers.reading import looks_like_events

MAX_BODY_BYTES = 2 * 1024 * 1024
"""Above this a response is not read on. An answer has to fit a bus message, which takes half of it."""

MAX_STREAM_BYTES = 32 * MAX_BODY_BYTES
"""The same for a stream, in which some hundred bytes stand around each token."""

_CONNECT_S = 10.0

Hear = Callable[[bytes], Awaitable[bool]]
"""Takes the next bytes of a stream; whether they were the last that count."""


class Transport:
    """Posts requests. Follows no redirect and heeds no proxy variable: only the configured address is called."""

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
        hear: Hear | None = None,
        images: Mapping[str, str] | None = None,
    ) -> HttpResponse | Failure:
        """Send and read. Whatever goes wrong is a failure, which knows whether bytes had been sent.

        Args:
            request: what to send.
            timeout_s: for all of it.
            hear: gets the body as it comes, if that is a stream of events; any other is read whole all the same.
            images: names of large images, by the mark that stands for each in the request.
        """
        body = await self._with_large_parts(request, images or {})
        if isinstance(body, Failure):
            return body
        length = {"Content-Length": str(body.size)} if isinstance(body, LargeBody) else {}
        sent = SimpleNamespace(any=False)
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._open(is_streamed=hear is not None).post(
                    request.url,
                    data=body,
                    headers={**request.headers, **length},
                    allow_redirects=False,
                    trace_request_ctx=sent,
                ) as response,
            ):
                if hear is None or not response.ok:
                    return await self._whole(response, b"")
                begun = await response.content.readany()
                # Some servers stream events under another type.
                is_stream = "event-stream" in response.headers.get(
                    "content-type", ""
                ) or looks_like_events(begun)
                return await (
                    self._heard(response, begun, hear)
                    if is_stream
                    else self._whole(response, begun)
                )
        except (TimeoutError, aiohttp.ClientError, OSError) as exc:
            broken_off = body.failure if isinstance(body, LargeBody) else None
            return broken_off or _broken(exc, sent=sent.any, timeout_s=timeout_s)

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
            # Each model has a limit of its own. llama.cpp's server closes the connection after each stream and does
            # not say so; a call begun on it meanwhile fails just as one whose answer was lost, and may be paid for.
            connector = aiohttp.TCPConnector(limit=0, force_close=is_streamed)
            self._sessions[is_streamed] = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                trace_configs=[tracing],
            )
        return self._sessions[is_streamed]

    async def _whole(
        self, response: aiohttp.ClientResponse, begun: bytes
    ) -> HttpResponse | Failure:
        chunks = [begun]
        size = len(begun)
        try:
            async for chunk in response.content.iter_any():
                size += len(chunk)
                if size > self._max_body_bytes:
                    return _too_large(self._max_body_bytes)
                chunks.append(chunk)
        except aiohttp.ClientError:
            return truncated("the connection closed within the response")
        return HttpResponse(response.status, _headers(response), b"".join(chunks))

    async def _heard(
        self, response: aiohttp.ClientResponse, begun: bytes, hear: Hear
    ) -> HttpResponse | Failure:
        size = len(begun)
        try:
            is_over = await hear(begun)
            async for chunk in response.content.iter_any():
                if is_over:
                    break
                size += len(chunk)
                if size > MAX_STREAM_BYTES:
                    return _too_large(MAX_STREAM_BYTES)
                is_over = await hear(chunk)
        except aiohttp.ClientError:
            return truncated("the connection closed within the stream")
        return HttpResponse(response.status, _headers(response), b"", is_heard=True)


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _too_large(most: int) -> Failure:
    return Failure(
        "answer_too_large", f"the response exceeds {most} bytes", retryable=False, billed=True
    )


async def _mark_sent(
    _session: aiohttp.ClientSession,
    context: SimpleNamespace,
    _params: aiohttp.TraceRequestHeadersSentParams,
) -> None:
    """Comes right before the first byte is written: unmarked means that nothing left this machine."""
    context.trace_request_ctx.any = True


def _broken(exc: Exception, *, sent: bool, timeout_s: float) -> Failure:
    if not sent:
        return Failure("connect_error", f"not connected ({type(exc).__name__})", retryable=True)
    if isinstance(exc, TimeoutError):
        return Failure(
            "timeout", f"no answer within {timeout_s:.3g} s", retryable=True, ambiguous=True
        )
    return Failure(
        "truncated", f"the connection broke ({type(exc).__name__})", retryable=True, ambiguous=True
    )
