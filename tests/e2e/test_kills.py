"""Schedules of kills, freezes, outages and lost stores, from seeds, and what must hold after each.

`make test-kills` runs ten seeds on each database, `make test` one, and `make chaos` all other
faults under a longer load (tests/chaos).
"""

import asyncio
import itertools
import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text

from fusewire.contracts import Candidate
from fusewire.settings import Database, Nats
from fusewire.store.engine import Store
from fusewire.testing.chaos import StackProcess, schedule
from fusewire.testing.command_line import Cli, FakeServer, address
from fusewire.testing.eventually import eventually
from fusewire.testing.history import Acceptance, History, LeakCheck
from fusewire.testing.invariants import Limits, check
from fusewire.testing.nats_accounts import embedded_broker
from fusewire.testing.postgres import PostgresServer
from fusewire.testing.stack_events import (
    Watch,
    control,
    model_calls,
    occurrences,
    queue_counts,
    stored_events,
)
from fusewire_cli.client import Client

SEEDS = tuple(range(1, 1 + int(os.environ.get("KILL_SEEDS", "1"))))
SECONDS = float(os.environ.get("KILL_SECONDS", "12"))
REPORT = os.environ.get("KILL_REPORT")
"""A file to which each schedule's figures are added."""
RATE = 5.0
"""Prompts a second."""
CANARY = "zebracanary78"
UNTIMED = Limits(recovery_s=math.inf, after_fault_s=300)
"""A test fails on no time."""
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


async def load(api: Client, seconds: float, history: History, watch: Watch) -> dict[str, str]:
    """Submit prompts at a rate, each until it is accepted; returns their ids by name."""
    accepted: dict[str, str] = {}

    async def one(name: str) -> None:
        prompt = f"Say something of your own about {name} and the {CANARY}, in a sentence or two."
        while name not in accepted:
            try:
                fusion = (await api.submit({"custom_id": name, "prompt": prompt}))["id"]
            except (aiohttp.ClientError, TimeoutError, OSError):
                await asyncio.sleep(0.2)
                continue
            accepted[name] = fusion
            history.add(Acceptance(time.time(), fusion, name))
            watch.add(fusion)

    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds * RATE)):
            group.create_task(one(f"q{number:04}"))
            await asyncio.sleep(1 / RATE)
    return accepted


def recorded(server: FakeServer) -> list[Shown]:
    return list(json.loads(control(server.port, "stats"))["recorded"])


def play(server: FakeServer) -> None:
    script = {"models": {"*": {"latency_ms": 300, "latency_sigma": 0.5}}, "recording": True}
    control(server.port, "script", json.dumps(script).encode())


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
            history, are_all_accepted = History(), asyncio.Event()
            async with Client(base) as api:
                watch = Watch(api, history)
                befalling = asyncio.create_task(victim.befall_all(faults, history))
                watching = asyncio.create_task(watch.run(are_all_accepted))
                accepted = await load(api, SECONDS, history, watch)
                await befalling
                ended_at = time.time()
                are_all_accepted.set()
                await watching
                await watch.look_again()
            await eventually(lambda: is_empty(embedded_broker(data)))
            store = Store(Database(url=url))
            history.add(*await stored_events(store), *model_calls(recorded(server)))
            bodies = [
                Candidate.decode(body)
                for (body,) in await rows(store, "SELECT body FROM candidates")
            ]
            submitted = dict(await rows(store, "SELECT fusion_id, custom_id FROM prompts"))
            await store.close()
            assert process.returncode is None, process.stderr[-2000:]
            log = (process.stderr + process.stdout).encode()
            (hits,) = occurrences(CANARY, {"log": log}).values()
            history.add(LeakCheck(time.time(), "log", len(log), hits))

    shown = list(watch.final.values())
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

    assert check(history.events, UNTIMED) == [], figures
    assert extra <= marked, f"calls made again that nobody was told of: {extra - marked}, {figures}"
    lost = sum(fault.kind == "store_lost" for fault in faults)
    assert most <= 2 + lost, figures


def report(figures: Shown) -> None:
    if REPORT:
        with Path(REPORT).open("a") as file:
            file.write(json.dumps(figures) + "\n")


async def is_empty(nats: Nats) -> bool:
    """Whether no stream holds any work."""
    return not check(await queue_counts(nats))


def at(one: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(one["finished_at"]).timestamp()


def longest_gap(shown: list[Mapping[str, Any]]) -> float:
    """The longest time in which no fusion ended, s."""
    ends = sorted(at(one) for one in shown)
    return max(after - before for before, after in itertools.pairwise(ends))
