"""What clients and operators are told of budgets: refusals, reports once a period, `GET /key`."""

import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from prometheus_client import Counter
from sqlalchemy import delete, insert, select, text

from fusewire import metrics
from fusewire.contracts import Prompt
from fusewire.settings import Database, Http, Nats, Settings
from fusewire.store.engine import Store
from fusewire.store.tables import audit_log, batches, budgets, outcomes, prompts
from fusewire.testing.eventually import eventually
from fusewire.testing.factories import T0, make_prompt
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.rows import make_row
from fusewire_cli.client import Client
from fusewire_ingest.admission import keys
from fusewire_ingest.admission.budgets import BudgetLimit, period_name
from fusewire_ingest.admission.estimate import Catalogue, Member, Model, Pool, estimate
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.budgets import Budgets
from fusewire_ingest.repository.keys import ApiKeys, Change, Key
from fusewire_ingest.repository.submissions import Submissions

Running = Callable[..., AbstractAsyncContextManager[Client]]
Web = aiohttp.ClientSession

BOOK = Catalogue({"default": Pool((Member("a", "a"),))}, {"a": Model(False, (0.001, 0.01), 100)})
PRICES = {"input_usd_per_mtok": 1_000.0, "output_usd_per_mtok": 2_000.0}


async def load_book() -> Catalogue:
    return BOOK


def prompt(number: int, **fields: Any) -> Prompt:
    return make_prompt(**{"tenant": "acme", "custom_id": f"c{number}", **fields})


USD = estimate(prompt(0), BOOK).usd_max or 0.0


async def actions(store: Store) -> list[tuple[str, str | None, str | None, dict[str, Any]]]:
    """Action, tenant, target and detail of each row of the audit log."""
    async with store.read() as connection:
        rows = (await connection.execute(select(audit_log).order_by(audit_log.c.at))).all()
    return [(row.action, row.tenant, row.target, json.loads(row.detail)) for row in rows]


def counted(counter: Counter, kind: str) -> float:
    (sample,) = [
        sample
        for family in counter.collect()
        for sample in family.samples
        if sample.labels["kind"] == kind
    ]
    return sample.value


# -- reports ----------------------------------------------------------------------------------


async def test_a_soft_limit_is_reported_once_a_period(store: Store) -> None:
    limits = [
        BudgetLimit("acme", "day", soft_usd=1.0),
        BudgetLimit("key:k1", "total", 9.0, soft_usd=1.5),
        BudgetLimit("pool:default", "total", 9.0, soft_usd=99.0),
    ]
    replicas = [Submissions(store, Budgets(store, limits, load_book)) for _ in range(2)]
    before = counted(metrics.BUDGET_SOFT_PASSED, "key")
    next_day = T0 + timedelta(days=1)
    submissions = [
        prompt(number, key_id="k1", submitted_at=at, deadline_at=at + timedelta(days=9))
        for number, at in enumerate((T0, T0, T0, next_day, next_day))
    ]

    for number, one_prompt in enumerate(submissions):
        replica = replicas[number % 2]
        await replica.add([one_prompt], [None])
        async with store.write() as connection:
            row = make_row(outcomes, fusion_id=one_prompt.fusion_id, tenant="acme", cost_usd=0.75)
            await connection.execute(insert(outcomes).values(row))
        assert await replica.settle(T0 + number * timedelta(seconds=1))

    today, tomorrow = (period_name("day", at) for at in (T0, next_day))
    assert await actions(store) == [
        (
            "budget.soft_limit_passed",
            "acme",
            "acme",
            {"period": today, "soft_usd": 1.0, "spent_usd": 1.5},
        ),
        (
            "budget.soft_limit_passed",
            None,
            "key:k1",
            {"period": "total", "soft_usd": 1.5, "spent_usd": 2.25},
        ),
        (
            "budget.soft_limit_passed",
            "acme",
            "acme",
            {"period": tomorrow, "soft_usd": 1.0, "spent_usd": 1.5},
        ),
    ]
    assert counted(metrics.BUDGET_SOFT_PASSED, "key") == before + 1


async def test_a_hard_limit_is_reported_once_a_period(store: Store) -> None:
    submissions = Submissions(store, Budgets(store, [BudgetLimit("acme", "total", USD)], load_book))
    before = counted(metrics.BUDGET_REFUSED, "tenant")

    for number in range(4):
        await submissions.add([prompt(number)], [None])

    detail = {"period": "total", "hard_usd": USD, "refused_usd": pytest.approx(USD)}
    assert await actions(store) == [("budget.hard_limit_reached", "acme", "acme", detail)]
    assert counted(metrics.BUDGET_REFUSED, "tenant") == before + 3


