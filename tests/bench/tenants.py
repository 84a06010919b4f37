"""What another tenant's batch costs an interactive one. `make bench-tenants`.

One tenant has 100,000 lines queued; another sends prompts at a slow, steady rate, whether or not
the last has been answered. Its latency is beside the same on the idle system, before and after, in
one run. All as shipped: `fusewire up` as one process, its broker and database on the disk, and fake
models as another process, which take a fixed time. It fails when a request does, never for a
figure. Writes build/bench-tenants.json.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import platform
import secrets
import sqlite3
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from cost.machine import BUILD, ROOT, cpu_s, fusewire_up, models
from doors import write_lines

from fusewire.settings import Database, Settings
from fusewire.store.engine import Store
from fusewire.testing.eventually import eventually
from fusewire.testing.model_script import ModelScript, Script
from fusewire_ingest.admission import keys
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.keys import ApiKeys, Change, Key

MEMBERS = ["a", "b", "c"]
MODEL_MS = 300.0
"""What each model takes for an answer."""
LINE_CHARS = 200
AIM = 1.5
PATIENCE_S = 600.0
TIMEOUT = aiohttp.ClientTimeout(total=None)
BULK, CALM = "bulk", "calm"


def config(base_url: str, folder: Path, window: int | None) -> dict[str, Any]:
    """As shipped, with a pool that waits for all of its members, and two tenants."""
    return {
        "data_dir": str(folder),
        "database": {"url": f"sqlite+aiosqlite:///{folder / 'fusewire.db'}"},
        "http": {"port": 0, "keys": "required"},
        "log": {"level": "warning"},
        "models": {
            name: {"kind": "remote", "base_url": base_url, "model": name} for name in MEMBERS
        },
        "pools": {
            "default": {
                "members": MEMBERS,
                "quorum": 1.0,
                "deadline_s": 600,
                "control_share": 0.0,
            }
        },
        "tenants": {BULK: {}, CALM: {}},
        **({"limits": {"batch_window": window}} if window else {}),
    }


@dataclass(frozen=True)
class Chat:
    """A prompt that was answered; times in seconds since 1970."""

    fusion_id: str
    began_at: float
    ended_at: float

    @property
    def latency_ms(self) -> float:
        """From the request to its reply."""
        return (self.ended_at - self.began_at) * 1000


class Tenant:
    """A tenant's client."""

    def __init__(self, url: str, key: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session
        self._headers = {"authorization": f"Bearer {key}"}

    async def call(self, method: str, path: str, **given: Any) -> dict[str, Any]:
        """A JSON object. Raises RuntimeError for an error."""
        async with self._session.request(
            method, f"{self._url}/v1{path}", headers=self._headers, **given
        ) as reply:
            if reply.status >= 400:
                raise RuntimeError(f"{path}: {reply.status} {await reply.text()}")
            return dict(await reply.json())

    async def chat(self, text: str) -> "Chat":
        """Ask one prompt."""
        body = {"model": "fusion", "messages": [{"role": "user", "content": text}]}
        began_at, started = time.time(), time.perf_counter()
        reply = await self.call("POST", "/chat/completions", json=body)
        latency_s = time.perf_counter() - started
        return Chat(reply["fusion"]["outcome_id"], began_at, began_at + latency_s)

    async def steadily(self, name: str, prompts: int, every_s: float) -> list["Chat"]:
        """Ask prompts at a steady rate."""
        tasks = []
        for number in range(prompts):
            tasks.append(asyncio.create_task(self.chat(f"Yes or no, {name} {number}?")))
            await asyncio.sleep(every_s)
        return list(await asyncio.gather(*tasks))

    async def batch(self, file: Path) -> str:
        """Upload a file and make a batch of it; returns the batch's id."""
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        with file.open("rb") as data:
            form.add_field("file", data, filename=file.name, content_type="application/jsonl")
            uploaded = await self.call("POST", "/files", data=form)
        body = {
            "input_file_id": uploaded["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "7d",
        }
        return str((await self.call("POST", "/batches", json=body))["id"])


async def make_key(settings: Settings, tenant: str) -> str:
    """A key of a tenant."""
    key = keys.make(secrets.token_bytes(keys.RANDOM_BYTES))
    public = keys.key_id(key)
    assert public
    store = Store(settings.database)
    digest = keys.digest(key, pepper(settings))
    now = datetime.now(UTC)
    made = Key(public, tenant, "bench", digest, now)
    await ApiKeys(store).add(made, Change("operator:bench", now))
    await store.close()
    return key


def quantile(values: list[float], share: float) -> float:
    """The value below which a share of them lies (nearest rank)."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


STAGES = """
SELECT p.fusion_id, p.body AS prompt, f.plan AS plan, c.body AS call, o.body AS outcome
FROM prompts p JOIN fusions f ON f.fusion_id = p.fusion_id
JOIN outcomes o ON o.fusion_id = p.fusion_id JOIN candidates c ON c.fusion_id = p.fusion_id
"""


def stages_ms(chats: list[Chat], file: Path) -> dict[str, float]:
    """The median of what each step of a fusion takes, by the times that are stored."""
    by_id = {chat.fusion_id: chat for chat in chats}
    times: dict[str, dict[str, float]] = {}
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        for fusion_id, prompt, plan, call, outcome in connection.execute(STAGES):
            if fusion_id not in by_id:
                continue
            told = times.setdefault(fusion_id, {"called": 0.0, "called_back": 0.0})
            told["accepted"] = _at(prompt, "submitted_at")
            told["planned"] = _at(plan, "planned_at")
            told["called"] = max(told["called"], _at(call, "started_at"))
            told["called_back"] = max(told["called_back"], _at(call, "finished_at"))
            told["decided"] = _at(outcome, "finished_at")
            told["began"], told["answered"] = by_id[fusion_id].began_at, by_id[fusion_id].ended_at
    order = ("began", "accepted", "planned", "called", "called_back", "decided", "answered")
    return {
        f"{begin} to {end}": round(
            statistics.median(1000 * (told[end] - told[begin]) for told in times.values()), 1
        )
        for begin, end in itertools.pairwise(order)
    }


def _at(body: str, name: str) -> float:
    return datetime.fromisoformat(json.loads(body)[name]).timestamp()


def spread(chats: list[Chat], load: float, file: Path) -> dict[str, Any]:
    """Percentiles, with the machine's load beside them, and the stages."""
    values = [chat.latency_ms for chat in chats]
    return {
        "stages_ms": stages_ms(chats, file),
        "prompts": len(values),
        "p50_ms": round(quantile(values, 0.5), 1),
        "p90_ms": round(quantile(values, 0.9), 1),
        "p99_ms": round(quantile(values, 0.99), 1),
        "max_ms": round(max(values), 1),
        "load": round(load, 1),
    }


class Scene:
    """The two tenants on one running Fusewire."""

    def __init__(
        self, calm: Tenant, bulk: Tenant, database: Path, *, prompts: int, every_s: float
    ) -> None:
        self._database = database
        self._calm = calm
        self._bulk = bulk
        self._prompts = prompts
        self._every_s = every_s

    async def idle(self, name: str) -> tuple[list[Chat], dict[str, Any]]:
        """Latencies without any batch."""
        chats = await self._calm.steadily(name, self._prompts, self._every_s)
        return chats, spread(chats, os.getloadavg()[0], self._database)

    async def loaded(self, file: Path, lines: int, pids: dict[str, int]) -> dict[str, Any]:
        """Latencies while the lines of a batch are checked, and while they are released."""
        batch = await self._bulk.batch(file)
        checking = asyncio.create_task(
            self._calm.steadily("checking", max(self._prompts // 4, 1), self._every_s)
        )
        await self._until_running(batch, lines)
        checked = spread(await checking, os.getloadavg()[0], self._database)
        before = await self._settled(batch)
        cpu_before = sum(cpu_s(pid) for pid in pids.values())
        started = time.perf_counter()
        values = await self._calm.steadily("queued", self._prompts, self._every_s)
        seconds = time.perf_counter() - started
        settled = await self._settled(batch) - before
        cpu = sum(cpu_s(pid) for pid in pids.values()) - cpu_before
        found = await self._bulk.call("GET", f"/batches/{batch}")
        if found["status"] != "in_progress":
            raise RuntimeError(f"the batch is over: {found['status']}; give it more lines")
        await self._bulk.call("POST", f"/batches/{batch}/cancel", json={})
        await self._until_over(batch)
        return {
            "checking": checked,
            "queued": spread(values, os.getloadavg()[0], self._database),
            "lines": lines,
            "lines_per_s": round(settled / seconds, 1),
            "cpu_cores": round(cpu / seconds, 2),
        }

    async def _settled(self, batch: str) -> int:
        counts = (await self._bulk.call("GET", f"/batches/{batch}"))["request_counts"]
        return int(counts["completed"] + counts["failed"])

    async def _until_running(self, batch: str, lines: int) -> None:
        await eventually(lambda: self._settled(batch), timeout_s=PATIENCE_S)
        found = await self._bulk.call("GET", f"/batches/{batch}")
        if found["request_counts"]["total"] != lines:
            raise RuntimeError(f"the batch was not taken: {found}")

    async def _until_over(self, batch: str) -> None:
        async def is_over() -> bool:
            return bool(
                (await self._bulk.call("GET", f"/batches/{batch}"))["status"] == "cancelled"
            )

        await eventually(is_over, timeout_s=PATIENCE_S)


async def bench(
    lines: int, prompts: int, every_s: float, *, window: int | None, processes: bool
) -> dict[str, Any]:
    """One run: idle, loaded, idle."""
    BUILD.mkdir(exist_ok=True)
    # On the repository's disk: a temporary folder may lie in memory, where a sync costs nothing.
    with tempfile.TemporaryDirectory(prefix="bench-", dir=BUILD) as scratch, models() as fake:
        folder = Path(scratch)
        await fake.play(
            Script(models=dict.fromkeys(MEMBERS, ModelScript(answer="yes", latency_ms=MODEL_MS)))
        )
        file = folder / "batch.jsonl"
        write_lines(file, lines, LINE_CHARS)
        given = config(fake.base_url, folder, window)
        async with contextlib.AsyncExitStack() as end:
            url, pids = await end.enter_async_context(
                fusewire_up(given, folder, processes=processes)
            )
            session = await end.enter_async_context(aiohttp.ClientSession(timeout=TIMEOUT))
            settings = Settings(**{**given, "database": Database(**given["database"])})
            calm, bulk = [
                Tenant(url, await make_key(settings, name), session) for name in (CALM, BULK)
            ]
            await calm.steadily("warm-up", 5, every_s)
            scene = Scene(calm, bulk, folder / "fusewire.db", prompts=prompts, every_s=every_s)
            chats_before, before = await scene.idle("before")
            loaded = await scene.loaded(file, lines, pids)
            chats_after, after = await scene.idle("after")
    idle = [chat.latency_ms for chat in (*chats_before, *chats_after)]
    queued = loaded["queued"]
    return {
        "model_ms": MODEL_MS,
        "every_s": every_s,
        "idle": {"before": before, "after": after},
        "loaded": loaded,
        "ratio_p50": round(queued["p50_ms"] / quantile(idle, 0.5), 2),
        "ratio_p99": round(queued["p99_ms"] / quantile(idle, 0.99), 2),
        "aim": AIM,
        "machine": {"cores": os.cpu_count(), "system": platform.platform()},
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Measure what a tenant's batch costs another.")
    parser.add_argument("--lines", type=int, default=100_000, help="of the batch")
    parser.add_argument("--prompts", type=int, default=200, help="of the other tenant, each time")
    parser.add_argument("--every", type=float, default=0.25, help="seconds between them")
    parser.add_argument("--processes", action="store_true", help="one process for each service")
    parser.add_argument("--window", type=int, help="limits.batch_window, if another than shipped")
    options = parser.parse_args()
    figures = asyncio.run(
        bench(
            options.lines,
            options.prompts,
            options.every,
            window=options.window,
            processes=options.processes,
        )
    )
    rows = {
        "idle, before": figures["idle"]["before"],
        "while the batch is checked": figures["loaded"]["checking"],
        f"{figures['loaded']['lines']} lines queued": figures["loaded"]["queued"],
        "idle, after": figures["idle"]["after"],
    }
    for label, row in rows.items():
        print(
            f"{label:30} p50 {row['p50_ms']:8.1f} ms, p90 {row['p90_ms']:8.1f} ms,"
            f" p99 {row['p99_ms']:8.1f} ms ({row['prompts']} prompts, load {row['load']})"
        )
        print("   ", ", ".join(f"{step} {ms:.0f}" for step, ms in row["stages_ms"].items()))
    print(
        f"{'ratio':30} p50 {figures['ratio_p50']:8.2f}   , p99 {figures['ratio_p99']:8.2f}, aim <="
        f" {AIM}; meanwhile {figures['loaded']['lines_per_s']} lines/s,"
        f" {figures['loaded']['cpu_cores']} cores"
    )
    out = BUILD / "bench-tenants.json"
    out.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"written to {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
