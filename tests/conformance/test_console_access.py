"""Who gets into the console, and what they see of it, on both databases."""

import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from types import ModuleType, SimpleNamespace
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text
from starlette.routing import Route

from fusewire.http_server import listen
from fusewire.service import Host
from fusewire.settings import Database, Http, Nats, Settings
from fusewire.store.engine import Store
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.planted import JudgeTruth, MemberTruth, PoolTruth, Truth, fill
from fusewire_cli.local.runner import build_service
from fusewire_console import app, pages
from fusewire_console.access import COOKIE, Visitor
from fusewire_console.navigation import navigation
from fusewire_console.site import Site
from fusewire_ingest import access
from fusewire_ingest.admission import keys
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.keys import ApiKeys, Change, Key

MakeSettings = Callable[..., Settings]
ConsoleRunning = Callable[..., AbstractAsyncContextManager[aiohttp.ClientSession]]
NOW = datetime.now(UTC)
MEMBERS = tuple(MemberTruth(name, strength=0.0, accuracy=0.8) for name in ("alpha", "beta"))
TENANTS = ("acme", "beeline")
TRUTH = Truth(
    now=NOW, pools={"p": PoolTruth(MEMBERS, JudgeTruth())}, open_share=0.0, tenants=TENANTS
)
ANYONE = Visitor("default", None, None, frozenset({"admin"}), is_operator=True)
OPERATORS_PAGES = {
    path for group, links in navigation(ANYONE) if group != "Work" for path, _ in links
}


@pytest.fixture
def settings(make_settings: MakeSettings, database: Database, nats: NatsServer) -> Settings:
    """With a pool that one tenant may not use."""
    pools = {name: {"members": ["a", "b"], "judge": "j"} for name in ("default", "beeline-pool")}
    return make_settings(
        database=database,
        nats=Nats(url=nats.url),
        http=Http(port=0, keys="required"),
        pools=pools,
        tenants={"acme": {"pools": ["default"]}},
    )


@pytest.fixture
def routes() -> list[Route]:
    """The routes of all pages, once the console runs."""
    return []


