"""OpenRouter's routes for managing keys, with its own SDK's models, on both databases."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from openrouter import OpenRouter, errors, operations
from sqlalchemy import insert, text

from fusewire.settings import Database, Http, Nats, Settings
from fusewire.store.engine import Store
from fusewire.store.tables import budget_limits, budgets
from fusewire.testing.eventually import eventually
from fusewire.testing.nats_server import NatsServer
from fusewire_cli.client import Client
from fusewire_ingest import access
from fusewire_ingest.admission import keys
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.keys import ApiKeys, Change, Key

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]

LIMIT = {"limit": 5.0, "limit_remaining": 5.0, "limit_reset": None}
NO_LIMIT = {"limit": None, "limit_remaining": None, "limit_reset": None}


@pytest.fixture
def settings(make_settings: MakeSettings, nats: NatsServer, database: Database) -> Settings:
    return make_settings(
        nats=Nats(url=nats.url), database=database, http=Http(port=0, keys="required")
    )


class Keyring:
    """A client of `/api/v1/keys`, with an admin key of the tenant `acme`."""

    def __init__(self, web: aiohttp.ClientSession, settings: Settings, store: Store) -> None:
        self.web = web
        self.settings = settings
        self.store = store
        self.admin = ""

    async def add(self, key_id: str, tenant: str = "acme", **fields: Any) -> str:
        """Store a key as an operator does; returns it."""
        secret = f"fw-{key_id}-{secrets.token_urlsafe(32)}"
        digest = keys.digest(secret, pepper(self.settings))
        now = datetime.now(UTC)
        key = Key(key_id, tenant, "test", digest, now, **fields)
        await ApiKeys(self.store).add(key, Change("operator:test", now))
        return secret

    async def ask(
        self, method: str, path: str = "", body: Any = None, key: str | None = None
    ) -> tuple[int, Any]:
        headers = {"authorization": f"Bearer {key or self.admin}"}
        url = f"/api/v1/keys{path}"
        async with self.web.request(method, url, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def refusal(self, method: str, path: str, body: Any) -> tuple[int, str]:
        status, reply = await self.ask(method, path, body)
        assert status >= 400, reply
        return status, reply["error"]["message"]

    async def make(self, **body: Any) -> tuple[str, dict[str, Any]]:
        """Make a key over HTTP; returns the key and its object."""
        status, reply = await self.ask("POST", "", {"name": "child", **body})
        assert status == 201, reply
        operations.CreateKeysResponse.model_validate(reply)
        return reply["key"], reply["data"]

    async def limit(self, account: str, period: str, usd: float | None) -> None:
        """Set a limit as an operator does."""
        row = {"account": account, "period": period, "hard_usd": usd, "soft_usd": 1.0}
        async with self.store.write() as connection:
            await connection.execute(
                insert(budget_limits).values(**row, changed_at=datetime.now(UTC))
            )

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        async with self.store.read() as connection:
            return [tuple(row) for row in await connection.execute(text(query))]


@pytest.fixture
async def ring(settings: Settings, store: Store, running: Running) -> AsyncIterator[Keyring]:
    async with (
        running(settings, "ingest") as client,
        aiohttp.ClientSession(client.url) as web,
    ):
        ring = Keyring(web, settings, store)
        ring.admin = await ring.add("admin000", scopes="admin", requests_per_minute=100_000)
        yield ring


def part(data: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    return {name: data[name] for name in names}


async def test_a_key_is_made_shown_changed_and_deleted(
    ring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "REMEMBERED_S", 0.1)
    secret, data = await ring.make(limit=5)

    assert part(data, LIMIT) == LIMIT
    assert (data["name"], data["disabled"], data["workspace_id"]) == ("child", False, "acme")
    assert data["scopes"] == ["submit", "read", "batch"]
    assert data["hash"] == keys.key_id(secret)
    path = f"/{data['hash']}"
    status, reply = await ring.ask("GET", path)
    assert (status, reply["data"]) == (200, data)
    operations.GetKeyResponse.model_validate(reply)
    assert (await ring.ask("GET", key=secret))[0] == 403

    change = {"name": "renamed", "limit": 7, "limit_reset": "monthly"}
    status, reply = await ring.ask("PATCH", path, change)
    assert status == 200
    operations.UpdateKeysResponse.model_validate(reply)
    assert part(reply["data"], change) == change
    status, reply = await ring.ask("GET")
    operations.ListResponse.model_validate(reply)
    assert [key["hash"] for key in reply["data"]] == [data["hash"], "admin000"]

    assert await ring.ask("DELETE", path) == (200, {"deleted": True})
    assert [key["hash"] for key in (await ring.ask("GET"))[1]["data"]] == ["admin000"]
    listed = (await ring.ask("GET", "?include_disabled=true"))[1]["data"]
    assert [key["disabled"] for key in listed] == [True, False]

    async def is_refused() -> bool:
        return (await ring.ask("GET", key=secret))[0] == 401

    await eventually(is_refused)


def use_sdk(url: str, admin: str) -> list[Any]:
    with OpenRouter(api_key=admin, server_url=f"{url}/api/v1") as client:
        made = client.api_keys.create(
            name="child",
            limit=2.5,
            limit_reset="daily",
            expires_at=datetime(2099, 1, 1, tzinfo=UTC),
        )
        key_id = made.data.hash
        changed = client.api_keys.update(hash=key_id, limit=None, name="renamed")
        shown = client.api_keys.get(hash=key_id)
        page = client.api_keys.list()
        gone = client.api_keys.delete(hash=key_id)
        with pytest.raises(errors.NotFoundResponseError):
            client.api_keys.get(hash="absent00")
    names = [key.name for key in page.data]
    return [made.data.limit, changed.data.limit, shown.data.name, names, gone.DELETED]


async def test_openrouter_s_sdk_manages_keys(ring: Keyring) -> None:
    url = str(ring.web._base_url).rstrip("/")
    results = await asyncio.to_thread(use_sdk, url, ring.admin)
    assert results == [2.5, None, "renamed", ["renamed", "test"], True]


async def test_nothing_of_a_key_is_kept_or_told_twice(ring: Keyring) -> None:
    secret, data = await ring.make(limit=5)
    replies = [await ring.ask("GET"), await ring.ask("GET", f"/{data['hash']}")]
    stored = [
        await ring.rows(f"SELECT * FROM {name}")
        for name in ("api_keys", "audit_log", "budget_limits")
    ]
    assert secret.split("-", 2)[2] not in json.dumps(replies) + str(stored)


async def test_each_change_is_in_the_audit_log_under_the_key_that_made_it(ring: Keyring) -> None:
    _, data = await ring.make(limit=5)
    path = f"/{data['hash']}"
    for body in ({"name": "new"}, {"limit": None}, {"limit": None}, {"disabled": True}):
        assert (await ring.ask("PATCH", path, body))[0] == 200
    assert (await ring.ask("DELETE", path))[0] == 200

    query = "SELECT actor, action, target, detail FROM audit_log WHERE actor LIKE 'key:%'"
    rows = await ring.rows(f"{query} ORDER BY at")
    details = [json.loads(row[3] or "{}") for row in rows]
    target = ("key:admin000", data["hash"])
    assert [(row[0], row[2]) for row in rows] == [target] * 4
    assert [row[1] for row in rows] == [
        "key.created",
        "key.changed",
        "key.changed",
        "key.revoked",
    ]
    assert details[0]["limit_usd"] == 5
    assert details[1:] == [{"name": "new"}, {"limit_usd": None, "limit_period": None}, {}]


@pytest.mark.parametrize(
    ("own", "limit", "reset", "is_allowed"),
    [
        (("day", 10), 10, "daily", True),
        (("day", 10), 10, "monthly", True),
        (("day", 10), 10, None, True),
        (("day", 10), 10.01, "daily", False),
        (("day", 10), None, None, False),
        (("month", 10), 1, "daily", False),
        (("month", 10), 10, None, True),
        (("total", 10), 10, "monthly", False),
        (("total", 10), 0, None, True),
    ],
)
async def test_no_key_may_spend_more_than_the_one_that_sets_its_limit(
    ring: Keyring, own: tuple[str, float], limit: float | None, reset: str | None, is_allowed: bool
) -> None:
    _, child = await ring.make(limit=0)
    await ring.limit("key:admin000", *own)

    body = {"name": "n", "limit": limit, "limit_reset": reset}
    created, made = await ring.ask("POST", "", body)
    changes = [
        await ring.ask("PATCH", f"/{key_id}", {"limit": limit, "limit_reset": reset})
        # Its own limit neither.
        for key_id in (child["hash"], "admin000")
    ]

    if is_allowed:
        assert (created, [status for status, _ in changes]) == (201, [200, 200])
        return
    assert (created, [status for status, _ in changes]) == (400, [400, 400])
    assert f"itself spend {own[1]:g} USD" in made["error"]["message"]
    assert len((await ring.ask("GET"))[1]["data"]) == 2


async def test_a_key_has_the_rate_limits_of_the_one_that_made_it(ring: Keyring) -> None:
    _, data = await ring.make()
    key = await ApiKeys(ring.store).get(data["hash"])
    assert key
    assert (key.requests_per_minute, key.tokens_per_minute) == (100_000, None)


async def test_a_changed_limit_is_the_only_hard_one_and_soft_ones_stay(ring: Keyring) -> None:
    _, data = await ring.make(limit=5)
    account = f"key:{data['hash']}"
    await ring.limit(account, "day", 2.0)
    await ring.ask("PATCH", f"/{data['hash']}", {"limit": 3, "limit_reset": "monthly"})

    query = "SELECT period, hard_usd, soft_usd FROM budget_limits WHERE account = "
    assert await ring.rows(f"{query}'{account}' ORDER BY period") == [
        ("day", None, 1.0),
        ("month", 3.0, None),
    ]
    status, reply = await ring.ask("PATCH", f"/{data['hash']}", {"limit_reset": "daily"})
    assert (status, reply["data"]["limit"], reply["data"]["limit_reset"]) == (200, 3.0, "daily")
    assert await ring.rows(f"{query}'{account}'") == [("day", 3.0, 1.0)]


async def test_a_changed_limit_is_reported_again_when_it_is_reached_again(ring: Keyring) -> None:
    _, data = await ring.make(limit=5, limit_reset="daily")
    now = datetime.now(UTC)
    row = {"account": f"key:{data['hash']}", "spent_usd": 5.0, "reserved_usd": 0.0}
    marks = {"soft_passed_at": now, "hard_reached_at": now}
    async with ring.store.write() as connection:
        for day in (f"{now:%Y-%m-%d}", "2020-01-01"):
            await connection.execute(insert(budgets).values(**row, **marks, period=day))
    await ring.ask("PATCH", f"/{data['hash']}", {"limit": 7})

    query = "SELECT period FROM budgets WHERE hard_reached_at IS NULL AND soft_passed_at IS NULL"
    assert await ring.rows(query) == [(f"{now:%Y-%m-%d}",)]


async def test_a_rotated_key_has_the_limit_and_the_usage_of_the_first(ring: Keyring) -> None:
    _, data = await ring.make(limit=5, limit_reset="daily")
    now = datetime.now(UTC)
    spent = {"account": f"key:{data['hash']}", "reserved_usd": 1.0}
    async with ring.store.write() as connection:
        for period, usd in ((f"{now:%Y-%m-%d}", 2.0), ("2020-01-01", 4.0)):
            await connection.execute(insert(budgets).values(**spent, period=period, spent_usd=usd))
    await ApiKeys(ring.store).rotate(
        data["hash"],
        Key("second00", "", "", "0" * 64, now),
        now + timedelta(hours=1),
        Change("operator:test", now),
    )

    for key_id in (data["hash"], "second00"):
        shown = (await ring.ask("GET", f"/{key_id}"))[1]["data"]
        assert (shown["limit"], shown["limit_remaining"], shown["limit_reset"]) == (5, 2, "daily")
        assert [shown[f"usage{of}"] for of in ("", "_daily", "_weekly", "_monthly")] == [6, 2, 2, 2]


async def test_keys_of_other_tenants_are_as_unknown_ones(ring: Keyring) -> None:
    await ring.add("theirs00", "other")
    paths = ("/theirs00", "/absent00", "/nul%00")
    for method, body in (("GET", None), ("PATCH", {"name": "x"}), ("DELETE", None)):
        answers = [await ring.ask(method, path, body) for path in paths]
        assert [status for status, _ in answers] == [404] * 3
        texts = {reply["error"]["message"].replace("theirs00", "absent00") for _, reply in answers}
        assert len(texts) == 2, "NUL is another name"
    theirs = await ApiKeys(ring.store).get("theirs00")
    assert theirs
    assert (theirs.name, theirs.revoked_at) == ("test", None)
    assert [key["hash"] for key in (await ring.ask("GET"))[1]["data"]] == ["admin000"]
    assert (await ring.ask("GET", "?workspace_id=other"))[1] == {"data": []}


async def test_a_page_leaves_out_what_expired_and_can_be_turned(ring: Keyring) -> None:
    now = datetime.now(UTC)
    await ring.add("expired0", expires_at=now - timedelta(hours=1))
    await ring.add("newest00", expires_at=now + timedelta(hours=1))

    async def listed(query: str) -> list[str]:
        return [key["hash"] for key in (await ring.ask("GET", query))[1]["data"]]

    assert await listed("") == ["newest00", "admin000"]
    assert await listed("?include_expired=true") == ["newest00", "expired0", "admin000"]
    assert await listed("?offset=1") == ["admin000"]


async def test_bad_input_is_told_how_to_mend_it(ring: Keyring) -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "'name': it is missing"),
        ({"name": ""}, "1 to 128 printable characters"),
        ({"name": "a\nb"}, "1 to 128 printable characters"),
        ({"name": "n", "limit": -1}, "'limit'"),
        ({"name": "n", "limit": "5"}, "'limit': it must be a number"),
        ({"name": "n", "limit_reset": "weekly"}, "by day, by month or in total"),
        ({"name": "n", "limit_reset": "hourly"}, "'limit_reset'"),
        ({"name": "n", "scopes": ["root"]}, "'scopes.0'"),
        ({"name": "n", "scopes": []}, "a key needs a scope"),
        ({"name": "n", "expires_at": "2020-01-01T00:00:00Z"}, "give a time to come"),
        ({"name": "n", "expires_at": "2099-01-01T00:00:00"}, "'expires_at'"),
        ({"name": "n", "expires_at": "soon"}, "'expires_at'"),
        ({"name": "n", "workspace_id": "other"}, "your tenant's name"),
        ({"name": "n", "creator_user_id": "u"}, "keys have no users here"),
        ({"name": "n", "lable": "x"}, "is not supported"),
    )
    for body, message in cases:
        status, text_ = await ring.refusal("POST", "", body)
        assert (status, message in text_) == (400, True), (body, text_)


async def test_a_revoked_key_stays_revoked(ring: Keyring) -> None:
    _, data = await ring.make()
    path = f"/{data['hash']}"
    for _ in range(2):
        assert (await ring.ask("PATCH", path, {"disabled": True}))[0] == 200
    status, message = await ring.refusal("PATCH", path, {"disabled": False})
    assert (status, "revoked for ever; create another" in message) == (409, True)


async def test_a_manager_that_was_just_revoked_changes_nothing(
    ring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is still let in: no key must come of a key that has leaked."""
    monkeypatch.setattr(access, "REMEMBERED_S", 300)
    _, data = await ring.make()
    change = Change("operator:test", datetime.now(UTC))
    assert await ApiKeys(ring.store).revoke("admin000", change)
    count = await ring.rows("SELECT count(*) FROM api_keys")

    assert (await ring.ask("GET"))[0] == 200
    path = f"/{data['hash']}"
    for method, where, body in (
        ("POST", "", {"name": "n"}),
        ("PATCH", path, {"name": "n"}),
        ("DELETE", path, None),
    ):
        status, reply = await ring.ask(method, where, body)
        assert (status, reply["error"]["metadata"]["code"]) == (401, "invalid_api_key"), method
    assert await ring.rows("SELECT count(*) FROM api_keys") == count
    assert (await ring.ask("GET", path))[1]["data"] == data


async def test_without_a_key_none_is_managed(settings: Settings, running: Running) -> None:
    local = settings.model_copy(update={"http": Http(port=0)})
    async with (
        running(local, "ingest") as client,
        aiohttp.ClientSession(client.url) as web,
        web.post("/api/v1/keys", json={"name": "n"}) as response,
    ):
        assert response.status == 401
        assert "--scope admin" in (await response.json())["error"]["message"]