async def test_a_changed_limit_is_entered_and_reported_again(store: Store) -> None:
    budgets_ = Budgets(store, [], load_book)
    submissions = Submissions(store, Budgets(store, [BudgetLimit("acme", "total", 0.0)], load_book))
    await submissions.add([prompt(1)], [None])

    await budgets_.limits.change(
        BudgetLimit("acme", "total", 0.0, 0.0), T0 + timedelta(seconds=1), "operator:eve"
    )
    await budgets_.limits.remove("acme", "total", T0 + timedelta(seconds=2), "operator:eve")
    late = T0 + timedelta(seconds=3)
    await submissions.add([prompt(2, submitted_at=late)], [None])

    assert [(action, detail.get("usd")) for action, _, _, detail in await actions(store)] == [
        ("budget.hard_limit_reached", None),
        ("budget.set", 0.0),
        ("budget.set", None),
        ("budget.hard_limit_reached", None),
    ]


# -- over HTTP --------------------------------------------------------------------------------


@pytest.fixture
def settings(
    make_settings: Callable[..., Settings], nats: NatsServer, database: Database
) -> Settings:
    base = make_settings(
        nats=Nats(url=nats.url),
        database=database,
        http=Http(port=0, keys="required"),
        tenants={"acme": {"budget_usd": 2_000.0}, "poor": {"budget_usd": 0.001}},
    )
    models = {name: model.model_copy(update=PRICES) for name, model in base.models.items()}
    return base.model_copy(update={"models": models})


@pytest.fixture
async def web(settings: Settings, running: Running) -> AsyncIterator[Web]:
    """Ingest alone."""
    async with running(settings, "ingest") as client, Web(client.url) as session:
        yield session


@pytest.fixture
async def store_(settings: Settings) -> AsyncIterator[Store]:
    store = Store(settings.database)
    yield store
    await store.close()


async def key_of(
    settings: Settings, store: Store, tenant: str, replaces: str | None = None
) -> tuple[str, dict[str, str]]:
    """The id of a new key, and the header that it goes in."""
    made = keys.make(secrets.token_bytes(keys.RANDOM_BYTES))
    key_id = keys.key_id(made)
    assert key_id
    digest = keys.digest(made, pepper(settings))
    now = datetime.now(UTC)
    key = Key(key_id, tenant, "test", digest, now, replaces=replaces, first_key_id=replaces)
    await ApiKeys(store).add(key, Change("operator:test", now))
    return key_id, {"authorization": f"Bearer {made}"}


CHAT = {"model": "fusion", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 10}


async def told(web: Web, header: dict[str, str]) -> tuple[Any, Any]:
    async with web.get("/api/v1/key", headers=header) as response:
        key = (await response.json())["data"]
    async with web.get("/api/v1/credits", headers=header) as response:
        return key, (await response.json())["data"]


async def test_a_spent_budget_is_told_in_each_clients_form(
    web: Web, settings: Settings, store_: Store
) -> None:
    _, header = await key_of(settings, store_, "poor")

    async def refusal(path: str, body: Any = CHAT) -> tuple[Any, Any]:
        async with web.post(path, json=body, headers=header) as response:
            assert response.status == 402
            assert response.headers["x-should-retry"] == "false"
            return (await response.json())["error"], response.headers

    error, headers = await refusal("/v1/chat/completions")
    assert (error["code"], error["type"], error["param"]) == (
        "budget_exceeded",
        "insufficient_quota",
        None,
    )
    assert "tenant 'poor' has 0.001000 left" in error["message"]
    assert "retry-after" not in headers, "waiting does not help"
    for path, body in (
        ("/v1/chat/completions", {**CHAT, "stream": True}),
        ("/v1/responses", {"model": "fusion", "input": "Why?"}),
        ("/v1/fusions", {"prompt": "Why?"}),
    ):
        assert (await refusal(path, body))[0]["code"] == "budget_exceeded"

    error, _ = await refusal("/api/v1/chat/completions")
    assert error["code"] == 402
    assert error["metadata"]["error_type"] == "payment_required"
    assert error["metadata"]["code"] == "budget_exceeded"
    assert error["metadata"]["limit_source"] == "openrouter_credits"
    assert "tenant 'poor'" in error["metadata"]["remedy_hint"]


async def test_what_is_only_reserved_is_told_apart_from_what_is_spent(
    web: Web, settings: Settings, store_: Store
) -> None:
    key_id, header = await key_of(settings, store_, "acme")
    limits = Budgets(store_, [], load_book).limits
    await limits.change(BudgetLimit(f"key:{key_id}", "total", 200.0), T0, "operator:test")

    async def refusal(**spending: float) -> tuple[Any, Any]:
        async with store_.write() as connection:
            await connection.execute(delete(budgets))
            row = {"account": f"key:{key_id}", "period": "total", **spending}
            await connection.execute(insert(budgets).values(row))
        async with web.post("/api/v1/chat/completions", json=CHAT, headers=header) as response:
            assert response.status == 402
            return (await response.json())["error"]["metadata"], response.headers

    async def is_limited() -> bool:
        return bool((await told(web, header))[0]["limit"] == 200.0)

    await eventually(is_limited)
    metadata, headers = await refusal(spent_usd=0.0, reserved_usd=200.0)
    assert metadata["limit_source"] == "openrouter_in_flight_budget"
    assert metadata["reason"] == "in_flight_budget_exhausted"
    assert headers["retry-after"] == "10"

    metadata, headers = await refusal(spent_usd=200.0, reserved_usd=0.0)
    assert metadata["limit_source"] == "openrouter_key_limit"
    assert "reason" not in metadata
    assert "retry-after" not in headers


