"""Measure the strategies, print a table, write build/bench-fusion.json.

Two runs with the same seed write the same file.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from . import attack, modes, position, recorded, speed, voting
from .parallel import Pool, Processes, SerialPool
from .world import Member, World

ROOT = Path(__file__).parents[3]
OUT = ROOT / "build" / "bench-fusion.json"
PROMPTS, QUICK = 20_000, 2_000

Begun = dict[str, Callable[[], Any]]
"""Measurements that have begun, by dotted name in the JSON; each waits for its rows and reports."""


def begin(pool: Pool, prompts: int, seed: str) -> Begun:
    """Set everything going.

    Args:
        pool: where it runs.
        prompts: how many each of the main figures is made of.
        seed: of everything.
    """
    reports: Begun = {}
    reports |= _begin_modes(pool, prompts, seed)
    reports |= _begin_votes(pool, prompts, seed)
    reports |= _begin_positions(pool, prompts, seed)
    reports |= _begin_tails(pool, prompts, seed)
    gate_rows = pool.begin(speed.gate_rows, f"{seed}/gate", n=prompts)
    reports["simulated.edge_first"] = lambda: speed.gate_report(gate_rows())
    tries = max(prompts // 800, 1)
    n_attacks = min(len(attack.attacks()), prompts)
    attack_rows = pool.begin(attack.rows, f"{seed}/attack", tries, n=n_attacks)
    reports["attacks"] = lambda: attack.report(attack_rows(), tries)
    return reports


def _begin_modes(pool: Pool, prompts: int, seed: str) -> Begun:
    reports: Begun = {}
    for kind, name in product(modes.POOLS, modes.CONTESTS):
        n = prompts if kind == "near" else prompts // 5
        rows = pool.begin(modes.rows, kind, name, seed, n=n)
        path = f"simulated.{name}" if kind == "near" else f"simulated.{kind}.{name}"
        reports[path] = partial(lambda rows: modes.report(rows()), rows)
    return reports


def _begin_votes(pool: Pool, prompts: int, seed: str) -> Begun:
    reports: Begun = {}
    histories = min(max(prompts // 50, 2), voting.HISTORIES)
    each = prompts // histories
    for name, world in _vote_worlds(seed).items():
        votes = pool.begin(voting.rows, world, each, n=histories)
        reports[f"simulated.vote_vs_optimal.{name}"] = partial(
            lambda votes: voting.report(votes(), each), votes
        )
    return reports


def _vote_worlds(seed: str) -> dict[str, World]:
    """Pools of members that are near each other or far apart, and how their errors go together."""
    accuracies = {
        "pool_of_3": (0.55, 0.65, 0.80),
        "pool_of_5": (0.50, 0.60, 0.65, 0.70, 0.80),
        "lopsided": (0.45, 0.55, 0.80),
    }
    worlds: dict[str, World] = {}
    for name, pool in accuracies.items():
        members = tuple(Member(f"m{i}", p) for i, p in enumerate(pool))
        world = World(members, f"{seed}/vote/{name}")
        worlds |= {name: world, f"{name}_independent": replace(world, rho=0.0)}
        for collision in (0.6, 0.9):
            worlds[f"{name}_collisions_{collision:.0%}"] = replace(world, collision=collision)
    return worlds


def _begin_positions(pool: Pool, prompts: int, seed: str) -> Begun:
    reports: Begun = {}
    fair = pool.begin(position.rows, f"{seed}/position", 0.0, n=prompts // 4)
    for bias in position.BIASES:
        places = pool.begin(position.rows, f"{seed}/position", bias, n=prompts // 4)
        reports[f"simulated.position_bias.{bias}"] = partial(
            lambda places: position.report(places(), fair()), places
        )
    return reports


def _begin_tails(pool: Pool, prompts: int, seed: str) -> Begun:
    reports: Begun = {}
    resamples = 200 if prompts >= PROMPTS else 50
    for panel, (members, _) in speed.PANELS.items():
        for hedge, name in ((speed.HEDGE, panel), (0.0, f"{panel}_unhedged")):
            times = pool.begin(speed.tail_rows, panel, f"{seed}/tail", hedge, n=prompts)
            reports[f"simulated.heavy_tail.{name}"] = partial(
                lambda times, size: speed.tail_report(times(), size, resamples),
                times,
                len(members),
            )
    return reports


def measure(pool: Pool, prompts: int, seed: str, folder: Path) -> dict[str, Any]:
    """Everything, as the JSON holds it."""
    results: dict[str, Any] = {}
    for path, report in begin(pool, prompts, seed).items():
        *above, name = path.split(".") if "position_bias" not in path else path.split(".", 2)
        place = results
        for step in above:
            place = place.setdefault(step, {})
        place[name] = report()
        print(f"measured {path}", file=sys.stderr)
    results["recorded"] = (
        recorded.report(recorded.load(folder)) if (folder / "replay.jsonl").exists() else None
    )
    world = World((), "")
    return results | {
        "seed": seed,
        "prompts": prompts,
        "generator": {
            "rho": world.rho,
            "own": world.own,
            "collision": world.collision,
            "habit": world.habit,
        },
        "judge": asdict(modes.JUDGE),
        "python": platform.python_version(),
    }


def figures(results: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All figures of a result, by their paths."""
    if not isinstance(results, dict):
        return
    if "ci" in results:
        yield path, results
        return
    for name, inner in results.items():
        yield from figures(inner, f"{path}.{name}" if path else name)


def show(results: dict[str, Any]) -> None:
    """Print the table: figures with an aim first met or missed, then the others."""
    print(f"{'':66}{'value':>9}{'95 % interval':>22}{'n':>9}  aim")
    for path, entry in figures(results):
        low, high = entry["ci"]
        aim = f"{'met ' if entry['met'] else 'MISSED '} ({entry['aim']})" if "aim" in entry else ""
        print(
            f"{path:66}{entry['value']:>9.4f}{f'{low:.4f} to {high:.4f}':>22}{entry['n']:>9}  {aim}"
        )
    if results["recorded"] is None:
        print("recorded: no replay.jsonl at hand, left out")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="bench-fusion", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} prompts: does it run at all")
    parser.add_argument("--prompts", type=int, help=f"of the main figures (default {PROMPTS})")
    parser.add_argument("--seed", default="1")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="processes; 1: none besides this one"
    )
    parser.add_argument(
        "--recorded",
        type=Path,
        default=os.environ.get("FUSEWIRE_BENCH_RECORDED", ROOT.parent / "shared/data/recorded"),
    )
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    prompts = options.prompts or (QUICK if options.quick else PROMPTS)
    pool: Pool = Processes(options.jobs) if options.jobs > 1 else SerialPool()
    results = measure(pool, prompts, options.seed, Path(options.recorded))
    show(results)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