@pytest.fixture
async def web(
    settings: Settings,
    store: Store,
    console: ConsoleRunning,
    routes: list[Route],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[aiohttp.ClientSession]:
    """The console on 60 planted outcomes of two tenants."""
    await fill(store, TRUTH, 60, 1)

    def note(module: ModuleType) -> SimpleNamespace:
        def of_site(site: Site) -> list[Route]:
            module_routes: list[Route] = module.routes(site)
            routes.extend(module_routes)
            return module_routes

        return SimpleNamespace(routes=of_site)

    monkeypatch.setattr(app, "ALL", tuple(map(note, pages.ALL)))
    async with console(settings, "ingest") as web:
        yield web


async def add_key(settings: Settings, store: Store, tenant: str, **fields: Any) -> str:
    """Store a key as `fusewire keys create` does; returns it."""
    key = keys.make(secrets.token_bytes(keys.RANDOM_BYTES))
    now = datetime.now(UTC)
    values = {"scopes": "submit read batch", **fields}
    hashed = values.pop("digest", None) or keys.digest(key, pepper(settings))
    row = Key(keys.key_id(key) or "", tenant, "test", hashed, now, **values)
    await ApiKeys(store).add(row, Change("operator:test", now))
    return key


async def get(
    web: aiohttp.ClientSession, path: str, key: str | None = None, **headers: str
) -> tuple[int, str, Mapping[str, str]]:
    """The status, text and headers of a page, as the holder of a key gets it."""
    if key is not None:
        headers["cookie"] = f"{COOKIE}={key}"
    async with web.get(path, headers=headers, allow_redirects=False) as response:
        return response.status, await response.text(), response.headers


async def sign_in(
    web: aiohttp.ClientSession, key: str, path: str = "/outcomes", **headers: str
) -> tuple[int, str, Mapping[str, str]]:
    """Send the form."""
    data = {"key": key, "next": path}
    async with web.post("/sign-in", data=data, headers=headers, allow_redirects=False) as response:
        return response.status, await response.text(), response.headers


def listed(html: str) -> set[str]:
    return set(re.findall(r'href="/outcomes/([^"/]+)"', html))


# -- without a key ----------------------------------------------------------------------------


async def test_without_a_key_every_page_asks_to_sign_in(
    web: aiohttp.ClientSession, routes: list[Route]
) -> None:
    assert routes
    for route in routes:
        path = re.sub(r"\{[^}]*\}", "x", route.path)
        for method in route.methods or ():
            async with web.request(method, f"{path}?a=b", allow_redirects=False) as response:
                assert response.status == 303, path
                address = response.headers["location"]
            assert address.startswith("/sign-in?next=%2F"), path
            assert address.endswith("%3Fa%3Db"), path
    status, html, headers = await get(web, "/sign-in?next=/outcomes")
    assert (status, 'name="key"' in html, 'value="/outcomes"' in html) == (200, True, True)
    assert "set-cookie" not in headers


async def test_without_a_key_a_part_of_a_page_has_the_whole_page_ask(
    web: aiohttp.ClientSession,
) -> None:
    status, body, headers = await get(web, "/outcomes", **{"hx-request": "true"})
    assert (status, body, headers["hx-refresh"]) == (401, "", "true")


# -- signing in -------------------------------------------------------------------------------


async def test_a_valid_key_signs_in_and_stays_out_of_reach_of_scripts_and_other_pages(
    web: aiohttp.ClientSession, settings: Settings, store: Store
) -> None:
    key = await add_key(settings, store, "acme")
    status, _, headers = await sign_in(web, key, "/outcomes?pool=p")
    assert (status, headers["location"]) == (303, "/outcomes?pool=p")
    name, *attributes = headers["set-cookie"].split("; ")
    assert name == f"{COOKIE}={key}"
    assert sorted(attributes) == ["HttpOnly", "Path=/", "SameSite=strict"]

    status, html, _ = await get(web, "/outcomes", key)
    assert status == 200
    assert "Tenant acme" in html
    assert key not in html
    status, _, headers = await get(web, "/sign-in?next=/outcomes", key)
    assert (status, headers["location"]) == (303, "/outcomes")


async def test_beyond_this_machine_the_cookie_goes_over_https_alone(
    web: aiohttp.ClientSession, settings: Settings, store: Store
) -> None:
    key = await add_key(settings, store, "acme")
    host = "console.example"
    status, _, headers = await sign_in(web, key, host=host, origin=f"https://{host}")
    assert status == 303
    assert "Secure" in headers["set-cookie"].split("; ")
    status, html, headers = await sign_in(web, key, host=host, origin=f"http://{host}")
    assert (status, "set-cookie" in headers) == (401, False)
    assert "came over plain HTTP" in html


async def test_what_is_no_valid_key_does_not_sign_in_and_says_why(
    web: aiohttp.ClientSession, settings: Settings, store: Store
) -> None:
    now = datetime.now(UTC)
    invalid = "the key is unknown, expired or revoked"
    other_pepper = keys.digest(keys.make(bytes(keys.RANDOM_BYTES)), b"another")
    for key, reason in (
        ("", "give a key"),
        ("sk-or-v1-0123", "no key of a Fusewire, which begins with fw-"),
        ("fw-a\r\nx-evil: 1", "no key of a Fusewire"),
        ("fw-" + "a" * 5000, "no key of a Fusewire"),
        (keys.make(secrets.token_bytes(keys.RANDOM_BYTES)), invalid),
        (await add_key(settings, store, "acme", digest=other_pepper), invalid),
        (await add_key(settings, store, "acme", revoked_at=now), invalid),
        (await add_key(settings, store, "acme", expires_at=now - timedelta(hours=1)), invalid),
        (await add_key(settings, store, "acme", scopes="submit"), "has no scope 'read'"),
    ):
        status, html, headers = await sign_in(web, key)
        assert (status, "set-cookie" in headers) == (401, False), reason
        assert reason in html.replace("&#39;", "'")
        assert not key or key not in html
        if "\n" not in key:
            assert (await get(web, "/outcomes", key))[0] == 303, reason


async def test_revoking_a_key_ends_the_visit_and_the_form_says_why(
    web: aiohttp.ClientSession, settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as the API knows: within five seconds (test_revocation), and nothing is kept here."""
    monkeypatch.setattr(access, "REMEMBERED_S", 0.0)
    key = await add_key(settings, store, "acme")
    assert (await get(web, "/outcomes", key))[0] == 200
    revoked = await ApiKeys(store).revoke(keys.key_id(key) or "", Change("operator:test", NOW))
    assert revoked
    status, _, headers = await get(web, "/outcomes", key)
    assert (status, headers["location"]) == (303, "/sign-in?next=%2Foutcomes")
    status, html, headers = await get(web, "/sign-in?next=/outcomes", key)
    assert (status, "unknown, expired or revoked" in html) == (401, True)
    assert headers["set-cookie"].startswith(f'{COOKIE}="";')


async def test_signing_out_forgets_the_key(web: aiohttp.ClientSession) -> None:
    async with web.post("/sign-out", allow_redirects=False) as response:
        assert (response.status, response.headers["location"]) == (303, "/sign-in")
        assert response.headers["set-cookie"].startswith(f'{COOKIE}=""; ')
        assert "Max-Age=0" in response.headers["set-cookie"]
    assert (await get(web, "/sign-out"))[0] == 405


async def test_signing_in_leads_nowhere_else(
    web: aiohttp.ClientSession, settings: Settings, store: Store
) -> None:
    key = await add_key(settings, store, "acme")
    for path in (
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil",
        "/\t/evil",
        "",
        "x",
    ):
        assert (await sign_in(web, key, path))[2]["location"] == "/", path
        async with web.get("/sign-in", params={"next": path}) as response:
            assert 'name="next" value="/"' in await response.text(), path


async def test_behind_a_link_of_another_page_the_form_asks_once_more_for_the_cookie(
    web: aiohttp.ClientSession, settings: Settings, store: Store
) -> None:
    """Browsers keep a strict cookie back there, and send it when this page itself asks."""
    link = {"sec-fetch-site": "cross-site"}
    _, html, headers = await get(web, "/sign-in?next=/outcomes", **link)
    assert headers["refresh"] == "0; url=/sign-in?next=%2Foutcomes&again=1"
    assert 'name="key"' in html
    again = headers["refresh"].partition("url=")[2]
    assert "refresh" not in (await get(web, again, **link))[2]
    assert "refresh" not in (await get(web, "/sign-in", **{"sec-fetch-site": "none"}))[2]
    key = await add_key(settings, store, "acme")
    assert (await get(web, again, key))[2]["location"] == "/outcomes"


# -- who sees what ----------------------------------------------------------------------------


async def test_a_tenant_sees_its_own_outcomes_and_an_operator_all(
    web: aiohttp.ClientSession, settings: Settings, store: Store
) -> None:
    async with store.read() as connection:
        query = text("SELECT outcome_id, tenant FROM v_outcome")
        tenants = {row.outcome_id: row.tenant for row in await connection.execute(query)}
    assert set(tenants.values()) == set(TENANTS)
    for tenant, other in (TENANTS, TENANTS[::-1]):
        own = {name for name, owner in tenants.items() if owner == tenant}
        key = await add_key(settings, store, tenant, scopes="admin")
        for query_text in ("", f"?tenant={other}", f"?tenant={tenant}"):
            assert listed((await get(web, f"/outcomes{query_text}", key))[1]) == own
        foreign = next(name for name, owner in tenants.items() if owner == other)
        assert listed((await get(web, f"/outcomes?q={foreign}", key))[1]) == set()
    operator = await add_key(settings, store, "default", scopes="admin")
    seen = listed((await get(web, f"/outcomes?tenant={TENANTS[0]}", operator))[1])
    assert seen == {name for name, owner in tenants.items() if owner == TENANTS[0]}


async def test_no_page_of_a_tenant_names_another_or_what_it_has(
    web: aiohttp.ClientSession, settings: Settings, store: Store, routes: list[Route]
) -> None:
    own, other = TENANTS
    async with store.read() as connection:
        query = text("SELECT outcome_id, batch_id FROM v_outcome WHERE tenant = :tenant")
        rows = (await connection.execute(query, {"tenant": other})).all()
    foreign = {name for row in rows for name in row if name}
    key = await add_key(settings, store, own, scopes="admin")
    paths = {route.path for route in routes if "GET" in (route.methods or ())}
    for path in sorted(paths):
        for name in (rows[0].outcome_id, *{row.batch_id for row in rows if row.batch_id}):
            status, html, _ = await get(web, re.sub(r"\{[^}]*\}", name, path), key)
            assert status in ((303, 404) if "{" in path else (200, 403)), path
            assert not {word for word in (other, *foreign - {name}) if word in html}, path


async def test_what_adds_up_all_tenants_is_for_admins_of_operators(
    web: aiohttp.ClientSession, settings: Settings, store: Store, routes: list[Route]
) -> None:
    assert {route.path for route in routes} >= OPERATORS_PAGES
    for tenant, scopes, expected in (
        ("acme", "read", 403),
        ("acme", "admin", 403),
        ("default", "submit read batch", 403),
        ("default", "admin", 200),
    ):
        key = await add_key(settings, store, tenant, scopes=scopes)
        for path in sorted(OPERATORS_PAGES):
            status, html, _ = await get(web, path, key)
            assert status == expected, (path, tenant, scopes)
            assert ("adds up all tenants" in html) == (expected == 403)
        links = set(re.findall(r'<li><a href="([^"]+)"', (await get(web, "/outcomes", key))[1]))
        assert (links >= OPERATORS_PAGES) == (expected == 200)
        assert bool(links & OPERATORS_PAGES) == (expected == 200)


async def test_another_tenant_may_be_the_operator(
    make_settings: MakeSettings, settings: Settings, store: Store, console: ConsoleRunning
) -> None:
    ours = settings.model_copy(
        update={"console": settings.console.model_copy(update={"operators": ("acme",)})}
    )
    async with console(ours, "ingest") as web:
        for tenant, sees_all in (("acme", True), ("default", False)):
            key = await add_key(settings, store, tenant, scopes="admin")
            html = (await get(web, "/outcomes", key))[1]
            assert ('href="/leaderboard"' in html) == sees_all


# -- what other pages may have a browser do ---------------------------------------------------


async def test_only_forms_of_the_console_are_taken(web: aiohttp.ClientSession) -> None:
    for headers, is_taken in (
        ({"sec-fetch-site": "same-origin", "origin": "null"}, True),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"origin": "http://127.0.0.1"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://["}, False),
        ({"origin": ""}, False),
    ):
        async with web.post("/sign-out", headers=headers, allow_redirects=False) as response:
            assert response.status == (303 if is_taken else 403), headers
            assert ("set-cookie" in response.headers) == is_taken, headers


async def test_what_is_no_host_is_refused(web: aiohttp.ClientSession) -> None:
    for host in ("[::1", "", ":80", "a b", "a/b"):
        status, body, _ = await get(web, "/sign-in", host=host)
        assert status in (400, 403), (host, body)


async def test_a_null_character_never_comes_to_the_database(
    web: aiohttp.ClientSession, settings: Settings, store: Store
) -> None:
    key = await add_key(settings, store, "acme")
    status, body, _ = await get(web, "/outcomes?q=a%00b", key)
    assert (status, "null character" in body) == (403, True)


# -- without the API --------------------------------------------------------------------------


async def test_without_the_api_the_console_says_so_and_is_ready(
    settings: Settings, store: Store
) -> None:
    key = await add_key(settings, store, "acme")
    section = settings.console.model_copy(update={"api_url": "http://127.0.0.1:9"})
    alone = settings.model_copy(update={"console": section})
    sock = listen(alone.http)
    host = Host([build_service("console", alone)], sock, alone.http)
    await host.start()
    async with aiohttp.ClientSession("http://{}:{}".format(*sock.getsockname()[:2])) as web:
        status, html, _ = await get(web, "/outcomes", key)
        assert (status, "The API cannot answer now" in html) == (503, True)
        assert "see that ingest runs" in html
        assert (await get(web, "/readyz"))[0] == 200
    await host.stop()
