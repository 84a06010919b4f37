"""Measure the strategies, print a table, write build/bench-fusion.json. Two runs of one seed write the same."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from . import attack, modes, position, recorded, speed, voting
from .parallel import Here, Pool, Processes
from .world import Member, World

ROOT = Path(__file__).parents[3]
OUT = ROOT / "build" / "bench-fusion.json"
PROMPTS, QUICK = 20_000, 2_000

Begun = dict[str, Callable[[], Any]]
"""What is being measured, by its dotted name in the JSON; each waits for its rows and reports them."""


def begin(pool: Pool, prompts: int, seed: str) -> Begun:
    """Set everything going.

    Args:
        pool: where it runs.
        prompts: how many each of the main figures is made of.
        seed: of everything.
    """
    begun: Begun = {}
    for kind in modes.POOLS:
        n = prompts if kind == "near" else prompts // 5
        for name in modes.CONTESTS:
            rows = pool.begin(modes.rows, kind, name, seed, n=n)
            path = f"simulated.{name}" if kind == "near" else f"simulated.{kind}.{name}"
            begun[path] = partial(lambda rows: modes.report(rows()), rows)
    histories = min(max(prompts // 50, 2), voting.HISTORIES)
    each = prompts // histories
    for size, accuracies in (("3", (0.55, 0.65, 0.80)), ("5", (0.50, 0.60, 0.65, 0.70, 0.80))):
        world = World(
            tuple(Member(f"m{i}", p) for i, p in enumerate(accuracies)), f"{seed}/vote{size}"
        )
        for condition, made in (("", world), ("_independent", _independent(world))):
            votes = pool.begin(voting.rows, made, each, n=histories)
            begun[f"simulated.vote_vs_optimal.pool_of_{size}{condition}"] = partial(
                lambda votes: voting.report(votes(), each), votes
            )
    fair = pool.begin(position.rows, f"{seed}/position", 0.0, n=prompts // 4)
    for bias in position.BIASES:
        places = pool.begin(position.rows, f"{seed}/position", bias, n=prompts // 4)
        begun[f"simulated.position_bias.{bias}"] = partial(
            lambda places: position.report(places(), fair()), places
        )
    for panel, (members, _) in speed.PANELS.items():
        for hedge, name in ((speed.HEDGE, panel), (0.0, f"{panel}_unhedged")):
            times = pool.begin(speed.tail_rows, panel, f"{seed}/tail", hedge, n=prompts)
            begun[f"simulated.heavy_tail.{name}"] = partial(
                lambda times, size: speed.tail_report(
                    times(), size, 200 if prompts >= PROMPTS else 50
                ),
                times,
                len(members),
            )
    gated = pool.begin(speed.gate_rows, f"{seed}/gate", n=prompts)
    begun["simulated.edge_first"] = lambda: speed.gate_report(gated())
    tries = max(prompts // 800, 1)
    attacked = pool.begin(
        attack.rows, f"{seed}/attack", tries, n=min(len(attack.attacks()), prompts)
    )
    begun["attacks"] = lambda: attack.report(attacked(), tries)
    return begun


def _independent(world: World) -> World:
    return World(world.members, world.seed, rho=0.0, own=0.3, collision=world.collision)


def measure(pool: Pool, prompts: int, seed: str, folder: Path) -> dict[str, Any]:
    """Everything, as the JSON holds it."""
    found: dict[str, Any] = {}
    for path, report in begin(pool, prompts, seed).items():
        *above, name = path.split(".") if "position_bias" not in path else path.split(".", 2)
        place = found
        for step in above:
            place = place.setdefault(step, {})
        place[name] = report()
        print(f"measured {path}", file=sys.stderr)
    found["recorded"] = (
        recorded.report(recorded.load(folder)) if (folder / "replay.jsonl").exists() else None
    )
    world = World((), "")
    return found | {
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


def figures(found: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All figures of a result, by their paths."""
    if not isinstance(found, dict):
        return
    if "ci" in found:
        yield path, found
        return
    for name, inner in found.items():
        yield from figures(inner, f"{path}.{name}" if path else name)


def show(found: dict[str, Any]) -> None:
    """Print the table: figures with an aim first met or missed, then the others."""
    print(f"{'':66}{'value':>9}{'95 % interval':>22}{'n':>9}  aim")
    for path, one in figures(found):
        low, high = one["ci"]
        aim = f"{'met ' if one['met'] else 'MISSED '} ({one['aim']})" if "aim" in one else ""
        print(f"{path:66}{one['value']:>9.4f}{f'{low:.4f} to {high:.4f}':>22}{one['n']:>9}  {aim}")
    if found["recorded"] is None:
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
    pool: Pool = Processes(options.jobs) if options.jobs > 1 else Here()
    found = measure(pool, prompts, options.seed, Path(options.recorded))
    show(found)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
