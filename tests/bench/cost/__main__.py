"""Time beyond the models, throughput and CPU, beside what people would write instead. `make bench`.

Everything on this machine and durable as shipped (nats-server that syncs every write, SQLite in WAL
with synchronous FULL): a fake model server in a process of its own; a pool of three and a judge,
best-of with open answers, so five calls per fusion, the judge being asked in both orders; the
others ask theirs once. The sides run in turn, round by round, so that the machine's moods meet all
of them.

Prints a table, writes build/bench.json. It fails when a fusion does, never for a figure.
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cost import theirs
from cost.machine import BUILD, ROOT, Models, models, spread
from cost.ours import Fusewire, Run, killed
from cost.scenes import Scene, scenes
from fusewire_cli.local.nats import find

OURS = "fusewire"
HELD_AGAINST = next(iter(theirs.BASELINES))
BOTH = ("alone_50", "alone_200", "alone_1000", "loaded", "inflight512", "heavy_tail_all", "faults")
"""Scenes of all sides; the others are Fusewire's alone."""
FEW = ("loaded", "alone_200")
"""Scenes of the baselines that Fusewire is not held against."""
PACKAGES = (
    "fusewire", "nats-py", "faststream", "openai", "httpx2", "aiohttp", "sqlalchemy", "aiosqlite",
    "pydantic", "uvloop",
)  # fmt: skip


@dataclass
class Side:
    """All rounds of one side."""

    runs: dict[str, list[Run]] = field(default_factory=dict)

    def add(self, scene: str, run: Run) -> None:
        """One more."""
        self.runs.setdefault(scene, []).append(run)

    def each(self, scene: str, figure: Callable[[Run], float]) -> dict[str, Any]:
        """A figure's spread over the rounds."""
        return spread([figure(run) for run in self.runs[scene]])


def percentile(share: float, run: Run) -> float:
    """Of the fusions' times in ms; the share is such as 0.95."""
    return statistics.quantiles(run.walls_ms, n=1000, method="inclusive")[round(share * 1000) - 1]


def overhead(scene: Scene, run: Run) -> float:
    """The median fusion's time beyond the models, ms."""
    return scene.overhead_ms(statistics.median(run.walls_ms))


def figures(side: Side, played: dict[str, Scene]) -> dict[str, Any]:
    """What is told of each side."""
    found: dict[str, Any] = {}
    for member_ms in (50, 200, 1000):
        name = f"alone_{member_ms}"
        if name in side.runs:
            found[f"overhead_ms_{member_ms}"] = side.each(name, partial(overhead, played[name]))
    if "loaded" in side.runs:
        found["fusions_per_s"] = side.each("loaded", lambda run: len(run.walls_ms) / run.wall_s)
        found["cpu_ms_per_fusion"] = side.each("loaded", lambda run: run.cpu_ms_per_fusion)
        found["cpu_ms_by_process"] = {
            name: round(statistics.median(run.cpu_ms[name] for run in side.runs["loaded"]), 2)
            for name in side.runs["loaded"][0].cpu_ms
        }
        found["fake_cpu_ms"] = side.each("loaded", lambda run: run.fake_cpu_ms)
    if "inflight512" in side.runs:
        found["inflight512"] = {
            "p50_ms": side.each("inflight512", lambda run: statistics.median(run.walls_ms)),
            "fusions_per_s": side.each("inflight512", lambda run: len(run.walls_ms) / run.wall_s),
        }
    for name in ("heavy_tail", "heavy_tail_all"):
        if name in side.runs:
            found[name] = {
                f"p{round(share * 100)}_ms": side.each(name, partial(percentile, share))
                for share in (0.5, 0.95, 0.99)
            }
    if "faults" in side.runs:
        found["faults"] = {
            "answered": side.each("faults", lambda run: run.answered),
            "calls_per_fusion": side.each("faults", lambda run: sum(run.calls.values())),
            "member_calls_per_fusion": side.each(
                "faults", lambda run: sum(run.calls.values()) - run.calls["judge"]
            ),
            "p99_ms": side.each("faults", partial(percentile, 0.99)),
        }
    return found


def medians(told: Any) -> Any:
    """The same with each spread's median in its place."""
    if isinstance(told, dict):
        return (
            told["median"]
            if "median" in told
            else {name: medians(inner) for name, inner in told.items()}
        )
    return told


def report(
    found: dict[str, Any], extra: dict[str, Any], played: dict[str, Scene]
) -> dict[str, Any]:
    """What build/bench.json holds."""
    ours = medians(found[OURS])
    tail, whole = ours.pop("heavy_tail"), ours.pop("heavy_tail_all")
    ours["heavy_tail"] = {
        f"{p}_ratio": round(tail[f"{p}_ms"] / whole[f"{p}_ms"], 3) for p in ("p95", "p99")
    }
    baselines = {name: medians(side) for name, side in found.items() if name != OURS}
    nats = subprocess.run(
        [str(find()), "--version"], capture_output=True, text=True, check=True
    ).stdout
    return {
        **ours,
        HELD_AGAINST: baselines[HELD_AGAINST],
        "baselines": baselines,
        **extra,
        "spread": found,
        "scenes": {name: asdict(scene) for name, scene in played.items()},
        "machine": {"cores": os.cpu_count(), "system": platform.platform()},
        "versions": {
            "python": platform.python_version(),
            "nats-server": nats.strip().rpartition("v")[2],
            **{name: version(name) for name in PACKAGES},
        },
    }


ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("overhead at 50 ms members, ms", ("overhead_ms_50",)),
    ("overhead at 200 ms members, ms", ("overhead_ms_200",)),
    ("overhead at 1000 ms members, ms", ("overhead_ms_1000",)),
    ("fusions/s, members at 0 to 20 ms, 64 in flight", ("fusions_per_s",)),
    ("CPU per fusion, ms", ("cpu_ms_per_fusion",)),
    ("CPU of the fake models beside it, ms", ("fake_cpu_ms",)),
    ("512 in flight at 200 ms: p50, ms", ("inflight512", "p50_ms")),
    ("512 in flight at 200 ms: fusions/s", ("inflight512", "fusions_per_s")),
    ("heavy tail, all waited for: p95, ms", ("heavy_tail_all", "p95_ms")),
    ("heavy tail, all waited for: p99, ms", ("heavy_tail_all", "p99_ms")),
    ("heavy tail, quorum: p95, ms", ("heavy_tail", "p95_ms")),
    ("heavy tail, quorum: p99, ms", ("heavy_tail", "p99_ms")),
    ("5 % 500s and 5 % 429s: answered", ("faults", "answered")),
    ("5 % 500s and 5 % 429s: calls of members", ("faults", "member_calls_per_fusion")),
    ("5 % 500s and 5 % 429s: p99, ms", ("faults", "p99_ms")),
)


