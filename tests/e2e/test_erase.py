"""`fusewire erase`: what it asks, what it prints, and what is left of a killed one."""

import json
import re
import secrets
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from fusewire.testing.command_line import Cli, address
from fusewire.testing.eventually import until
from fusewire_cli.local.process import ProcessRecord


@pytest.fixture
def canary() -> str:
    return f"kanari{secrets.token_hex(8)}"


def held(cli: Cli, canary: str) -> Iterator[str]:
    """The files of the data folder, logs included, that hold a text."""
    for path in sorted((cli.folder / ".fusewire").rglob("*")):
        if path.is_file() and canary.encode() in path.read_bytes():
            yield str(path)


def store(cli: Cli, canary: str, *names: str) -> None:
    """Run a batch of prompts, and stop the stack that it starts."""
    lines = [{"custom_id": name, "prompt": f"Why {canary} {name}?"} for name in names]
    (cli.folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = cli.run("batch", "run", "in.jsonl", "--out", "out.jsonl")
    assert done.returncode == 0, done.stderr


def test_a_custom_id_is_erased_beside_a_running_stack(cli: Cli, canary: str) -> None:
    with cli.start("up") as process:
        address(cli, process)
        assert cli.run("ask", f"Why {canary}?").returncode == 0
        assert list(held(cli, canary))

        done = cli.run("erase", "--tenant", "default", "--yes", "--json")

        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["counts"]["sql.fusions"] == 1
        assert any("backups" in place for place in report["not_reached"])
        assert list(held(cli, canary)) == []
        assert cli.run("ask", "And now?").returncode == 0


def test_it_asks_and_lists(cli: Cli, canary: str) -> None:
    store(cli, canary, "mine", "other")

    unsure = cli.run("erase", "--tenant", "default", "--custom-id", "mine")
    assert (unsure.returncode, "add --yes" in unsure.stderr) == (2, True)
    for wrong in (("--tenant", "No Name"), ("--tenant", "t", "--batch", "b"), ()):
        refused = cli.run("erase", *wrong, "--yes")
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "Traceback" not in refused.stderr
    assert list(held(cli, f"{canary} mine"))

    done = cli.run("erase", "--tenant", "default", "--custom-id", "mine", "--yes")

    assert done.returncode == 0, done.stderr
    assert "sql.fusions" in done.stdout
    assert "not reached:" in done.stdout
    assert list(held(cli, f"{canary} mine")) == []
    assert list(held(cli, f"{canary} other"))
    (listed,) = json.loads(cli.run("erase", "--list", "--json").stdout)
    assert (listed["tenant"], listed["counts"]["sql.fusions"]) == ("default", 1)
    assert len(listed["custom_id_hash"]) == 64
    assert listed["completed_at"]
    assert listed["erasure_id"] in cli.run("erase", "--list").stdout


def test_one_that_was_killed_is_gone_on_with(cli: Cli, canary: str) -> None:
    store(cli, canary, *(f"q{number}" for number in range(300)))
    with cli.start("erase", "--tenant", "default", "--yes") as process:
        until = time.monotonic() + 60
        while not begun(cli) and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    (cut,) = json.loads(cli.run("erase", "--list", "--json").stdout)
    assert cut["completed_at"] is None

    done = cli.run("erase", "--tenant", "default", "--yes", "--json")

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["erasure_id"] == cut["erasure_id"]
    assert report["counts"]["sql.fusions"] == 300
    assert list(held(cli, canary)) == []


def test_a_killed_one_leaves_no_broker(cli: Cli, canary: str) -> None:
    """Not even one that was just being started."""
    store(cli, canary, "mine")
    with cli.start("erase", "--tenant", "default", "--yes") as process:
        until(lambda: brokers(process.pid), "a broker")
        (broker,) = brokers(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()

        until(lambda: broker.find() is None, "the broker's end")


def brokers(pid: int) -> list[ProcessRecord]:
    """The nats-servers that a command runs."""
    children = psutil.Process(pid).children()
    records = [ProcessRecord.of(child.pid) for child in children if child.name() == "nats-server"]
    return [record for record in records if record]


def begun(cli: Cli) -> bool:
    """Whether the erasure is entered: its id is in the database's files."""
    files = (cli.folder / ".fusewire").glob("fusewire.db*")
    return any(re.search(rb"erasure_[0-9a-f]{16}", path.read_bytes()) for path in files)
