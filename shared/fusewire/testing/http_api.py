"""For tests: the chat endpoint, asked without a client library, and its streams line by line."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from sqlalchemy import text

from fusewire.settings import Settings
from fusewire.store.engine import Store

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Why?"}]
ASKED: dict[str, Any] = {"model": "openrouter/fusion", "messages": MESSAGES}


async def post(
    http: aiohttp.ClientSession, path: str = CHAT, **options: Any
) -> tuple[int, dict[str, Any], Any]:
    """Status, body and headers."""
    async with http.post(path, **{"json": ASKED, **options}) as response:
        return response.status, await response.json(), response.headers


async def rows(settings: Settings, query: str) -> list[dict[str, Any]]:
    """What a query gives on the database of these settings."""
    store = Store(settings.database)
    async with store.read() as connection:
        results = [dict(row) for row in (await connection.execute(text(query))).mappings()]
    await store.close()
    return results


class StreamProgress:
    """What came of a stream so far."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.status = response.status
        self.comments: list[str] = []
        self.chunks: list[dict[str, Any]] = []
        self.is_done = False

    @property
    def text(self) -> str:
        return "".join(
            c["choices"][0]["delta"].get("content") or "" for c in self.chunks if c.get("choices")
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        """Listen on until then, or to the end."""
        async for line in self.response.content:
            if line.startswith(b":"):
                self.comments.append(line[1:].decode().strip())
            elif line == b"data: [DONE]\n":
                self.is_done = True
            elif line.startswith(b"data: "):
                assert not self.is_done
                self.chunks.append(json.loads(line[6:]))
            else:
                assert line == b"\n"
            if condition():
                return


@asynccontextmanager
async def streaming(
    http: aiohttp.ClientSession, *, headers: dict[str, str] | None = None, **fields: Any
) -> AsyncIterator[StreamProgress]:
    """A stream; what the block has not read is read at its end."""
    body = {**ASKED, "stream": True, **fields}
    async with http.post(CHAT, json=body, headers=headers) as response:
        progress = StreamProgress(response)
        yield progress
        await progress.until(lambda: False)
