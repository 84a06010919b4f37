"""Break pure code on purpose, and count the changes that no unit test notices. `make mutation`.

mutmut names a module by its path from the folder that it runs in, and puts that folder first on
the import path. Each part therefore runs in a folder of its own, with the packages side by side.
There the changed copies go before the installed ones. What is not among the part's modules is
imported as it is installed.

Results stay in build/mutation: a second run tries only what survived, as tests that were added
since may notice it. `--fresh` begins anew, which a change of the code under test needs too. What
`--minutes` cuts off, and what was ended by hand, goes on with `--continue`, which tries no
survivor again: `make mutation PARTS="ledger --minutes 20 --continue"`.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "mutation"
REPORT = ROOT / "build" / "mutation.json"
EXIT_CODES = {0: "survived", 1: "killed", 3: "killed", 5: "untested", 33: "untested", 34: "skipped"}
"""What mutmut stores for a mutant; every other code is a time limit, or a crash of the process."""
PACKAGES = {
    "fusewire": "shared",
    "fusewire_dispatcher": "services/dispatcher",
    "fusewire_ingest": "services/ingest",
    "fusewire_judge": "services/judge",
    "fusewire_worker_remote": "services/worker-remote",
}
LEAST_KILLED = 0.85
LEFT_OUT = "not megabytes and not hostile and not LedgerRules"
"""Tests that are long for each survivor; for the ledger's machine `test_lease.py` stands."""


@dataclass(frozen=True)
class Part:
    """Modules to change, and the tests that belong to them; both as paths."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]

    @property
    def packages(self) -> list[str]:
        """The packages of its modules."""
        return sorted({module.partition("/")[0] for module in self.modules})


def _tests(service: str, *names: str) -> tuple[str, ...]:
    return tuple(f"tests/unit/{service}/test_{name}.py" for name in names)


def _others(package: str, *names: str) -> tuple[str, ...]:
    """The modules of a package but those that another part has."""
    folder = ROOT / PACKAGES[package.partition("/")[0]] / package
    paths = sorted(folder.glob("*.py"))
    return tuple(f"{package}/{path.name}" for path in paths if path.stem not in names)


PARTS = {
    "ledger": Part(
        tuple(f"fusewire_worker_remote/{name}.py" for name in ("ledger", "lease", "backoff")),
        _tests("worker-remote", "ledger", "lease", "backoff"),
    ),
    "parsers": Part(
        (
            "fusewire/sse.py",
            "fusewire_ingest/admission/jsonl.py",
            "fusewire_ingest/admission/strict_json.py",
            "fusewire_judge/judging/parse.py",
        ),
        (
            *_tests("shared", "sse"),
            *_tests("ingest", "jsonl", "admission", "batch_line"),
            *_tests("judge", "verdict"),
        ),
    ),
    "dispatcher": Part(
        (
            "fusewire_dispatcher/planning/*",
            "fusewire_dispatcher/pools.py",
            "fusewire_dispatcher/residency.py",
        ),
        ("tests/unit/dispatcher",),
    ),
    "quorum": Part(
        tuple(f"fusewire_judge/panel/{name}.py" for name in ("quorum", "progress")),
        _tests("judge", "quorum", "panel", "outcome", "decision", "tools"),
    ),
    "panel": Part(
        tuple(
            f"fusewire_judge/panel/{name}.py"
            for name in ("convene", "gate", "recorded", "usable_answers")
        ),
        _tests("judge", "panel", "quorum", "outcome", "decision", "learning", "tools"),
    ),
    "scoring": Part(("fusewire_judge/scoring/*",), _tests("judge", "answers", "gold", "form")),
    "best-of": Part(
        ("fusewire_judge/strategies/best_of.py", "fusewire_judge/judging/tally.py"),
        _tests("judge", "best_of", "judged_model", "margin", "verdict", "debate", "outcome"),
    ),
    "judging": Part(
        tuple(f"fusewire_judge/judging/{name}.py" for name in ("ask", "ballot")),
        _tests("judge", "best_of", "margin", "verdict", "debate", "outcome"),
    ),
    "strategies": Part(
        _others("fusewire_judge/strategies", "best_of"),
        _tests(
            "judge",
            *("best_of", "merge", "debate", "verify", "rules", "tools", "decision", "margin"),
            *("form", "outcome"),
        ),
    ),
    "shared": Part(
        tuple(f"fusewire/{name}.py" for name in ("fence", "pricing")),
        _tests("shared", "fence", "pricing"),
    ),
}


def lay_out(part: Part, folder: Path) -> None:
    """Write the folder that mutmut runs in."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in part.packages:
        link = folder / package
        if not link.is_symlink():
            link.symlink_to(ROOT / PACKAGES[package] / package)
    for tests in (folder / "tests", folder / "mutants" / "tests"):
        shutil.rmtree(tests, ignore_errors=True)
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "tests")
    # mutmut takes tests* of the folder along.
    shutil.copy(Path(__file__).with_name("limits.py"), folder / "test_limits.py")
    for path in part.tests:
        source = ROOT / path
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, folder / path, ignore=shutil.ignore_patterns("__pycache__"))
            continue
        shutil.copy(source, folder / path)
        if (conftest := source.with_name("conftest.py")).exists():
            shutil.copy(conftest, (folder / path).parent)
    (folder / "pyproject.toml").write_text(_configuration(part))


