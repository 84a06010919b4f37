"""A planted crash point ends one process once, and nothing without its environment variable."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from fusewire.crash_points import CRASH_FOLDER_ENV, CrashPoint, reach

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
