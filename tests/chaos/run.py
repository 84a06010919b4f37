"""`make chaos`: faults of all kinds under load, a checker of what was seen, and build/chaos.json.

PARTS (one-node links cluster disk clock crash), PROMPTS (2000), KILLS (60) and SEED (1) change what
is run. Each part is a process of its own, which ends within a bound and leaves none behind; its
history, figures and what it printed stand in build/chaos. It ends with an error where something was
lost, doubled, paid for too often, leaked or misordered, or where the recovery took too long.
"""

import argparse
import asyncio
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
from parts import PARTS, MissingError
from scene import perform

from fusewire.testing.chaos import KILLS
from fusewire.testing.history import (
    Acceptance,
    BatchLines,
    Event,
    FaultStart,
    History,
    LeakCheck,
    OutcomeCount,
)
from fusewire.testing.invariants import (
    Limits,
    check,
    fault_counts,
    misplaced_lines,
    of_kind,
    paid_calls,
    paid_duplicates,
    percentile,
    recoveries,
)

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "chaos"
MARK = "FUSEWIRE_CHAOS_RUN"
"""In the environment of all processes of a run, so that they can be found."""
FIXED_S = 2400.0
PER_PROMPT_S = 2.0
"""A part may take so long, and so much longer for each prompt."""
CRASH_S = 3600.0
CRASH_ROUNDS = 3
DATABASES = ("sqlite", "postgresql")
EXIT_TERMINATED = 143
MOST_PAID_TWICE = 0.001
"""The share of paid calls."""
CRASHES = frozenset({"kill", "leader_kill"})
CAUSE_S = 5.0
"""A fault that ended so long before a call is counted as a cause of the next one."""
SUMS = (
    "prompts", "kills", "crash_points", "lost", "duplicate_outcomes", "paid_calls",
    "paid_duplicates", "paid_duplicates_by_kills", "canary_hits", "misordered",
)  # fmt: skip


# -- one part, in a process of its own --------------------------------------------------------


def figures(history: Sequence[Event]) -> dict[str, Any]:
    """What one history comes to."""
    counts = {event.fusion: event.count for event in of_kind(history, OutcomeCount)}
    accepted = [event.fusion for event in of_kind(history, Acceptance)]
    times = recoveries(history)
    duplicates = paid_duplicates(history, Limits(after_fault_s=CAUSE_S))
    return {
        "prompts": len(accepted),
        "kills": sum(event.kind in KILLS for event in of_kind(history, FaultStart)),
        "lost": sum(not counts.get(fusion, 0) for fusion in accepted),
        "duplicate_outcomes": sum(count - 1 for count in counts.values()),
        "paid_calls": sum(len(calls) for calls in paid_calls(history).values()),
        "paid_duplicates": duplicates.total(),
        "paid_duplicates_by_kills": sum(
            count for kinds, count in duplicates.items() if set(kinds.split()) <= CRASHES
        ),
        "paid_duplicates_by_cause": duplicates,
        "canary_hits": sum(event.hits for event in of_kind(history, LeakCheck)),
        "misordered": sum(misplaced_lines(lines) for lines in of_kind(history, BatchLines)),
        "recovery_p99_s": round(percentile(times, 0.99), 2),
        "recovery_median_s": round(percentile(times, 0.5), 2),
        "faults": fault_counts(history),
    }


def run_part(name: str, prompts: int, kills: int, seed: int) -> int:
    """Run a part's scenes; write their histories and figures."""
    part = PARTS[name]
    limits = Limits(recovery_s=part.recovery_s or math.inf, after_fault_s=120)
    results = {}
    with tempfile.TemporaryDirectory(prefix=f"fusewire-chaos-{name}-") as folder:
        for scene in part.make(part, prompts, kills, seed, Path(folder)):
            home = Path(folder) / scene.name
            (home / ".fusewire").mkdir(parents=True)
            (home / "nats").mkdir()
            history = History(BUILD / f"{scene.name}.jsonl")
            started = time.monotonic()
            beside = asyncio.run(perform(scene, home, history, BUILD / f"{scene.name}.stack.log"))
            history.close()
            results[scene.name] = {
                **figures(history.events),
                "violations": [asdict(fault) for fault in check(history.events, limits)],
                "seconds": round(time.monotonic() - started),
                **beside,
            }
    (BUILD / f"{name}.json").write_text(json.dumps(results, indent=1))
    return 0


# -- all parts --------------------------------------------------------------------------------


