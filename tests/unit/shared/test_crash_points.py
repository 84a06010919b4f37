"""A planted crash point ends one process once, and nothing without its environment variable."""

import ast
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fusewire.crash_points import CRASH_FOLDER_ENV, CrashPoint, reach

REPOSITORY = Path(__file__).parents[3]
POINT = CrashPoint.JUDGE_COMMITTED
REACHES = f"""
from fusewire.crash_points import CrashPoint, reach
reach(CrashPoint.{POINT.name})
print("passed")
"""


def start(folder: Path | None) -> subprocess.Popen[str]:
    env = dict(os.environ)
    if folder:
        env[CRASH_FOLDER_ENV] = str(folder)
    return subprocess.Popen(
        [sys.executable, "-c", REACHES], stdout=subprocess.PIPE, text=True, env=env
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=250)
    return process.returncode, output


def test_a_process_ends_at_a_planted_point_and_the_next_passes(tmp_path: Path) -> None:
    (tmp_path / POINT).touch()

    assert end(start(tmp_path)) == (-signal.SIGKILL, "")
    assert not (tmp_path / POINT).exists()
    assert end(start(tmp_path)) == (0, "passed\n")


def test_of_several_processes_at_a_point_one_ends(tmp_path: Path) -> None:
    (tmp_path / POINT).touch()
    processes = [start(tmp_path) for _ in range(4)]

    ends = sorted(end(process) for process in processes)

    assert ends == [(-signal.SIGKILL, ""), *[(0, "passed\n")] * 3]


def test_another_point_is_passed(tmp_path: Path) -> None:
    (tmp_path / CrashPoint.JUDGE_STORED).touch()

    assert end(start(tmp_path)) == (0, "passed\n")
    assert (tmp_path / CrashPoint.JUDGE_STORED).exists()


def test_without_the_variable_nothing_ends(tmp_path: Path) -> None:
    (tmp_path / POINT).touch()

    assert end(start(None)) == (0, "passed\n")
    reach(POINT)


def test_the_code_reaches_each_point_in_one_place() -> None:
    uses = Counter(name for file in sources() for name in points(file))

    assert uses == dict.fromkeys(CrashPoint.__members__, 1)


def sources() -> Iterator[Path]:
    """All modules that ship."""
    for folder in ("shared", "services", "cli"):
        for file in (REPOSITORY / folder).rglob("*.py"):
            if "testing" not in file.parts and file.name != "crash_points.py":
                yield file


def points(file: Path) -> Iterator[str]:
    """The names of points in calls of `reach`."""
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Call(
                func=ast.Name("reach"), args=[ast.Attribute(ast.Name("CrashPoint"), name)]
            ):
                yield name
