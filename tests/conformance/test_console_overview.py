"""The console's overview on both databases: figures of known data, and what does not answer."""

import json
import re
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from sqlalchemy import text

from fusewire.settings import Database, Http, Nats, Settings
from fusewire.store.engine import Store
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.planted import JudgeTruth, MemberTruth, PoolTruth, Truth, fill
from fusewire_cli.client import Client
from fusewire_console.access import COOKIE
from fusewire_ingest.admission import keys
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.keys import ApiKeys, Change, Key

MakeSettings = Callable[..., Settings]
ConsoleRunning = Callable[..., AbstractAsyncContextManager[aiohttp.ClientSession]]
Running = Callable[..., AbstractAsyncContextManager[Client]]
MEMBERS = (
    MemberTruth("alpha", failure_rate=0.3),
    MemberTruth("beta"),
    MemberTruth("gamma", tier="edge", cost_usd=0.0),
)
HOSTILE = "<script>alert(1)</script> \u202eright to left \u0301\u0301 "
PART = {"hx-request": "true"}
HOUR = 1 / 24


def truth(days: float = 5.0, tenants: tuple[str, ...] = ("default",)) -> Truth:
    pools = {"p": PoolTruth(MEMBERS, JudgeTruth())}
    return Truth(now=datetime.now(UTC), pools=pools, days=days, tenants=tenants)


@pytest.fixture
def settings(make_settings: MakeSettings, database: Database, nats: NatsServer) -> Settings:
    return make_settings(database=database, nats=Nats(url=nats.url))


async def get(
    web: aiohttp.ClientSession, path: str = "/", headers: dict[str, str] | None = None
) -> str:
    async with web.get(path, headers=headers, allow_redirects=False) as response:
        assert response.status == 200, await response.text()
        return await response.text()


def stat(html: str, label: str) -> tuple[str, str]:
    """A figure, and what is written below it."""
    match = re.search(
        rf"<dt>{label}</dt>\s*<dd[^>]*>(.*?)</dd>(?:<dd class=\"note\">(.*?)</dd>)?",
        html,
        re.DOTALL,
    )
    assert match, label
    return match[1], match[2] or ""


async def test_an_empty_database_tells_how_to_begin(
    settings: Settings, console: ConsoleRunning
) -> None:
    async with console(settings, "ingest") as web:
        html = await get(web)
        assert "No outcomes yet" in html
        for way in ("fusewire ask", "fusewire batch run", "base_url=&#34;http://127.0.0.1:"):
            assert way in html.replace('"http', "&#34;http")
        assert stat(html, "Fusions running") == ("0", "of tenant default")
        assert stat(html, "Degraded today") == ("–", "no outcomes yet")
        assert stat(html, "Cost today") == ("0 USD", "no outcomes yet")
        assert stat(html, "Budget")[0] == "No limit"
        assert "Newest outcomes" not in html


async def test_figures_are_those_of_the_outcomes(
    settings: Settings, store: Store, console: ConsoleRunning
) -> None:
    await fill(store, truth(), 120, 1)
    async with store.read() as connection:
        degraded = (
            await connection.execute(text("SELECT COUNT(*) FROM outcomes WHERE is_degraded"))
        ).scalar_one()
        newest = (
            (
                await connection.execute(
                    text("SELECT fusion_id FROM outcomes ORDER BY finished_at DESC, fusion_id DESC")
                )
            )
            .scalars()
            .all()
        )
    async with console(settings, "ingest") as web:
        html = await get(web)
    value, note = stat(html, "Degraded in 7 days")
    assert value == f"{100 * degraded / 120:.1f} %"
    assert note.endswith("of 120")
    days = re.findall(
        r'<tr><td data-value="\d+">[\d-]+</td><td class="number" data-value="(\d+)">', html
    )
    assert (len(days), sum(map(int, days))) == (14, 120)
    assert re.findall(r'href="/outcomes/([^"]+)"', html) == list(newest[:10])
    assert re.search(r"failed: alpha</td><td class=\"number\">\d+</td>", html)


async def test_minutes_and_tokens_are_of_the_last_ones(
    settings: Settings, store: Store, console: ConsoleRunning
) -> None:
    await fill(store, truth(days=HOUR), 60, 1)
    now = datetime.now(UTC)
    async with store.write() as connection:
        for number, fusion_id in enumerate(
            (await connection.execute(text("SELECT fusion_id FROM outcomes ORDER BY 1")))
            .scalars()
            .all()
        ):
            # 40 in the last minutes, 20 of them so lately that the edge's tokens count.
            minutes = 2 if number < 20 else 8 if number < 40 else 50
            await connection.execute(
                text("UPDATE outcomes SET finished_at = :at WHERE fusion_id = :id").bindparams(
                    at=now - timedelta(minutes=minutes)
                    if not store.is_sqlite
                    else f"{now - timedelta(minutes=minutes):%Y-%m-%d %H:%M:%S.%f}",
                    id=fusion_id,
                )
            )
        await connection.execute(text("UPDATE answers SET tokens_out = 75"))
    async with console(settings, "ingest") as web:
        html = await get(web)
    bars = re.search(r'aria-label="Outcomes per minute, oldest first: ([\d, ]+)"', html)
    assert bars
    counts = [int(count) for count in bars[1].split(", ")]
    assert (len(counts), sum(counts), max(counts)) == (16, 40, 20)
    assert stat(html, "Outcomes per minute")[0] == f"{40 / 15:.1f}"
    assert stat(html, "Edge tokens per second")[0] == f"{20 * 75 / 300:.1f}"


