"""A revoked key on two ingest processes: nothing is accepted any more five seconds later."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import aiohttp
import pytest
from sqlalchemy import text

from fusewire.settings import Database, Http, Nats, Settings
from fusewire.store.engine import Store
from fusewire.testing.eventually import eventually
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.replicas import Replicas

MakeSettings = Callable[..., Settings]

PROMISED_S = 5.0
"""As docs/how-to/tenants.md says."""
MANY = 1_000
CONCURRENCY = 16


@pytest.fixture
def replicas(
    make_settings: MakeSettings, database: Database, nats: NatsServer, tmp_path: Path
) -> Iterator[Replicas]:
    settings = make_settings(
        nats=Nats(url=nats.url), database=database, http=Http(port=0, keys="required")
    )
    with Replicas(tmp_path, settings.model_dump(mode="json", exclude_unset=True)) as replicas:
        yield replicas


class Submitter:
    """Sends prompts with a key, to several addresses in turn, and counts the statuses."""

    def __init__(self, urls: Sequence[str], key: str) -> None:
        self._urls = urls
        self._headers = {"authorization": f"Bearer {key}"}
        self._number = 0
        self.statuses: Counter[tuple[str, int]] = Counter()

    async def send(self, http: aiohttp.ClientSession) -> None:
        self._number += 1
        url = self._urls[self._number % len(self._urls)]
        body = {"prompt": "Why?", "custom_id": f"n{self._number}"}
        async with http.post(f"{url}/v1/fusions", json=body, headers=self._headers) as response:
            await response.read()
            self.statuses[url, response.status] += 1

    async def send_many(self, http: aiohttp.ClientSession, count: int) -> None:
        for start in range(0, count, CONCURRENCY):
            n = min(CONCURRENCY, count - start)
            await asyncio.gather(*(self.send(http) for _ in range(n)))

    async def send_for_ever(self, http: aiohttp.ClientSession) -> None:
        while True:
            await self.send_many(http, 2)
            await asyncio.sleep(0.1)


async def prompts(database: Database) -> int:
    store = Store(database)
    async with store.read() as connection:
        count = (await connection.execute(text("SELECT count(*) FROM prompts"))).scalar_one()
    await store.close()
    return int(count)


async def test_no_replica_accepts_a_key_that_was_revoked_five_seconds_ago(
    replicas: Replicas, database: Database
) -> None:
    cli = replicas.cli
    assert cli.run("topology", "apply").returncode == 0
    created = cli.run("keys", "create", "--tenant", "acme", "--name", "n", "--json")
    key = json.loads(created.stdout)
    urls = [await replica.ready() for replica in [replicas.start("ingest") for _ in range(2)]]
    before, after = Submitter(urls, key["key"]), Submitter(urls, key["key"])

    async with aiohttp.ClientSession() as http:
        # Both know the key, and are asked with it until the measurement begins.
        load = asyncio.create_task(before.send_for_ever(http))
        await eventually(lambda: all(before.statuses[url, 202] for url in urls))
        revoked = await asyncio.to_thread(cli.run, "keys", "revoke", key["key_id"])
        assert revoked.returncode == 0, revoked
        await asyncio.sleep(PROMISED_S)
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
        count = await prompts(database)
        await after.send_many(http, MANY)

    assert after.statuses == {(url, 401): MANY // 2 for url in urls}
    assert await prompts(database) == count
