"""No tenant learns of another: each route of the API, tried by every tenant on what others have.

What is another's is answered as what does not exist: the same status, the same bytes, by the same
statements in SQL, so that not even time tells the two apart.
"""

import io
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import aiohttp
import pytest
import structlog
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from sqlalchemy import Connection, event

from fusewire.settings import Database, Http, Nats, Settings
from fusewire.store.engine import Store
from fusewire.testing.eventually import eventually
from fusewire.testing.http_api import rows
from fusewire.testing.model_script import ModelScript, Script
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire_cli.client import Client
from fusewire_cli.local.runner import build_service
from fusewire_ingest import access
from fusewire_ingest.admission import keys
from fusewire_ingest.api.app import PREFIXES
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.keys import ApiKeys, Change, Key

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
Web = aiohttp.ClientSession

OWNERS = ("acme", "bolt")
"""Tenants that have something of each kind."""
CALLERS = (*OWNERS, "newcomer")
POOLS = {name: f"pool-{number}" for number, name in enumerate(CALLERS)}
"""What each tenant has for itself. All names are as unlike each other: hints tell the nearest."""
MODELS = {name: f"model-{number}" for number, name in enumerate(CALLERS)}
TENANTS = {name: {"models": [*"abcj", MODELS[name]], "budget_usd": 1000} for name in CALLERS}
"""Their models decide which pools they may use."""
PRICES = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1}
SLOW = ModelScript(latency_ms=3_600_000)
"""A model whose fusions do not end during the test."""
SAID = [{"role": "user", "content": "Why?"}]
COMPARED = ("prompts", "outcomes", "batches", "batch_lines", "files", "votes", "images", "api_keys")
"""Tables that no request about what another tenant has may change."""


@dataclass(frozen=True)
class Case:
    """A request that names something by `{id}`.

    Attributes:
        kind: what it names: a key of `Owner.ids`.
        path: with `{id}`, where the path or the query names it.
        body: JSON with `{id}`, where the body names it; None where there is no body.
        status: of the reply to a tenant that does not have it.
        is_endless: whether the reply to the tenant that has it does not end during the test.
    """

    kind: str
    path: str
    body: dict[str, Any] | None = None
    status: int = 404
    is_endless: bool = False


