"""The two sides of a comparison, our engine and llama.cpp's server, asked the same way."""

import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from fusewire.contracts import Message
from fusewire.testing.llama_server import llama_server
from fusewire_worker_edge.engine.api import GenerateRequest
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.engine.process import ProcessEngine


@dataclass
class Reply:
    """An answer as the client saw it. Times are from submission, in seconds."""

    tokens: int = 0
    first_s: float | None = None


class OnFirst(Protocol):
    """Callback at the first piece of an answer."""

    def __call__(self) -> None:
        """Take note of it."""


class Side(Protocol):
    """Something that answers prompts, several at once."""

    async def ask(self, prompt: str, max_tokens: int, on_first: OnFirst) -> Reply:
        """Answer one prompt greedily. Cancelling the awaiting task cancels the request."""
        ...


class Ours:
    """Our engine in its process."""

    def __init__(self, engine: ProcessEngine) -> None:
        self._engine = engine
        self._numbers = itertools.count()

    async def ask(self, prompt: str, max_tokens: int, on_first: OnFirst) -> Reply:
        """See `Side`."""
        reply, began = Reply(), time.perf_counter()

        def on_piece(_: str) -> None:
            if reply.first_s is None:
                reply.first_s = time.perf_counter() - began
                on_first()

        request = GenerateRequest(
            id=str(next(self._numbers)),
            messages=(Message(role="user", content=prompt),),
            max_tokens=max_tokens,
            is_streamed=True,
        )
        completion = await self._engine.generate(request, on_piece)
        reply.tokens = completion.completion_tokens
        return reply


class Theirs:
    """llama.cpp's server."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def ask(self, prompt: str, max_tokens: int, on_first: OnFirst) -> Reply:
        """See `Side`."""
        reply, began = Reply(), time.perf_counter()
        body = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "cache_prompt": False,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event: dict[str, Any] = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise RuntimeError(f"llama.cpp: {event['error']}")
                if reply.first_s is None and _has_text(event):
                    reply.first_s = time.perf_counter() - began
                    on_first()
                if usage := event.get("usage"):
                    reply.tokens = int(usage["completion_tokens"])
        return reply


def _has_text(event: dict[str, Any]) -> bool:
    return any(choice["delta"].get("content") for choice in event["choices"])


@asynccontextmanager
async def our_side(folder: Path, slots: int, threads: int) -> AsyncIterator[Side]:
    """Our engine, loaded."""
    engine = ProcessEngine(folder, EngineOptions(threads=threads, slots=slots))
    try:
        side = Ours(engine)
        await side.ask("Hello", 1, lambda: None)
        yield side
    finally:
        await engine.aclose()


@asynccontextmanager
async def their_side(
    file: Path, slots: int, threads: int, slot_context: int
) -> AsyncIterator[Side]:
    """llama.cpp's server, loaded, with `slot_context` positions for each slot."""
    with llama_server(file, context=slots * slot_context, threads=threads, slots=slots) as url:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
            side = Theirs(client)
            await side.ask("Hello", 1, lambda: None)
            yield side
