"""Known vulnerabilities of what is locked: `audit.py` prints each; `make check` runs it.

What the vulnerability service says is kept for a day, for the lock's content. Where the service
cannot be had, or knows none of the packages, as an index without these data, that is one line and
no failure. A vulnerability that is listed with a reason in `known_vulnerabilities.txt` is none.
"""

import contextlib
import fcntl
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements.lock"
KNOWN = Path(__file__).with_name("known_vulnerabilities.txt")
KEPT = ROOT / "build" / "audit.json"
KEPT_FOR_S = 24 * 3600.0
FAILURE_KEPT_FOR_S = 600.0
"""Longer than `make check` takes, which asks twice."""
TIMEOUT_S = 60.0
COMMAND = [
    sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--format", "json",
    "--vulnerability-service", "pypi", "--progress-spinner", "off", "--desc", "off",
]  # fmt: skip

Report = dict[str, Any]


def accepted_reasons(text: str) -> dict[str, str]:
    """The reasons by id of the vulnerabilities that are accepted.

    Raises:
        ValueError: a line has no reason.
    """
    reasons = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        name, _, reason = line.partition(" ")
        if not reason.strip():
            raise ValueError(f"{KNOWN.name}: {name} has no reason; write it behind the id")
        reasons[name] = reason.strip()
    return reasons


def faults(report: Report, reasons: dict[str, str]) -> Iterator[str]:
    """A line for each vulnerability that nobody has accepted, under no name of it."""
    for package in report["dependencies"]:
        for vulnerability in package.get("vulns", []):
            names = [vulnerability["id"], *vulnerability.get("aliases", [])]
            if not reasons.keys() & set(names):
                fixes = ", ".join(vulnerability.get("fix_versions", [])) or "no version yet"
                yield (
                    f"{package['name']} {package['version']} has {' = '.join(names)}, "
                    f"fixed by {fixes}: lock that version, or accept it in {KNOWN.name}"
                )


def notice(report: Report) -> str | None:
    """What was not looked at, if anything was not."""
    n_skipped = sum("skip_reason" in package for package in report["dependencies"])
    n_packages = len(report["dependencies"])
    if not n_packages or n_skipped == n_packages:
        return "not audited: the package index has no data on vulnerabilities"
    return f"not audited: {n_skipped} of {n_packages} packages" if n_skipped else None


def audit(lock: Path, command: Sequence[str] = COMMAND, timeout_s: float = TIMEOUT_S) -> Report:
    """What the service knows of a lock's packages; none of them where it cannot be had."""
    try:
        result = subprocess.run(
            [*command, "--requirement", str(lock)],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        report: Report = json.loads(result.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return {"dependencies": []}
    return report


def kept_report(lock: Path, kept: Path, now: float) -> Report | None:
    """The report of the last day on the same lock, if there is one."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        entry = json.loads(kept.read_text(encoding="utf-8"))
        report: Report = entry["report"]
        for_s = KEPT_FOR_S if report["dependencies"] else FAILURE_KEPT_FOR_S
        if 0 <= now - entry["at"] < for_s and entry["lock"] == digest(lock):
            return report
    return None


def digest(lock: Path) -> str:
    """What tells one lock from another."""
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def main() -> int:
    """Print what is wrong; returns 1 if anything is."""
    KEPT.parent.mkdir(exist_ok=True)
    # `make check` begins this in the background, and runs it again at its end: one asks.
    with KEPT.with_suffix(".lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        report = kept_report(LOCK, KEPT, time.time())
        if report is None:
            report = audit(LOCK)
            entry = {"at": time.time(), "lock": digest(LOCK), "report": report}
            KEPT.write_text(json.dumps(entry), encoding="utf-8")
    if line := notice(report):
        print(line)
    lines = list(faults(report, accepted_reasons(KNOWN.read_text(encoding="utf-8"))))
    print("\n".join(lines), end="\n" if lines else "")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
