"""A client of ingest's HTTP API, as the command line uses it."""

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp

from fusewire import replies
from fusewire.errors import EXIT_BAD_INPUT
from fusewire_cli.screen import EXIT_FAULT

RETRY_FOR_S = 60.0
PAUSE_S = 0.3
SILENCE_S = 700.0
IDS_AT_ONCE = 100
LINES_AT_ONCE = 500
BATCHES_AT_ONCE = 100

BROKEN = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError, ConnectionError)
"""What a connection that breaks raises."""

Params = Sequence[tuple[str, str]]
Order = Literal["line", "settled"]
Form = Literal["openai", "outcome"]


class ApiError(Exception):
    """The API refused: `code` and `message` are its own."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.code = code
        self.message = message
        super().__init__(f"{code}: {message}")

    @property
    def mend(self) -> str:
        """What to do about it on this side."""
        if self.status == 401:
            return "set FUSEWIRE_API_KEY; `fusewire keys create` makes a key"
        return (
            "run the same command again later; `fusewire doctor` tells what is down"
            if self._is_for_later
            else ""
        )

    @property
    def exit_code(self) -> int:
        """What a command ends with: whether what it was given is at fault, or the service."""
        return EXIT_FAULT if self._is_for_later else EXIT_BAD_INPUT

    @property
    def _is_for_later(self) -> bool:
        return self.status >= 500 or self.code == "rate_limited"


class IncompleteResponseError(Exception):
    """An answer that was being read came to no end."""


class Client:
    """Talks to one Fusewire. What breaks, and what shall be tried again later, is tried again for a minute.

    That is harmless: the same custom_id is the same fusion, and the same key the same batch.
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
        """Submit JSONL; one result per line."""
        answer: replies.fusions.SubmittedLines = await self._request(
            "POST",
            "/v1/fusions",
            params=[("batch_id", batch_id)],
            body="\n".join(lines) + "\n",
            kind="application/x-ndjson",
        )
        return answer["lines"]

    async def get(self, fusion_id: str, wait_s: float = 0) -> replies.fusions.Fusion:
        """One fusion."""
        params = [("wait_s", str(wait_s))]
        fusion: replies.fusions.Fusion = await self._request(
            "GET", f"/v1/fusions/{fusion_id}", params=params
        )
        return fusion

    async def get_many(self, fusion_ids: Sequence[str]) -> list[replies.fusions.Fusion]:
        """Several fusions."""
        found: list[replies.fusions.Fusion] = []
        for start in range(0, len(fusion_ids), IDS_AT_ONCE):
            some = fusion_ids[start : start + IDS_AT_ONCE]
            params = [("id", one) for one in some]
            answer: replies.fusions.FusionList = await self._request(
                "GET", "/v1/fusions", params=params
            )
            found += answer["data"]
        return found

    async def upload(self, path: Path) -> str:
        """Upload a batch's input, a piece at a time; returns the file's id."""
        with contextlib.ExitStack() as opened:

            def form() -> aiohttp.FormData:
                data = aiohttp.FormData()
                data.add_field("purpose", "batch")
                file = opened.enter_context(path.open("rb"))
                data.add_field("file", file, filename=path.name, content_type="application/jsonl")
                return data

            uploaded: replies.batches.File = await self._request(
                "POST", "/v1/files", body=form, kind=None
            )
            return uploaded["id"]

    async def create_batch(self, body: dict[str, Any], key: str) -> replies.batches.Batch:
        """Make a batch of an uploaded file; the same key is the same batch."""
        named = {"idempotency-key": key}
        return await self._batch("POST", "/v1/batches", body=json.dumps(body), headers=named)

    async def batch(self, batch_id: str) -> replies.batches.Batch:
        """One batch."""
        return await self._batch("GET", f"/v1/batches/{batch_id}")

    async def batches(self) -> AsyncIterator[replies.batches.Batch]:
        """All batches, the newest first."""
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
        """Go on with a cancelled batch."""
        body = {} if max_cost_usd is None else {"max_cost_usd": max_cost_usd}
        return await self._batch("POST", f"/v1/batches/{batch_id}/resume", body=json.dumps(body))

    async def retry_batch(self, batch_id: str, only: str) -> replies.batches.Batch:
        """Make a new batch of a batch's failed lines."""
        return await self._batch(
            "POST", f"/v1/batches/{batch_id}/retry", body=json.dumps({"only": only})
        )

    async def results(
        self, batch_id: str, *, order: Order, after: int, form: Form, limit: int = LINES_AT_ONCE
    ) -> AsyncGenerator[bytes, None]:
        """Settled lines after line (or settled number) `after`, at most `limit`, each without its line feed.

        Raises:
            BrokenOffError: the connection broke, after a whole line; call again after what came.
        """
        params = [("order", order), ("after", str(after)), ("limit", str(limit)), ("form", form)]
        held = b""
        path = f"/v1/batches/{batch_id}/results"
        try:
            async with self._answer("GET", path, params=params, until=math.inf) as response:
                async for chunk in response.content.iter_any():
                    *whole, held = (held + chunk).split(b"\n")
                    for line in whole:
                        yield line
        except _RetryLaterError as later:
            await asyncio.sleep(later.pause_s)
            raise IncompleteResponseError from None
        except BROKEN:
            await asyncio.sleep(PAUSE_S)
            raise IncompleteResponseError from None

    async def _batch(self, method: str, path: str, **sent: Any) -> replies.batches.Batch:
        batch: replies.batches.Batch = await self._request(method, path, **sent)
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
        """The JSON of one answer; which it is, who asks knows."""
        until = asyncio.get_running_loop().time() + RETRY_FOR_S
        while True:
            data = body() if callable(body) else body
            sent = {**({"content-type": kind} if kind else {}), **(headers or {})}
            try:
                async with self._answer(
                    method, path, params=params, data=data, headers=sent, until=until
                ) as response:
                    return await response.json(content_type=None)
            except _RetryLaterError as later:
                pause_s = later.pause_s
            except BROKEN:
                if asyncio.get_running_loop().time() > until:
                    raise
                pause_s = PAUSE_S
            await asyncio.sleep(pause_s)

    @contextlib.asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        *,
        params: Params,
        data: str | aiohttp.FormData | None = None,
        headers: dict[str, str] | None = None,
        until: float = 0,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One answer. Raises ApiError, or _LaterError where it is worth to ask again before `until`."""
        assert self._session is not None
        async with self._session.request(
            method, path, params=params, data=data, headers=headers
        ) as response:
            if response.status < 400:
                yield response
                return
            try:
                fault = (await response.json(content_type=None))["error"]
                error = ApiError(response.status, fault["code"], fault["message"])
            except (ValueError, KeyError, TypeError):
                # Not Fusewire: something between.
                error = ApiError(
                    response.status, "http_error", f"{self.url} answered {response.status}"
                )
            is_later = error.status == 503 or error.code == "rate_limited"
            if is_later and asyncio.get_running_loop().time() < until:
                raise _RetryLaterError(float(response.headers.get("retry-after") or PAUSE_S))
            raise error


class _RetryLaterError(Exception):
    """Not now: to be asked again after a pause."""

    def __init__(self, pause_s: float) -> None:
        self.pause_s = pause_s
        super().__init__()
