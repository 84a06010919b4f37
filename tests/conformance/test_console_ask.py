"""The page Ask: prompts that are asked of a real stack, on both databases."""

import asyncio
import re
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from fusewire.http_server import listen
from fusewire.service import Host
from fusewire.settings import Database, Http, Nats, Settings
from fusewire.store.engine import Store
from fusewire.testing.eventually import eventually
from fusewire.testing.model_script import Fault, ModelScript, Script
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire_cli.client import Client
from fusewire_cli.local.runner import build_service
from fusewire_ingest.admission import keys
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.keys import ApiKeys, Change, Key

MakeSettings = Callable[..., Settings]
Web = aiohttp.ClientSession
Running = Callable[..., AbstractAsyncContextManager[Client]]
ConsoleRunning = Callable[..., AbstractAsyncContextManager[Web]]
ALL = ("judge", "worker-remote", "dispatcher", "ingest")
HANGS = ModelScript(faults=(Fault(kind="hang"),), repeat_faults=True)
"""A model that does not answer during the test."""
HOSTILE = "<script>alert(1)</script>\r\n\n<hx-partial hx-target='body'>\u202egone</hx-partial>"
FORM = {"pool": "default", "mode": "", "residency": "", "form": "1"}


@pytest.fixture
def settings(make_settings: MakeSettings, nats: NatsServer, database: Database) -> Settings:
    return make_settings(nats=Nats(url=nats.url), database=database)


async def post(web: Web, path: str, fields: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Status, address that it leads to, and text."""
    async with web.post(path, data=fields or {}, allow_redirects=False) as response:
        return response.status, response.headers.get("location", ""), await response.text()


async def submit(web: Web, prompt: str = "Why?", **fields: str) -> str:
    """Ask; returns the address of the fusion's page."""
    status, path, text = await post(web, "/ask", FORM | {"prompt": prompt} | fields)
    assert status == 303, text
    assert re.fullmatch(r"/ask/[0-9a-z-]+", path)
    return path


async def get(web: Web, path: str, status: int = 200) -> str:
    async with web.get(path, allow_redirects=False) as response:
        text = await response.text()
        assert response.status == status, text
        return text


async def ended(web: Web, path: str) -> str:
    async def look() -> str:
        text = await get(web, path)
        return text if "Open the outcome" in text else ""

    text: str = await eventually(look)
    return text


async def make_key(settings: Settings, tenant: str, scopes: str) -> str:
    key = keys.make(secrets.token_bytes(keys.RANDOM_BYTES))
    now, digest = datetime.now(UTC), keys.digest(key, pepper(settings))
    store = Store(settings.database)
    made = Key(keys.key_id(key) or "", tenant, "test", digest, now, scopes=scopes)
    await ApiKeys(store).add(made, Change("operator:test", now))
    await store.close()
    return key


def card_states(html: str) -> list[str]:
    cards = re.findall(r'id="ask-card-\d+">(.*?)</article>', html, re.DOTALL)
    return [re.findall(r'badge[^"]*">([a-z ]+)<', card)[-1] for card in cards]


# -- asking -----------------------------------------------------------------------------------


async def test_a_prompt_is_asked_and_leads_to_its_outcome(
    settings: Settings, console: ConsoleRunning
) -> None:
    async with console(settings, *ALL) as web:
        form = await get(web, "/ask")
        assert 'method="post" action="/ask"' in form
        assert re.findall(r"<option[^>]*>([a-z-]+)</option>", form) == [
            "default",
            "best-of",
            "merge",
            "debate",
            "verify",
            "any",
            "edge-only",
        ]
        path = await submit(web, "Why?", mode="best-of", residency="any")
        html = await ended(web, path)
    assert "Why?" in html
    assert "/outcomes/" + path.removeprefix("/ask/") in html
    assert card_states(html) == ["answered"] * 3
    assert html.count("<td>verdict</td>") == 2
    for text in ("a on d1", "b on d1", "c on d1", "fits"):
        assert text in html
    assert "http-equiv" not in html


async def test_a_page_shows_what_there_is_while_a_member_thinks_and_is_cancelled(
    settings: Settings, console: ConsoleRunning, model_server: ModelServer
) -> None:
    model_server.set_script(Script(models={"c": HANGS}))
    async with console(settings, *ALL) as web:
        path = await submit(web)

        async def look() -> str:
            text = await get(web, path)
            return text if "2 of 3 members have answered." in text else ""

        html = await eventually(look)
        assert card_states(html) == ["answered", "answered", "waiting"]
        assert '<noscript><meta http-equiv="refresh" content="2"></noscript>' in html
        status, to, _ = await post(web, f"{path}/cancel")
        assert (status, to) == (303, path)
        html = await ended(web, path)
    assert "It was cancelled." in html


async def test_the_same_form_that_is_sent_twice_is_one_fusion(
    settings: Settings, console: ConsoleRunning
) -> None:
    async with console(settings, "ingest") as web:
        first, again = await submit(web), await submit(web)
        assert first == again
        assert await submit(web, form="2") != first
        assert await submit(web, "And why?") != first


# -- events -----------------------------------------------------------------------------------


async def test_events_put_each_change_into_its_place(
    settings: Settings, console: ConsoleRunning, model_server: ModelServer
) -> None:
    model_server.set_script(Script(models={"c": ModelScript(answer=HOSTILE)}))
    async with console(settings, *ALL) as web:
        path = await submit(web)
        async with web.get(f"{path}/events") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            text = await response.text()
        page = await get(web, path)
    assert text.endswith("event: end\ndata: over\n\n")
    targets = set(re.findall(r'<hx-partial hx-target="#ask-([a-z0-9-]+)"', text))
    assert {"status", "answer", "cards", "rounds"} <= targets
    for html in (page, text):
        assert "&lt;script&gt;alert(1)" in html
        assert "<script>alert" not in html
        assert "<hx-partial hx-target='body'" not in html
    for line in text.split("\n"):
        assert line == "" or line.startswith(("data: ", "event: ", "retry: ", ":")), line


def reading() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == "ask-events"]


