"""The console's page of comparisons, on both databases."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from html import unescape

import aiohttp
import pytest
from sqlalchemy import text

from fusewire.analysis.compare import Rules, words
from fusewire.settings import Database, Settings
from fusewire.store.analyst.comparisons import Selection
from fusewire.store.engine import Store
from fusewire.testing.planted import JudgeTruth, MemberTruth, PoolTruth, Truth, fill
from fusewire_cli.compare import command
from fusewire_console.access import Access, Visitor
from fusewire_console.pages import compare

MakeSettings = Callable[..., Settings]
ConsoleRunning = Callable[..., AbstractAsyncContextManager[aiohttp.ClientSession]]
MEMBERS = (
    MemberTruth("alpha", accuracy=0.6, cost_usd=0.004),
    MemberTruth("beta", accuracy=0.9, cost_usd=0.002),
    MemberTruth("gamma", accuracy=0.5),
)
TRUTH = Truth(
    now=datetime.now(UTC),
    pools={"p": PoolTruth(MEMBERS, JudgeTruth()), "q": PoolTruth(MEMBERS[:2], JudgeTruth())},
    open_share=0.4,
    days=20.0,
    gold_share=1.0,
)
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def settings(make_settings: MakeSettings, database: Database) -> Settings:
    return make_settings(database=database)


@pytest.fixture
async def web(
    settings: Settings, store: Store, console_alone: ConsoleRunning, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[aiohttp.ClientSession]:
    """The console on 400 planted prompts, whose outcomes of both pools it may all compare."""
    monkeypatch.setattr(compare, "MOST_OUTCOMES", 1000)
    await fill(store, TRUTH, 400, 1)
    async with console_alone(settings) as web:
        yield web


async def page(web: aiohttp.ClientSession, path: str, status: int = 200) -> str:
    async with web.get(path, allow_redirects=False) as response:
        assert response.status == status, await response.text()
        return await response.text()


def plain(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


async def test_two_models_are_shown_as_the_command_compares_them(
    web: aiohttp.ClientSession, database: Database
) -> None:
    comparison = await command.compare(database, "alpha", "beta", Selection(), Rules())
    html = await page(web, "/compare?a=alpha&b=beta")
    shown = plain(html)
    assert comparison.header.decision == "SHIP B"
    for figure in (
        words.decision(comparison),
        words.quality(comparison.header)[0],
        words.cost(comparison.header.cost)[0],
        words.latency(comparison.header.latency)[0],
        words.price(comparison.price_b),
        words.panel(comparison),
        words.votes(comparison.votes),
        words.RULE,
    ):
        assert " ".join(figure.split()) in shown
    quoted = [card.evidence for card in comparison.cards if card.evidence]
    assert quoted
    for evidence in quoted:
        assert f'href="/outcomes/{evidence.outcome_id}"' in html
    assert html.index(words.decision(comparison)) < html.index("Five lenses")
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=", html)
    assert len(html.encode()) < 200_000


async def test_two_pools_are_compared_on_the_same_prompts(
    web: aiohttp.ClientSession, database: Database
) -> None:
    comparison = await command.compare(database, "p", "q", Selection(), Rules())
    for path in ("/compare?kind=pools&a=p&b=q", "/compare?a=p&b=q"):
        html = await page(web, path)
        assert words.title(comparison) in unescape(html)
        assert words.decision(comparison) in unescape(html)
        assert 'aria-current="page">Two pools' in html


async def test_a_choice_stands_in_the_address(
    web: aiohttp.ClientSession, database: Database
) -> None:
    html = await page(web, "/compare?kind=models&a=alpha&b=beta&pool=q&since=5d")
    for chosen in ("alpha", "beta", "q"):
        assert f"<option selected>{chosen}</option>" in html
    assert 'value="5d"' in html
    only = await command.compare(database, "alpha", "beta", Selection(pool="q"), Rules())
    html = await page(web, "/compare?a=alpha&b=beta&pool=q")
    both = await command.compare(database, "alpha", "beta", Selection(), Rules())
    assert words.quality(only.header) != words.quality(both.header)
    assert words.quality(only.header)[0] in unescape(html)


async def test_what_cannot_be_compared_is_told(web: aiohttp.ClientSession) -> None:
    for query, message in (
        ("a=alpha&b=alpha", "alpha would be compared with itself"),
        ("a=alpha&b=absent", "no outcome has the model absent"),
        ("kind=pools&a=p&b=alpha", "no outcome has the pool alpha"),
        ("a=alpha&b=beta&since=soon", "'soon' is no period"),
        ("a=alpha&b=beta&since=2999-01-01", "is in the future"),
        ("a=alpha", "Choose two models"),
        ("", "Choose two models"),
        ("kind=pools", "Choose two pools"),
        ("a=alpha&b=beta&pool=absent", "No prompt has outcomes of both"),
        ("kind=rivers&a=alpha&b=beta", "SHIP B: beta"),
    ):
        assert message in plain(await page(web, f"/compare?{query}")), query


async def test_only_the_newest_outcomes_are_compared(
    web: aiohttp.ClientSession, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "only the newest" not in await page(web, "/compare?a=alpha&b=beta")
    monkeypatch.setattr(compare, "MOST_OUTCOMES", 50)
    # Each prompt has an outcome of either pool, and both pools have both models.
    for query, kind, n in (("a=alpha&b=beta", "models", 25), ("a=p&b=q", "pools", 50)):
        html = plain(await page(web, f"/compare?{query}"))
        assert "only the newest 50 outcomes" in html
        assert f"Two {kind} on the same {n} prompts" in html
    html = plain(await page(web, "/compare?a=alpha&b=beta&pool=p"))
    assert "Two models on the same 50 prompts" in html
    assert "no verdicts between them" not in html


async def test_an_empty_database_says_what_to_do(
    settings: Settings, console_alone: ConsoleRunning
) -> None:
    async with console_alone(settings) as web:
        assert "Nothing to compare yet" in await page(web, "/compare")
        assert "Nothing to compare yet" in await page(web, "/compare?kind=pools&a=p&b=q")


async def test_what_is_stored_is_shown_as_text(web: aiohttp.ClientSession, store: Store) -> None:
    for sentence in (
        HOSTILE,
        "x" * 100_000,
        "e" + "\u0301" * 500,
        "\u202eevil\u202c \u05d0\u05d1",
    ):
        async with store.write() as connection:
            await connection.execute(text("UPDATE outcomes SET reason = :it"), {"it": sentence})
        html = await page(web, f"/compare?a=alpha&b=beta&since={HOSTILE}")
        assert HOSTILE not in html
        html = await page(web, "/compare?a=alpha&b=beta")
        assert HOSTILE not in html
        assert sentence[:100] in unescape(html)
        assert len(html) < 100_000


async def test_a_tenant_may_not_compare(
    web: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def tenant(self: Access, key: str | None) -> Visitor:
        return Visitor("acme", None, None, frozenset({"read"}), False)

    monkeypatch.setattr(Access, "visitor", tenant)
    await page(web, "/compare", status=403)
    await page(web, "/compare?a=alpha&b=beta", status=403)
