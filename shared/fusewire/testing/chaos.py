"""For tests: random schedules of faults, and a running stack of processes to apply them to."""

import asyncio
import contextlib
import functools
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

import psutil

from fusewire.testing.eventually import until
from fusewire.testing.history import History, OutcomeView
from fusewire.testing.link import Link, LinkFault
from fusewire.testing.nats_cluster import NatsCluster
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.postgres import PostgresServer

Kind = Literal[
    "kill",
    "terminate",
    "freeze",
    "database_away",
    "store_lost",
    "leader_kill",
    "rolling_restart",
    "clock_jump",
    "disk_full",
    "latency",
    "rate",
    "black_hole",
    "reset",
    "half_close",
    "truncate",
    "cut",
]

SERVICES = ("judge", "worker-remote", "dispatcher", "ingest")
BROKER = "nats-server"
DATABASE = "database"
SHARES: dict[Kind, float] = {"kill": 0.7, "freeze": 0.15, "database_away": 0.1, "store_lost": 0.05}
EVERY_S = 1.5
"""Mean time between the end of a fault and the next one."""
LONGEST_S = 6.0
LASTING = frozenset({"freeze", "database_away", "clock_jump", "disk_full", *get_args(LinkFault)})
KILLS = frozenset({"kill", "leader_kill", "store_lost"})
"""Kinds that end a process by SIGKILL."""
LEADER_OF = "FW_TASK_REMOTE"
"""The stream whose leader is killed."""
JUMPS_S = (3600, -3600, 86_400, -86_400)


@dataclass(frozen=True)
class Fault:
    """Something that happens to a running stack.

    Attributes:
        at_s: when it begins, s from the schedule's beginning.
        kind: `kill` is SIGKILL, `terminate` SIGTERM, `freeze` SIGSTOP; `store_lost` kills the
            broker and removes its store; those of links are told in fusewire.testing.link.
        target: a service, the broker, the database, or what a link leads to.
        for_s: how long it lasts, s; 0 for a kill.
    """

    at_s: float
    kind: Kind
    target: str
    for_s: float = 0.0


def schedule(seed: int, seconds: float) -> list[Fault]:
    """The faults of a seed, one after the other, that end within `seconds`."""
    rng = random.Random(seed)
    faults: list[Fault] = []
    at_s = 1.0
    while True:
        at_s += min(rng.expovariate(1 / EVERY_S), 3 * EVERY_S)
        (kind,) = rng.choices(list(SHARES), weights=list(SHARES.values()))
        target = rng.choice((*SERVICES, BROKER))
        for_s = rng.uniform(1.0, LONGEST_S) if kind in ("freeze", "database_away") else 0.0
        if at_s + for_s > seconds:
            return faults
        names: dict[Kind, str] = {"database_away": DATABASE, "store_lost": BROKER}
        faults.append(Fault(round(at_s, 2), kind, names.get(kind, target), round(for_s, 2)))
        at_s += for_s


def plan(
    seed: int, kinds: Sequence[tuple[Kind, str]], *, gap_s: float, longest_s: float = LONGEST_S
) -> list[Fault]:
    """Faults of these kinds and targets in random order, about `gap_s` apart."""
    rng = random.Random(seed)
    order = list(kinds)
    rng.shuffle(order)
    at_s, faults = 1.0, []
    for kind, target in order:
        at_s += rng.uniform(0.5, 1.5) * gap_s
        for_s = rng.uniform(1.0, longest_s) if kind in LASTING else 0.0
        faults.append(Fault(round(at_s, 2), kind, target, round(for_s, 2)))
        at_s += for_s
    return faults


@dataclass(frozen=True)
class StackParts:
    """What stands around the processes of a stack, where the test has put it there.

    Attributes:
        nats: the broker, where the runner has none of its own.
        links: the proxies before `models`, `nats` and `database`.
        clock: the file that libfaketime reads.
        disks: small file systems of their own, by whose they are.
        rng: chooses how far the clock jumps.
    """

    nats: NatsServer | NatsCluster | None = None
    links: Mapping[str, Link] = field(default_factory=dict)
    clock: Path | None = None
    disks: Mapping[str, Path] = field(default_factory=dict)
    rng: random.Random = field(default_factory=lambda: random.Random(0))


