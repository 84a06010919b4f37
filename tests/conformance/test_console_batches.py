"""The console's batches on both databases."""

import json
import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from sqlalchemy import insert, text

from fusewire.settings import Database, Http, Nats, Settings
from fusewire.store.engine import Store
from fusewire.store.tables import batches
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.planted import JudgeTruth, MemberTruth, PoolTruth, Truth, fill
from fusewire_console.access import COOKIE
from fusewire_console.pages.batches import PAGE_ROWS
from fusewire_ingest.admission import keys
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.keys import ApiKeys, Change, Key

MakeSettings = Callable[..., Settings]
ConsoleRunning = Callable[..., AbstractAsyncContextManager[aiohttp.ClientSession]]
NOW = datetime.now(UTC)
MEMBERS = tuple(MemberTruth(name, failure_rate=0.4) for name in ("alpha", "beta"))
TRUTH = Truth(now=NOW, pools={"p": PoolTruth(MEMBERS, JudgeTruth())}, batch_share=1.0, days=1.0)
PART = {"hx-request": "true"}
HOSTILE = "<script>alert(1)</script>\u202e\u0301"


@pytest.fixture
def settings(make_settings: MakeSettings, database: Database, nats: NatsServer) -> Settings:
    return make_settings(database=database, nats=Nats(url=nats.url))


@pytest.fixture
async def web(
    settings: Settings, console_alone: ConsoleRunning
) -> AsyncIterator[aiohttp.ClientSession]:
    """The console alone: ingest would go on with batches that are said to run."""
    async with console_alone(settings) as web:
        yield web


async def get(
    web: aiohttp.ClientSession, path: str, status: int = 200, headers: dict[str, str] | None = None
) -> str:
    async with web.get(path, headers=headers, allow_redirects=False) as response:
        assert response.status == status, await response.text()
        return await response.text()


async def add_batch(store: Store, batch_id: str, **changes: Any) -> None:
    """A batch that its limit of cost has stopped, after an hour until now."""
    now = datetime.now(UTC)
    row = {
        "batch_id": batch_id,
        "tenant": "default",
        "status": "cancelled",
        "stop_reason": "budget",
        "endpoint": "/v1/chat/completions",
        "input_file_id": "file-1",
        "options": json.dumps({"metadata": {"name": f"of {batch_id}"}}),
        "priority": "normal",
        "completion_window": "24h",
        "total": 200,
        "completed": 60,
        "failed": 20,
        "degraded": 7,
        "tokens_in": 1000,
        "tokens_out": 500,
        "cost_usd": 0.75,
        "n_unpriced": 0,
        "max_cost_usd": 1.0,
        "created_at": now - timedelta(hours=1),
        "touched_at": now,
        "in_progress_at": now - timedelta(hours=1),
        "expires_at": now + timedelta(days=1),
    }
    async with store.write() as connection:
        await connection.execute(insert(batches), {**row, **changes})


async def set_status(store: Store, batch_id: str, status: str) -> None:
    async with store.write() as connection:
        await connection.execute(
            text("UPDATE batches SET status = :status WHERE batch_id = :id"),
            {"status": status, "id": batch_id},
        )


async def test_without_batches_the_page_tells_how_to_begin(web: aiohttp.ClientSession) -> None:
    assert "fusewire batch run" in await get(web, "/batches")


async def test_a_stopped_batch_has_its_figures_and_the_commands_that_go_on(
    web: aiohttp.ClientSession, store: Store
) -> None:
    await add_batch(store, "batch_b1")
    for path in ("/batches", "/batches/batch_b1"):
        html = await get(web, path)
        assert "80 of 200" in html
        assert "0.750 USD" in html
        assert "of batch_b1" in html
    assert "80 of 200 lines ended, 20 failed" in html
    assert "<strong>40.0 %</strong>" in html
    assert '<pre class="sample">fusewire batch resume batch_b1 --max-cost USD</pre>' in html
    assert '<pre class="sample">fusewire batch retry batch_b1</pre>' in html
    assert 'href="/outcomes?batch_id=batch_b1"' in html
    assert "hx-trigger" not in html


