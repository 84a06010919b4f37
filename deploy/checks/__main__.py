"""`deploy/check`: run the checks, and say what does not hold."""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from collections.abc import Sequence

from checks import chart, files, kustomize, network, product, references, schemas, security
from checks.model import OURS, Check, Deploy, RenderError
from checks.tools import Tools, UnavailableError

CHECKS: tuple[Check, ...] = (
    *chart.CHECKS,
    *schemas.CHECKS,
    *security.CHECKS,
    *network.CHECKS,
    *references.CHECKS,
    *product.CHECKS,
    *files.CHECKS,
    *kustomize.CHECKS,
)
SHOWN = 20


@dataclass(frozen=True)
class Result:
    """What one check found, or why it could not look."""

    word: Literal["ok", "FAIL", "none"]
    problems: list[str]


def result_of(check: Check, deploy: Deploy) -> Result:
    """Run one check."""
    try:
        problems = sorted(set(check.find(deploy)))
    except UnavailableError as exc:
        return Result("FAIL", [f"cannot run here: {exc}"])
    except RenderError as exc:
        return Result("none", [f"not run: {exc}"])
    return Result("FAIL" if problems else "ok", problems)


def run_all(deploy: Deploy, checks: Sequence[Check]) -> int:
    """Run checks, print a line for each, and return how many failed."""
    failed = 0
    for check in checks:
        start = time.monotonic()
        result = result_of(check, deploy)
        found = result.problems
        print(f"{result.word:5}{check.name:20}{time.monotonic() - start:5.1f} s  {check.says}")
        for line in found[:SHOWN]:
            print(f"       {line}")
        if len(found) > SHOWN:
            print(f"       and {len(found) - SHOWN} more")
        failed += result.word != "ok"
    return failed


def main() -> int:
    """Parse the arguments, and run."""
    parser = argparse.ArgumentParser(prog="deploy/check", description=__doc__)
    parser.add_argument("--folder", type=Path, default=OURS)
    parser.add_argument("names", nargs="*", help="checks to run; all by default")
    parser.add_argument("--write", action="store_true", help="write what is generated anew")
    arguments = parser.parse_args()
    deploy = Deploy(arguments.folder.resolve(), Tools())
    if arguments.write:
        chart.write_readme(deploy)
        kustomize.write(deploy)
        return 0
    chosen = [check for check in CHECKS if not arguments.names or check.name in arguments.names]
    start = time.monotonic()
    failed = run_all(deploy, chosen)
    print(f"{len(chosen) - failed} of {len(chosen)} checks passed in {time.monotonic() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
