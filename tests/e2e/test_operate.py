"""What docs/operate.md says, on real processes, a real nats-server and PostgreSQL."""

import asyncio
import itertools
import json
import re
import signal
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import pytest
from sqlalchemy import text

from fusewire.settings import Database
from fusewire.store.engine import Store
from fusewire.testing.command_line import FUSEWIRE, Cli, FakeServer, address, background
from fusewire.testing.eventually import PATIENCE_S, eventually
from fusewire.testing.model_script import Fault, ModelScript, Script
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.postgres import SUPERUSER, PostgresServer, binaries
from fusewire.testing.replicas import SERVICES, Replica, Replicas

RATE = 8.0
"""Prompts a second."""
EXPECTED_CALLS = {"a": 1, "b": 1, "c": 1, "j": 2}
"""Of each fusion; the judge sees the answers in both orders."""
DATABASE = "fusewire"
OUTCOMES = "SELECT custom_id, status, is_degraded, body, finished_at FROM outcomes"
ANSWERS = "SELECT fusion_id, call FROM candidates WHERE round = 0"
_NAME = re.compile(r"\bq\d{4}\b")

Shown = dict[str, Any]


def models(server: FakeServer) -> Shown:
    """The configuration's models, pool and limits."""
    return {
        "models": {
            name: {"kind": "remote", "base_url": server.base_url, "model": name} for name in "abcj"
        },
        "pools": {
            "default": {
                "members": ["a", "b", "c"],
                "judge": "j",
                "quorum": 1.0,
                "deadline_s": 250,
                "control_share": 0.0,
            }
        },
    }


@pytest.fixture
async def postgres() -> AsyncIterator[PostgresServer]:
    """With an empty database `fusewire`."""
    with PostgresServer() as server:
        connection = await asyncpg.connect(server.dsn)
        await connection.execute(f"CREATE DATABASE {DATABASE}")
        await connection.close()
        yield server


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def replicas(
    tmp_path: Path, server: FakeServer, nats: NatsServer, postgres: PostgresServer
) -> Iterator[Replicas]:
    """Nothing runs yet, but the database is migrated and NATS provisioned."""
    config = {
        **models(server),
        "nats": {"url": nats.url},
        "database": {"url": postgres.url(DATABASE)},
    }
    with Replicas(tmp_path, config) as replicas:
        provision(replicas)
        yield replicas


def provision(replicas: Replicas) -> None:
    for command in (("db", "upgrade"), ("topology", "apply")):
        result = replicas.cli.run(*command)
        assert result.returncode == 0, result.stderr


def prompt(number: int) -> dict[str, str]:
    """A submission whose name is in its text."""
    name = f"q{number:04}"
    return {"custom_id": name, "prompt": f"Say something of your own about {name}."}


def names_of(numbers: range) -> list[str]:
    return [prompt(number)["custom_id"] for number in numbers]


def play(server: FakeServer, script: Script) -> None:
    address = f"http://127.0.0.1:{server.port}/_control/script"
    body = script.model_dump_json().encode()
    urllib.request.urlopen(address, data=body, timeout=PATIENCE_S).close()


def statistics(server: FakeServer) -> Shown:
    """What the models have counted since their script was set."""
    address = f"http://127.0.0.1:{server.port}/_control/stats"
    with urllib.request.urlopen(address, timeout=PATIENCE_S) as reply:
        return dict(json.load(reply))


def calls(server: FakeServer) -> dict[str, Counter[str]]:
    """Calls by prompt and model."""
    recorded = statistics(server)["recorded"]
    by_prompt: dict[str, Counter[str]] = {}
    for call in recorded:
        name = _NAME.search(json.dumps(call["body"]["messages"]))
        assert name, call
        by_prompt.setdefault(name[0], Counter())[call["model"]] += 1
    return by_prompt


async def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    store = Store(Database(url=url))
    async with store.read() as connection:
        records = [tuple(row) for row in await connection.execute(text(query))]
    await store.close()
    return records


