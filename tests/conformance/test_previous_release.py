"""The code of the release before on this schema, as during an upgrade and after a rollback.

The release before is taken as the commit before the newest migration.
"""

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
FIRST_TOLERANT = "0015"
"""Code that knows this schema runs on a newer one that lets it. Older code has to be shown the
newer migrations."""
MANY = 4
SUMS = ("SELECT sum(outcomes) FROM v_pool_day", "SELECT sum(wins) FROM v_model_day")

MakeSettings = Callable[..., Settings]


def git(*arguments: str) -> bytes:
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    assert result.returncode == 0, (
        f"git {' '.join(arguments)}: {result.stderr.decode().strip()}\n"
        "This test takes the release before from the history. In a shallow clone run"
        " `git fetch --unshallow`; CI has to fetch the whole history."
    )
    return result.stdout


def previous_release() -> str:
    """The commit before the newest migration; HEAD while that is not committed."""
    newest = max(path.name for path in (ROOT / "migrations" / "versions").glob("[0-9]*_*.py"))
    log = git("log", "--diff-filter=A", "--format=%H", "--", f"migrations/versions/{newest}")
    commits = log.decode().split()
    return git("rev-parse", "--verify", f"{commits[-1]}^").decode().strip() if commits else "HEAD"


@pytest.fixture(scope="module")
def previous_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the release before."""
    folder = tmp_path_factory.mktemp("previous")
    with tarfile.open(fileobj=io.BytesIO(git("archive", previous_release(), *FOLDERS))) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def previous_env(previous_tree: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What makes a service run that code, with the libraries of this environment."""
    members = [previous_tree / "shared", *sorted((previous_tree / "services").iterdir())]
    env = {"PYTHONPATH": ":".join(str(member) for member in members)}
    show = [sys.executable, "-c", "import fusewire; print(fusewire.__file__)"]
    module = subprocess.run(show, env={**os.environ, **env}, capture_output=True, check=True)
    assert module.stdout.decode().startswith(str(previous_tree))
    with monkeypatch.context() as previous:
        previous.setenv(migrate.MIGRATIONS_ENV, str(previous_tree / "migrations"))
        head = migrate.head()
    assert head < migrate.head()
    if head < FIRST_TOLERANT:
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
        **settings.model_dump(mode="json", include={"models", "pools"}),
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
async def test_the_release_before_runs_on_this_schema_and_this_one_goes_on(
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
    # The release before may not keep the sums by day, or not all of them.
    result = replicas.cli.run("db", "sums")
    assert result.returncode == 0, result.stderr
    async with store.read() as connection:
        for query in SUMS:
            assert (await connection.execute(text(query))).scalar_one() == 3 * MANY, query
    await store.close()