async def test_what_is_stored_is_shown_as_text(
    settings: Settings, store: Store, console: ConsoleRunning
) -> None:
    await fill(store, truth(), 40, 1)
    async with store.write() as connection:
        await connection.execute(
            text(
                "UPDATE outcomes SET status = 'failed', error = :error, winner_model = :model,"
                " degraded_reasons = :reasons"
            ),
            {
                "error": HOSTILE + "x" * 1_000_000,
                "model": "<script>model",
                "reasons": json.dumps([f"failed:{HOSTILE}"]),
            },
        )
    async with console(settings, "ingest") as web:
        html = await get(web)
    assert "<script>alert" not in html
    assert "<script>model" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert len(html) < 60_000


async def test_a_part_is_the_inner_page_and_begins_anew_with_the_first_outcome(
    settings: Settings, store: Store, console: ConsoleRunning
) -> None:
    async with console(settings, "ingest") as web:
        part = re.search(r'hx-get="(/[^"]*new=yes)"', await get(web))
        assert part
        path = part[1].replace("&amp;", "&")
        async with web.get(path, headers=PART) as response:
            assert "hx-refresh" not in response.headers
            assert "<html" not in await response.text()
        await fill(store, truth(), 3, 1)
        async with web.get(path, headers=PART) as response:
            assert response.headers["hx-refresh"] == "true"
        assert "new=yes" not in await get(web)
        assert "<dt>Budget</dt>" in await get(web, "/?part=budget", PART)


async def test_without_the_api_the_rest_is_shown(
    settings: Settings, store: Store, console_alone: ConsoleRunning
) -> None:
    await fill(store, truth(), 40, 1)
    async with console_alone(settings) as web:
        html = await get(web)
    assert "the API does not answer" in html
    assert stat(html, "Fusions running")[0] == "–"
    assert stat(html, "Degraded in 7 days")[1].endswith("of 40")


async def test_without_the_database_the_rest_is_shown(
    settings: Settings, running: Running, console_alone: ConsoleRunning, tmp_path: Path
) -> None:
    absent = settings.model_copy(
        update={"database": Database(url=f"sqlite+aiosqlite:///{tmp_path}/absent/x.db")}
    )
    async with running(settings, "ingest") as api, console_alone(absent, str(api.url)) as web:
        html = await get(web)
    assert "The database gave no result" in html
    assert stat(html, "Fusions running") == ("0", "of tenant default")
    assert "FW_PROMPT" in html


async def make_key(settings: Settings, tenant: str) -> str:
    key = keys.make(secrets.token_bytes(keys.RANDOM_BYTES))
    own_store = Store(settings.database)
    digest = keys.digest(key, pepper(settings))
    made = Key(keys.key_id(key) or "", tenant, "test", digest, datetime.now(UTC), scopes="admin")
    await ApiKeys(own_store).add(made, Change("operator:test", datetime.now(UTC)))
    await own_store.close()
    return key


async def test_a_tenant_sees_its_own_and_an_operator_all(
    make_settings: MakeSettings,
    database: Database,
    nats: NatsServer,
    store: Store,
    console: ConsoleRunning,
) -> None:
    settings = make_settings(
        database=database,
        nats=Nats(url=nats.url),
        http=Http(port=0, keys="required"),
        tenants={"acme": {"budget_usd": 10.0, "budget_period": "day"}},
    )
    await fill(store, truth(tenants=("default", "acme")), 120, 1)
    async with store.read() as connection:
        (own,) = (
            await connection.execute(text("SELECT COUNT(*) FROM outcomes WHERE tenant = 'acme'"))
        ).scalars()
    pages = {}
    async with console(settings, "ingest") as web:
        for tenant in ("acme", "default"):
            key = await make_key(settings, tenant)
            pages[tenant] = await get(web, headers={"cookie": f"{COOKIE}={key}"})
        async with web.get("/", allow_redirects=False) as response:
            assert response.status == 303
        async with web.get("/", headers=PART, allow_redirects=False) as response:
            assert (response.status, response.headers["hx-refresh"]) == (401, "true")
    assert stat(pages["acme"], "Degraded in 7 days")[1].endswith(f"of {own}")
    assert stat(pages["default"], "Degraded in 7 days")[1].endswith("of 120")
    assert stat(pages["acme"], "Budget")[0] == "10.00 USD"
    assert stat(pages["acme"], "Budget")[1].startswith("left of 10.00 USD a day; ")
    shown = set(re.findall(r'href="/outcomes/([^"]+)"', pages["acme"]))
    async with store.read() as connection:
        rows = await connection.execute(text("SELECT fusion_id, tenant FROM outcomes"))
        tenants = {row.fusion_id: row.tenant for row in rows}
    assert {tenants[outcome_id] for outcome_id in shown} == {"acme"}
