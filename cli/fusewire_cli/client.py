"""A client of ingest's HTTP API, as the command line uses it."""

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

import aiohttp

from fusewire import replies
from fusewire.errors import EXIT_BAD_INPUT
from fusewire_cli.screen import EXIT_FAULT

RETRY_FOR_S = 60.0
PAUSE_S = 0.3
MOST_PAUSE_S = 3_600.0
SILENCE_S = 700.0
IDS_AT_ONCE = 100
LINES_AT_ONCE = 500
BATCHES_AT_ONCE = 100

_CONNECTION_ERRORS = (
    aiohttp.ClientConnectionError,
    aiohttp.ClientPayloadError,
    TimeoutError,
    ConnectionError,
)
"""The errors of a connection that breaks."""

Params = Sequence[tuple[str, str]]
Order = Literal["line", "settled"]
Form = Literal["openai", "outcome"]


class ApiError(Exception):
    """The API answered with an error; `code` and `message` are those of its body."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.code = code
        self.message = message
        super().__init__(f"{code}: {message}")

    @property
    def mend(self) -> str:
        """What the user can do about it; empty if the message says that already."""
        if self.status == 401:
            return "set FUSEWIRE_API_KEY; `fusewire keys create` makes a key"
        if self._is_temporary:
            return "run the same command again later; `fusewire doctor` tells what is down"
        return ""

    @property
    def exit_code(self) -> int:
        """The exit code: 1 if the service is at fault, 2 if the request is."""
        return EXIT_FAULT if self._is_temporary else EXIT_BAD_INPUT

    @property
    def _is_temporary(self) -> bool:
        return self.status >= 500 or self.code == "rate_limited"


class IncompleteResponseError(Exception):
    """The connection broke while a response was being read."""


class Client:
    """A client of one Fusewire.

    Requests that fail for the moment are repeated for a minute. That is harmless: the same
    custom_id names the same fusion, and the same key the same batch.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # An upload may take long; only silence is a fault.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=SILENCE_S)
        self._session = aiohttp.ClientSession(self.url, timeout=timeout, headers=self._headers)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session:
            await self._session.close()

    async def submit(self, body: dict[str, Any], wait_s: float = 0) -> replies.fusions.Fusion:
        """Submit one prompt; with `wait_s`, wait for its outcome."""
        params = [("wait_s", str(wait_s))]
        fusion: replies.fusions.Fusion = await self._request(
            "POST", "/v1/fusions", params=params, body=json.dumps(body)
        )
        return fusion

    async def submit_lines(
        self, lines: Sequence[str], batch_id: str
    ) -> list[replies.fusions.SubmittedLine]:
        """Submit JSONL lines as part of a batch. Returns one result per line, in order."""
        response: replies.fusions.SubmittedLines = await self._request(
            "POST",
            "/v1/fusions",
            params=[("batch_id", batch_id)],
            body="\n".join(lines) + "\n",
            kind="application/x-ndjson",
        )
        return response["lines"]

    async def get(self, fusion_id: str, wait_s: float = 0) -> replies.fusions.Fusion:
        """Fetch one fusion; with `wait_s`, wait for its outcome."""
        params = [("wait_s", str(wait_s))]
        fusion: replies.fusions.Fusion = await self._request(
            "GET", f"/v1/fusions/{fusion_id}", params=params
        )
        return fusion

    async def get_many(self, fusion_ids: Sequence[str]) -> list[replies.fusions.Fusion]:
        """Fetch several fusions, 100 a request."""
        fusions: list[replies.fusions.Fusion] = []
        for start in range(0, len(fusion_ids), IDS_AT_ONCE):
            page_ids = fusion_ids[start : start + IDS_AT_ONCE]
            page: replies.fusions.FusionList = await self._request(
                "GET", "/v1/fusions", params=[("id", fusion_id) for fusion_id in page_ids]
            )
            fusions += page["data"]
        return fusions

    async def vote(self, outcome_id: str, choice: str, voter: str | None) -> replies.votes.Vote:
        """Vote for the best answer of an outcome."""
        vote: replies.votes.Vote = await self._request(
            "POST",
            f"/v1/outcomes/{quote(outcome_id, safe='')}/votes",
            body=json.dumps({"choice": choice, "voter": voter}),
        )
        return vote

    async def upload(self, path: Path) -> str:
        """Upload a batch's input as a stream. Returns the id of the uploaded file."""
        with contextlib.ExitStack() as open_files:

            def form() -> aiohttp.FormData:
                # Made anew for each attempt: a form is used up by sending it.
                data = aiohttp.FormData()
                data.add_field("purpose", "batch")
                file = open_files.enter_context(path.open("rb"))
                data.add_field("file", file, filename=path.name, content_type="application/jsonl")
                return data

            upload: replies.batches.File = await self._request(
                "POST", "/v1/files", body=form, kind=None
            )
            return upload["id"]

    async def create_batch(self, body: dict[str, Any], key: str) -> replies.batches.Batch:
        """Create a batch of an uploaded file; the same key gives the same batch."""
        headers = {"idempotency-key": key}
        return await self._batch("POST", "/v1/batches", body=json.dumps(body), headers=headers)

    async def batch(self, batch_id: str) -> replies.batches.Batch:
        """Fetch one batch."""
        return await self._batch("GET", f"/v1/batches/{batch_id}")

    async def batches(self) -> AsyncIterator[replies.batches.Batch]:
        """List all batches, newest first."""
        after: list[tuple[str, str]] = []
        while True:
            params = [("limit", str(BATCHES_AT_ONCE)), *after]
            page: replies.batches.BatchList = await self._request(
                "GET", "/v1/batches", params=params
            )
            for batch in page["data"]:
                yield batch
            if not page["has_more"]:
                return
            after = [("after", page["last_id"] or "")]

    async def cancel_batch(
        self, batch_id: str, *, drain: bool, reason: str
    ) -> replies.batches.Batch:
        """Stop a batch; with `drain`, what is in flight is waited for."""
        params = [("drain", str(drain).lower()), ("reason", reason)]
        return await self._batch("POST", f"/v1/batches/{batch_id}/cancel", params=params)

    async def resume_batch(
        self, batch_id: str, max_cost_usd: float | None
    ) -> replies.batches.Batch:
        """Resume a cancelled batch, optionally with a new cost limit (USD)."""
        body = {} if max_cost_usd is None else {"max_cost_usd": max_cost_usd}
        return await self._batch("POST", f"/v1/batches/{batch_id}/resume", body=json.dumps(body))

    async def retry_batch(self, batch_id: str, only: str) -> replies.batches.Batch:
        """Create a new batch of a batch's failed lines: of all, or of those that are retryable."""
        return await self._batch(
            "POST", f"/v1/batches/{batch_id}/retry", body=json.dumps({"only": only})
        )

    async def results(
        self, batch_id: str, *, order: Order, after: int, form: Form, limit: int = LINES_AT_ONCE
    ) -> AsyncGenerator[bytes, None]:
        """Settled lines after position `after`, at most `limit`, each without its line feed.

        Args:
            batch_id: the batch.
            order: by line number, or in the order in which lines settled.
            after: the last position that is not wanted: a line number, or a settled number.
            form: OpenAI's batch output lines, or whole outcomes.
            limit: the most lines.

        Raises:
            IncompleteResponseError: the connection broke after a whole line; call again with
                the position of the last line received.
        """
        params = [("order", order), ("after", str(after)), ("limit", str(limit)), ("form", form)]
        partial_line = b""
        path = f"/v1/batches/{batch_id}/results"
        try:
            async with self._respond("GET", path, params=params, deadline=math.inf) as response:
                async for chunk in response.content.iter_any():
                    *whole_lines, partial_line = (partial_line + chunk).split(b"\n")
                    for line in whole_lines:
                        yield line
        except _RetryLaterError as later:
            await asyncio.sleep(later.pause_s)
            raise IncompleteResponseError from None
        except _CONNECTION_ERRORS:
            await asyncio.sleep(PAUSE_S)
            raise IncompleteResponseError from None

    async def _batch(self, method: str, path: str, **options: Any) -> replies.batches.Batch:
        batch: replies.batches.Batch = await self._request(method, path, **options)
        return batch

    async def _request(
        self,
        method: str,
        path: str,
        *,
        params: Params = (),
        body: str | Callable[[], aiohttp.FormData] | None = None,
        kind: str | None = "application/json",
        headers: dict[str, str] | None = None,
    ) -> Any:
        """Make a request, and repeat it for a minute while it fails for the moment.

        Args:
            method: GET or POST.
            path: below the API's address.
            params: of the query.
            body: the body, or what makes it anew for each attempt.
            kind: the body's content type; None leaves it to aiohttp.
            headers: more headers.

        Returns:
            The JSON of the response; the caller knows its type.
        """
        deadline = asyncio.get_running_loop().time() + RETRY_FOR_S
        all_headers = _merge_headers(kind, headers)
        while True:
            data = body() if callable(body) else body
            try:
                async with self._respond(
                    method, path, params=params, data=data, headers=all_headers, deadline=deadline
                ) as response:
                    return await response.json(content_type=None)
            except _RetryLaterError as later:
                pause_s = later.pause_s
            except _CONNECTION_ERRORS:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                pause_s = PAUSE_S
            await asyncio.sleep(pause_s)

    @contextlib.asynccontextmanager
    async def _respond(
        self,
        method: str,
        path: str,
        *,
        params: Params,
        data: str | aiohttp.FormData | None = None,
        headers: dict[str, str] | None = None,
        deadline: float = 0,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response to one request.

        Args:
            method: GET or POST.
            path: below the API's address.
            params: of the query.
            data: the body.
            headers: more headers.
            deadline: until when to ask for a repetition, on the loop's clock.

        Raises:
            ApiError: the API answered with an error.
            _RetryLaterError: it asks to try again later, and the deadline is not over.
        """
        assert self._session is not None
        async with self._session.request(
            method, path, params=params, data=data, headers=headers
        ) as response:
            if response.status < 400:
                yield response
                return
            error = await self._parse_error(response)
            # These pass by themselves; other errors stay.
            is_retryable = error.status == 503 or error.code == "rate_limited"
            if is_retryable and asyncio.get_running_loop().time() < deadline:
                raise _RetryLaterError(pause_s(response.headers.get("retry-after")))
            raise error

    async def _parse_error(self, response: aiohttp.ClientResponse) -> ApiError:
        try:
            body = (await response.json(content_type=None))["error"]
            return ApiError(response.status, body["code"], body["message"])
        except (ValueError, KeyError, TypeError):
            # Not Fusewire's own: a proxy between here and there has answered.
            message = f"{self.url} answered {response.status}"
            return ApiError(response.status, "http_error", message)


def pause_s(retry_after: str | None) -> float:
    """Return the seconds to wait before a request is repeated.

    What is no number of seconds is another server's, such as a date: then it is a short while.
    """
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return PAUSE_S
    # NaN is not above zero either.
    return min(seconds, MOST_PAUSE_S) if seconds >= 0 else PAUSE_S


def _merge_headers(kind: str | None, headers: dict[str, str] | None) -> dict[str, str]:
    content_type = {"content-type": kind} if kind else {}
    return content_type | (headers or {})


class _RetryLaterError(Exception):
    """The service asks to repeat the request after a pause."""

    def __init__(self, pause_s: float) -> None:
        self.pause_s = pause_s
        super().__init__()
