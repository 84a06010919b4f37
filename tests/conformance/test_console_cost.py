"""The console's costs and latencies on both databases."""

import re
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime

import aiohttp
import pytest
from sqlalchemy import text

from fusewire.settings import Database, Http, Nats, Settings
from fusewire.store.engine import Store
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.planted import JudgeTruth, MemberTruth, PoolTruth, Truth, fill
from fusewire_console.access import COOKIE
from fusewire_console.formats import usd
from fusewire_ingest.admission import keys
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.keys import ApiKeys, Change, Key

MakeSettings = Callable[..., Settings]
ConsoleRunning = Callable[..., AbstractAsyncContextManager[aiohttp.ClientSession]]
NOW = datetime.now(UTC)
ALPHA = MemberTruth("alpha", cost_usd=0.004)
EDGE = MemberTruth("gamma", tier="edge", cost_usd=0.0)
POOLS = {
    "p": PoolTruth((ALPHA, EDGE), JudgeTruth()),
    "unknown": PoolTruth((ALPHA, MemberTruth("odd", cost_usd=None)), JudgeTruth()),
}
TRUTH = Truth(now=NOW, pools=POOLS, days=5.0)


@pytest.fixture
def settings(make_settings: MakeSettings, database: Database, nats: NatsServer) -> Settings:
    return make_settings(database=database, nats=Nats(url=nats.url))


async def get(web: aiohttp.ClientSession, path: str = "/cost", status: int = 200) -> str:
    async with web.get(path, allow_redirects=False) as response:
        assert response.status == status, await response.text()
        return await response.text()


def cells(html: str, section: str, row: str) -> list[str]:
    """The cells of a row of a table, its head included, as texts."""
    table = html[html.index(f'<h2 id="{section}"') :]
    table = table[: table.index("</table>")]
    match = re.search(rf"<tr><th scope=\"row\">{row}.*?</tr>", table, re.DOTALL)
    assert match, (section, row)
    texts = re.split(r"</t[dh]>", re.sub(r"<svg.*?</svg>", "", match[0], flags=re.DOTALL))
    return [re.sub(r"<[^>]+>", " ", cell).strip() for cell in texts[:-1]]


async def test_costs_are_those_of_the_outcomes_and_what_has_none_is_counted(
    settings: Settings, store: Store, console_alone: ConsoleRunning
) -> None:
    await fill(store, TRUTH, 100, 1)
    async with store.read() as connection:
        query = "SELECT pool, COUNT(*), COUNT(cost_usd), SUM(cost_usd) FROM outcomes GROUP BY pool"
        pools = {row[0]: row[1:] for row in await connection.execute(text(query))}
    n_unpriced = 100 - pools["unknown"][1]
    assert n_unpriced > 30
    async with console_alone(settings) as web:
        html = await get(web)
        own = await get(web, "/cost?pool=p&since=7d")
        none = await get(web, "/cost?pool=absent")
        wrong = await get(web, "/cost?since=soon")
    assert cells(html, "by-pool", "p")[:4] == ["p", "100", "0", usd(pools["p"][2])]
    row = cells(html, "by-pool", "unknown")
    assert row[1:4] == ["100", str(n_unpriced), usd(pools["unknown"][2])]
    assert cells(html, "by-model", "odd") == ["odd", "hosted", "100", "100", "–", "–", "–"]
    assert cells(html, "by-tier", "edge")[1:4] == ["100", "0", "0 USD"]
    assert f'<dt>Unpriced outcomes</dt><dd class="warn">{n_unpriced}</dd>' in html
    total = sum(float(value) for value in re.findall(r'class="number" data-value="([\d.]+)"', html))
    assert total == pytest.approx(sum(pool[2] or 0 for pool in pools.values()))

    assert ">unknown</th>" not in own
    assert f'<dt>Cost</dt><dd class="">{usd(pools["p"][2])}</dd>' in own
    assert "No outcomes in this period" in none
    assert "is no period" in wrong
    assert ">unknown</th>" in wrong


async def test_percentiles_and_histograms_are_there_for_each_stage_and_model(
    settings: Settings, store: Store, console_alone: ConsoleRunning
) -> None:
    await fill(store, TRUTH, 100, 1)
    async with store.read() as connection:
        rows = await connection.execute(
            text("SELECT latency_ms FROM outcomes WHERE pool = 'p' ORDER BY latency_ms")
        )
        latencies = list(rows.scalars())
    async with console_alone(settings) as web:
        html = await get(web, "/cost?pool=p")
    stage, model, n, p50, p95, p99, _ = cells(html, "latency", "total")
    assert stage.startswith("total")
    assert (model, n) == ("–", "100")
    for value, exact in ((p50, latencies[49]), (p95, latencies[94]), (p99, latencies[98])):
        number, unit = value.split()
        # A bucket's bounds are 26 % apart.
        assert float(number) * {"ms": 1, "s": 1000}[unit] == pytest.approx(exact, rel=0.27)
    assert cells(html, "latency", "call")[1] == "alpha"
    assert html.count("Histogram of 100 latencies") == 4


async def test_an_empty_database_says_so(settings: Settings, console_alone: ConsoleRunning) -> None:
    async with console_alone(settings) as web:
        assert "No outcomes in this period" in await get(web)


async def test_a_tenant_does_not_see_what_all_cost(
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
    made = Key(keys.key_id(key) or "", "acme", "test", digest, NOW, scopes="admin")
    await ApiKeys(store).add(made, Change("operator:test", NOW))
    async with console(settings, "ingest") as web:
        for path in ("/cost", "/models"):
            async with web.get(path, headers={"cookie": f"{COOKIE}={key}"}) as response:
                assert response.status == 403
