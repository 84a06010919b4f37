"""Fusewire's side: `fusewire up` in a child process, driven over its HTTP API."""

import asyncio
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp

from cost.machine import Models, Pids, cpu_s, fusewire_up, kill
from cost.scenes import JUDGE, KILL_AT, KILLED, KILLED_IN_FLIGHT, MEMBERS, Scene, prompt, together
from fusewire.testing.nats_accounts import connect
from fusewire_cli.client import Client

WAIT_S = 600.0
SETTLE_S = 1.5
"""Until what is written behind a fusion's back is written."""


@dataclass(frozen=True)
class Run:
    """What a scene came to on one side.

    Attributes:
        walls_ms: of each fusion.
        wall_s: of all.
        cpu_ms: per fusion, by process; `client` drives Fusewire's API and belongs to no side.
        calls: model calls per fusion, by model.
        answered: the share of the fusions that came to an answer.
        fake_cpu_ms: of the fake models, per fusion.
    """

    walls_ms: list[float]
    wall_s: float
    cpu_ms: dict[str, float]
    calls: dict[str, float]
    answered: float
    fake_cpu_ms: float

    @property
    def cpu_ms_per_fusion(self) -> float:
        """Over all processes of this side."""
        return sum(ms for name, ms in self.cpu_ms.items() if name != "client")


def config(base_url: str, folder: Path) -> dict[str, Any]:
    """Fusewire as shipped, with one pool."""
    return {
        "data_dir": str(folder),
        "database": {"url": f"sqlite+aiosqlite:///{folder / 'fusewire.db'}"},
        "http": {"port": 0},
        "models": {
            name: {"kind": "remote", "base_url": base_url, "model": name}
            for name in [*MEMBERS, JUDGE]
        },
        "pools": {
            "default": {
                "members": MEMBERS,
                "judge": JUDGE,
                "deadline_s": WAIT_S,
                "control_share": 0.0,
            }
        },
    }


class Fusewire:
    """One running stack."""

    def __init__(
        self, fake: Models, folder: Path, numbers: Iterator[int], *, processes: bool = False
    ) -> None:
        self._fake = fake
        self._folder = folder
        self._numbers = numbers
        self._processes = processes
        self._stack = AsyncExitStack()
        self._pids: Pids = {}

    async def __aenter__(self) -> Self:
        settings = config(self._fake.base_url, self._folder)
        up = fusewire_up(settings, self._folder, processes=self._processes)
        self._url, self._pids = await self._stack.enter_async_context(up)
        self._client = await self._stack.enter_async_context(Client(self._url))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def run(self, scene: Scene) -> Run:
        """Play a scene."""
        await self._fake.play(scene.script)
        await self._fuse(scene, scene.warm_up)
        await self._fake.play(scene.script)
        before, started = self._cpu(), time.perf_counter()
        fused = await self._fuse(scene, scene.fusions)
        wall_s, after = time.perf_counter() - started, self._cpu()
        used = {name: (after[name] - before[name]) * 1000 / scene.fusions for name in before}
        calls = await self._fake.calls()
        return Run(
            walls_ms=[ms for ms, _ in fused],
            wall_s=wall_s,
            fake_cpu_ms=used.pop("fake"),
            cpu_ms=used,
            calls={name: calls.get(name, 0) / scene.fusions for name in [*MEMBERS, JUDGE]},
            answered=sum(is_answered for _, is_answered in fused) / scene.fusions,
        )

    async def _fuse(self, scene: Scene, fusions: int) -> list[tuple[float, bool]]:
        slots = asyncio.Semaphore(scene.in_flight)

        async def one() -> tuple[float, bool]:
            async with slots:
                body = {"prompt": prompt(next(self._numbers)), "complete": scene.complete}
                started = time.perf_counter()
                shown = await self._client.submit(body, wait_s=WAIT_S)
                wall_ms = (time.perf_counter() - started) * 1000
                if (
                    not scene.faults
                    and scene.complete
                    and (shown["status"], shown["is_degraded"]) != ("selected", False)
                ):
                    raise RuntimeError(f"a fusion went wrong: {shown}")
                return wall_ms, bool(shown.get("content"))

        return await asyncio.gather(*(one() for _ in range(fusions)))

    def _cpu(self) -> dict[str, float]:
        pids = {**self._pids, "client": os.getpid(), "fake": self._fake.pid}
        return {name: cpu_s(pid) for name, pid in pids.items()}

    async def written(self) -> dict[str, int]:
        """Messages that each stream of the broker ever took, and transactions that wrote to SQL."""
        await asyncio.sleep(SETTLE_S)
        connection = await connect(self._folder)
        infos = await connection.jetstream().streams_info()
        await connection.close()
        found = {info.config.name or "": info.state.last_seq for info in infos}
        return found | {
            "sql_commits": await self._metric('fusewire_transactions_total{kind="write"}')
        }

    async def _metric(self, name: str) -> int:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self._url}/metrics") as response,
        ):
            text = await response.text()
        return int(
            sum(
                float(line.rpartition(" ")[2])
                for line in text.splitlines()
                if line.startswith(name)
            )
        )


async def killed(fake: Models, folder: Path, numbers: Iterator[int]) -> dict[str, float]:
    """Kill everything at 40 % of a batch, start it again and submit the whole batch once more.

    Returns:
        Fusions that are lost, the share of calls beyond those that the batch needs, and how many
        fusions that had ended before were asked about again.
    """
    scene = together(200.0, 20.0, KILLED_IN_FLIGHT, KILLED)
    await fake.play(scene.script)
    batch = [
        {"prompt": prompt(number), "custom_id": f"k{number}"}
        for number in itertools.islice(numbers, KILLED)
    ]
    settings = config(fake.base_url, folder)
    done: list[dict[str, Any]] = []
    async with fusewire_up(settings, folder) as (url, pids), Client(url) as client:
        running = asyncio.create_task(_submit(client, batch, done))
        while len(done) < KILL_AT * KILLED and not running.done():  # noqa: ASYNC110 - a list has no event
            await asyncio.sleep(0.01)
        kill(pids)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    before = {one["id"] for one in done}
    done = []
    async with fusewire_up(settings, folder) as (url, _), Client(url) as client:
        await _submit(client, batch, done)
    calls, keys = await fake.calls(), await fake.calls("by_key")
    return {
        "lost": KILLED - sum(bool(one.get("content")) for one in done),
        "extra_calls": sum(calls.values()) / (KILLED * (len(MEMBERS) + 2)) - 1,
        "judged_again": len(
            {key.partition("-")[0] for key, count in keys.items() if count > 1} & before
        ),
    }


async def _submit(
    client: Client, batch: Sequence[dict[str, Any]], done: list[dict[str, Any]]
) -> None:
    slots = asyncio.Semaphore(KILLED_IN_FLIGHT)

    async def one(body: dict[str, Any]) -> None:
        async with slots:
            done.append(dict(await client.submit(body, wait_s=WAIT_S)))

    await asyncio.gather(*(one(body) for body in batch))
