"""Older code on this schema, as during an upgrade and after a rollback.

The migrations say which is the oldest that may run there (`oldest_code`); the history has it.
"""

import asyncio
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from fusewire.contracts import Outcome
from fusewire.settings import Database, Settings
from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire.testing.eventually import eventually
from fusewire.testing.model_script import Script
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.replicas import Replicas
from fusewire_cli.client import Client

ROOT = Path(__file__).parents[2]
FOLDERS = ("shared", "services", "migrations")
FIRST_TOLERANT = "0016"
"""Code that knows this schema runs on a newer one that lets it. Older code has to be shown the
newer migrations."""
MANY = 4
SUMS = ("SELECT sum(outcomes) FROM v_pool_day", "SELECT sum(wins) FROM v_model_day")

MakeSettings = Callable[..., Settings]


def git(*arguments: str) -> bytes:
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    assert result.returncode == 0, (
        f"git {' '.join(arguments)}: {result.stderr.decode().strip()}\n"
        "This test takes older code from the history. In a shallow clone run"
        " `git fetch --unshallow`; CI has to fetch the whole history."
    )
    return result.stdout


async def oldest_code(database: Database) -> str:
    """The newest schema that the oldest code knows which may run on this database."""
    store = Store(database)
    async with store.read() as connection:
        query = text("SELECT oldest_code FROM schema_compatibility")
        number = (await connection.execute(query)).scalar_one()
    await store.close()
    return str(number)


def commit_of(schema: str) -> str:
    """The last commit whose code knows no newer schema than this one."""
    names = sorted(path.name for path in (ROOT / "migrations" / "versions").glob("[0-9]*_*.py"))
    newer = [name for name in names if name.partition("_")[0] > schema]
    assert newer, f"no older release may run on schema {schema}: see CONTRIBUTING.md"
    log = git("log", "--diff-filter=A", "--format=%H", "--", f"migrations/versions/{newer[0]}")
    commits = log.decode().split()
    # The migration is not committed yet: HEAD does not have it.
    return git("rev-parse", "--verify", f"{commits[-1]}^").decode().strip() if commits else "HEAD"


@pytest.fixture
async def previous_env(postgres_database: Database, tmp_path: Path) -> dict[str, str]:
    """What makes a service run that code, with the libraries of this environment."""
    schema, folder = await oldest_code(postgres_database), tmp_path / "previous"
    content = git("archive", commit_of(schema), *FOLDERS)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(folder, filter="data")
    migrations = (folder / "migrations" / "versions").glob("[0-9]*_*.py")
    assert max(path.name for path in migrations).startswith(schema)
    members = [folder / "shared", *sorted((folder / "services").iterdir())]
    env = {"PYTHONPATH": ":".join(str(member) for member in members)}
    show = [sys.executable, "-c", "import fusewire; print(fusewire.__file__)"]
    module = await asyncio.to_thread(
        subprocess.run, show, env={**os.environ, **env}, capture_output=True, check=True
    )
    assert module.stdout.decode().startswith(str(folder))
    if schema < FIRST_TOLERANT:
        env[migrate.MIGRATIONS_ENV] = str(migrate.folder())
    return env


@pytest.fixture
def replicas(
    tmp_path: Path,
    make_settings: MakeSettings,
    nats: NatsServer,
    postgres_database: Database,
) -> Iterator[Replicas]:
    """On a database that this code has migrated."""
    settings = make_settings()
    config = {
        # What is not set is left out: earlier releases refuse keys that they do not know.
        **settings.model_dump(mode="json", include={"models", "pools"}, exclude_unset=True),
        "nats": {"url": nats.url},
        "database": {"url": postgres_database.url},
    }
    with Replicas(tmp_path, config) as replicas:
        result = replicas.cli.run("topology", "apply")
        assert result.returncode == 0, result.stderr
        yield replicas


async def submit(url: str, first: int) -> list[str]:
    async with Client(url) as client:
        return [
            (await client.submit({"prompt": f"Why is the sky blue, {number}?"}))["id"]
            for number in range(first, first + MANY)
        ]


@pytest.mark.slow
async def test_older_code_runs_on_this_schema_and_this_code_goes_on(
    replicas: Replicas,
    previous_env: dict[str, str],
    postgres_database: Database,
    model_server: ModelServer,
) -> None:
    store = Store(postgres_database)

    async def ended(count: int) -> list[Outcome]:
        async with store.read() as connection:
            bodies = (await connection.execute(text("SELECT body FROM outcomes"))).scalars().all()
        return [Outcome.decode(body) for body in bodies] if len(bodies) >= count else []

    model_server.set_script(Script())
    previous = await replicas.start_all(**previous_env)
    fusion_ids = await submit(previous["ingest"].url, 0)
    await eventually(lambda: ended(MANY))
    fusion_ids += await submit(previous["ingest"].url, MANY)
    current = await replicas.start_all()
    for replica in previous.values():
        assert await replica.end() == 0, replica.command.stderr[-2000:]
    fusion_ids += await submit(current["ingest"].url, 2 * MANY)
    outcomes = await eventually(lambda: ended(3 * MANY))

    assert sorted(outcome.fusion_id for outcome in outcomes) == sorted(fusion_ids)
    assert {outcome.status for outcome in outcomes} == {"selected"}
    assert model_server.stats.by_model == {"a": 12, "b": 12, "c": 12, "j": 24}
    assert replicas.faults() == []
    # Older code may not keep the sums by day, or not all of them.
    result = replicas.cli.run("db", "sums")
    assert result.returncode == 0, result.stderr
    async with store.read() as connection:
        for query in SUMS:
            assert (await connection.execute(text(query))).scalar_one() == 3 * MANY, query
    await store.close()
