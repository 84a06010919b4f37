"""How many processors this process may use: by its affinity, and by its container's CPU limit."""

import math
import os
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")


def usable_processors() -> int:
    """Return the threads that can run at once.

    A CPU limit of a container leaves all processors in view, and stops the threads for the rest of
    each period once its time is used up: threads beyond the limit slow the others down.
    """
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    own = Path("/proc/self/cgroup")
    limit = cpu_limit(CGROUPS, own.read_text(encoding="utf-8")) if own.exists() else None
    # Rounded down, as a step waits for its slowest thread.
    return count if limit is None else max(1, min(count, math.floor(limit)))


def cpu_limit(root: Path, own: str) -> float | None:
    """Return the smallest CPU limit, in processors, of a process's control groups.

    Args:
        root: where the control groups are mounted.
        own: the text of /proc/self/cgroup. In a container, its paths may be those of the machine
            and absent here; the container's own group is then at the root.

    Returns:
        None if there is no limit.
    """
    limits: list[float] = []
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            limits += _limits(root, controllers, PurePosixPath(path))
    return min(limits, default=None)


def _limits(root: Path, controllers: str, group: PurePosixPath) -> list[float]:
    """The limits of a group and of those above it. Only version 1 names controllers."""
    limits = []
    for path in (group, *group.parents):
        folder = root / controllers / path.relative_to("/")
        limits.append(_limit_v1(folder) if controllers else _limit_v2(folder))
    return [limit for limit in limits if limit is not None]


def _limit_v2(folder: Path) -> float | None:
    text = _read(folder / "cpu.max")
    return None if text is None else parse_cpu_max(text)


def _limit_v1(folder: Path) -> float | None:
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return None if quota is None or period is None else parse_cpu_max(f"{quota} {period}")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return None


def parse_cpu_max(text: str) -> float | None:
    """Return the processors of a `quota period`; None if the quota is `max` or, as in v1, -1."""
    quota, _, period = text.strip().partition(" ")
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return share if share > 0 else None
