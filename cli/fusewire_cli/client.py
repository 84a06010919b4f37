"""A client of ingest's HTTP API, as the command line uses it."""

import asyncio
import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp

RETRY_FOR_S = 60.0
IDS_AT_ONCE = 100


class ApiError(Exception):
    """The API refused: `code` and `message` are its own."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.code = code
        self.message = message
        super().__init__(f"{code}: {message}")


class Client:
    """Talks to one Fusewire. A connection that breaks, or a 503, is tried again for a minute."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(self._url, timeout=aiohttp.ClientTimeout(total=700))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session:
            await self._session.close()

    async def submit(self, body: dict[str, Any], wait_s: float = 0) -> dict[str, Any]:
        """Submit one prompt; with `wait_s`, wait for its outcome."""
        return await self._request("POST", "/v1/fusions", params=[("wait_s", str(wait_s))], body=json.dumps(body))

    async def submit_lines(self, lines: Sequence[str], batch_id: str) -> list[dict[str, Any]]:
        """Submit JSONL; one result per line."""
        answer = await self._request(
            "POST",
            "/v1/fusions",
            params=[("batch_id", batch_id)],
            body="\n".join(lines) + "\n",
            kind="application/x-ndjson",
        )
        return list(answer["lines"])

    async def get(self, fusion_id: str, wait_s: float = 0) -> dict[str, Any]:
        """One fusion."""
        return await self._request("GET", f"/v1/fusions/{fusion_id}", params=[("wait_s", str(wait_s))])

    async def get_many(self, fusion_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Several fusions."""
        found: list[dict[str, Any]] = []
        for start in range(0, len(fusion_ids), IDS_AT_ONCE):
            some = fusion_ids[start : start + IDS_AT_ONCE]
            answer = await self._request("GET", "/v1/fusions", params=[("id", one) for one in some])
            found += answer["data"]
        return found

    async def _request(
        self,
        method: str,
        path: str,
        *,
        params: list[tuple[str, str]],
        body: str | None = None,
        kind: str = "application/json",
    ) -> dict[str, Any]:
        assert self._session is not None
        loop = asyncio.get_running_loop()
        until = loop.time() + RETRY_FOR_S
        while True:
            try:
                async with self._session.request(
                    method, path, params=params, data=body, headers={"content-type": kind}
                ) as response:
                    answer: dict[str, Any] = await response.json()
                    if response.status < 400:
                        return answer
                    fault = answer["error"]
                    if response.status != 503 or loop.time() > until:
                        raise ApiError(response.status, fault["code"], fault["message"])
            except (aiohttp.ClientConnectionError, TimeoutError, ConnectionError):
                # Submitting again is harmless: the same custom_id is the same fusion.
                if loop.time() > until:
                    raise
            await asyncio.sleep(0.3)
