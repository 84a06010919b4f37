"""Schedules of kills, freezes, outages and lost stores, from seeds, and what must hold after each.

`make test-kills` runs ten seeds on each database; `make test` one.
"""

import asyncio
import itertools
import json
import os
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text

from fusewire.bus import Bus
from fusewire.contracts import Candidate
from fusewire.settings import Database, Nats
from fusewire.store.engine import Store
from fusewire.testing.chaos import Fault, StackProcess, schedule
from fusewire.testing.command_line import Cli, FakeServer, address
from fusewire.testing.eventually import PATIENCE_S, eventually
from fusewire.testing.nats_accounts import embedded_broker
from fusewire.testing.postgres import PostgresServer
from fusewire.topology import CARRIERS
from fusewire_cli.client import Client

SEEDS = tuple(range(1, 1 + int(os.environ.get("KILL_SEEDS", "1"))))
SECONDS = float(os.environ.get("KILL_SECONDS", "12"))
REPORT = os.environ.get("KILL_REPORT")
"""A file to which each schedule's figures are added."""
RATE = 5.0
"""Prompts a second."""
CANARY = "zebracanary78"
_NAME = re.compile(r"\bq\d{4}\b")

Shown = dict[str, Any]
Key = tuple[str, str]


@contextmanager
def database_of(kind: str) -> Iterator[PostgresServer | None]:
    if kind == "sqlite":
        yield None
        return
    with PostgresServer() as server:
        yield server


async def load(api: Client, seconds: float) -> dict[str, str]:
    """Submit prompts at a rate, each until it is accepted; returns their ids by name."""
    accepted: dict[str, str] = {}

    async def one(name: str) -> None:
        prompt = f"Say something of your own about {name} and the {CANARY}, in a sentence or two."
        while name not in accepted:
            try:
                accepted[name] = (await api.submit({"custom_id": name, "prompt": prompt}))["id"]
            except (aiohttp.ClientError, TimeoutError, OSError):
                await asyncio.sleep(0.2)

    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds * RATE)):
            group.create_task(one(f"q{number:04}"))
            await asyncio.sleep(1 / RATE)
    return accepted


async def befall(victim: StackProcess, faults: list[Fault]) -> None:
    started = time.monotonic()
    for fault in faults:
        await asyncio.sleep(max(0.0, started + fault.at_s - time.monotonic()))
        await asyncio.to_thread(victim.befall, fault)


def recorded(server: FakeServer) -> list[Shown]:
    with urllib.request.urlopen(
        f"http://127.0.0.1:{server.port}/_control/stats", timeout=PATIENCE_S
    ) as reply:
        return list(json.load(reply)["recorded"])


def play(server: FakeServer) -> None:
    script = {"models": {"*": {"latency_ms": 300, "latency_sigma": 0.5}}, "recording": True}
    address = f"http://127.0.0.1:{server.port}/_control/script"
    urllib.request.urlopen(address, data=json.dumps(script).encode(), timeout=PATIENCE_S).close()


def repeated(calls: list[Shown]) -> tuple[Counter[Key], int]:
    """Calls beyond a request's first, by prompt and model, and the count of the most frequent."""
    times = Counter((call["model"], json.dumps(call["body"]["messages"])) for call in calls)
    extra: Counter[Key] = Counter()
    for (model, messages), count in times.items():
        found = _NAME.search(messages)
        assert found, messages
        extra[found[0], model] += count - 1
    return +extra, max(times.values())


async def rows(store: Store, query: str) -> list[Any]:
    async with store.read() as connection:
        return list(await connection.execute(text(query)))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_is_killed_everything_accepted_has_one_outcome_and_repeats_are_marked(
    cli: Cli, server: FakeServer, seed: int, kind: str
) -> None:
    play(server)
    data = cli.folder / ".fusewire"
    faults = schedule(seed, SECONDS)
    with database_of(kind) as postgres:
        url = postgres.url() if postgres else f"sqlite+aiosqlite:///{data / 'fusewire.db'}"
        quick = Cli(cli.folder, {**cli.env, "FUSEWIRE_DATABASE__URL": url})
        with quick.start("up", "--processes") as process:
            base = address(quick, process)
            victim = StackProcess(process.pid, data, postgres)
            async with Client(base) as api:
                befalling = asyncio.create_task(befall(victim, faults))
                accepted = await load(api, SECONDS)
                await befalling
                ended_at = time.time()
                shown = await eventually(lambda: finished(api, list(accepted.values())))
                again = await finished(api, list(accepted.values()))
            await eventually(lambda: is_empty(embedded_broker(data)))
            store = Store(Database(url=url))
            stored = await rows(
                store, "SELECT fusion_id, count(*) FROM outcomes GROUP BY fusion_id"
            )
            bodies = [
                Candidate.decode(body)
                for (body,) in await rows(store, "SELECT body FROM candidates")
            ]
            submitted = dict(await rows(store, "SELECT fusion_id, custom_id FROM prompts"))
            await store.close()
            assert process.returncode is None, process.stderr[-2000:]
            log = process.stderr + process.stdout

    extra, most = repeated(recorded(server))
    marked = Counter((submitted[c.fusion_id], c.model) for c in bodies if c.maybe_paid_twice)
    figures = {
        "seed": seed, "database": kind, "faults": len(faults), "prompts": len(accepted),
        "calls": len(recorded(server)), "extra": extra.total(), "marked": marked.total(),
        "degraded": Counter(reason for one in shown for reason in one["degraded_reasons"]),
        "longest_gap_s": round(longest_gap(shown), 1),
        "after_the_last_fault_s": round(max(at(one) for one in shown) - ended_at, 1),
    }  # fmt: skip
    report({**figures, "schedule": [asdict(fault) for fault in faults]})

    assert sorted(stored) == sorted((fusion, 1) for fusion in accepted.values()), (
        "one outcome each, and no other"
    )
    assert [unchanging(one) for one in shown] == [unchanging(one) for one in again]
    assert extra <= marked, f"calls made again that nobody was told of: {extra - marked}, {figures}"
    lost = sum(fault.kind == "store_lost" for fault in faults)
    assert most <= 2 + lost, figures
    assert CANARY not in log


def report(figures: Shown) -> None:
    if REPORT:
        with Path(REPORT).open("a") as file:
            file.write(json.dumps(figures) + "\n")


async def finished(api: Client, ids: list[str]) -> list[Shown]:
    """The fusions; none while one of them has no outcome."""
    try:
        found = await api.get_many(ids)
    except (aiohttp.ClientError, TimeoutError, OSError):
        return []
    return [dict(one) for one in found] if all(one["status"] != "running" for one in found) else []


async def is_empty(nats: Nats) -> bool:
    """Whether no stream holds any work."""
    bus = Bus("ops", nats)
    await bus.connect(timeout_s=PATIENCE_S)
    try:
        return not any([(await bus.js.stream_info(stream)).state.messages for stream in CARRIERS])
    finally:
        await bus.stop()


def unchanging(one: Shown) -> Shown:
    return {key: one[key] for key in ("id", "status", "content", "winner", "finished_at")}


def at(one: Shown) -> float:
    return datetime.fromisoformat(one["finished_at"]).timestamp()


def longest_gap(shown: list[Shown]) -> float:
    """The longest time in which no fusion ended, s."""
    ends = sorted(at(one) for one in shown)
    return max(after - before for before, after in itertools.pairwise(ends))
