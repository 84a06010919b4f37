"""The console's frame, and its list of outcomes, on both databases."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime

import aiohttp
import pytest
from sqlalchemy import text

from fusewire.settings import Database, Settings
from fusewire.store.engine import Store
from fusewire.testing.planted import JudgeTruth, MemberTruth, PoolTruth, Truth, fill

MakeSettings = Callable[..., Settings]
ConsoleRunning = Callable[..., AbstractAsyncContextManager[aiohttp.ClientSession]]
NOW = datetime.now(UTC)
MEMBERS = tuple(
    MemberTruth(name, strength=0.0, accuracy=0.8) for name in ("alpha", "beta", "gamma")
)
TRUTH = Truth(now=NOW, pools={"p": PoolTruth(MEMBERS, JudgeTruth())}, open_share=0.5, days=20.0)
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def settings(make_settings: MakeSettings, database: Database) -> Settings:
    return make_settings(database=database)


@pytest.fixture
async def web(
    settings: Settings, store: Store, console_alone: ConsoleRunning
) -> AsyncIterator[aiohttp.ClientSession]:
    """The console on 120 planted outcomes."""
    await fill(store, TRUTH, 120, 1)
    async with console_alone(settings) as web:
        yield web


async def page(web: aiohttp.ClientSession, path: str, status: int = 200) -> str:
    async with web.get(path, allow_redirects=False) as response:
        assert response.status == status, await response.text()
        return await response.text()


def ids(html: str) -> list[str]:
    return re.findall(r'href="/outcomes/([^"/]+)"', html)


async def test_outcomes_are_listed_page_by_page_each_once(web: aiohttp.ClientSession) -> None:
    seen: list[str] = []
    path = "/outcomes"
    for expected in (50, 50, 20):
        html = await page(web, path)
        assert len(ids(html)) == expected
        seen += ids(html)
        older = re.search(r'href="(/outcomes[^"]+)">Older', html)
        path = older[1].replace("&amp;", "&") if older else ""
    assert not path
    assert len(set(seen)) == 120


async def test_a_filter_stands_in_the_address_and_chooses(web: aiohttp.ClientSession) -> None:
    first = ids(await page(web, "/outcomes"))[0]
    assert ids(await page(web, f"/outcomes?q={first}")) == [first]
    assert ids(await page(web, "/outcomes?pool=absent")) == []
    assert "No outcome matches" in await page(web, "/outcomes?pool=absent")
    assert len(ids(await page(web, "/outcomes?pool=p&since=30d&degraded=no"))) > 0
    assert "is no period" in await page(web, "/outcomes?since=soon")


async def test_what_is_stored_is_shown_as_text(web: aiohttp.ClientSession, store: Store) -> None:
    async with store.write() as connection:
        await connection.execute(text("UPDATE outcomes SET custom_id = :it"), {"it": HOSTILE})
    html = await page(web, "/outcomes")
    assert HOSTILE not in html
    assert "&lt;script&gt;" in html


async def test_every_response_forbids_what_does_not_come_from_here(
    web: aiohttp.ClientSession,
) -> None:
    for path in ("/outcomes", "/absent", "/sign-in", "/static/style.css"):
        async with web.get(path) as response:
            assert response.headers["content-security-policy"].startswith("default-src 'self'; ")
            assert response.headers["x-content-type-options"] == "nosniff"
    html = await page(web, "/outcomes")
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=", html)


async def test_another_page_cannot_send_forms_here(web: aiohttp.ClientSession) -> None:
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}):
        async with web.post("/sign-in", data={"key": "x"}, headers=headers) as response:
            assert response.status == 403


async def test_another_name_of_this_machine_is_refused_where_no_key_is_asked_for(
    web: aiohttp.ClientSession,
) -> None:
    async with web.get("/outcomes", headers={"host": "evil.example"}) as response:
        assert response.status == 403