def _configuration(part: Part) -> str:
    pytest = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    pytest.pop("testpaths")
    mutmut = {
        "source_paths": part.packages,
        "only_mutate": list(part.modules),
        "pytest_add_cli_args": ["-p", "test_limits", "-k", LEFT_OUT],
        "pytest_add_cli_args_test_selection": list(part.tests),
        # Logs are read by people: their words are no behaviour that a test holds.
        "do_not_mutate_patterns": [r"log\.\w+"],
        "use_git_change_detection": False,
        "use_setproctitle": False,
        # Far off, as a machine that is busy is no endless loop: limits.py counts processor time.
        "timeout_multiplier": 10.0,
        "timeout_constant": 60.0,
    }
    sections = {"tool.pytest.ini_options": pytest, "tool.mutmut": mutmut}
    # JSON's strings, numbers, booleans and lists of them are TOML's too.
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in section.items())
        for name, section in sections.items()
    )


def forget_survivors(folder: Path) -> None:
    """Have mutmut try again what no test had noticed."""
    for path in folder.glob("mutants/**/*.meta"):
        meta = json.loads(path.read_text())
        codes = meta["exit_code_by_key"]
        meta["exit_code_by_key"] = {
            name: code if EXIT_CODES.get(code) == "killed" else None for name, code in codes.items()
        }
        path.write_text(json.dumps(meta))


def count(folder: Path) -> dict[str, Counter[str]]:
    """Return the states of a part's mutants, by module."""
    states: dict[str, Counter[str]] = {}
    for path in sorted(folder.glob("mutants/**/*.meta")):
        codes = json.loads(path.read_text())["exit_code_by_key"].values()
        if codes:
            module = str(path.relative_to(folder / "mutants").with_suffix(""))
            states[module] = Counter(
                "untried" if code is None else EXIT_CODES.get(code, "timeout") for code in codes
            )
    return states


def run(name: str, *, is_fresh: bool, goes_on: bool, minutes: float | None) -> bool:
    """Run one part, and print its figures; whether it ran whole and enough was noticed."""
    part, folder = PARTS[name], BUILD / name
    if is_fresh:
        shutil.rmtree(folder, ignore_errors=True)
    lay_out(part, folder)
    if not goes_on:
        forget_survivors(folder)
    # Property tests draw the same examples each time, so that a mutant's fate is no chance.
    environment = {**os.environ, "CI": "1", "PYTHONHASHSEED": "0"}
    command = [str(Path(sys.executable).with_name("mutmut")), "run", "--max-children", "1"]
    with (
        (folder / "mutmut.log").open("w") as log,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        ) as mutmut,
    ):
        try:
            code = mutmut.wait(minutes and 60 * minutes)
        except BaseException as exc:
            # With the process of the mutant that it tries, which would go on.
            os.killpg(mutmut.pid, signal.SIGKILL)
            if not isinstance(exc, subprocess.TimeoutExpired):
                raise
            code = mutmut.wait()
    states = count(folder)
    total: Counter[str] = sum(states.values(), Counter())
    for module, counts in {**states, f"{name}, all of it": total}.items():
        print(f"{module:50} {counts.total():5} {_share(counts):6.1%} killed  {dict(counts)}")
    _report(name, states)
    if code or not states or total["untried"]:
        print(f"{name} did not run whole: see {folder / 'mutmut.log'}")
        return False
    return _share(total) >= LEAST_KILLED


def _share(counts: Counter[str]) -> float:
    """Return the share that tests notice; a mutant that never ends is noticed by its time limit."""
    return (counts["killed"] + counts["timeout"]) / max(1, counts.total())


def _report(name: str, states: dict[str, Counter[str]]) -> None:
    report = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    report[name] = states
    REPORT.write_text(json.dumps(report, indent=2) + "\n")


def main() -> None:
    """Run some parts; ends with 1 if one did not run whole, or too much survived in it."""
    parser = argparse.ArgumentParser(description="Mutation tests of pure code.")
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--fresh", action="store_true", help="try killed mutants again too")
    parser.add_argument("--continue", dest="goes_on", action="store_true", help="try the rest only")
    parser.add_argument("--minutes", type=float, help="the longest that a part may take")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    results = [
        run(name, is_fresh=options.fresh, goes_on=options.goes_on, minutes=options.minutes)
        for name in options.parts
    ]
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