def table(found: dict[str, Any], extra: dict[str, Any]) -> str:
    """As Markdown: medians, least and most of the rounds, and the ratio to its counterpart."""
    lines = [f"| | {' | '.join(found)} | ratio |", "|---|" + "---|" * (len(found) + 1)]
    for label, path in ROWS:
        cells = [_at(side, path) for side in found.values()]
        first, second = _at(found[OURS], path), _at(found[HELD_AGAINST], path)
        ratio = (
            f"{first['median'] / second['median']:.2f}"
            if first and second and second["median"]
            else ""
        )
        shown = [
            f"{c['median']:.4g} ({c['min']:.4g} to {c['max']:.4g})" if c else "" for c in cells
        ]
        lines.append(f"| {label} | {' | '.join(shown)} | {ratio} |")
    lines += ["", "| Fusewire alone | |", "|---|---|"]
    lines += [
        f"| {name}: {key} | {value} |"
        for name in ("kill9", "per_fusion")
        for key, value in extra[name].items()
    ]
    lines.append(f"| load average at the start of each round | {extra['load_average']} |")
    return "\n".join(lines)


def _at(side: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any] | None:
    found: Any = side
    for name in path:
        found = found.get(name) if found else None
    return dict(found) if found else None


async def play_ours(
    side: Side,
    fake: Models,
    played: dict[str, Scene],
    folder: Path,
    numbers: Iterator[int],
    *,
    processes: bool,
) -> dict[str, float]:
    """One round of Fusewire; per fusion of `loaded`, the messages and commits that were written."""
    async with Fusewire(fake, folder, numbers, processes=processes) as fusewire:
        counts: dict[str, float] = {}
        for name, scene in played.items():
            before = await fusewire.written() if name == "loaded" else {}
            side.add(name, await fusewire.run(scene))
            if name == "loaded":
                after = await fusewire.written()
                total = scene.warm_up + scene.fusions
                counts = {key: round((after[key] - before.get(key, 0)) / total, 3) for key in after}
    counts["messages"] = round(
        sum(count for key, count in counts.items() if key != "sql_commits"), 3
    )
    return {key: count for key, count in sorted(counts.items()) if count}


async def bench(
    rounds: int, played: dict[str, Scene], *, processes: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All rounds, the sides in turn."""
    BUILD.mkdir(exist_ok=True)
    numbers = itertools.count(1)
    sides = {name: Side() for name in (OURS, *theirs.BASELINES)}
    if processes:
        sides[f"{OURS}_processes"] = Side()
    extra: dict[str, Any] = {"load_average": []}
    kills, counts = [], []
    # On the repository's disk: a temporary folder may lie in memory, where a sync costs nothing.
    with tempfile.TemporaryDirectory(prefix="bench-", dir=BUILD) as scratch, models() as fake:
        for number, (name, side) in itertools.product(range(1, rounds + 1), sides.items()):
            folder = Path(scratch) / f"{name}-{number}"
            folder.mkdir()
            if name == OURS:
                extra["load_average"].append(round(os.getloadavg()[0], 2))
            if name.startswith(OURS):
                counted = await play_ours(
                    side, fake, played, folder, numbers, processes=name != OURS
                )
                if name == OURS:
                    counts.append(counted)
                    (folder / "killed").mkdir()
                    kills.append(await killed(fake, folder / "killed", numbers))
            else:
                for scene in BOTH if name == HELD_AGAINST else FEW:
                    baseline = theirs.BASELINES[name]
                    side.add(
                        scene, await theirs.run(fake, played[scene], folder, numbers, baseline)
                    )
                    (folder / "peer.db").unlink(missing_ok=True)
            print(f"round {number}/{rounds} {name}", file=sys.stderr)
    extra["kill9"] = {
        key: round(statistics.median(one[key] for one in kills), 4) for key in kills[0]
    }
    extra["per_fusion"] = {
        key: statistics.median(one.get(key, 0) for one in counts) for key in counts[0]
    }
    return {name: figures(side, played) for name, side in sides.items()}, extra


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description="Measure what Fusewire costs, beside what people write instead."
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each side, in turn")
    parser.add_argument("--quick", action="store_true", help="one small round: does it run at all")
    parser.add_argument(
        "--processes", action="store_true", help="also with each service as a process of its own"
    )
    options = parser.parse_args()
    played = scenes(quick=options.quick)
    found, extra = asyncio.run(
        bench(1 if options.quick else options.rounds, played, processes=options.processes)
    )
    print(table(found, extra))
    out = BUILD / "bench.json"
    out.write_text(json.dumps(report(found, extra, played), indent=2) + "\n")
    print(f"written to {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
