"""`deploy/check`: what can be known of `deploy/` without a cluster."""

import argparse
import sys
import time
from pathlib import Path

from checks import chart, kustomize
from checks.faults import FAULTS
from checks.model import OURS, SourceFolder, UnreadableError
from checks.runner import CHECKS, run_checks, run_faults
from checks.tools import ToolFolder, UnavailableError


def main() -> int:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(prog="deploy/check", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="checks to run; all by default")
    parser.add_argument("--folder", type=Path, default=OURS, help="another folder than deploy/")
    parser.add_argument(
        "--faults", action="store_true", help="plant faults too, and see each found"
    )
    parser.add_argument("--write", action="store_true", help="write anew what the chart makes")
    parser.add_argument("--tools", action="store_true", help="fetch the tools, and name them")
    parser.add_argument(
        "--kube-play", action="store_true", help="run the pods of `small` by podman"
    )
    arguments = parser.parse_args()
    source = SourceFolder(arguments.folder.resolve(), ToolFolder())
    if arguments.kube_play:
        return _play(source)
    if arguments.tools:
        print("\n".join(source.tools.versions()))
        return 0
    if arguments.write:
        chart.write_readme(source)
        kustomize.write(source)
        return 0
    names = {check.name for check in CHECKS}
    if unknown := set(arguments.names) - names:
        print(f"no such check: {min(unknown)}; there are {', '.join(sorted(names))}")
        return 2
    return _check(source, set(arguments.names), with_faults=arguments.faults)


def _play(source: SourceFolder) -> int:
    from checks import kube_play  # noqa: PLC0415 - it needs much that the checks do not

    try:
        kube_play.play(source)
    except kube_play.PodError as exc:
        print(f"deploy/check: {exc}", file=sys.stderr)
        return 1
    return 0


def _check(source: SourceFolder, names: set[str], *, with_faults: bool) -> int:
    checks = [check for check in CHECKS if not names or check.name in names]
    start = time.monotonic()
    failures = run_checks(source, checks)
    passes = len(checks) - failures
    print(f"{passes} of {len(checks)} checks passed in {time.monotonic() - start:.0f} s")
    if with_faults:
        failures += _plant(source, {check.name for check in checks})
    return 1 if failures else 0


def _plant(source: SourceFolder, names: set[str]) -> int:
    faults = [fault for fault in FAULTS if fault.check in names]
    start = time.monotonic()
    misses = run_faults(source, faults)
    finds = len(faults) - misses
    print(f"{finds} of {len(faults)} planted faults found in {time.monotonic() - start:.0f} s")
    return misses


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UnreadableError, UnavailableError) as exc:
        print(f"deploy/check: {exc}", file=sys.stderr)
        sys.exit(2)
