"""What Fusewire itself costs: time beyond the models, fusions per second, CPU per fusion. `make bench`.

Everything on this machine and durable as shipped (nats-server that syncs every write, SQLite in WAL with
synchronous FULL): a fake model server in a process of its own; a pool of three and a judge, best-of with open
answers, so five calls per fusion, the judge being asked in both orders; `fusewire up` in a child process, driven over
its HTTP API. The openai SDK with SQLite (`peer.py`), which asks its judge once, runs in turn with it, round by round,
so that the machine's moods meet both.

Prints a table, writes build/bench.json. It fails when a fusion does, never for a figure.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp

from fusewire.testing.model_script import ModelScript, Script
from fusewire_cli.client import Client
from fusewire_cli.local.nats import find
from fusewire_cli.local.run_file import RUN_FILE

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"
START_S = 60.0
WAIT_S = 600.0

ANSWER = (
    "{model} says of {digest}: there are several ways to see it, and none of them is short. First, what is known is "
    "known from few sources, and they agree on the main point only. Second, what follows from it depends on what "
    "one wants to use it for. Third, it can be checked in an afternoon, which I would do before anything else."
)
MEMBERS = ["a", "b", "c"]
JUDGE = "judge"

Pids = dict[str, int]


@dataclass(frozen=True)
class Phase:
    """One way to load a side."""

    latencies_ms: dict[str, float]
    in_flight: int
    warm_up: int
    fusions: int

    @property
    def script(self) -> Script:
        """What the fake models do in it."""
        return Script(
            models={
                name: ModelScript(latency_ms=ms, answer=None if name == JUDGE else ANSWER)
                for name, ms in self.latencies_ms.items()
            }
        )

    def overhead_ms(self, wall_ms: float) -> float:
        """A fusion's time beyond its slowest member and the judge."""
        return wall_ms - max(self.latencies_ms[m] for m in MEMBERS) - self.latencies_ms[JUDGE]


def phases(*, quick: bool) -> tuple[Phase, Phase]:
    """A lone fusion at a time, with members at 200 ms; and as many as go, with members at 0 to 20 ms."""
    alone = Phase({"a": 200.0, "b": 200.0, "c": 200.0, JUDGE: 0.0}, 1, 5, 5 if quick else 30)
    loaded = Phase({"a": 0.0, "b": 10.0, "c": 20.0, JUDGE: 10.0}, 64, 64, 100 if quick else 600)
    return alone, loaded


@dataclass(frozen=True)
class Measured:
    """One side in one round."""

    overheads_ms: list[float]
    """Of the lone fusions."""
    fusions_per_s: float
    cpu_ms: dict[str, float]
    """Per fusion, by process; `client` is the driver of Fusewire's API and belongs to neither side."""

    @property
    def cpu_ms_per_fusion(self) -> float:
        """Over all processes of this side."""
        return sum(ms for name, ms in self.cpu_ms.items() if name != "client")


# -- processes --------------------------------------------------------------------------------


class Models:
    """The fake models, in a process of their own."""

    def __init__(self, port: int) -> None:
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self._control = f"http://127.0.0.1:{port}/_control"
        self.calls = 0

    async def play(self, phase: Phase) -> None:
        """Behave as the phase says from now on."""
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{self._control}/stats") as response:
                self.calls += (await response.json(content_type=None))["requests"]
            async with session.post(f"{self._control}/script", data=phase.script.model_dump_json()) as response:
                response.raise_for_status()


