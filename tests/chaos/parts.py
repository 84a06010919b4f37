"""The parts of `make chaos`: how many prompts and kills each gets, and what else befalls it."""

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scene import Scene

from fusewire.testing.chaos import BROKER, DATABASE, SERVICES, Fault, Kind, plan
from fusewire.testing.link import LINK_FAULTS

RATE = 3.0
"""Prompts a second, at most: what two cores do beside faults."""
GAP_S = 3.0
"""Between faults, at least."""
DISK_MB = 512
FAKETIME = "faketime/libfaketimeMT.so.1"
"""Below a folder of libraries."""

Faults = list[tuple[Kind, str]]


class MissingError(Exception):
    """Something that a part needs is not on this machine; says how to get it."""


@dataclass(frozen=True)
class Part:
    """A part: its scenes, and its share of prompts and kills."""

    name: str
    prompt_share: float
    kill_share: float
    recovery_s: float | None
    """Where a bound for the recovery is promised."""
    make: Callable[["Part", int, int, int, Path], Iterator[Scene]]


def kills(count: int, rng: random.Random, targets: tuple[str, ...]) -> Faults:
    """So many, evenly over the targets."""
    order = list(targets)
    rng.shuffle(order)
    return [("kill", order[number % len(order)]) for number in range(count)]


def faults(seed: int, prompts: int, kinds: Faults, *, longest_s: float = 6.0) -> list[Fault]:
    """A schedule that is long enough for so many prompts."""
    lasting_s = sum(fault.for_s for fault in plan(seed, kinds, gap_s=GAP_S, longest_s=longest_s))
    gap_s = max(GAP_S, (prompts / RATE - lasting_s) / len(kinds))
    return plan(seed, kinds, gap_s=gap_s, longest_s=longest_s)


def one_node(part: Part, prompts: int, kill_count: int, seed: int, _: Path) -> Iterator[Scene]:
    """Kills and all else that befalls processes, on SQLite and on PostgreSQL."""
    others: Faults = [
        ("terminate", "worker-remote"),
        ("terminate", "judge"),
        ("terminate", BROKER),
        ("freeze", "ingest"),
        ("freeze", "worker-remote"),
        ("freeze", BROKER),
        ("database_away", DATABASE),
        ("store_lost", BROKER),
        ("rolling_restart", "services"),
        ("latency", "models"),
        ("reset", "models"),
        ("black_hole", "models"),
    ]
    for half, kind in enumerate(("sqlite", "postgresql")):
        rng = random.Random(seed + half)
        targets = (*SERVICES, "worker-edge", BROKER)
        kinds = [*kills(kill_count // 2, rng, targets), *others]
        if kind == "postgresql":
            kinds.append(("freeze", DATABASE))
        schedule = faults(seed + half, prompts // 2, kinds)
        yield Scene(
            f"{part.name}-{kind}", prompts // 2, schedule, seed + half,
            is_postgres=kind == "postgresql",
        )  # fmt: skip


def links(part: Part, prompts: int, kill_count: int, seed: int, _: Path) -> Iterator[Scene]:
    """Proxies before the models, NATS and PostgreSQL, and all that they can do."""
    rng = random.Random(seed)
    kinds: Faults = [
        (kind, target) for kind in LINK_FAULTS for target in ("models", "nats", "database")
    ]
    kinds += kills(kill_count, rng, (*SERVICES, BROKER))
    schedule = faults(seed, prompts, kinds, longest_s=4)
    yield Scene(part.name, prompts, schedule, seed, broker="server", is_postgres=True)


def cluster(part: Part, prompts: int, kill_count: int, seed: int, _: Path) -> Iterator[Scene]:
    """Three nodes of NATS, whose leaders are killed."""
    rng = random.Random(seed)
    leaders = -(-kill_count // 2)
    kinds: Faults = [("leader_kill", BROKER)] * leaders
    kinds += kills(kill_count - leaders, rng, SERVICES)
    kinds += [("rolling_restart", "services"), ("database_away", DATABASE)]
    schedule = faults(seed, prompts, kinds)
    yield Scene(part.name, prompts, schedule, seed, broker="cluster", is_postgres=True)


def disk(part: Part, prompts: int, kill_count: int, seed: int, folder: Path) -> Iterator[Scene]:
    """Full disks of the broker and of the database, which are small file systems."""
    if os.geteuid() != 0:
        raise MissingError(
            "mounting small file systems needs root: run it as root, or leave disk out of PARTS"
        )
    for half, target in enumerate((BROKER, DATABASE)):
        rng = random.Random(seed + half)
        with mounted(folder / f"disk-{target}") as mount:
            kinds: Faults = [("disk_full", target)] * 2
            kinds += kills(kill_count // 2, rng, SERVICES)
            schedule = faults(seed + half, prompts // 2, kinds)
            disks = {target: mount}
            yield Scene(f"{part.name}-{target}", prompts // 2, schedule, seed, disks=disks)


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def clock(part: Part, prompts: int, kill_count: int, seed: int, folder: Path) -> Iterator[Scene]:
    """The services' clock jumps by an hour or a day, to and fro; broker's and database's do not."""
    library = next(Path("/usr/lib").glob(f"*/{FAKETIME}"), None)
    if library is None:
        raise MissingError(
            "jumping clocks need libfaketime: install Debian's package of this name, "
            "or leave clock out of PARTS"
        )
    offset = folder / "offset"
    offset.write_text("+0s")
    env = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        # Read once a second; at every look at the clock it would cost three times as much.
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    rng = random.Random(seed)
    kinds: Faults = [("clock_jump", "services")] * 4
    kinds += kills(kill_count, rng, SERVICES)
    schedule = faults(seed, prompts, kinds)
    yield Scene(part.name, prompts, schedule, seed, is_postgres=True, env=env, clock=offset)


PARTS = {
    part.name: part
    for part in (
        Part("one-node", 0.45, 0.5, 10.0, one_node),
        Part("links", 0.2, 0.1, None, links),
        Part("cluster", 0.25, 0.3, 15.0, cluster),
        Part("disk", 0.05, 0.05, None, disk),
        Part("clock", 0.05, 0.05, None, clock),
    )
}
