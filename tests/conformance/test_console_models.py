"""The console's models and prices on both databases."""

import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime

import aiohttp
import pytest
from sqlalchemy import text

from fusewire.settings import Database, Nats, Settings
from fusewire.store.engine import Store
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.planted import JudgeTruth, MemberTruth, PoolTruth, Truth, fill

MakeSettings = Callable[..., Settings]
ConsoleRunning = Callable[..., AbstractAsyncContextManager[aiohttp.ClientSession]]
MEMBERS = (
    MemberTruth("a", failure_rate=0.3),
    MemberTruth("b", latency_ms=2000),
    MemberTruth("small", tier="edge", cost_usd=0.0),
)
HIDDEN = "s3cret-in-an-address"
MODELS = {
    "a": {
        "kind": "remote",
        "base_url": f"https://user:{HIDDEN}@127.0.0.1:1/v1",
        "model": "vendor/a-latest",
        "api_key_env": "NAME_OF_A_KEY",
        "input_usd_per_mtok": 2.5,
        "output_usd_per_mtok": 10,
        "images": True,
    },
    "small": {"kind": "edge", "path": f"/{HIDDEN}/smollm2-135m", "tools": False},
}
POOL = {"members": ["a", {"name": "second", "model": "b"}, "small"], "judge": "j"}


@pytest.fixture
def settings(make_settings: MakeSettings, database: Database, nats: NatsServer) -> Settings:
    return make_settings(database=database, nats=Nats(url=nats.url), models=MODELS, pool=POOL)


async def rows(web: aiohttp.ClientSession) -> tuple[str, dict[str, list[str]]]:
    """The page, and the texts of each model's cells."""
    async with web.get("/models") as response:
        html = await response.text()
        assert response.status == 200, html
    found = {}
    for row in re.findall(r"<tr>\s*<th scope=\"row\"[^>]*>.*?</tr>", html, re.DOTALL):
        cells = [re.sub(r"<[^>]+>", " ", cell) for cell in re.split(r"</t[dh]>", row)[:-1]]
        texts = [" ".join(cell.split()) for cell in cells]
        found[texts[0].split()[0]] = texts
    return html, found


async def test_models_have_their_places_prices_and_health_and_no_secret(
    settings: Settings, store: Store, console: ConsoleRunning
) -> None:
    pools = {"default": PoolTruth(MEMBERS, JudgeTruth(model="j"))}
    # All of them end within the last hour.
    await fill(store, Truth(now=datetime.now(UTC), pools=pools, days=0.03), 120, 1)
    async with store.read() as connection:
        (n_failed,) = (
            await connection.execute(
                text("SELECT COUNT(*) FROM answers WHERE model = 'a' AND status = 'error'")
            )
        ).scalars()
        slowest = list(
            (
                await connection.execute(
                    text("SELECT latency_ms FROM answers WHERE model = 'b' ORDER BY latency_ms")
                )
            ).scalars()
        )
    async with console(settings, "ingest") as web:
        html, models = await rows(web)
    assert HIDDEN not in html
    assert "NAME_OF_A_KEY" not in html
    a, b, small = models["a"], models["b"], models["small"]
    assert a[0] == "a hosted vendor/a-latest, openai"
    assert a[1] == "default member"
    assert a[2] == "120"
    assert a[3].startswith(f"{n_failed} {100 * n_failed / 120:.1f} % (")
    assert a[3].endswith(f"timeout {n_failed}")
    assert a[6:] == ["2.50 USD prompt 10.00 USD answer configuration", "text, tools, images"]
    assert b[1] == "default member second"
    assert b[3] == "0"
    number, unit = b[4].split(" of ")[0].split()
    assert float(number) * {"ms": 1, "s": 1000}[unit] == pytest.approx(slowest[113], rel=0.01)
    assert b[6] == "unknown"
    assert small[0] == "small edge smollm2-135m"
    assert small[6:] == ["0 USD runs here", "text"]
    assert models["j"][1] == "default judge"
    assert "verdicts" in models["j"][2]
    assert models["c"][1:4] == ["none", "0", "–"]
    assert models["c"][5] == "never"


async def test_a_model_that_was_not_asked_lately_has_the_day_of_its_last_answer(
    settings: Settings, store: Store, console: ConsoleRunning
) -> None:
    pools = {"default": PoolTruth(MEMBERS[1:], JudgeTruth(model="j"))}
    at = datetime(2026, 3, 5, 12, tzinfo=UTC)
    await fill(store, Truth(now=at, pools=pools, days=1.0), 20, 1)
    async with console(settings, "ingest") as web:
        html, models = await rows(web)
    assert "Health is of the last hour: 0 outcomes" in html
    assert models["b"][5] == "on 2026-03-05"
    assert models["b"][2:5] == ["0", "–", "–"]


async def test_without_the_api_prices_are_missing_and_the_rest_is_shown(
    settings: Settings, console_alone: ConsoleRunning
) -> None:
    # Without ingest nothing answers at the address of the API.
    async with console_alone(settings) as web:
        html, models = await rows(web)
    assert "Prices of the price list are missing: the API does not answer" in html
    assert models["small"][6] == "0 USD runs here"
    assert models["a"][6] == "2.50 USD prompt 10.00 USD answer configuration"
    assert models["b"][6] == "–"
