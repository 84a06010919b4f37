from pathlib import Path

import pytest

from fusewire_worker_edge.engine import processors
from fusewire_worker_edge.engine.processors import cpu_limit, parse_cpu_max, usable_processors


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("200000 100000\n", 2.0),
        ("150000 100000", 1.5),
        ("max 100000\n", None),
        ("-1 100000", None),
        ("", None),
        ("1 0", None),
    ],
)
def test_the_quota_over_the_period_is_the_limit(text: str, limit: float | None) -> None:
    assert parse_cpu_max(text) == limit


def test_the_smallest_limit_of_all_groups_above_holds(tmp_path: Path) -> None:
    group = tmp_path / "kubepods" / "pod1"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("400000 100000")
    (group.parent / "cpu.max").write_text("300000 100000")
    assert cpu_limit(tmp_path, "0::/kubepods/pod1\n") == 3.0


def test_the_group_of_a_container_is_at_the_root(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("200000 100000")
    assert cpu_limit(tmp_path, "0::/a/path/of/the/machine\n") == 2.0


def test_version_1_of_control_groups_is_read_too(tmp_path: Path) -> None:
    group = tmp_path / "cpu,cpuacct" / "docker"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text("250000\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    own = "5:memory:/docker\n4:cpu,cpuacct:/docker\n3:cpuset:/\n"
    assert cpu_limit(tmp_path, own) == 2.5


def test_without_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cpu_limit(tmp_path, "0::/\n") is None


@pytest.mark.parametrize(("quota", "count"), [("250000", 2), ("50000", 1), ("6400000", 8)])
def test_a_limit_is_rounded_down_to_at_least_one_and_at_most_the_affinity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, count: int
) -> None:
    for folder in (tmp_path, tmp_path / "cpu"):
        folder.mkdir(exist_ok=True)
        (folder / "cpu.max").write_text(f"{quota} 100000")
        (folder / "cpu.cfs_quota_us").write_text(quota)
        (folder / "cpu.cfs_period_us").write_text("100000")
    monkeypatch.setattr(processors, "CGROUPS", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert usable_processors() == count
