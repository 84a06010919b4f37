"""The same work without Fusewire: asyncio.gather over an HTTP client.

With or without one SQLite commit per fusion, in a process of its own, so that its CPU is told
apart: reads a job (JSON) from stdin, prints figures (JSON). It promises less than Fusewire: what is
under way when it dies is lost, and paid for.
"""

import asyncio
import json
import resource
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import aiohttp
from openai import AsyncOpenAI

SCHEMA = (
    "\nCREATE TABLE fusion (\n"
    "    id INTEGER PRIMARY KEY, prompt TEXT NOT NULL, winner TEXT NOT NULL, "
    "content TEXT NOT NULL, reason TEXT NOT NULL,\n"
    "    tokens INTEGER NOT NULL, latency_ms REAL NOT NULL\n"
    ");\n"
    "CREATE TABLE candidate (fusion INTEGER NOT NULL REFERENCES fusion, "
    "member TEXT NOT NULL, content TEXT NOT NULL);\n"
)

VERDICT = {
    "type": "object",
    "properties": {
        "reason": {"type": "string", "minLength": 12, "maxLength": 240},
        "winner": {"type": "string", "enum": ["A", "B", "C"]},
    },
    "required": ["reason", "winner"],
    "additionalProperties": False,
}

SYSTEM = (
    "You compare candidate answers to one request. Decide which one answers it best. "
    "Answer with JSON only: "
    '{"reason": one short sentence, "winner": the letter of the best}.'
)


class Chat(Protocol):
    """One way to ask a model."""

    async def ask(self, body: dict[str, Any]) -> tuple[str, int]:
        """The answer, and the tokens it took. Raises when there is none."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class OpenAi:
    """The openai SDK."""

    def __init__(self, base_url: str) -> None:
        self._client = AsyncOpenAI(base_url=base_url, api_key="unused")

    async def ask(self, body: dict[str, Any]) -> tuple[str, int]:
        """See `Chat`."""
        reply = await self._client.chat.completions.create(**body)
        return reply.choices[
            0
        ].message.content or "", reply.usage.total_tokens if reply.usage else 0

    async def close(self) -> None:
        """See `Chat`."""
        await self._client.close()


class Aiohttp:
    """aiohttp, as one writes it by hand: without retries."""

    def __init__(self, base_url: str) -> None:
        self._url = f"{base_url}/chat/completions"
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def ask(self, body: dict[str, Any]) -> tuple[str, int]:
        """See `Chat`."""
        async with self._session.post(self._url, json=body, raise_for_status=True) as response:
            reply = await response.json()
        return reply["choices"][0]["message"]["content"], reply["usage"]["total_tokens"]

    async def close(self) -> None:
        """See `Chat`."""
        await self._session.close()


CLIENTS: dict[str, type[OpenAi | Aiohttp]] = {"openai": OpenAi, "aiohttp": Aiohttp}


class Peer:
    """Fuses prompts and, with a database, stores what came of them."""

    def __init__(self, chat: Chat, database: str | None, members: list[str], judge: str) -> None:
        self._chat = chat
        self._members = members
        self._judge = judge
        # One thread owns the database, so that a commit's fsync does not hold up the event loop.
        self._thread = ThreadPoolExecutor(1)
        self._database = self._thread.submit(_open, database).result() if database else None

    async def fuse(self, prompt: str) -> tuple[float, bool]:
        """Ask the members at once, then the judge, then commit; returns ms and success."""
        started = time.perf_counter()
        try:
            await self._fuse(prompt, started)
        except Exception:  # noqa: BLE001 - a call that failed is what this shows
            return (time.perf_counter() - started) * 1000, False
        return (time.perf_counter() - started) * 1000, True

    async def _fuse(self, prompt: str, started: float) -> None:
        asked = [{"role": "user", "content": prompt}]
        replies = await asyncio.gather(
            *(self._chat.ask({"model": m, "messages": asked}) for m in self._members)
        )
        answers = [text for text, _ in replies]
        shown = "\n\n".join(
            f"[{label}]\n{answer}" for label, answer in zip("ABC", answers, strict=True)
        )
        text, tokens = await self._chat.ask(
            {
                "model": self._judge,
                "messages": [
                    {"role": "system", "content": SYSTEM},
                    {
                        "role": "user",
                        "content": f"Request:\n{prompt}\n\nCandidates:\n{shown}\n\nWhich is best?",
                    },
                ],
                "temperature": 0,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": VERDICT, "strict": True},
                },
            }
        )
        verdict = json.loads(text)
        best = "ABC".index(verdict["winner"])
        tokens += sum(used for _, used in replies)
        took_ms = (time.perf_counter() - started) * 1000
        if self._database:
            row = (prompt, self._members[best], answers[best], verdict["reason"], tokens, took_ms)
            said = list(zip(self._members, answers, strict=True))
            await asyncio.get_running_loop().run_in_executor(
                self._thread, _store, self._database, row, said
            )

    async def close(self) -> None:
        """Let go of connections and of the database."""
        await self._chat.close()
        if self._database:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._database.close)
        self._thread.shutdown()


def _open(path: str) -> sqlite3.Connection:
    database = sqlite3.connect(path)
    database.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; {SCHEMA}")
    return database


def _store(database: sqlite3.Connection, row: tuple[Any, ...], said: list[tuple[str, str]]) -> None:
    with database:
        found = database.execute(
            "INSERT INTO fusion (prompt, winner, content, reason, tokens, latency_ms) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            row,
        )
        rows = [(found.lastrowid, member, content) for member, content in said]
        database.executemany(
            "INSERT INTO candidate (fusion, member, content) VALUES (?, ?, ?)", rows
        )


async def _run(job: dict[str, Any]) -> dict[str, Any]:
    peer = Peer(
        CLIENTS[job["client"]](job["base_url"]), job["database"], job["members"], job["judge"]
    )
    slots = asyncio.Semaphore(job["in_flight"])

    async def one(prompt: str) -> tuple[float, bool]:
        async with slots:
            return await peer.fuse(prompt)

    await asyncio.gather(*(one(prompt) for prompt in job["warm_up"]))
    cpu_s, started = _cpu_s(), time.perf_counter()
    ends = await asyncio.gather(*(one(prompt) for prompt in job["prompts"]))
    figures = {"ends": ends, "wall_s": time.perf_counter() - started, "cpu_s": _cpu_s() - cpu_s}
    await peer.close()
    return figures


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_run(json.load(sys.stdin)))))
