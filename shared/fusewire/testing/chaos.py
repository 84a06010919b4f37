"""For tests: random schedules of faults, and a running stack of processes to apply them to."""

import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from fusewire.testing.eventually import until
from fusewire.testing.postgres import PostgresServer

Kind = Literal["kill", "freeze", "database_away", "store_lost"]

SERVICES = ("judge", "worker-remote", "dispatcher", "ingest")
BROKER = "nats-server"
SHARES: dict[Kind, float] = {"kill": 0.7, "freeze": 0.15, "database_away": 0.1, "store_lost": 0.05}
EVERY_S = 1.5
"""Mean time between the end of a fault and the next one."""
LONGEST_S = 6.0


@dataclass(frozen=True)
class Fault:
    """Something that happens to a running stack.

    Attributes:
        at_s: when it begins, s from the schedule's beginning.
        kind: `kill` is SIGKILL, `freeze` SIGSTOP; `store_lost` kills the broker and removes its
            store.
        target: a service, or the broker; the database where that is away.
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
        names: dict[Kind, str] = {"database_away": "database", "store_lost": BROKER}
        faults.append(Fault(round(at_s, 2), kind, names.get(kind, target), round(for_s, 2)))
        at_s += for_s


class StackProcess:
    """A `fusewire up --processes` that faults befall.

    Args:
        runner: its process id.
        data_dir: its data folder.
        postgres: its database's server; None where that is SQLite's file in the data folder.
    """

    def __init__(self, runner: int, data_dir: Path, postgres: PostgresServer | None) -> None:
        self._runner = psutil.Process(runner)
        self._data_dir = data_dir
        self._postgres = postgres

    def befall(self, fault: Fault) -> None:
        """Make a fault happen; returns at its end."""
        does: dict[Kind, Callable[[Fault], None]] = {
            "kill": self._kill,
            "freeze": self._freeze,
            "database_away": self._take_database_away,
            "store_lost": self._lose_store,
        }
        does[fault.kind](fault)

    def _process(self, target: str) -> psutil.Process:
        """The process of a service or of the broker; waits until it has been restarted."""
        marks = (target, f"fusewire_{target.replace('-', '_')}")

        def look() -> psutil.Process | None:
            for child in self._runner.children():
                try:
                    line = child.cmdline()
                    is_alive = child.status() != psutil.STATUS_ZOMBIE
                except psutil.Error:
                    continue
                if is_alive and any(Path(part).name in marks for part in line[:3]):
                    return child
            return None

        process: psutil.Process = until(look, target)
        return process

    def _kill(self, fault: Fault) -> None:
        self._process(fault.target).send_signal(signal.SIGKILL)

    def _freeze(self, fault: Fault) -> None:
        process = self._process(fault.target)
        process.send_signal(signal.SIGSTOP)
        time.sleep(fault.for_s)
        process.send_signal(signal.SIGCONT)

    def _take_database_away(self, fault: Fault) -> None:
        if self._postgres:
            self._postgres.kill()
            time.sleep(fault.for_s)
            self._postgres.start()
            return
        connection = sqlite3.connect(
            self._data_dir / "fusewire.db", isolation_level=None, timeout=60
        )
        try:
            connection.execute("BEGIN EXCLUSIVE")
            time.sleep(fault.for_s)
        finally:
            connection.close()

    def _lose_store(self, fault: Fault) -> None:
        broker = self._process(fault.target)
        # Meanwhile nobody starts it again.
        self._runner.send_signal(signal.SIGSTOP)
        try:
            broker.send_signal(signal.SIGKILL)
            until(
                lambda: not broker.is_running() or broker.status() == psutil.STATUS_ZOMBIE,
                "its end",
            )
            shutil.rmtree(self._data_dir / "nats" / "store")
        finally:
            self._runner.send_signal(signal.SIGCONT)