async def stored(url: str, query: str, least: int) -> list[tuple[Any, ...]]:
    """The rows, once there are as many."""
    records = await rows(url, query)
    return records if len(records) >= least else []


# -- a rolling restart ------------------------------------------------------------------------


class Load:
    """Clients behind a load balancer, which sends each request to a replica that is ready.

    Nothing is tried again: what is refused is noted.
    """

    def __init__(self, ready: str) -> None:
        self.ready = [ready]
        """Addresses of the replicas that get requests, in turn."""
        self.replies: Counter[str] = Counter()
        """By the address that accepted."""
        self.accepted: set[str] = set()
        """Names of prompts."""
        self.refused: list[str] = []

    async def run(self, until: asyncio.Event) -> None:
        """Submit prompts at a rate; every second client waits for its outcome."""
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            for number in itertools.count():
                if until.is_set():
                    return
                group.create_task(self._submit(session, number))
                await asyncio.sleep(1 / RATE)

    async def _submit(self, session: aiohttp.ClientSession, number: int) -> None:
        body = prompt(number)
        name = body["custom_id"]
        address = self.ready[number // 2 % len(self.ready)]
        wait_s = 20 * (number % 2)
        try:
            async with session.post(f"{address}/v1/fusions?wait_s={wait_s}", json=body) as response:
                reply = await response.text()
                if response.status not in (200, 202):
                    self.refused.append(f"{name}: {response.status} {reply}")
                    return
        except (aiohttp.ClientError, OSError) as exc:
            self.refused.append(f"{name}: {exc!r}")
            return
        self.accepted.add(name)
        self.replies[address] += 1


async def replace(replicas: Replicas, old: Replica, load: Load) -> Replica:
    """Start another replica; once it is ready, end the old one, as a Deployment does."""
    new = replicas.start(old.service)
    url = await new.ready()
    async with aiohttp.ClientSession(url) as session, session.get("/readyz") as response:
        assert response.status == 200, await response.text()
    if old.service == "ingest":
        load.ready.append(url)
        await eventually(lambda: load.replies[url])
        # A Service sends nothing more to a pod that ends.
        load.ready = [url]
    assert await old.end() == 0, old.command.stderr[-2000:]
    return new


@pytest.mark.slow
async def test_a_rolling_restart_loses_nothing_and_makes_no_call_twice(
    replicas: Replicas, server: FakeServer, postgres: PostgresServer
) -> None:
    slow = ModelScript(latency_ms=300, latency_sigma=0.5)
    # Of these calls some are under way whenever the worker is told to stop.
    slower = ModelScript(latency_ms=1_500)
    play(server, Script(models={"*": slow, "b": slower}, recording=True))
    running = await replicas.start_all()
    load, end = Load(running["ingest"].url), asyncio.Event()
    loading = asyncio.create_task(load.run(end))

    for service in SERVICES * 2:
        running[service] = await replace(replicas, running[service], load)
    end.set()
    await loading

    database = postgres.url(DATABASE)
    outcomes = await eventually(lambda: stored(database, OUTCOMES, len(load.accepted)))
    assert load.refused == []
    assert sorted(name for name, *_ in outcomes) == sorted(load.accepted), "one outcome each"
    assert {(status, is_degraded) for _, status, is_degraded, *_ in outcomes} == {
        ("selected", False)
    }
    assert calls(server) == dict.fromkeys(load.accepted, EXPECTED_CALLS)
    assert replicas.faults() == []


# -- backup and restore -----------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "operate.md").read_text(encoding="utf-8")
MANY = 5
"""Prompts that have ended before the backup, and prompts that have not."""


def block(title: str) -> str:
    """The commands of a section."""
    (commands,) = re.findall(rf"^### {title}\n.*?```sh\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    return str(commands)


def sh(cli: Cli, commands: str, **extra_env: str) -> None:
    """Run commands of the page, in the folder and with the environment of `cli`."""
    path = f"{FUSEWIRE.parent}:{binaries()}:{cli.env['PATH']}"
    command = ["sh", "-euc", commands]
    env = {**cli.env, "PATH": path, **extra_env}
    with background(command, cwd=cli.folder, env=env) as process:
        assert process.wait() == 0, process.stderr


async def submit(url: str, numbers: range) -> None:
    async with aiohttp.ClientSession(url) as session:
        for number in numbers:
            async with session.post("/v1/fusions", json=prompt(number)) as response:
                assert response.status == 202, await response.text()


async def fill(url: str, database: str, server: FakeServer) -> list[tuple[Any, ...]]:
    """Have fusions that have ended, and others whose members b and c do not answer.

    Returns:
        The outcomes.
    """
    play(server, Script())
    await submit(url, range(MANY))
    outcomes = await eventually(lambda: stored(database, OUTCOMES, MANY))
    hanging = ModelScript(faults=(Fault(kind="hang"),) * MANY)
    play(server, Script(models={"b": hanging, "c": hanging}))
    await submit(url, range(MANY, 2 * MANY))
    await eventually(lambda: stored(database, ANSWERS, 4 * MANY))
    await eventually(lambda: statistics(server)["requests"] == 3 * MANY)
    return list(outcomes)


async def check_restored(
    database: str, server: FakeServer, outcomes: list[tuple[Any, ...]]
) -> None:
    """What had ended is as it was; what had not ends once, and asks only who had not answered."""
    ended = await eventually(lambda: stored(database, OUTCOMES, 2 * MANY))
    assert set(outcomes) < set(ended)
    assert sorted(name for name, *_ in ended) == names_of(range(2 * MANY))
    assert {status for _, status, *_ in ended} == {"selected"}
    unfinished = names_of(range(MANY, 2 * MANY))
    assert calls(server) == {name: {"b": 1, "c": 1, "j": 2} for name in unfinished}
    bodies = [json.loads(body) for (body,) in await rows(database, "SELECT body FROM candidates")]
    marked = Counter(body["model"] for body in bodies if body["maybe_paid_twice"])
    assert marked == {"b": MANY, "c": MANY}


@pytest.mark.slow
async def test_what_is_restored_from_postgresql_goes_on_with_an_empty_nats(
    replicas: Replicas, server: FakeServer, postgres: PostgresServer, nats: NatsServer
) -> None:
    client = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(urlsplit(postgres.url()).port),
        "PGUSER": SUPERUSER,
    }
    database = postgres.url(DATABASE)
    running = await replicas.start_all()
    outcomes = await fill(running["ingest"].url, database, server)
    sh(replicas.cli, block("Back up PostgreSQL"), **client)
    await submit(running["ingest"].url, range(2 * MANY, 2 * MANY + 1))

    for replica in running.values():
        replica.command.send_signal(signal.SIGKILL)
    await nats.kill()
    nats.wipe()
    sh(replicas.cli, f"dropdb --force {DATABASE}", **client)
    await nats.start()
    sh(replicas.cli, block("Restore PostgreSQL"), **client)
    play(server, Script(recording=True))
    await replicas.start_all()

    await check_restored(database, server, outcomes)
    assert await rows(database, "SELECT count(*) FROM prompts") == [(2 * MANY,)]


@pytest.mark.slow
async def test_what_is_restored_from_sqlite_goes_on_with_an_empty_nats(
    cli: Cli, server: FakeServer
) -> None:
    database = f"sqlite+aiosqlite:///{cli.folder / '.fusewire' / 'fusewire.db'}"
    with cli.start("up") as process:
        outcomes = await fill(address(cli, process), database, server)
        sh(cli, block("Back up SQLite"))
        await submit(address(cli, process), range(2 * MANY, 2 * MANY + 1))
        process.send_signal(signal.SIGKILL)
        process.wait()

    sh(cli, block("Restore SQLite"))
    play(server, Script(recording=True))
    with cli.start("up") as process:
        address(cli, process)
        await check_restored(database, server, outcomes)