async def test_a_batch_that_runs_is_asked_for_until_it_ends(
    web: aiohttp.ClientSession, store: Store
) -> None:
    await add_batch(store, "batch_b1", status="in_progress", stop_reason=None)
    for path in ("/batches", "/batches/batch_b1"):
        html = await get(web, path)
        assert f'hx-get="{path}" hx-trigger="every 3s"' in html
        assert "fusewire batch re" not in html.replace("fusewire batch results", "")
        # 80 of 200 lines took an hour.
        assert "1.5 h" in html
        part = await get(web, path, headers=PART)
        assert "<html" not in part
        assert "80 of 200" in part

    async with web.get("/batches/batch_b1", headers=PART) as response:
        assert "hx-refresh" not in response.headers
    await set_status(store, "batch_b1", "completed")
    async with web.get("/batches/batch_b1", headers=PART) as response:
        assert response.headers["hx-refresh"] == "true"
    assert "hx-trigger" not in await get(web, "/batches/batch_b1")


async def test_errors_are_counted_by_kind(web: aiohttp.ClientSession, store: Store) -> None:
    await fill(store, TRUTH, 200, 1)
    async with store.read() as connection:
        batch_id, n_failed = (
            await connection.execute(text("SELECT batch_id, failed FROM batches"))
        ).one()
        (timeouts,) = (
            await connection.execute(
                text("SELECT COUNT(*) FROM answers WHERE error_code = 'timeout' AND model = 'beta'")
            )
        ).scalars()
    assert n_failed
    html = await get(web, f"/batches/{batch_id}")
    assert "Of its 200 outcomes" in html
    assert f'every member failed (timeout)</td><td class="number">{n_failed}</td>' in html
    assert re.search(
        rf'call of beta</td><td class="wide">timeout</td><td class="number">{timeouts}</td>', html
    )


async def test_what_is_stored_is_shown_as_text(web: aiohttp.ClientSession, store: Store) -> None:
    name = json.dumps({"metadata": {"name": HOSTILE + "x" * 1_000_000}})
    await add_batch(store, "batch_b1", options=name, waiting_for=HOSTILE)
    for path in ("/batches", "/batches/batch_b1"):
        html = await get(web, path)
        assert "<script>alert" not in html
        assert "&lt;script&gt;" in html
        assert len(html) < 40_000


async def test_batches_are_listed_page_by_page_each_once(
    web: aiohttp.ClientSession, store: Store
) -> None:
    for number in range(PAGE_ROWS + 3):
        # Several at the same time.
        at = NOW - timedelta(minutes=number // 4)
        await add_batch(store, f"batch_{number:03}", created_at=at)
    seen: list[str] = []
    path = "/batches"
    for expected in (PAGE_ROWS, 3):
        html = await get(web, path)
        ids = re.findall(r'href="/batches/(batch_\d+)"', html)
        assert len(ids) == expected
        seen += ids
        older = re.search(r'href="(/batches[^"]+)">Older', html)
        path = older[1].replace("&amp;", "&") if older else ""
    assert not path
    assert len(set(seen)) == PAGE_ROWS + 3


async def test_what_there_is_not_is_not_found(web: aiohttp.ClientSession) -> None:
    await get(web, "/batches/absent", 404)


async def test_a_tenant_sees_its_own_alone(
    make_settings: MakeSettings,
    database: Database,
    nats: NatsServer,
    store: Store,
    console: ConsoleRunning,
) -> None:
    settings = make_settings(
        database=database, nats=Nats(url=nats.url), http=Http(port=0, keys="required")
    )
    key = keys.make(secrets.token_bytes(keys.RANDOM_BYTES))
    digest = keys.digest(key, pepper(settings))
    made = Key(keys.key_id(key) or "", "acme", "test", digest, NOW, scopes="read")
    await ApiKeys(store).add(made, Change("operator:test", NOW))
    async with console(settings, "ingest") as web:
        await add_batch(store, "batch_own", tenant="acme")
        await add_batch(store, "batch_other", tenant="bolt")
        own = {"cookie": f"{COOKIE}={key}"}
        html = await get(web, "/batches", headers=own)
        assert "batch_own" in html
        assert "batch_other" not in html
        await get(web, "/batches/batch_own", headers=own)
        await get(web, "/batches/batch_other", 404, own)