async def test_a_stream_ends_when_the_visitor_leaves(
    settings: Settings, console: ConsoleRunning
) -> None:
    async with console(settings, "ingest") as web:
        path = await submit(web)
        async with web.get(f"{path}/events") as response:
            assert await response.content.readline()
            await eventually(reading)
            response.close()
        await eventually(lambda: not reading())


async def test_a_stream_ends_when_the_console_stops(settings: Settings, running: Running) -> None:
    async with running(settings, "ingest") as api:
        section = settings.console.model_copy(update={"api_url": str(api.url)})
        console = build_service("console", settings.model_copy(update={"console": section}))
        sock = listen(settings.http)
        host = Host([console], sock, settings.http)
        url = "http://{}:{}".format(*sock.getsockname()[:2])
        await host.start()
        async with Web(url, headers={"origin": url}) as web:
            path = await submit(web)
            async with web.get(f"{path}/events") as response:
                await eventually(reading)
                console.close()
                text = await response.text()
        await host.stop()
    assert "event: end" not in text, "the browser shall connect again"


async def test_a_stream_of_no_fusion_ends_for_good(
    settings: Settings, console: ConsoleRunning
) -> None:
    async with console(settings, "ingest") as web:
        assert "there is no fusion" in await get(web, "/ask/absent", 404)
        assert "there is no fusion" in await get(web, "/ask/absent/events", 404)


# -- what is refused --------------------------------------------------------------------------


async def test_what_is_refused_is_said_where_the_text_is_kept(
    make_settings: MakeSettings, nats: NatsServer, database: Database, console: ConsoleRunning
) -> None:
    budget = {
        "limits": {"unknown_price_usd_per_mtok": 1},
        "tenants": {"default": {"budget_usd": 0}},
    }
    settings = make_settings(nats=Nats(url=nats.url), database=database, **budget)
    async with console(settings, "ingest") as web:
        status, _, html = await post(web, "/ask", FORM | {"prompt": HOSTILE})
        assert status == 402
        assert "budget" in html
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
        assert HOSTILE not in html
        status, _, html = await post(web, "/ask", FORM | {"prompt": " ", "mode": "merge"})
        assert (status, "Write a prompt." in html) == (400, True)
        assert "<option selected>merge</option>" in html
        status, _, html = await post(web, "/ask", FORM | {"prompt": "Why?", "pool": "absent"})
        assert status == 404
        assert "absent" in html


async def test_a_limit_of_requests_is_said_in_place(
    make_settings: MakeSettings, nats: NatsServer, database: Database, console: ConsoleRunning
) -> None:
    limit = {"tenants": {"default": {"prompts_in_flight": 1}}}
    settings = make_settings(nats=Nats(url=nats.url), database=database, **limit)
    async with console(settings, "ingest") as web:
        await submit(web)
        status, _, html = await post(web, "/ask", FORM | {"prompt": "And why?"})
    assert status == 429
    assert 'role="alert"' in html
    assert "And why?" in html


async def test_a_key_sees_its_tenant_s_fusions_alone(
    make_settings: MakeSettings, nats: NatsServer, database: Database, console: ConsoleRunning
) -> None:
    http = Http(port=0, keys="required")
    settings = make_settings(nats=Nats(url=nats.url), database=database, http=http)
    own = {"cookie": f"fusewire_key={await make_key(settings, 'acme', 'submit read')}"}
    other = {"cookie": f"fusewire_key={await make_key(settings, 'bolt', 'submit read')}"}
    reader = {"cookie": f"fusewire_key={await make_key(settings, 'acme', 'read')}"}
    async with console(settings, "ingest") as web:
        fields = FORM | {"prompt": "A secret?"}
        async with web.post("/ask", data=fields, headers=own, allow_redirects=False) as response:
            assert response.status == 303
            path = response.headers["location"]
        for headers, status in ((own, 200), (reader, 200), (other, 404)):
            async with web.get(path, headers=headers) as response:
                assert response.status == status
                assert ("A secret?" in await response.text()) == (status == 200)
        async with web.post(f"{path}/cancel", headers=other) as response:
            assert response.status == 404
        async with web.get("/ask", headers=reader) as response:
            assert "sign in with one that has the scope" in await response.text()
        async with web.post("/ask", data=fields, headers=reader) as response:
            assert response.status == 403
            assert "A secret?" in await response.text()
