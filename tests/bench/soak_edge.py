"""Whether the edge worker grows while it works. `make soak-edge`.

Writes build/soak-edge.json. The worker is its own process, with a real engine's process and
SmolLM2-135M, on a real nats-server. For MINUTES (20) it always has twice as many tasks as slots:
prompts of about 20 to 600 tokens, some with a common beginning, of all priorities, one in six under
a schema, some sampled, one in ten cancelled. Each second it is noted what both processes have in
memory (RSS), how many files they have open, and what the streams hold. The slopes are by least
squares over what comes after the warm-up, the first third: until then the KV cache and the prefix
cache fill. It fails when a task has no candidate or two, never for a figure.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fusewire import provision
from fusewire.bus import Bus, Delivery
from fusewire.contracts import PRIORITIES, Candidate, Message, Task
from fusewire.loops import BatchLoop
from fusewire.settings import Nats
from fusewire.testing.edge_tasks import edge_task, publish_task
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.processes import bound
from fusewire.topology import JUDGE, cancel_subject, topology
from fusewire_worker_edge.pull import pull

BUILD = Path(__file__).parents[2] / "build"
MODEL = "smollm2-135m"
SLOTS = 4
KV_CACHE_MB = 256
"""Small, so that it is full before the warm-up ends."""
STREAMS = ("FW_TASK_EDGE", "FW_CANDIDATE")
WORDS = ("river", "stone", "lamp", "winter", "paper", "harbour", "copper", "letter", "garden")
SYSTEM = "You are a careful assistant. " * 12
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "verdict": {"enum": ["yes", "no"]},
        "why": {"type": "string", "maxLength": 40},
    },
    "required": ["verdict", "why"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Sample:
    """What was there at one second."""

    at_s: float
    worker_mb: float
    engine_mb: float
    worker_files: int
    engine_files: int
    stream_kb: float


@dataclass
class Soak:
    """The tasks that were published and what came back."""

    bus: Bus
    chance: random.Random = field(default_factory=lambda: random.Random(9))
    published: int = 0
    open: set[str] = field(default_factory=set)
    results: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    copies: int = 0
    """Candidates of tasks that had one already."""
    cancels: set[asyncio.Task[None]] = field(default_factory=set)

    def task(self) -> Task:
        """A random task."""
        chance = self.chance
        text = " ".join(chance.choices(WORDS, k=chance.randrange(10, 500)))
        sampling: dict[str, Any] = {"max_tokens": chance.randrange(8, 64)}
        if chance.random() < 1 / 6:
            sampling["response_schema"] = SCHEMA
        if chance.random() < 0.3:
            sampling |= {"temperature": 0.8, "top_p": 0.9}
        messages = [Message(role="user", content=f"Say something about this: {text}")]
        if chance.random() < 0.3:
            messages.insert(0, Message(role="system", content=SYSTEM))
        return edge_task(
            f"soak-{self.published}",
            "",
            sampling=sampling,
            messages=tuple(messages),
            priority=chance.choice(PRIORITIES),
            is_streamed=chance.random() < 0.3,
        )

    async def fill(self) -> None:
        """Publish tasks until twice as many as slots are open."""
        while len(self.open) < 2 * SLOTS:
            task = self.task()
            self.published += 1
            self.open.add(task.task_id)
            await publish_task(self.bus, task)
            if self.chance.random() < 0.1:
                cancel = asyncio.create_task(self._cancel(task.fusion_id))
                self.cancels.add(cancel)
                cancel.add_done_callback(self.cancels.discard)

    async def _cancel(self, fusion_id: str) -> None:
        await asyncio.sleep(self.chance.random() * 8)
        await self.bus.client.publish(cancel_subject(fusion_id), b"")

    async def take(self, batch: Sequence[Delivery]) -> None:
        """Take candidates, as the judge does."""
        for delivery in batch:
            candidate = Candidate.decode(delivery.data)
            self.copies += candidate.task_id not in self.open
            self.open.discard(candidate.task_id)
            self.results[candidate.error.code if candidate.error else "ok"] += 1
            if candidate.usage:
                self.tokens["prompt"] += candidate.usage.prompt_tokens
                self.tokens["cached"] += candidate.usage.cached_tokens
                self.tokens["completion"] += candidate.usage.completion_tokens

    async def stream_kb(self) -> float:
        """What the streams hold."""
        infos = [await self.bus.js.stream_info(name) for name in STREAMS]
        return sum(info.state.bytes for info in infos) / 1e3


def engine_pid(worker: int) -> int | None:
    """The worker's child process."""
    for children in Path(f"/proc/{worker}/task").glob("*/children"):
        for pid in children.read_text().split():
            if "engine.child" in Path(f"/proc/{pid}/cmdline").read_text():
                return int(pid)
    return None


