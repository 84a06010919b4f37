"""Who is let in, and what each tenant may and sees: over HTTP, on the real parts."""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text

from fusewire.settings import Database, Http, Nats, Settings
from fusewire.store.engine import Store
from fusewire.testing.eventually import eventually
from fusewire.testing.nats_server import NatsServer
from fusewire_cli.client import Client
from fusewire_ingest import access
from fusewire_ingest.admission import keys
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.keys import ApiKeys, Change, Key

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
Web = aiohttp.ClientSession

TENANTS = {
    "acme": {"residency": "edge-only", "pools": ["default"]},
    "hasty": {"requests_per_minute": 2},
}


@pytest.fixture
def settings(make_settings: MakeSettings, nats: NatsServer, database: Database) -> Settings:
    base = make_settings(
        nats=Nats(url=nats.url),
        database=database,
        http=Http(port=0, keys="required"),
        tenants=TENANTS,
    )
    return base.model_copy(update={"pools": {**base.pools, "other": base.pools["default"]}})


@pytest.fixture
async def web(settings: Settings, running: Running) -> AsyncIterator[Web]:
    """Ingest alone."""
    async with running(settings, "ingest") as client, Web(client.url) as session:
        yield session


async def key_of(settings: Settings, tenant: str, expires_at: datetime | None = None) -> str:
    made = keys.make(secrets.token_bytes(keys.RANDOM_BYTES))
    public = keys.key_id(made)
    assert public
    store = Store(settings.database)
    now = datetime.now(UTC)
    key = Key(public, tenant, "test", keys.digest(made, pepper(settings)), now, expires_at)
    await ApiKeys(store).add(key, Change("operator:test", now))
    await store.close()
    return made


async def asked(web: Web, key: str | None, method: str, path: str, **given: Any) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with web.request(method, f"/v1{path}", headers=headers, **given) as response:
        return response.status, await response.json()


async def told(web: Web, key: str | None) -> tuple[int, str | None]:
    status, body = await asked(web, key, "GET", "/models")
    if status == 200:
        return status, None
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return status, body["error"]["code"]


async def test_a_key_lets_its_tenant_in(web: Web, settings: Settings) -> None:
    key = await key_of(settings, "acme")

    assert await told(web, None) == (401, "missing_api_key")
    assert await told(web, key) == (200, None)
    async with web.get("/v1/models", headers={"x-api-key": key}) as response:
        assert response.status == 200


async def test_no_other_key_does_and_none_tells_why(web: Web, settings: Settings) -> None:
    key = await key_of(settings, "acme")
    expired = await key_of(settings, "acme", datetime.now(UTC) - timedelta(seconds=1))
    unknown = keys.make(secrets.token_bytes(keys.RANDOM_BYTES))
    other_secret = key[:-3] + ("AAA" if not key.endswith("AAA") else "BBB")

    for wrong in ("sk-any", unknown, other_secret, expired, key + "x"):
        assert await told(web, wrong) == (401, "invalid_api_key"), wrong
    assert await told(web, key) == (200, None)


