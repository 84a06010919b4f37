"""Run the checks, and plant faults."""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from checks import (
    alerts,
    chart,
    compose,
    configuration,
    files,
    kustomize,
    network,
    references,
    scaling,
    schemas,
    secrets,
    security,
)
from checks.faults import Fault, plant
from checks.model import Check, SourceFolder, UnreadableError
from checks.tools import ToolFolder, UnavailableError

CHECKS: tuple[Check, ...] = (
    *chart.CHECKS,
    *secrets.CHECKS,
    *schemas.CHECKS,
    *security.CHECKS,
    *network.CHECKS,
    *references.CHECKS,
    *configuration.CHECKS,
    *scaling.CHECKS,
    *alerts.CHECKS,
    *files.CHECKS,
    *compose.CHECKS,
    *kustomize.CHECKS,
)
DERIVED = {"chart-readme", "kustomize"}
"""Checks of what is made from the chart: any change of the chart changes that too."""
SHOWN_LINES = 20


@dataclass(frozen=True)
class Result:
    """What one check says, or why it could not look."""

    word: Literal["ok", "FAIL", "none"]
    problems: list[str]


def result_of(check: Check, source: SourceFolder) -> Result:
    """Run one check."""
    try:
        problems = sorted(set(check.find(source)))
    except UnavailableError as exc:
        return Result("FAIL", [f"cannot run here: {exc}"])
    except UnreadableError as exc:
        return Result("none", [f"not run: {exc}"])
    except FileNotFoundError as exc:
        name = Path(exc.filename or "").relative_to(source.folder)
        return Result("FAIL", [f"deploy/{name} is missing"])
    return Result("FAIL" if problems else "ok", problems)


def run_checks(source: SourceFolder, checks: Sequence[Check]) -> int:
    """Run checks, print a line for each, and return how many did not pass."""
    failures = 0
    for check in checks:
        start = time.monotonic()
        result = result_of(check, source)
        _print(result.word, check.name, start, check.claim)
        for line in result.problems[:SHOWN_LINES]:
            print(f"       {line}")
        if len(result.problems) > SHOWN_LINES:
            print(f"       and {len(result.problems) - SHOWN_LINES} more")
        failures += result.word != "ok"
    return failures


def _print(word: str, name: str, start: float, text: str) -> None:
    print(f"{word:5}{name:20}{time.monotonic() - start:5.1f} s  {text}", flush=True)


def run_faults(source: SourceFolder, faults: Sequence[Fault]) -> int:
    """Plant faults, print a line for each, and return how many were not found as they should be."""
    before = {check.name: set(result_of(check, source).problems) for check in CHECKS}
    # Forked processes know what the checks have found so far: they look at what changes alone.
    context = multiprocessing.get_context("fork")
    failures = 0
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        start = time.monotonic()
        for fault, problem in zip(
            faults, pool.map(partial(_find, source, before), faults), strict=True
        ):
            _print("FAIL" if problem else "ok", fault.check, start, fault.what + problem)
            failures += bool(problem)
    return failures


def _find(source: SourceFolder, before: dict[str, set[str]], fault: Fault) -> str:
    """What is wrong with how a fault is found; nothing if all is well."""
    new: dict[str, set[str]] = {}
    checks = [check for check in CHECKS if check.name == fault.check or check.name not in DERIVED]
    with tempfile.TemporaryDirectory(prefix="fault-") as folder:
        try:
            plant(fault, source.folder, Path(folder) / "deploy")
        except (FileNotFoundError, LookupError) as exc:
            return f": cannot be planted: {exc}"
        copy = SourceFolder(Path(folder) / "deploy", ToolFolder())
        for check in checks:
            result = result_of(check, copy)
            problems = set(result.problems) - before[check.name]
            new[check.name] = problems if result.word == "FAIL" else set()
    complaint = "" if new.pop(fault.check) else ": not found"
    more = [f": found by {name} too: {min(problems)}" for name, problems in new.items() if problems]
    return complaint + "".join(more)
