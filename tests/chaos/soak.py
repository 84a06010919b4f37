"""`make soak`: whether anything grows under half of the load that the stack can do.

Writes build/soak.json. For MINUTES (30) prompts of all kinds come at half of the rate that was
measured before, without any fault. Every two seconds it is noted what each process has in memory
(RSS), how many files it has open, and what the streams hold. Slopes are by least squares over the
second half, with their standard errors. It fails where something was lost, and where a slope is
above its limit by three standard errors.
"""

import asyncio
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
from scene import Load, Scene, Stack, note_end, running

from fusewire.bus import Bus
from fusewire.testing.chaos import Fault
from fusewire.testing.history import Acceptance, History, MemorySample
from fusewire.testing.invariants import check, second_half, slope
from fusewire.testing.model_script import ModelScript, Script
from fusewire.testing.stack_events import Watch, control
from fusewire.topology import CARRIERS
from fusewire_cli.client import Client

BUILD = Path(__file__).parents[2] / "build"
EVERY_S = 2.0
IN_FLIGHT = 32
MEASURE_PROMPTS = 60
LIMITS = {"rss_mb": 60.0, "files": 30.0, "bytes": 10e6}
"""By what is measured, what it may grow in an hour."""
STREAMS = (*CARRIERS, "FW_TIMER")
"""Those that hold work alone. FW_OUTCOME and the ledger keep what has ended for a day."""

Series = dict[str, list[tuple[float, float]]]


async def capacity(stack: Stack, history: History) -> float:
    """Prompts a second of a client that always has IN_FLIGHT open."""
    async with Client(stack.url, stack.keys["acme"]) as client:
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def ask(number: int) -> None:
            async with slots:
                name = f"capacity-{number}"
                body = {"prompt": f"How much is {number} and one?", "custom_id": name}
                fusion = await client.submit(body, wait_s=120)
                history.add(Acceptance(time.time(), fusion["id"], name, "acme", "any"))

        start = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(MEASURE_PROMPTS):
                group.create_task(ask(number))
        return MEASURE_PROMPTS / (time.monotonic() - start)


class Sampler:
    """Notes what processes and streams take."""

    def __init__(self, stack: Stack, history: History) -> None:
        self._stack = stack
        self._history = history
        self.series: Series = defaultdict(list)

    async def run(self) -> None:
        bus = Bus("ops", self._stack.nats)
        await bus.connect(timeout_s=60)
        try:
            while True:
                self._look()
                for stream in STREAMS:
                    size = (await bus.js.stream_info(stream)).state.bytes
                    self._note(f"bytes {stream}", size)
                await asyncio.sleep(EVERY_S)
        finally:
            await bus.stop()

    def _look(self) -> None:
        for name, process in self._stack.victim.processes().items():
            self._take(name, process)
            for number, child in enumerate(process.children() if name == "worker-edge" else ()):
                self._take(f"engine-{number}", child)

    def _take(self, name: str, process: psutil.Process) -> None:
        rss_mb = process.memory_info().rss / 1e6
        self._history.add(MemorySample(time.time(), name, rss_mb))
        self._note(f"rss_mb {name}", rss_mb)
        self._note(f"files {name}", process.num_fds())

    def _note(self, what: str, value: float) -> None:
        self.series[what].append((time.time(), value))


def trend(points: Sequence[tuple[float, float]]) -> dict[str, float]:
    """The slope of the second half by the hour, and its standard error."""
    steady = second_half(points)
    by_hour = slope(steady) * 3600
    times = [at / 3600 for at, _ in steady]
    middle, level = statistics.fmean(times), statistics.fmean(value for _, value in steady)
    rests = [v - level - by_hour * (t - middle) for t, (_, v) in zip(times, steady, strict=True)]
    spread = sum((t - middle) ** 2 for t in times)
    error = math.sqrt(sum(r * r for r in rests) / max(1, len(rests) - 2) / spread)
    values = [value for _, value in points]
    return {
        "first": values[0],
        "last": values[-1],
        "most": max(values),
        "per_hour": by_hour,
        "per_hour_error": error,
    }


async def soak(minutes: float, folder: Path, history: History) -> dict[str, Any]:
    """Soak; returns the figures."""
    end = Fault(60 * minutes, "kill", "none")
    (folder / ".fusewire").mkdir()
    async with running(Scene("soak", 1, (), 1), folder) as stack, AsyncExitStack() as opened:
        model = ModelScript(latency_ms=300, latency_sigma=0.5)
        control(
            stack.models.port,
            "script",
            Script(models={"*": model}, recording=False).model_dump_json().encode(),
        )
        rate = await capacity(stack, history)
        scene = Scene("soak", max(10, int(rate / 2 * 60 * minutes)), (end,), 1)
        clients = {
            tenant: await opened.enter_async_context(Client(stack.url, key))
            for tenant, key in stack.keys.items()
        }
        watches = {t: Watch(client, history) for t, client in clients.items()}
        load, are_all_accepted = Load(scene, history), asyncio.Event()
        are_faults_over = asyncio.Event()
        are_faults_over.set()
        sampler = Sampler(stack, history)
        sampling = asyncio.create_task(sampler.run())
        watching = [asyncio.create_task(w.run(are_all_accepted)) for w in watches.values()]
        await load.run(clients, watches, are_faults_over)
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)
        are_all_accepted.set()
        await asyncio.wait(watching, timeout=240)
        await note_end(stack, history)
    trends = {what: trend(points) for what, points in sampler.series.items() if len(points) > 4}
    return {
        "minutes": minutes,
        "capacity_per_s": round(rate, 2),
        "prompts": scene.prompts,
        "refused": load.refused,
        "load_average": os.getloadavg(),
        "trends": trends,
        "growing": {what: figures for what, figures in trends.items() if is_growing(what, figures)},
        "violations": [
            f"{fault.invariant} {fault.subject}: {fault.why}"
            for fault in check(history.events)
            # By its slope alone, which is not told apart from noise here.
            if fault.invariant != "I11"
        ],
    }


def is_growing(what: str, figures: Mapping[str, float]) -> bool:
    limit = LIMITS[what.split(maxsplit=1)[0]]
    return figures["per_hour"] - 3 * figures["per_hour_error"] > limit


def main() -> int:
    minutes = float(os.environ.get("MINUTES", "30"))
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fusewire-soak-") as folder:
        figures = asyncio.run(soak(minutes, Path(folder), History()))
    (BUILD / "soak.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(f"{figures['prompts']} prompts, half of {figures['capacity_per_s']} a second")
    print(f"{'':28}{'first':>11}{'last':>11}{'an hour':>11}{'+-':>9}")
    for what, row in figures["trends"].items():
        print(
            f"{what:28}{row['first']:11.1f}{row['last']:11.1f}"
            f"{row['per_hour']:11.1f}{row['per_hour_error']:9.1f}"
        )
    for what in figures["growing"]:
        print(f"FAILED {what} grows", file=sys.stderr)
    for fault in figures["violations"]:
        print(f"FAILED {fault}", file=sys.stderr)
    return 1 if figures["growing"] or figures["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