@contextlib.contextmanager
def models() -> Iterator[Models]:
    """Start them, and end them."""
    command = [sys.executable, "-m", "fusewire.testing.model_server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Models(json.loads(process.stdout.readline())["port"])
        finally:
            process.terminate()


def config(base_url: str, folder: Path) -> dict[str, Any]:
    """Fusewire as shipped, with one pool."""
    return {
        "data_dir": str(folder),
        "database": {"url": f"sqlite+aiosqlite:///{folder / 'fusewire.db'}"},
        "http": {"port": 0},
        "models": {name: {"kind": "remote", "base_url": base_url, "model": name} for name in [*MEMBERS, JUDGE]},
        # The whole pool must have answered, as in the peer: a crowded machine makes the work longer, not smaller.
        "pools": {
            "default": {"members": MEMBERS, "judge": JUDGE, "quorum": 1.0, "deadline_s": WAIT_S, "control_share": 0.0}
        },
    }


@contextlib.asynccontextmanager
async def fusewire_up(
    settings: dict[str, Any], folder: Path, *, processes: bool = False
) -> AsyncIterator[tuple[str, Pids]]:
    """`fusewire up` on a fresh data folder: its URL and its processes."""
    file = folder / "fusewire.json"
    file.write_text(json.dumps(settings))
    env = {k: v for k, v in os.environ.items() if not k.startswith("FUSEWIRE_") or k == "FUSEWIRE_NATS_SERVER"}
    command = [str(Path(sys.executable).parent / "fusewire"), "up", *(["--processes"] if processes else [])]
    with (folder / "up.log").open("w") as log:
        env["FUSEWIRE_CONFIG"] = str(file)
        child = await asyncio.create_subprocess_exec(*command, env=env, stdout=log, stderr=log)
    try:
        until = time.monotonic() + START_S
        while not (run := _read(folder / RUN_FILE)):
            if child.returncode is not None or time.monotonic() > until:
                raise RuntimeError(f"fusewire up did not start:\n{(folder / 'up.log').read_text()[-2000:]}")
            await asyncio.sleep(0.05)
        yield run["url"], {"up": child.pid, **run["pids"]}
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        await child.wait()


def _read(file: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads(file.read_text()))
    return {}


def cpu_s(pid: int) -> float:
    """User and system time of a process, all its threads, in seconds."""
    # The name, in brackets, may itself hold blanks; utime and stime are the 14th and 15th field (proc(5)).
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- the two sides ----------------------------------------------------------------------------


async def measure_fusewire(
    fake: Models, folder: Path, alone: Phase, loaded: Phase, numbers: Iterator[int], *, processes: bool
) -> Measured:
    """One round of Fusewire."""
    settings = config(fake.base_url, folder)
    async with fusewire_up(settings, folder, processes=processes) as (url, pids), Client(url) as client:

        async def fuse() -> float:
            started = time.perf_counter()
            outcome = await client.submit({"prompt": prompt(next(numbers))}, wait_s=WAIT_S)
            if (outcome["status"], outcome.get("is_degraded")) != ("fused", False):
                raise RuntimeError(f"a fusion went wrong: {outcome}")
            return (time.perf_counter() - started) * 1000

        async def run(phase: Phase, fusions: int) -> list[float]:
            slots = asyncio.Semaphore(phase.in_flight)

            async def one() -> float:
                async with slots:
                    return await fuse()

            return await asyncio.gather(*(one() for _ in range(fusions)))

        def cpu() -> dict[str, float]:
            return {name: cpu_s(pid) for name, pid in [*pids.items(), ("client", os.getpid())]}

        await fake.play(alone)
        await run(alone, alone.warm_up)
        walls_ms = await run(alone, alone.fusions)
        await fake.play(loaded)
        await run(loaded, loaded.warm_up)
        before, started = cpu(), time.perf_counter()
        await run(loaded, loaded.fusions)
        wall_s, after = time.perf_counter() - started, cpu()
    cpu_ms = {name: (after[name] - before[name]) * 1000 / loaded.fusions for name in before}
    return Measured([alone.overhead_ms(ms) for ms in walls_ms], loaded.fusions / wall_s, cpu_ms)


async def measure_peer(fake: Models, folder: Path, alone: Phase, loaded: Phase, numbers: Iterator[int]) -> Measured:
    """One round of the openai SDK."""

    async def run(phase: Phase) -> dict[str, Any]:
        await fake.play(phase)
        prompts = [prompt(next(numbers)) for _ in range(phase.warm_up + phase.fusions)]
        job = {
            "base_url": fake.base_url,
            "database": str(folder / f"{phase.in_flight}.db"),
            "members": MEMBERS,
            "judge": JUDGE,
            "in_flight": phase.in_flight,
            "warm_up": prompts[: phase.warm_up],
            "prompts": prompts[phase.warm_up :],
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(Path(__file__).with_name("peer.py")),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate(json.dumps(job).encode())
        if process.returncode:
            raise RuntimeError("the openai SDK's side failed; its message stands above")
        return dict(json.loads(out))

    one, many = await run(alone), await run(loaded)
    return Measured(
        [alone.overhead_ms(ms) for ms in one["walls_ms"]],
        loaded.fusions / many["wall_s"],
        {"peer": many["cpu_s"] * 1000 / loaded.fusions},
    )


def prompt(number: int) -> str:
    """An open question, never the same twice."""
    return f"Question {number}: what should a city weigh before it closes a street to cars, and who should decide it?"


# -- figures ----------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and most of the rounds."""
    rounded = [round(v, 2) for v in values]
    return {"median": round(statistics.median(values), 2), "min": min(rounded), "max": max(rounded), "rounds": rounded}


def summary(rounds: Sequence[Measured]) -> dict[str, Any]:
    """The figures of one side over its rounds."""
    overheads = [ms for r in rounds for ms in r.overheads_ms]
    medians = spread([statistics.median(r.overheads_ms) for r in rounds])
    return {
        # Over all fusions, of which a round has few; min and max are single fusions.
        "overhead_ms_200": medians
        | {
            "median": round(statistics.median(overheads), 2),
            "min": round(min(overheads), 2),
            "max": round(max(overheads), 2),
            "p95": round(statistics.quantiles(overheads, n=20, method="inclusive")[-1], 2),
        },
        "fusions_per_s": spread([r.fusions_per_s for r in rounds]),
        "cpu_ms_per_fusion": spread([r.cpu_ms_per_fusion for r in rounds]),
        "cpu_ms_by_process": {
            name: round(statistics.median(r.cpu_ms[name] for r in rounds), 2) for name in rounds[0].cpu_ms
        },
    }


FIGURES = ("overhead_ms_200", "fusions_per_s", "cpu_ms_per_fusion")


def report(sides: dict[str, list[Measured]], alone: Phase, loaded: Phase) -> dict[str, Any]:
    """What build/bench.json holds."""
    found = {name: summary(rounds) for name, rounds in sides.items()}
    medians = {name: {figure: side[figure]["median"] for figure in FIGURES} for name, side in found.items()}
    packages = (
        "fusewire",
        "nats-py",
        "faststream",
        "openai",
        "httpx2",
        "aiohttp",
        "sqlalchemy",
        "aiosqlite",
        "pydantic",
    )
    nats = subprocess.run([str(find()), "--version"], capture_output=True, text=True, check=True).stdout
    return {
        **medians.pop("fusewire"),
        **medians,
        "spread": found,
        "phases": {"alone": asdict(alone), "loaded": asdict(loaded)},
        "machine": {"cores": os.cpu_count(), "system": platform.platform()},
        "versions": {
            "python": platform.python_version(),
            "nats-server": nats.strip().rpartition("v")[2],
            **{name: version(name) for name in packages},
        },
    }


LABELS = {
    "overhead_ms_200": "overhead at 200 ms members, ms (median)",
    "fusions_per_s": "fusions/s, members at 0 to 20 ms",
    "cpu_ms_per_fusion": "CPU per fusion, ms",
}


def show(figures: dict[str, Any]) -> None:
    """Print the table."""
    sides = figures["spread"]
    print(f"{'':42}" + "".join(f"{name:>26}" for name in sides) + f"{'ratio':>9}")
    for figure, label in LABELS.items():
        found = [side[figure] for side in sides.values()]
        cells = [f"{f['median']:.1f} ({f['min']:.1f} to {f['max']:.1f})" for f in found]
        ours, theirs = sides["fusewire"][figure]["median"], sides["openai_sdk_sqlite"][figure]["median"]
        print(f"{label:42}" + "".join(f"{cell:>26}" for cell in cells) + f"{ours / theirs:>9.2f}")
    print(f"{'overhead, p95':42}" + "".join(f"{s['overhead_ms_200']['p95']:>26.1f}" for s in sides.values()))
    for name, side in sides.items():
        parts = ", ".join(f"{process} {ms}" for process, ms in side["cpu_ms_by_process"].items())
        print(f"CPU ms per fusion, {name}: {parts}")
    machine, versions = figures["machine"], figures["versions"]
    print(f"{machine['cores']} cores, Python {versions['python']}, nats-server {versions['nats-server']}")


async def bench(rounds: int, alone: Phase, loaded: Phase, *, processes: bool) -> dict[str, Any]:
    """All rounds, the sides in turn."""
    BUILD.mkdir(exist_ok=True)
    numbers = itertools.count(1)
    sides: dict[str, list[Measured]] = {"fusewire": [], "openai_sdk_sqlite": []}
    if processes:
        sides["fusewire_processes"] = []
    # On the disk of the repository: a temporary folder may lie in memory, where a sync costs nothing.
    with tempfile.TemporaryDirectory(prefix="bench-", dir=BUILD) as scratch, models() as fake:
        for number, name in itertools.product(range(1, rounds + 1), sides):
            folder = Path(scratch) / f"{name}-{number}"
            folder.mkdir()
            if name == "openai_sdk_sqlite":
                measured = await measure_peer(fake, folder, alone, loaded, numbers)
            else:
                measured = await measure_fusewire(
                    fake, folder, alone, loaded, numbers, processes=name == "fusewire_processes"
                )
            sides[name].append(measured)
            print(
                f"round {number}/{rounds} {name}: overhead {statistics.median(measured.overheads_ms):.1f} ms, "
                f"{measured.fusions_per_s:.0f} fusions/s, {measured.cpu_ms_per_fusion:.1f} ms CPU",
                file=sys.stderr,
            )
        await fake.play(alone)
        fusions = next(numbers) - 1
        if not fusions * (len(MEMBERS) + 1) <= fake.calls <= fusions * (len(MEMBERS) + 2):
            raise RuntimeError(f"{fake.calls} model calls for {fusions} fusions: the sides did not do their work")
    return report(sides, alone, loaded)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Measure what Fusewire costs, beside the openai SDK with SQLite.")
    parser.add_argument("--rounds", type=int, default=3, help="of each side, in turn")
    parser.add_argument("--quick", action="store_true", help="one small round: does it run at all")
    parser.add_argument("--processes", action="store_true", help="also with each service as a process of its own")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    figures = asyncio.run(bench(rounds, *phases(quick=options.quick), processes=options.processes))
    show(figures)
    out = BUILD / "bench.json"
    out.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"written to {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