def start(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a part; returns its results, or what went wrong."""
    if name == "crash":
        return crash_points()
    part = PARTS[name]
    prompts = max(20, round(options.prompts * part.prompt_share))
    kills = max(2, round(options.kills * part.kill_share))
    command = [sys.executable, __file__, "--part", name]
    command += ["--prompts", str(prompts), "--kills", str(kills), "--seed", str(options.seed)]
    if name == "disk" and os.geteuid() == 0 and shutil.which("unshare"):
        # What it mounts is gone with it.
        command = ["unshare", "--mount", "--propagation", "private", *command]
    code = bounded(command, name, FIXED_S + PER_PROMPT_S * prompts)
    result = BUILD / f"{name}.json"
    if code == 0 and result.exists():
        return dict(json.loads(result.read_text()))
    tail = (BUILD / f"{name}.log").read_text()[-1500:]
    return {name: {"error": f"ended with {code}, see build/chaos/{name}.log: {tail}"}}


def crash_points() -> dict[str, Any]:
    """Each named crash point `CRASH_ROUNDS` times on both databases (docs/decisions/0059)."""
    with ThreadPoolExecutor() as both:
        try:
            codes = list(both.map(crash_points_on, DATABASES))
        except SystemExit:
            # The threads wait for what they have started.
            for process in chain.from_iterable(marked(f"crash-{d}") for d in DATABASES):
                process.terminate()
            raise
    reports = [BUILD / f"crash-{database}.jsonl" for database in DATABASES]
    lines = [line for report in reports if report.exists() for line in report.open()]
    kills = [json.loads(line) for line in lines]
    told: dict[str, Any] = {
        name: sum(kill[name] for kill in kills)
        for name in ("prompts", "lost", "duplicate_outcomes", "paid_calls", "paid_duplicates")
    }
    told |= {
        "crash_points": len({kill["point"] for kill in kills}),
        "kills": sum(bool(kill["taken"]) for kill in kills),
        "recovery_p99_s": percentile([kill["recovery_s"] or 0 for kill in kills], 0.99),
    }
    return {"crash": told if not any(codes) else {**told, "error": f"pytest ended with {codes}"}}


def crash_points_on(database: str) -> int | str:
    """Kill at each crash point on one database; returns pytest's code."""
    test = ROOT / "tests" / "chaos" / "test_crash_points.py"
    command = [sys.executable, "-m", "pytest", "-q", "-k", database, str(test)]
    report = str(BUILD / f"crash-{database}.jsonl")
    rounds = str(CRASH_ROUNDS)
    name = f"crash-{database}"
    return bounded(command, name, CRASH_S, CRASH_ROUNDS=rounds, CHAOS_REPORT=report)


def bounded(command: Sequence[str], name: str, seconds: float, **env: str) -> int | str:
    """Run a command for so long at most; returns its code. None of its processes is left."""
    with (BUILD / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={**os.environ, **env, MARK: run_mark(name)},
            start_new_session=True,
        )
        try:
            code: int | str = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            code = f"no end after {seconds:.0f} s"
        finally:
            left = end_all(name)
    # What a part that was ended had started ends with it; else it has left something behind.
    return f"{left} processes left behind" if left and code == 0 else code


def run_mark(name: str) -> str:
    """What all processes of a run of this process have in their environment."""
    return f"{os.getpid()}-{name}"


def end_all(name: str) -> int:
    """End the processes of a run that are left after a moment; returns how many that were."""
    deadline = time.monotonic() + 10
    while (left := marked(name)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in left:
        process.kill()
    return len(left)


def marked(name: str) -> list[psutil.Process]:
    """The processes of a run."""
    processes = []
    for process in psutil.process_iter():
        try:
            is_ours = process.environ().get(MARK) == run_mark(name)
            if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
        except psutil.Error:
            continue
    return processes


def summary(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """All parts together."""
    total: dict[str, Any] = {
        name: sum(result.get(name, 0) for result in results.values()) for name in SUMS
    }
    for name, mark in (("one_node", "one-node"), ("cluster", "cluster")):
        times = [
            r["recovery_p99_s"] for n, r in results.items() if n.startswith(mark) and "kills" in r
        ]
        total[f"recovery_p99_s_{name}"] = max(times, default=None)
    total["recovery_p99_s"] = max(
        (result.get("recovery_p99_s", 0) for result in results.values()), default=None
    )
    if total["prompts"]:
        total["lost_bound_95"] = f"0 in {total['prompts']}: < {3 / total['prompts']:.2%} at 95 %"
    faults: Counter[str] = Counter()
    for result in results.values():
        faults.update(result.get("faults", {}))
    return {**total, "faults": faults, "parts": results}


def failures(total: Mapping[str, Any]) -> list[str]:
    """Figures that are out of bounds, violations, and parts that did not end well."""
    told = [
        f"{name} is {total[name]}"
        for name in ("lost", "duplicate_outcomes", "canary_hits", "misordered")
        if total[name]
    ]
    # Of other faults, such as a lost store, all that is under way is asked again.
    paid = total["paid_duplicates_by_kills"]
    if paid > total["kills"]:
        told.append(f"{paid} calls were paid twice at {total['kills']} kills")
    if paid > max(1, MOST_PAID_TWICE * total["paid_calls"]):
        told.append(f"{paid} of {total['paid_calls']} calls were paid twice")
    for name, result in total["parts"].items():
        if "error" in result:
            told.append(f"{name}: {result['error']}")
        told += [
            f"{name}: {v['invariant']} {v['subject']}: {v['why']}"
            for v in result.get("violations", ())
        ]
    return told


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=list(PARTS))
    parser.add_argument("--parts", nargs="+", default=[*PARTS, "crash"])
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    # So that what is open is closed, and no process is left.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    BUILD.mkdir(parents=True, exist_ok=True)
    if options.part:
        try:
            return run_part(options.part, options.prompts, options.kills, options.seed)
        except MissingError as error:
            print(error, file=sys.stderr)
            return 2
    for old in BUILD.iterdir():
        old.unlink()
    results: dict[str, Any] = {}
    for name in options.parts:
        results |= start(name, options)
        (ROOT / "build" / "chaos.json").write_text(json.dumps(summary(results), indent=1))
        print(f"{name}: see build/chaos", flush=True)
    total = summary(results)
    print(json.dumps({k: v for k, v in total.items() if k != "parts"}, indent=1))
    told = failures(total)
    for failure in told:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