async def test_a_revoked_key_is_refused_soon(
    web: Web, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert access.REMEMBERED_S <= 4, "within five seconds, the look included"
    monkeypatch.setattr(access, "REMEMBERED_S", 0.2)
    key = await key_of(settings, "acme")
    assert await told(web, key) == (200, None)
    store = Store(settings.database)
    change = Change("operator:test", datetime.now(UTC))
    assert await ApiKeys(store).revoke(keys.key_id(key) or "", change)
    await store.close()

    async def refused() -> bool:
        return await told(web, key) == (401, "invalid_api_key")

    await eventually(refused)


async def test_on_the_machine_itself_no_key_is_needed(settings: Settings, running: Running) -> None:
    local = settings.model_copy(update={"http": Http(port=0)})
    async with running(local, "ingest") as client, Web(client.url) as web:
        assert await told(web, None) == (200, None)
        assert await told(web, "sk-of-another-service") == (200, None)
        unknown = keys.make(secrets.token_bytes(keys.RANDOM_BYTES))
        assert await told(web, unknown) == (401, "invalid_api_key"), (
            "whoever sends one of ours means it"
        )
        mine = await asked(
            web, await key_of(local, "acme"), "POST", "/fusions", json={"prompt": "Why?"}
        )
        assert (await asked(web, None, "GET", f"/fusions/{mine[1]['id']}"))[0] == 404


async def test_tenants_see_only_what_is_theirs(web: Web, settings: Settings) -> None:
    acme, other = await key_of(settings, "acme"), await key_of(settings, "other")
    body = {"prompt": "Why?", "custom_id": "one"}
    _, mine = await asked(web, acme, "POST", "/fusions", json=body)
    _, theirs = await asked(web, other, "POST", "/fusions", json=body)
    form = aiohttp.FormData({"purpose": "batch"})
    form.add_field("file", b'{"prompt":"Why?"}', filename="in.jsonl")
    _, file = await asked(web, acme, "POST", "/files", data=form)
    wanted = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
    status, batch = await asked(web, acme, "POST", "/batches", json=wanted)

    assert status == 200
    assert (mine["id"] == theirs["id"], theirs["is_repetition"]) == (False, False)
    paths = [f"/fusions/{mine['id']}", f"/files/{file['id']}", f"/files/{file['id']}/content"]
    paths += [f"/batches/{batch['id']}", f"/batches/{batch['id']}/results"]
    for path in paths:
        assert (await asked(web, other, "GET", path))[0] == 404, path
    for method, path in (
        ("POST", f"/fusions/{mine['id']}/cancel"),
        ("POST", f"/batches/{batch['id']}/cancel"),
        ("DELETE", f"/files/{file['id']}"),
    ):
        assert (await asked(web, other, method, path))[0] == 404, path
    for path in ("/files", "/batches"):
        assert (await asked(web, other, "GET", path))[1]["data"] == [], path
        assert len((await asked(web, acme, "GET", path))[1]["data"]) == 1, path
    assert (await asked(web, other, "POST", "/batches", json=wanted))[0] == 404


@pytest.mark.parametrize("said", [None, "any", "edge-only"])
async def test_a_prompt_can_tighten_its_tenant_s_residency_and_never_loosen_it(
    web: Web, settings: Settings, said: str | None
) -> None:
    acme, other = await key_of(settings, "acme"), await key_of(settings, "other")
    body = {"prompt": "Why?"} | ({"residency": said} if said else {})
    for key in (acme, other):
        assert (await asked(web, key, "POST", "/fusions", json=body))[0] == 202

    store = Store(settings.database)
    async with store.read() as connection:
        rows = await connection.execute(text("SELECT tenant, residency FROM prompts"))
        assert {row[0]: row[1] for row in rows} == {"acme": "edge-only", "other": said or "any"}
    await store.close()


async def test_a_tenant_has_its_pools(web: Web, settings: Settings) -> None:
    acme, other = await key_of(settings, "acme"), await key_of(settings, "other")

    status, refused = await asked(
        web, acme, "POST", "/fusions", json={"prompt": "Why?", "pool": "other"}
    )
    assert (status, refused["error"]["code"]) == (404, "unknown_pool")
    assert (await asked(web, other, "POST", "/fusions", json={"prompt": "Why?", "pool": "other"}))[
        0
    ] == 202


async def test_too_many_requests_are_told_when_to_come_again(web: Web, settings: Settings) -> None:
    key = await key_of(settings, "hasty")
    assert [await told(web, key) for _ in range(2)] == [(200, None)] * 2

    async with web.get("/v1/models", headers={"authorization": f"Bearer {key}"}) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (429, "rate_limited")
        assert 0 < float(response.headers["retry-after"]) <= 60
    assert await told(web, await key_of(settings, "acme")) == (200, None)