class StackProcess:
    """A `fusewire up --processes` that faults befall.

    Args:
        runner: its process id.
        data_dir: its data folder.
        postgres: its database's server; None where that is SQLite's file in the data folder.
        around: what else there is.
    """

    def __init__(
        self,
        runner: int,
        data_dir: Path,
        postgres: PostgresServer | None,
        around: StackParts | None = None,
    ) -> None:
        self._runner = psutil.Process(runner)
        self._data_dir = data_dir
        self._postgres = postgres
        self._around = around or StackParts()

    async def befall(self, fault: Fault) -> None:
        """Make a fault happen; returns at its end."""
        blocking: dict[Kind, Callable[[Fault], None]] = {
            "freeze": self._freeze,
            "database_away": self._take_database_away,
            "store_lost": self._lose_store,
            "clock_jump": self._jump,
            "disk_full": self._fill_disk,
        }
        waiting: dict[Kind, Callable[[Fault], Awaitable[None]]] = {
            "kill": self._kill,
            "terminate": self._terminate,
            "leader_kill": self._kill_leader,
            "rolling_restart": self._restart_all,
        }
        if fault.kind in blocking:
            await asyncio.to_thread(blocking[fault.kind], fault)
        elif fault.kind in waiting:
            await waiting[fault.kind](fault)
        else:
            await self._strain_link(fault)

    async def befall_all(
        self, faults: Sequence[Fault], history: History, *, pace_s: float = 0.0
    ) -> None:
        """Make the faults of a schedule happen, at their times.

        Args:
            faults: the schedule.
            history: where they are written down.
            pace_s: how long the schedule stands still, at most, until something has ended after a
                fault; after every third it does not, so that some faults meet others.
        """
        start = time.monotonic()
        for number, fault in enumerate(faults):
            await asyncio.sleep(max(0.0, start + fault.at_s - time.monotonic()))
            mark = history.begin(fault.kind, fault.target)
            await self.befall(fault)
            history.end(mark)
            if number % 3 != 2:
                before = time.monotonic()
                await _wait_for_end(history, len(history.events), pace_s)
                start += time.monotonic() - before

    def processes(self) -> dict[str, psutil.Process]:
        """The running processes of the services, by name, and the runner."""
        by_name = {"runner": self._runner}
        for name in (*SERVICES, "worker-edge", BROKER):
            if process := self._look(name):
                by_name[name] = process
        return by_name

    def _look(self, target: str) -> psutil.Process | None:
        marks = (target, f"fusewire_{target.replace('-', '_')}")
        for child in self._runner.children():
            with contextlib.suppress(psutil.Error):
                line = child.cmdline()
                is_alive = child.status() != psutil.STATUS_ZOMBIE
                if is_alive and any(Path(part).name in marks for part in line[:3]):
                    return child
        return None

    def _process(self, target: str) -> psutil.Process:
        """The process of a service or of the broker; waits until it has been restarted."""
        nats = self._around.nats
        if target == BROKER and isinstance(nats, NatsServer):
            return psutil.Process(nats.pid)
        if target == DATABASE and self._postgres:
            return psutil.Process(self._postgres.pid)
        process: psutil.Process = until(lambda: self._look(target), target)
        return process

    async def _end(self, fault: Fault, number: signal.Signals) -> None:
        nats = self._around.nats
        if fault.target == BROKER and isinstance(nats, NatsServer):
            await (nats.kill() if number == signal.SIGKILL else nats.stop())
            await nats.start()
            return
        process = await asyncio.to_thread(self._process, fault.target)
        process.send_signal(number)

    async def _kill(self, fault: Fault) -> None:
        await self._end(fault, signal.SIGKILL)

    async def _terminate(self, fault: Fault) -> None:
        """Tell it to stop, and see it go; the runner starts it again."""
        await self._end(fault, signal.SIGTERM)

    async def _restart_all(self, _fault: Fault) -> None:
        for service in SERVICES:
            process = await asyncio.to_thread(self._process, service)
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(until, functools.partial(_is_gone, process), "its end")
            await asyncio.to_thread(self._process, service)

    async def _kill_leader(self, _fault: Fault) -> None:
        assert isinstance(self._around.nats, NatsCluster)
        await self._around.nats.kill_leader(LEADER_OF)

    def _freeze(self, fault: Fault) -> None:
        main = self._process(fault.target)
        processes = [main, *(main.children() if fault.target == DATABASE else ())]
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in processes:
                process.suspend()
        time.sleep(fault.for_s)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def _take_database_away(self, fault: Fault) -> None:
        if self._postgres:
            self._postgres.kill()
            time.sleep(fault.for_s)
            self._postgres.start()
            return
        path = self._data_dir / "fusewire.db"
        with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            time.sleep(fault.for_s)

    def _lose_store(self, fault: Fault) -> None:
        broker = self._process(fault.target)
        # Meanwhile nobody starts it again.
        self._runner.send_signal(signal.SIGSTOP)
        try:
            broker.send_signal(signal.SIGKILL)
            until(lambda: _is_gone(broker), "its end")
            shutil.rmtree(self._data_dir / "nats" / "store")
        finally:
            self._runner.send_signal(signal.SIGCONT)

    def _jump(self, fault: Fault) -> None:
        """Let the clock of all services be another one; those of broker and database stay."""
        assert self._around.clock is not None
        self._around.clock.write_text(f"{self._around.rng.choice(JUMPS_S):+d}s")
        time.sleep(fault.for_s)
        self._around.clock.write_text("+0s")

    def _fill_disk(self, fault: Fault) -> None:
        with full_disk(self._around.disks[fault.target]):
            time.sleep(fault.for_s)

    async def _strain_link(self, fault: Fault) -> None:
        link = self._around.links[fault.target]
        await link.begin(cast("LinkFault", fault.kind))
        await asyncio.sleep(fault.for_s)
        link.mend()


async def _wait_for_end(history: History, after: int, seconds: float) -> None:
    """Wait until a client was shown a final state after so many events, or for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if any(isinstance(event, OutcomeView) for event in history.events[after:]):
            return
        await asyncio.sleep(0.1)


def _is_gone(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """A file system without a free byte, while the block runs."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            room = os.statvfs(folder)
            file.write(b"\0" * max(4096, min(1 << 20, room.f_bavail * room.f_frsize)))
    try:
        yield
    finally:
        filler.unlink()
