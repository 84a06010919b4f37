"""A client of ingest's API, with the key of whoever visits the console."""

import contextlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import aiohttp

from fusewire.http_server import tls
from fusewire.settings import Http

TIMEOUT_S = 10.0
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_TIMEOUT = aiohttp.ClientTimeout(total=TIMEOUT_S)
_STREAM_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=TIMEOUT_S, sock_read=60)


class ApiError(Exception):
    """The API refused a request, or did not answer.

    Attributes:
        status: the HTTP status; 503 if there was no answer.
        code: the API's code of the error.
        message: what is wrong, and how to mend it.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.code = code
        self.message = message
        super().__init__(message)


def own_context(http: Http) -> ssl.SSLContext | None:
    """Trust for an API that has the same certificate as the console; None without one.

    It is asked by its address, whatever name the certificate has, so it is known by the certificate
    itself.

    Raises:
        StartupError: the certificate cannot be used.
    """
    if tls(http) is None or http.tls_cert is None:
        return None
    text = http.tls_cert.read_text(encoding="ascii", errors="replace")
    # The first one alone: with the chain after it, all that its authority has signed were trusted.
    own = text[text.index(_BEGIN) : text.index(_END) + len(_END)]
    context = ssl.create_default_context(cadata=own)
    context.check_hostname = False
    # It is trusted whoever signed it, and though it lacks fields that a strict check wants.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


class Api:
    """Requests to ingest's API. All raise ApiError.

    Args:
        url: the API's address, without a path.
        context: for HTTPS; None trusts what this machine trusts.
    """

    def __init__(self, url: str, context: ssl.SSLContext | None) -> None:
        self._url = url.rstrip("/")
        self._context = context
        self._session: aiohttp.ClientSession | None = None

    def start(self) -> None:
        """Make ready; needs a running loop."""
        connector = aiohttp.TCPConnector(ssl=self._context or True)
        self._session = aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT)

    async def stop(self) -> None:
        """Close all connections."""
        if self._session:
            await self._session.close()

    async def get(
        self, key: str | None, path: str, query: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Read a JSON object."""
        async with self._send("GET", key, path, params=query) as response:
            return await _json(response)

    async def post(self, key: str | None, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send a JSON object, and read the one of the reply."""
        async with self._send("POST", key, path, json=dict(body)) as response:
            return await _json(response)

    async def stream(self, key: str | None, path: str) -> AsyncGenerator[bytes, None]:
        """Read server-sent events as they come, in pieces of any length."""
        async with self._send("GET", key, path, timeout=_STREAM_TIMEOUT) as response:
            with _no_answer():
                async for piece in response.content.iter_any():
                    yield piece

    @contextlib.asynccontextmanager
    async def _send(
        self, method: str, key: str | None, path: str, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        assert self._session is not None, "started"
        headers = {"authorization": f"Bearer {key}"} if key else {}
        url = self._url + path
        with _no_answer():
            response = await self._session.request(method, url, headers=headers, **options)
        async with response:
            if response.status >= 400:
                raise await _refusal(response)
            yield response


@contextlib.contextmanager
def _no_answer() -> Any:
    try:
        yield
    except (aiohttp.ClientError, TimeoutError):
        message = "the API does not answer; see that ingest runs, and [console] api_url"
        raise ApiError(503, "unavailable", message) from None


async def _json(response: aiohttp.ClientResponse) -> dict[str, Any]:
    with _no_answer():
        body = await response.json(content_type=None)
    assert isinstance(body, dict)
    return body


async def _refusal(response: aiohttp.ClientResponse) -> ApiError:
    with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError):
        error = (await response.json(content_type=None))["error"]
        return ApiError(response.status, str(error["code"]), str(error["message"]))
    return ApiError(response.status, "error", f"the API replied with status {response.status}")