CHAT, PROMPT = {"messages": SAID}, {"prompt": "Why?"}
FUSIONS = ("fusion", "open")
BATCHES = ("batch", "validated")
FILES = ("file", "output")
CASES: dict[str, list[Case]] = {
    "POST /fusions": [
        Case("model", "/fusions", PROMPT | {"members": ["{id}"]}),
        Case("model", "/fusions", PROMPT | {"judge": "{id}"}),
        Case("pool", "/fusions", PROMPT | {"pool": "{id}"}),
    ],
    "GET /fusions": [Case(kind, "/fusions?id={id}", status=200) for kind in FUSIONS],
    "GET /fusions/{fusion_id}": [
        Case(kind, f"/fusions/{{id}}?wait_s={wait_s}") for kind in FUSIONS for wait_s in (0, 0.1)
    ],
    "POST /fusions/{fusion_id}/cancel": [Case(kind, "/fusions/{id}/cancel") for kind in FUSIONS],
    "DELETE /fusions/{fusion_id}/images": [Case(kind, "/fusions/{id}/images") for kind in FUSIONS],
    "GET /fusions/{fusion_id}/prompt": [Case(kind, "/fusions/{id}/prompt") for kind in FUSIONS],
    "GET /fusions/{fusion_id}/events": [
        Case(kind, "/fusions/{id}/events", is_endless=kind == "open") for kind in FUSIONS
    ],
    "GET /models": [],
    "GET /models/count": [],
    "GET /models/{model:path}": [
        Case("model", "/models/{id}"),
        Case("pool", "/models/fusewire/{id}"),
    ],
    "GET /model/{model:path}": [
        Case("model", "/model/{id}"),
        Case("pool", "/model/fusewire/{id}"),
    ],
    "POST /chat/completions": [
        Case("model", "/chat/completions", CHAT | {"model": "{id}"}),
        Case(
            "model",
            "/chat/completions",
            CHAT | {"plugins": [{"id": "fusion", "analysis_models": ["{id}"]}]},
        ),
        Case("pool", "/chat/completions", CHAT | {"model": "fusewire/{id}"}),
        Case("pool", "/chat/completions", CHAT | {"fusewire": {"pool": "{id}"}}),
    ],
    "POST /responses": [
        Case("model", "/responses", {"input": "Why?", "model": "{id}"}),
        Case("response", "/responses", {"input": "Why?", "previous_response_id": "{id}"}),
        Case("pool", "/responses", {"input": "Why?", "model": "fusewire/{id}"}),
    ],
    "GET /responses/{response_id}": [Case("response", "/responses/{id}")],
    "POST /files": [],
    "GET /files": [
        Case("file", f"/files?after={{id}}&order={way}", status=200) for way in ("asc", "desc")
    ],
    "GET /files/{file_id}": [Case(kind, "/files/{id}") for kind in FILES],
    "DELETE /files/{file_id}": [Case(kind, "/files/{id}") for kind in FILES],
    "GET /files/{file_id}/content": [Case(kind, "/files/{id}/content") for kind in FILES],
    "POST /batches": [
        Case("file", "/batches", {"input_file_id": "{id}", "endpoint": "/v1/chat/completions"})
    ],
    "GET /batches": [Case(kind, "/batches?after={id}", status=200) for kind in BATCHES],
    "GET /batches/{batch_id}": [Case(kind, "/batches/{id}") for kind in BATCHES],
    "POST /batches/{batch_id}/cancel": [Case(kind, "/batches/{id}/cancel") for kind in BATCHES],
    "POST /batches/{batch_id}/resume": [Case(kind, "/batches/{id}/resume", {}) for kind in BATCHES],
    "POST /batches/{batch_id}/retry": [Case(kind, "/batches/{id}/retry", {}) for kind in BATCHES],
    "GET /batches/{batch_id}/results": [Case(kind, "/batches/{id}/results") for kind in BATCHES],
    "POST /outcomes/{outcome_id}/votes": [
        Case(kind, "/outcomes/{id}/votes", {"choice": "none"}) for kind in FUSIONS
    ],
    "GET /outcomes/{outcome_id}/votes": [Case(kind, "/outcomes/{id}/votes") for kind in FUSIONS],
    "GET /generation": [Case(kind, "/generation?id={id}") for kind in FUSIONS],
    "GET /key": [],
    "GET /credits": [],
    "GET /caller": [],
    "GET /status": [],
    "GET /keys": [],
    "POST /keys": [],
    "GET /keys/{key_id}": [Case("key", "/keys/{id}")],
    "PATCH /keys/{key_id}": [Case("key", "/keys/{id}", {"name": "other"})],
    "DELETE /keys/{key_id}": [Case("key", "/keys/{id}")],
}
"""By route: requests with all places where it can name what a tenant has."""
APART = {"GET /openapi.json", "GET /docs", "GET /docs/{name}", "GET /metrics"}
"""Routes outside of the versioned API."""


@dataclass
class Owner:
    """A tenant with its key, and the ids of what it has, by kind."""

    name: str
    key: str
    ids: dict[str, str] = field(default_factory=dict)


