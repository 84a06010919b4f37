"""Whatever ends a command: nothing of what it had started is left, and the next one goes on."""

import fcntl
import json
import os
import signal
import socket
import sqlite3
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fusewire.testing.command_line import (
    FUSEWIRE,
    Cli,
    FakeServer,
    address,
    background,
    write_lines,
)
from fusewire.testing.eventually import PATIENCE_S, until

BATCH = ("batch", "run", "in.jsonl", "-o", "out.jsonl", "--pool", "closed")


def left(cli: Cli) -> list[str]:
    """Every process that was started in the folder, by what it runs."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == cli.folder and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            pass
    return found


def noted(cli: Cli) -> list[int]:
    """Ids of the processes that the runner has started so far."""
    path = cli.folder / ".fusewire" / "processes.json"
    return (
        [json.loads(line)["pid"] for line in path.read_text().splitlines()] if path.exists() else []
    )


def has_started(cli: Cli, processes: int) -> Callable[[], bool]:
    return lambda: len(noted(cli)) >= processes


def is_held(path: Path) -> bool:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


def refuses(url: str) -> bool:
    host, _, port = url.rpartition("/")[2].rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0


def calls(server: FakeServer) -> int:
    with urllib.request.urlopen(
        f"http://127.0.0.1:{server.port}/_control/stats", timeout=PATIENCE_S
    ) as reply:
        return int(json.load(reply)["requests"])


@pytest.fixture
def locked(cli: Cli) -> Iterator[Callable[[], sqlite3.Connection]]:
    """Locks the database as another program would, until the test is over."""
    taken: list[sqlite3.Connection] = []

    def lock() -> sqlite3.Connection:
        connection = sqlite3.connect(cli.folder / ".fusewire" / "fusewire.db", isolation_level=None)
        taken.append(connection)
        connection.execute("PRAGMA busy_timeout = 60000")
        connection.execute("BEGIN EXCLUSIVE")
        return connection

    yield lock
    for connection in taken:
        connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["broker", "services", "ready", "calls", "drain"])
@pytest.mark.parametrize("server", [1500], indirect=True)
def test_a_killed_runner_leaves_nothing_behind_and_the_next_goes_on(
    cli: Cli, server: FakeServer, moment: str
) -> None:
    names = write_lines(cli.folder / "in.jsonl", 6)
    data = cli.folder / ".fusewire"
    addresses: dict[str, Any] = {}
    with cli.start(*BATCH, "--processes") as process:
        until(has_started(cli, 1 if moment == "broker" else 5), "the broker or the services")
        if moment in ("ready", "calls", "drain"):
            addresses = json.loads(
                until(lambda: (data / "up.json").exists() and (data / "up.json").read_text(), "up")
            )
        if moment in ("calls", "drain"):
            until(lambda: calls(server) > 0, "calls in flight")
        if moment == "drain":
            process.send_signal(signal.SIGTERM)
            until(lambda: "stopping" in process.stderr, "the notice")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        until(lambda: not left(cli), f"the end of {left(cli)}")
    assert not is_held(data / "lock")
    assert not is_held(data / "nats" / "lock")
    assert all(refuses(addresses[name]) for name in ("url", "nats") if addresses)
    again = cli.run(*BATCH)
    assert again.returncode == 0, again.stderr
    results = [json.loads(line) for line in (cli.folder / "out.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in results] == names
    # Services store what they have paid for while they drain: at most what had not come back is
    # asked again.
    assert 18 <= calls(server) <= 36


@pytest.mark.parametrize(
    ("how", "options"),
    [
        (signal.SIGTERM, ("--processes",)),
        (signal.SIGTERM, ()),
        (signal.SIGINT, ()),
        (signal.SIGHUP, ()),
    ],
)
def test_up_ends_whole_when_it_is_asked_to(
    cli: Cli, how: signal.Signals, options: tuple[str, ...]
) -> None:
    with cli.start("up", *options) as process:
        address(cli, process)
        process.send_signal(how)
        assert process.wait() == 0, process.stderr
        until(lambda: not left(cli), f"the end of {left(cli)}")
    assert not (cli.folder / ".fusewire" / "up.json").exists()


def test_nobody_else_gets_the_port_while_ingest_is_started_again(cli: Cli) -> None:
    with cli.start("up", "--processes") as process:
        url = address(cli, process)
        port = int(url.rpartition(":")[2])
        os.kill(
            json.loads((cli.folder / ".fusewire" / "up.json").read_text())["pids"]["ingest"],
            signal.SIGKILL,
        )
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        # Whoever connects meanwhile waits, and is answered by the next.
        with urllib.request.urlopen(f"{url}/healthz", timeout=PATIENCE_S) as reply:
            assert reply.read().startswith(b"ok")


def test_under_nohup_the_end_of_the_terminal_is_none(cli: Cli) -> None:
    command = ["nohup", str(FUSEWIRE), "up"]
    with background(command, cwd=cli.folder, env=dict(cli.env)) as process:
        address(cli, process)
        process.send_signal(signal.SIGHUP)
        assert cli.run("ask", "Why?").returncode == 0
        assert process.returncode is None


@pytest.mark.parametrize("options", [(), ("--processes",)])
def test_it_ends_though_the_database_is_locked(
    cli: Cli, locked: Callable[[], sqlite3.Connection], options: tuple[str, ...]
) -> None:
    short = Cli(cli.folder, {**cli.env, "FUSEWIRE_LIMITS__DRAIN_S": "1"})
    write_lines(cli.folder / "in.jsonl", 50)
    with short.start("up", *options) as process:
        address(cli, process)
        submitted = cli.run("batch", "submit", "in.jsonl")
        assert submitted.returncode == 0, submitted.stderr
        locked()
        process.send_signal(signal.SIGTERM)
        process.wait()
        until(lambda: not left(cli), f"the end of {left(cli)}")


def test_what_an_earlier_run_has_left_is_ended_and_a_stranger_with_its_id_is_not(cli: Cli) -> None:
    data = cli.folder / ".fusewire"
    data.mkdir()
    sleep = ["sleep", "600"]
    with background(sleep, cwd=data) as leftover, background(sleep, cwd=data) as stranger:
        started = psutil.Process(leftover.pid).create_time()
        lines = [
            {"pid": leftover.pid, "started": started},
            {"pid": stranger.pid, "started": started - 1000},
        ]
        (data / "processes.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        done = cli.run("ask", "Why?")
        assert done.returncode == 0, done.stderr
        assert leftover.wait() == -signal.SIGTERM
        assert stranger.returncode is None


def test_a_store_that_another_broker_uses_is_not_opened(cli: Cli) -> None:
    folder = cli.folder / ".fusewire" / "nats"
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = cli.run("ask", "Why?")
    assert refused.returncode == 2
    assert "another nats-server lives on the store" in refused.stderr


@pytest.mark.parametrize("server", [600_000], indirect=True)
def test_an_interrupted_ask_says_what_becomes_of_it(cli: Cli, server: FakeServer) -> None:
    short = Cli(cli.folder, {**cli.env, "FUSEWIRE_LIMITS__DRAIN_S": "1"})
    with short.start("ask", "Why?") as process:
        until(lambda: calls(server) > 0, "a call in flight")
        process.send_signal(signal.SIGHUP)
        assert process.wait() == 130, process.stderr
        assert "finished by the next Fusewire" in process.stderr
    until(lambda: not left(cli), f"the end of {left(cli)}")
