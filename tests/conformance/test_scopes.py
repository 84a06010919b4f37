"""What a key may be used for: each route with a key of each scope, over HTTP."""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import cast

import aiohttp
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.routing import BaseRoute

from fusewire.settings import Database, Http, Nats, Settings
from fusewire.store.engine import Store
from fusewire.testing.nats_server import NatsServer
from fusewire_cli.client import Client
from fusewire_ingest.admission import keys
from fusewire_ingest.api.dependencies import ScopeCheck
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.keys import ApiKeys, Change, Key
from fusewire_ingest.service import build

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]

ROUTES: dict[str, keys.Scope | None] = {
    "POST /chat/completions": "submit",
    "POST /responses": "submit",
    "GET /responses/{response_id}": "read",
    "POST /fusions": "submit",
    "GET /fusions": "read",
    "GET /fusions/{fusion_id}": "read",
    "POST /fusions/{fusion_id}/cancel": "submit",
    "DELETE /fusions/{fusion_id}/images": "submit",
    "GET /fusions/{fusion_id}/prompt": "read",
    "GET /fusions/{fusion_id}/events": "read",
    "POST /outcomes/{outcome_id}/votes": "submit",
    "GET /outcomes/{outcome_id}/votes": "read",
    "GET /models": "read",
    "GET /models/count": "read",
    "GET /models/{model:path}": "read",
    "GET /model/{model:path}": "read",
    "GET /generation": "read",
    "GET /key": None,
    "GET /credits": None,
    "GET /caller": None,
    "GET /status": "read",
    "POST /files": "batch",
    "GET /files": "batch",
    "GET /files/{file_id}": "batch",
    "DELETE /files/{file_id}": "batch",
    "GET /files/{file_id}/content": "batch",
    "POST /batches": "batch",
    "GET /batches": "batch",
    "GET /batches/{batch_id}": "batch",
    "POST /batches/{batch_id}/cancel": "batch",
    "POST /batches/{batch_id}/resume": "batch",
    "POST /batches/{batch_id}/retry": "batch",
    "GET /batches/{batch_id}/results": "batch",
    "GET /keys": "admin",
    "POST /keys": "admin",
    "GET /keys/{key_id}": "admin",
    "PATCH /keys/{key_id}": "admin",
    "DELETE /keys/{key_id}": "admin",
}
"""By method and path, which are there under each of PREFIXES."""
PREFIXES = ("/v1", "/api/v1")
OTHERS: dict[str, keys.Scope | None] = {
    "GET /openapi.json": None,
    "GET /docs": None,
    "GET /docs/{name}": None,
    "GET /metrics": "admin",
}
WANTED = {
    **{
        f"{method} {prefix}{path}": scope
        for prefix in PREFIXES
        for (method, path), scope in ((key.split(), scope) for key, scope in ROUTES.items())
    },
    **OTHERS,
}


@pytest.fixture
def settings(make_settings: MakeSettings, nats: NatsServer, database: Database) -> Settings:
    return make_settings(
        nats=Nats(url=nats.url),
        database=database,
        # Of another address than this machine's alone, as metrics there need no key.
        http=Http(port=0, host="0.0.0.0", allow_insecure=True),
    )


@pytest.fixture
async def web(settings: Settings, running: Running) -> AsyncIterator[aiohttp.ClientSession]:
    async with (
        running(settings, "ingest") as client,
        aiohttp.ClientSession(client.url.replace("0.0.0.0", "127.0.0.1")) as session,
    ):
        yield session


async def key_with(settings: Settings, *scopes: str) -> str:
    """A key of the tenant `acme`."""
    key = keys.make(secrets.token_bytes(keys.RANDOM_BYTES))
    now = datetime.now(UTC)
    row = Key(
        keys.key_id(key) or "",
        "acme",
        "test",
        keys.digest(key, pepper(settings)),
        now,
        scopes=" ".join(scopes),
    )
    store = Store(settings.database)
    await ApiKeys(store).add(row, Change("operator:test", now))
    await store.close()
    return key


def scopes_of(route: BaseRoute) -> list[keys.Scope | None]:
    dependencies = route.dependant.dependencies if isinstance(route, APIRoute) else []
    return [
        dependency.call.scope
        for dependency in dependencies
        if isinstance(dependency.call, ScopeCheck)
    ]


async def test_every_route_says_which_scope_it_needs(settings: Settings) -> None:
    """A new route is a line of ROUTES, and has one parameter of the types in `dependencies`."""
    service = build(settings)
    app = cast("FastAPI", service.app())
    scopes = {
        f"{method} {context.path}": scopes_of(context.original_route)
        for context in iter_route_contexts(app.routes)
        for method in context.methods or {"ANY"}
    }

    assert scopes == {name: [scope] for name, scope in WANTED.items()}


async def test_a_key_opens_the_routes_of_its_scopes_and_no_others(
    web: aiohttp.ClientSession, settings: Settings
) -> None:
    for held in (*keys.SCOPES, "of-a-newer-release"):
        headers = {"authorization": f"Bearer {await key_with(settings, held)}"}
        for name, scope in WANTED.items():
            method, path = name.split()
            url = path.replace("{name}", "swagger-ui.css").partition("{")[0]
            url = path if url == path else f"{url}x{path.partition('}')[2]}"
            async with web.request(method, url, headers=headers) as response:
                is_refused = scope is not None and held not in (scope, "admin")
                assert (response.status == 403) == is_refused, (held, name)
                assert response.status not in (401, 405), (held, name)
                if is_refused:
                    error = (await response.json())["error"]
                    assert f"no scope '{scope}'" in error["message"], name
                    assert response.headers["x-should-retry"] == "false"


async def test_a_key_made_before_scopes_can_do_what_it_could(
    web: aiohttp.ClientSession, settings: Settings
) -> None:
    headers = {"authorization": f"Bearer {await key_with(settings, 'submit', 'read', 'batch')}"}
    for path in ("/v1/models", "/v1/files"):
        async with web.get(path, headers=headers) as response:
            assert response.status == 200
    async with web.post("/v1/fusions", json={"prompt": "Why?"}, headers=headers) as response:
        assert response.status == 202


async def test_without_keys_every_route_is_open(settings: Settings, running: Running) -> None:
    local = settings.model_copy(update={"http": Http(port=0)})
    async with (
        running(local, "ingest") as client,
        aiohttp.ClientSession(client.url) as web,
    ):
        for path in ("/v1/models", "/v1/files", "/metrics"):
            async with web.get(path) as response:
                assert response.status == 200, path