class Trace:
    """The statements in SQL that each request makes, by the id of the request."""

    def __init__(self, store: Store, patch: pytest.MonkeyPatch) -> None:
        self._texts: dict[str, list[str]] = {}
        for engine in store.engines:
            event.listen(engine, "before_cursor_execute", self._note)
        run = Store.run

        # A transaction on a thread of its own has to know whose it is.
        async def run_in_context(store: Store, work: Callable[..., Any], *, write: bool) -> Any:
            bound = structlog.contextvars.get_contextvars()

            def work_in_context(connection: Connection) -> Any:
                with structlog.contextvars.bound_contextvars(**bound):
                    return work(connection)

            return await run(store, work_in_context, write=write)

        patch.setattr(Store, "run", run_in_context)

    def _note(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        request_id = structlog.contextvars.get_contextvars().get("request_id")
        if request_id:
            self._texts.setdefault(request_id, []).append(statement)

    def of(self, request_id: str) -> list[str]:
        """The statements of a request that has ended."""
        return self._texts.get(request_id, [])


@dataclass(frozen=True)
class Reply:
    """What a tenant learns by a request."""

    status: int
    body: bytes
    headers: dict[str, str]
    statements: list[str]


@dataclass
class World:
    """A running Fusewire with its tenants."""

    web: Web
    app: FastAPI
    trace: Trace
    tenants: dict[str, Owner]

    async def ask(self, tenant: str, method: str, path: str, **given: Any) -> Reply:
        headers = {"authorization": f"Bearer {self.tenants[tenant].key}"}
        async with self.web.request(method, path, headers=headers, **given) as response:
            body = await response.read()
            told = {k.lower(): v for k, v in response.headers.items()}
        request_id = told.pop("x-request-id", "")
        told.pop("date", None)
        return Reply(response.status, body, told, self.trace.of(request_id))

    async def json(self, tenant: str, method: str, path: str, **given: Any) -> dict[str, Any]:
        reply = await self.ask(tenant, method, f"/v1{path}", **given)
        assert reply.status < 300, reply
        return cast("dict[str, Any]", json.loads(reply.body))

    async def play(self, tenant: str, route: str, case: Case, name: str) -> Reply:
        """Send a case's request about `name`; in the reply, the name is taken out."""
        method = route.partition(" ")[0]
        body = None
        if case.body is not None:
            body = json.loads(json.dumps(case.body).replace("{id}", name))
        reply = await self.ask(tenant, method, "/v1" + case.path.replace("{id}", name), json=body)
        told = reply.body.replace(name.encode(), b"ID")
        return Reply(reply.status, told, reply.headers, reply.statements)


@pytest.fixture
def settings(
    make_settings: MakeSettings, nats: NatsServer, database: Database, model_server: ModelServer
) -> Settings:
    model_server.script = Script(models=dict.fromkeys(MODELS.values(), SLOW))
    remote = {"kind": "remote", "base_url": model_server.base_url, **PRICES}
    base = make_settings(
        nats=Nats(url=nats.url),
        database=database,
        http=Http(port=0, host="0.0.0.0", allow_insecure=True, keys="required"),
        models={name: {**remote, "model": name} for name in (*"abcj", *MODELS.values())},
    )
    default = base.pools["default"].model_dump()
    pools = {"default": default}
    pools |= {POOLS[name]: {"members": [MODELS[name]], "deadline_s": 3600} for name in CALLERS}
    fields = {name: getattr(base, name) for name in Settings.model_fields}
    return Settings(**{**fields, "pools": pools, "tenants": TENANTS})


async def make_key(settings: Settings, tenant: str) -> str:
    key = keys.make(secrets.token_bytes(keys.RANDOM_BYTES))
    public = keys.key_id(key)
    assert public
    store = Store(settings.database)
    digest, now = keys.digest(key, pepper(settings)), datetime.now(UTC)
    made = Key(public, tenant, "test", digest, now, scopes="admin")
    await ApiKeys(store).add(made, Change("operator:test", now))
    await store.close()
    return key


def upload(line: dict[str, Any]) -> aiohttp.FormData:
    form = aiohttp.FormData({"purpose": "batch"})
    form.add_field("file", io.BytesIO(json.dumps(line).encode()), filename="in.jsonl")
    return form


async def settle_in(world: World, owner: Owner) -> None:
    """Give a tenant something of each kind."""
    name = owner.name
    prompt = {"prompt": f"What does {name} keep secret?", "custom_id": f"of-{name}"}
    ended = await world.json(name, "POST", "/fusions?wait_s=100", json=prompt)
    assert ended["status"] == "selected"
    running = await world.json(name, "POST", "/fusions", json=PROMPT | {"pool": POOLS[name]})
    votes = f"/outcomes/{ended['id']}/votes"
    await world.json(name, "POST", votes, json={"choice": "none", "voter": f"voter-of-{name}"})
    file = await world.json(name, "POST", "/files", data=upload(prompt))
    wanted = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
    batch = await world.json(name, "POST", "/batches", json=wanted)

    async def is_over() -> bool:
        found = await world.json(name, "GET", f"/batches/{batch['id']}")
        return bool(found["status"] == "completed" and found["output_file_id"])

    await eventually(is_over)
    slow = await world.json(name, "POST", "/files", data=upload(PROMPT | {"pool": POOLS[name]}))
    wanted["input_file_id"] = slow["id"]
    validated = await world.json(name, "POST", "/batches", json=wanted)
    managed = await world.json(name, "POST", "/keys", json={"name": f"key-of-{name}"})
    owner.ids = {
        "key": managed["data"]["hash"],
        "fusion": ended["id"],
        "open": running["id"],
        "response": f"resp_{ended['id']}",
        "file": file["id"],
        "output": f"file-{batch['id']}-output",
        "batch": batch["id"],
        "validated": validated["id"],
        "pool": POOLS[name],
        "model": MODELS[name],
    }

    async def is_flying() -> bool:
        found = await world.json(name, "GET", f"/batches/{validated['id']}")
        return bool(found["x_fusewire"]["in_flight"] == 1)

    await eventually(is_flying)


@pytest.fixture
async def world(
    settings: Settings, running: Running, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    """All services; ingest as a service of which the routes and the statements can be seen."""
    # A look at a key would be among the statements of some requests, and not of others.
    monkeypatch.setattr(access, "REMEMBERED_S", 3600.0)
    ingest = build_service("ingest", settings)
    app = cast("FastAPI", ingest.app())
    trace = Trace(app.state.dependencies.store, monkeypatch)
    tenants = {name: Owner(name, await make_key(settings, name)) for name in CALLERS}
    services = ("judge", "worker-remote", "dispatcher", ingest)
    async with running(settings, *services) as client, Web(client.url) as web:
        found = World(web, app, trace, tenants)
        for name in OWNERS:
            await settle_in(found, tenants[name])
        for name in CALLERS:
            await found.json(name, "GET", "/models")
        yield found


def unknown(name: str) -> str:
    """A name of the same form that nothing has."""
    return name[:-1] + "q"


def all_routes(app: FastAPI) -> set[str]:
    found = set()
    for route in iter_route_contexts(app.routes):
        assert route.path, f"{route} has no case here"
        path = route.path
        for prefix in PREFIXES:
            path = path.removeprefix(prefix)
        found |= {f"{method} {path}" for method in route.methods or ()}
    return found


async def stored(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    tables = {}
    for table in COMPARED:
        found = await rows(settings, f"SELECT * FROM {table}")
        # The outbox marks what was published before, half a second later.
        # And each minute the last use of keys is written.
        noise = {"published_at": None, "last_used_at": None}
        tables[table] = sorted([row | noise for row in found], key=repr)
    return tables


async def test_what_another_tenant_has_is_answered_as_what_does_not_exist(
    world: World, settings: Settings
) -> None:
    assert all_routes(world.app) == CASES.keys() | APART, "list the new route, and all it can name"
    before = await stored(settings)
    faults: list[str] = []

    for route, cases in CASES.items():
        for case in cases:
            for caller in CALLERS:
                for owner in OWNERS:
                    if owner == caller:
                        continue
                    name = world.tenants[owner].ids[case.kind]
                    others = await world.play(caller, route, case, name)
                    nobodys = await world.play(caller, route, case, unknown(name))
                    about = f"{caller} asks for what {owner} has: {route}, {case}"
                    if others != nobodys or others.status != case.status:
                        faults.append(f"{about}: {others} is not {nobodys}")

    assert faults == []
    assert await stored(settings) == before


async def test_no_reply_names_anything_of_another_tenant(world: World) -> None:
    """Lists, counts, hints of errors and metrics, each as their own tenant reads them."""
    for caller in CALLERS:
        own = world.tenants[caller].ids
        marks = [*CALLERS, *POOLS.values(), *MODELS.values()]
        marks += [name for tenant in world.tenants.values() for name in tenant.ids.values()]
        foreign = [
            mark
            for mark in marks
            if mark not in (caller, POOLS[caller], MODELS[caller], *own.values())
        ]
        replies = []
        for route, cases in CASES.items():
            method, _, path = route.partition(" ")
            if method == "GET" and not cases:
                replies.append(await world.ask(caller, "GET", f"/v1{path}"))
            for case in cases:
                # What is its own, read; and what nobody has, with the hints of the error.
                if method == "GET" and case.kind in own and not case.is_endless:
                    replies.append(await world.play(caller, route, case, own[case.kind]))
                replies.append(await world.play(caller, route, case, "zz-9"))
        replies += [await world.ask(caller, "GET", f"/v1{path}") for path in ("/files", "/batches")]
        replies += [
            await world.ask(caller, "GET", path.partition(" ")[2]) for path in sorted(APART)
        ]
        for reply in replies:
            shown = reply.body.decode() + json.dumps(reply.headers)
            assert [mark for mark in foreign if mark in shown] == [], shown[:2000]
            if own:
                continue
            assert reply.status in (200, 202, 400, 404), shown[:500]


async def test_equal_ids_of_two_tenants_are_two_fusions(world: World) -> None:
    """Ids that a client chooses, and those of a batch that another tenant has."""
    batch = world.tenants["acme"].ids["batch"]
    body = {"prompt": "What does acme keep secret?", "custom_id": "of-acme"}
    for query in ("", f"?batch_id={batch}"):
        reply = await world.json("bolt", "POST", f"/fusions{query}", json=body)
        assert reply["is_repetition"] is False
        assert reply["id"] not in world.tenants["acme"].ids.values()


async def test_lines_of_a_batch_find_no_pool_of_another_tenant(world: World) -> None:
    told = []
    for pool in (POOLS["acme"], unknown(POOLS["acme"])):
        file = await world.json("bolt", "POST", "/files", data=upload(PROMPT | {"pool": pool}))
        wanted = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
        batch = await world.json("bolt", "POST", "/batches", json=wanted)
        found: dict[str, Any] = {}

        async def is_over(key: str = batch["id"], found: dict[str, Any] = found) -> bool:
            found.update(await world.json("bolt", "GET", f"/batches/{key}"))
            return bool(found["status"] == "failed")

        await eventually(is_over)
        told.append(json.dumps(found["errors"]["data"]).replace(pool, "ID"))
    assert told[0] == told[1]
    assert POOLS["acme"] not in told[0]
