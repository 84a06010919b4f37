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
from checks.faults import Fault, keep_shapes, plant
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
    with tempfile.TemporaryDirectory(prefix="fault-") as name:
        folder = Path(name) / "deploy"
        try:
            plant(fault, source.folder, folder)
        except (FileNotFoundError, LookupError) as exc:
            return f": cannot be planted: {exc}"
        if fault.check not in DERIVED:
            keep_shapes(folder)
        new = _new_problems(SourceFolder(folder, ToolFolder()), before, fault)
    complaint = "" if new.pop(fault.check, None) else ": not found"
    more = [f": found by {name} too: {problem}" for name, problem in new.items()]
    return complaint + "".join(more)


def _new_problems(copy: SourceFolder, before: dict[str, set[str]], fault: Fault) -> dict[str, str]:
    """The checks that fail as they did not before, each with a problem."""
    new: dict[str, str] = {}
    for check in CHECKS:
        if check.name in DERIVED - {fault.check}:
            continue
        result = result_of(check, copy)
        problems = set(result.problems) - before[check.name]
        if problems and result.word == "FAIL":
            new[check.name] = min(problems)
    return new