async def test_every_way_in_tells_its_key(web: Web, settings: Settings, store_: Store) -> None:
    key_id, header = await key_of(settings, store_, "acme")
    lines = json.dumps({"prompt": "Why?", "custom_id": "line"})
    form = aiohttp.FormData({"purpose": "batch"})
    form.add_field("file", json.dumps({"prompt": "Why?", "custom_id": "batch"}), filename="a.jsonl")
    async with web.post(
        "/v1/fusions", json={"prompt": "Why?", "custom_id": "json"}, headers=header
    ) as response:
        assert response.status == 202
    jsonl = {**header, "content-type": "application/jsonl"}
    async with web.post("/v1/fusions", data=lines, headers=jsonl) as response:
        assert response.status == 202
    async with web.post("/v1/files", data=form, headers=header) as response:
        file_id = (await response.json())["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/fusions", "completion_window": "24h"}
    async with web.post("/v1/batches", json=body, headers=header) as response:
        assert response.status == 200

    async def stored() -> dict[str, str | None]:
        async with store_.read() as connection:
            bodies = (await connection.execute(select(prompts.c.body))).scalars().all()
        decoded = [Prompt.decode(body) for body in bodies]
        return {one.custom_id: one.key_id for one in decoded}

    async def is_whole() -> bool:
        return set(await stored()) == {"json", "line", "batch"}

    await eventually(is_whole)
    assert set((await stored()).values()) == {key_id}
    async with store_.read() as connection:
        assert (await connection.execute(select(batches.c.key_id))).scalar_one() == key_id


async def test_a_client_is_told_what_is_left(web: Web, settings: Settings, store_: Store) -> None:
    key_id, header = await key_of(settings, store_, "acme")
    now = datetime.now(UTC)
    month = period_name("month", now)
    async with store_.write() as connection:
        row = {"account": "acme", "period": month, "spent_usd": 300.0, "reserved_usd": 100.0}
        await connection.execute(insert(budgets).values(row))
        row = make_row(outcomes, fusion_id="f1", tenant="acme", cost_usd=300.0, finished_at=now)
        await connection.execute(insert(outcomes).values(row))

    key, credits_ = await told(web, header)
    assert (key["label"], key["limit"], key["limit_remaining"]) == (key_id, 2_000.0, 1_600.0)
    assert key["limit_reset"] == "monthly"
    assert {key[f"usage{period}"] for period in ("", "_daily", "_weekly", "_monthly")} == {300.0}
    assert credits_ == {"total_credits": 2_000.0, "total_usage": 400.0}

    # Of the key's own limits the tightest, through its replacement too.
    limits = Budgets(store_, [], load_book).limits
    for limit in (
        BudgetLimit(f"key:{key_id}", "day", 10.0, 5.0),
        BudgetLimit(f"key:{key_id}", "total", 11.0),
    ):
        await limits.change(limit, now, "operator:test")
    today = period_name("day", now)
    async with store_.write() as connection:
        for period, usd in ((today, 1.0), ("2026-01-01", 3.0), ("total", 4.0)):
            row = {"account": f"key:{key_id}", "period": period, "spent_usd": usd}
            await connection.execute(insert(budgets).values({**row, "reserved_usd": 0.0}))
    _, new_header = await key_of(settings, store_, "acme", replaces=key_id)

    async def is_read() -> bool:
        return bool((await told(web, new_header))[0]["limit"] == 11.0)

    await eventually(is_read)
    for one_header in (header, new_header):
        key, credits_ = await told(web, one_header)
        assert (key["limit_remaining"], key["limit_reset"]) == (7.0, None)
        assert (key["usage"], key["usage_daily"]) == (4.0, 1.0)
        assert credits_ == {"total_credits": 11.0, "total_usage": 4.0}


async def test_without_a_budget_nothing_is_limited(
    web: Web, settings: Settings, store_: Store
) -> None:
    _, header = await key_of(settings, store_, "free")
    key, credits_ = await told(web, header)
    assert (key["limit"], key["limit_remaining"], key["limit_reset"]) == (None, None, None)
    assert credits_ == {"total_credits": 0.0, "total_usage": 0.0}
    async with store_.read() as connection:
        assert not (await connection.execute(text("SELECT count(*) FROM budgets"))).scalar()