def rss_mb(pid: int) -> float:
    """What a process has in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def open_files(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@contextmanager
def worker_process(url: str, folder: Path, room: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The edge worker as a process."""
    config = room / "soak.json"
    model = {"kind": "edge", "path": str(folder), "slots": SLOTS, "kv_cache_mb": KV_CACHE_MB}
    pool = {"members": ["small"], "judge": None}
    config.write_text(
        json.dumps(
            {
                "nats": {"url": url},
                "models": {"small": model},
                "pools": {"default": pool},
                "log": {"level": "warning"},
                "data_dir": str(room / "data"),
            }
        )
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith("FUSEWIRE_")}
    environment = own | {"FUSEWIRE_CONFIG": str(config), "FUSEWIRE_HTTP__PORT": "0"}
    process = subprocess.Popen(
        bound([sys.executable, "-m", "fusewire_worker_edge"]), env=environment
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()


async def sample(soak: Soak, worker: int, began: float) -> Sample | None:
    """What is there now; None until the engine's process is."""
    engine = engine_pid(worker)
    if engine is None:
        return None
    return Sample(
        at_s=time.monotonic() - began,
        worker_mb=rss_mb(worker),
        engine_mb=rss_mb(engine),
        worker_files=open_files(worker),
        engine_files=open_files(engine),
        stream_kb=await soak.stream_kb(),
    )


async def work(soak: Soak, worker: subprocess.Popen[bytes], minutes: float) -> list[Sample]:
    """Keep the worker busy, and sample each second; then wait for the rest."""
    began = time.monotonic()
    samples: list[Sample] = []
    due_s = began
    while time.monotonic() < began + 60 * minutes:
        await soak.fill()
        if time.monotonic() >= due_s and (now := await sample(soak, worker.pid, began)):
            samples.append(now)
            due_s += 1
        _check_runs(worker)
        await asyncio.sleep(0.1)
    async with asyncio.timeout(600):
        while soak.open:
            _check_runs(worker)
            await asyncio.sleep(0.1)
    return samples


def _check_runs(worker: subprocess.Popen[bytes]) -> None:
    if worker.poll() is not None:
        sys.exit(f"the worker ended with {worker.returncode}")


def trend(samples: Sequence[Sample], name: str) -> dict[str, float]:
    """How a figure changes after the warm-up, by least squares."""
    steady = samples[len(samples) // 3 :]
    hours = [s.at_s / 3600 for s in steady]
    values = [float(getattr(s, name)) for s in steady]
    slope, intercept = statistics.linear_regression(hours, values)
    rests = [v - slope * h - intercept for h, v in zip(hours, values, strict=True)]
    spread = sum((h - statistics.fmean(hours)) ** 2 for h in hours)
    error = (sum(r * r for r in rests) / max(1, len(rests) - 2) / spread) ** 0.5
    return {
        "first": values[0],
        "last": values[-1],
        "most": max(float(getattr(s, name)) for s in samples),
        "per_hour": slope,
        "per_hour_error": error,
    }


def show(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    print(f"{figures['minutes']} minutes, {figures['tasks']} tasks: {figures['results']}")
    print(f"tokens: {figures['tokens']}")
    print(f"{'':14}{'first':>9}{'last':>9}{'most':>9}{'an hour':>11}{'+-':>8}")
    for name, values in figures["trends"].items():
        print(
            f"{name:14}{values['first']:9.1f}{values['last']:9.1f}{values['most']:9.1f}"
            f"{values['per_hour']:11.2f}{values['per_hour_error']:8.2f}"
        )


async def run(minutes: float) -> dict[str, Any]:
    """Soak, and return the figures."""
    root = os.environ.get("FUSEWIRE_MODELS")
    folder = pull(MODEL, Path(root) if root else None)
    with tempfile.TemporaryDirectory() as room:
        async with NatsServer(Path(room) / "nats") as server:
            bus = Bus("judge", Nats(url=server.url), drain_s=2)
            await bus.connect(timeout_s=120)
            await provision.apply(bus.js, topology({"small": "edge"}, ["default"]))
            soak = Soak(bus)
            intake = BatchLoop(bus, JUDGE, soak.take, batch=64)
            await intake.start()
            with worker_process(server.url, folder, Path(room)) as worker:
                samples = await work(soak, worker, minutes)
            await intake.stop(5)
            await bus.stop()
    names = [name for name in asdict(samples[0]) if name != "at_s"]
    return {
        "minutes": minutes,
        "model": MODEL,
        "slots": SLOTS,
        "tasks": soak.published,
        "results": dict(soak.results),
        "copies": soak.copies,
        "tokens": dict(soak.tokens),
        "trends": {name: trend(samples, name) for name in names},
        "samples": [asdict(s) for s in samples],
    }


def main() -> None:
    """Soak for MINUTES."""
    figures = asyncio.run(run(float(os.environ.get("MINUTES", "20"))))
    BUILD.mkdir(exist_ok=True)
    (BUILD / "soak-edge.json").write_text(json.dumps(figures, indent=1) + "\n")
    show(figures)
    answers = sum(figures["results"].values())
    if figures["copies"] or answers != figures["tasks"]:
        sys.exit(f"{figures['tasks']} tasks, {answers} candidates, {figures['copies']} copies")


if __name__ == "__main__":
    main()
