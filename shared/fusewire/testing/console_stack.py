"""For tests: `fusewire up` with its console, on planted outcomes and fake models."""

import asyncio
import contextlib
import json
import os
import re
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fusewire.settings import Database
from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire.testing.command_line import Cli, Command, FakeServer, address, background, bare
from fusewire.testing.eventually import until
from fusewire.testing.model_script import ModelScript, Script
from fusewire.testing.planted import JudgeTruth, MemberTruth, PoolTruth, Truth, fill
from fusewire.testing.served import RunningStack

MEMBERS = (
    MemberTruth("alpha", strength=0.7, accuracy=0.8, cost_usd=0.004, failure_rate=0.1),
    MemberTruth("beta", accuracy=0.7, latency_ms=2000),
    MemberTruth("gamma", strength=-0.7, accuracy=0.5, cost_usd=0.001),
)
JUDGE = JudgeTruth(position_bias=0.3, length_bias=0.1)
POOLS = {"default": PoolTruth(MEMBERS, JUDGE), "fast": PoolTruth(MEMBERS[:2], JUDGE)}
REASON = "The first answer says what a quorum is, and why two of them cannot disagree."
ANSWERS = {
    "alpha": "A quorum is the least number of members that must take part before a decision holds."
    " Two majorities always share a member, so no two of them can decide against each other.",
    "beta": "It is a majority of the members. It keeps a minority from deciding alone.",
    "gamma": "The number of people in a room.",
}
"""What the fake models answer to each prompt."""
_CONFIG = """
[log]
level = "warning"
[http]
port = 0
[console]
port = 0
[limits]
# Where a model never answers, the end of a test shall not wait for it.
call_drain_s = 2
{models}
{pools}
"""
_POOL = """
[pools.{name}]
members = {members}
judge = "{judge}"
quorum = 1.0
deadline_s = 250
control_share = 0.0
"""


def script(**models: ModelScript) -> Script:
    """The answers above, and what is different for some models."""
    scripts = {name: ModelScript(answer=answer) for name, answer in ANSWERS.items()}
    return Script(models=scripts | {JUDGE.model: ModelScript(reason=REASON)} | models)


DETAILS = ("/outcomes/{outcome}", "/ask/{outcome}", "/batches/{batch}")
"""Pages of one thing; see `RunningConsole.path`."""


@dataclass(frozen=True)
class RunningConsole:
    """A running stack with its console."""

    url: str
    """The console's address."""
    stack: RunningStack
    cli: Cli
    pids: Mapping[str, int]
    """Process ids by service, where services are processes."""

    @property
    def database(self) -> Path:
        """The file of its SQLite database."""
        return self.cli.folder / ".fusewire" / "fusewire.db"

    def path(self, template: str) -> str:
        """The path of a page, with the newest `{outcome}` and the newest `{batch}` of one."""
        return template.format(
            outcome=self._newest("fusion_id") if "{outcome}" in template else "",
            batch=self._newest("batch_id") if "{batch}" in template else "",
        )

    def _newest(self, column: str) -> str:
        with contextlib.closing(
            sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)
        ) as connection:
            statement = (
                f"SELECT {column} FROM outcomes WHERE {column} IS NOT NULL"
                " ORDER BY finished_at DESC LIMIT 1"
            )
            return str(connection.execute(statement).fetchone()[0])


Prepare = Callable[[Store], Awaitable[None]]


@contextlib.contextmanager
def console_stack(
    folder: Path, outcomes: int, prepare: Prepare | None = None, *, processes: bool = False
) -> Iterator[RunningConsole]:
    """Run a stack.

    Args:
        folder: an empty folder for all its files.
        outcomes: how many to plant before, about; half of them in each pool.
        prepare: changes the planted database.
        processes: whether each service is a process of its own.
    """
    _in_thread(lambda: _fill(folder, outcomes, prepare))
    with _fake_models(folder) as server:
        _configure(folder, server)
        cli = bare(folder)
        with cli.start("up", *(["--processes"] if processes else [])) as command:
            api = address(cli, command)
            url = until(lambda: _console_url(command), "the console's address")
            record = json.loads((folder / ".fusewire" / "up.json").read_text())
            stack = RunningStack(api, folder / ".fusewire", server)
            yield RunningConsole(url, stack, cli, record["pids"])


def _console_url(command: Command) -> str | None:
    match = re.search(r"^Console +(\S+)/$", command.stdout, re.MULTILINE)
    return match[1] if match else None


@contextlib.contextmanager
def _fake_models(folder: Path) -> Iterator[FakeServer]:
    file = folder / "script.json"
    file.write_text(script().model_dump_json())
    command = [sys.executable, "-m", "fusewire.testing.model_server", "--script", str(file)]
    with background(command, cwd=folder, env=os.environ) as process:
        until(lambda: process.stdout.endswith("\n"), "the fake's port")
        yield FakeServer(json.loads(process.stdout)["port"])


def _configure(folder: Path, server: FakeServer) -> None:
    names = [*(member.model for member in MEMBERS), JUDGE.model]
    models = "\n".join(
        f'[models.{name}]\nkind = "remote"\nbase_url = "{server.base_url}"\nmodel = "{name}"\n'
        "input_usd_per_mtok = 3.0\noutput_usd_per_mtok = 15.0"
        for name in names
    )
    pools = "\n".join(_pool(name, pool) for name, pool in POOLS.items())
    (folder / "fusewire.toml").write_text(_CONFIG.format(models=models, pools=pools))


def _pool(name: str, pool: PoolTruth) -> str:
    members = json.dumps([member.model for member in pool.members])
    return _POOL.format(name=name, members=members, judge=JUDGE.model)


async def _fill(folder: Path, outcomes: int, prepare: Prepare | None) -> None:
    data = folder / ".fusewire"
    data.mkdir(exist_ok=True)
    store = Store(Database(url=f"sqlite+aiosqlite:///{data / 'fusewire.db'}"), is_patient=True)
    try:
        await migrate.upgrade(store)
        if outcomes:
            truth = Truth(now=datetime.now(UTC), pools=POOLS, open_share=0.6, days=20.0)
            await fill(store, truth, max(1, outcomes // len(POOLS)), 3)
        if prepare:
            await prepare(store)
    finally:
        await store.close()


def _in_thread(work: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine apart from the loop that Playwright runs in this thread."""

    async def run() -> None:
        await work()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, run()).result()
