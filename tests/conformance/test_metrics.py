"""Each metric is moved by the event that it counts, on the real parts."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fusewire import consumers, metrics
from fusewire.bus import Bus
from fusewire.errors import Transient, UnacceptableMessage
from fusewire.loops import BatchLoop
from fusewire.settings import Database, Nats, Settings
from fusewire.store.engine import Store
from fusewire.testing.eventually import eventually
from fusewire.testing.factories import make_prompt
from fusewire.testing.model_script import Fault, FaultKind, ModelScript, Rule, Script
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire.topology import DISPATCHER_ROUND, JUDGE, Durable, round_subject
from fusewire_cli.client import Client
from fusewire_ingest.admission.budgets import BudgetLimit
from fusewire_ingest.admission.estimate import Catalogue, Member, Model, Pool, estimate
from fusewire_ingest.budget_metrics import BudgetMetrics
from fusewire_ingest.capacity import StoreCapacity
from fusewire_ingest.repository.budgets import Budgets
from fusewire_ingest.repository.submissions import Submissions

MakeBus = Callable[..., Awaitable[Bus]]
MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
ALL = ("judge", "worker-remote", "dispatcher", "ingest")
WAIT_S = 250
PRICES = {"input_usd_per_mtok": 1_000.0, "output_usd_per_mtok": 2_000.0}
WHY = "Why is the sky blue, and why is it not so at dusk?"  # its echo is too long for a label


class Change:
    """How much samples have changed since it was made."""

    def __init__(self) -> None:
        self._before = _samples()

    def __getitem__(self, sample: str) -> float:
        return _samples().get(sample, 0.0) - self._before.get(sample, 0.0)


def _samples() -> dict[str, float]:
    """All samples by name and labels, as in PromQL."""
    return {
        _text(sample.name, sample.labels): sample.value
        for family in metrics.REGISTRY.collect()
        for sample in family.samples
    }


def _text(name: str, labels: dict[str, str]) -> str:
    inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{name}{{{inside}}}" if inside else name


def value(sample: str) -> float | None:
    return _samples().get(sample)


@pytest.fixture
def settings(make_settings: MakeSettings, nats: NatsServer) -> Settings:
    base = make_settings(nats=Nats(url=nats.url))
    models = {name: model.model_copy(update=PRICES) for name, model in base.models.items()}
    return base.model_copy(update={"models": models})


async def ask(client: Client, **fields: Any) -> dict[str, Any]:
    shown = dict(await client.submit({"prompt": WHY, **fields}, wait_s=WAIT_S))
    assert shown["status"] != "running", shown
    return shown


# -- a fusion ---------------------------------------------------------------------------------


async def test_a_fusion_is_counted_by_each_service(settings: Settings, running: Running) -> None:
    change = Change()
    async with running(settings, *ALL) as client:
        shown = await ask(client)
        assert (shown["status"], shown["is_degraded"]) == ("selected", False)

    assert change['fusewire_http_requests_total{method="POST",route="/fusions",status="200"}'] == 1
    assert change['fusewire_http_request_seconds_count{method="POST",route="/fusions"}'] == 1
    labels = 'service="dispatcher",stream="FW_PROMPT"'
    assert change[f'fusewire_messages_handled_total{{{labels},result="ok"}}'] == 1
    labels = 'service="judge",stream="FW_CANDIDATE"'
    # The plan, three answers and two verdicts, in as many batches or fewer.
    assert change[f'fusewire_messages_handled_total{{{labels},result="ok"}}'] == 6
    assert 1 <= change[f"fusewire_message_handle_seconds_count{{{labels}}}"] <= 6
    assert change['fusewire_candidates_total{tier="remote",model="a",result="ok"}'] == 1
    tokens = [change[f'fusewire_tokens_total{{tier="remote",model="a",kind="{kind}"}}']
              for kind in ("prompt", "completion")]  # fmt: skip
    assert min(tokens) > 0
    usd = (tokens[0] * 1_000 + tokens[1] * 2_000) / 1e6
    assert change['fusewire_call_cost_usd_total{model="a"}'] == pytest.approx(usd)
    labels = 'pool="default",mode="best-of"'
    assert change[f'fusewire_outcomes_total{{{labels},status="selected",degraded="false"}}'] == 1
    assert change[f'fusewire_outcome_seconds_count{{{labels},batch="false"}}'] == 1
    assert change['fusewire_panels_closed_total{pool="default",closed_by="complete"}'] == 1
    assert change['fusewire_verdicts_total{model="j",result="strict"}'] == 2
    for kind in ("read", "write"):
        begun = change[f'fusewire_transactions_total{{kind="{kind}"}}']
        assert change[f'fusewire_transaction_seconds_count{{kind="{kind}"}}'] == begun > 0
    assert change["fusewire_database_failures_total"] == 0


async def test_a_panel_that_its_deadline_closes_is_counted(
    make_settings: MakeSettings, nats: NatsServer, running: Running
) -> None:
    """Nobody answers, as no worker runs."""
    settings = make_settings(nats=Nats(url=nats.url), pool={"deadline_s": 2})
    change = Change()
    async with running(settings, "judge", "dispatcher", "ingest") as client:
        assert (await ask(client))["status"] == "expired"

    assert change['fusewire_panels_closed_total{pool="default",closed_by="deadline"}'] == 1
    reasons = 'fusewire_degraded_reasons_total{pool="default",reason="missing"}'
    assert change[reasons] == 1, "three members are missing from one outcome"


async def test_a_judge_that_cannot_be_read_is_counted(
    settings: Settings, running: Running, model_server: ModelServer
) -> None:
    rule = Rule(match="Which is best", answer="The first.")
    model_server.set_script(Script(models={"j": ModelScript(rules=(rule,))}))
    change = Change()
    async with running(settings, *ALL) as client:
        assert (await ask(client))["is_degraded"]

    assert change['fusewire_degraded_reasons_total{pool="default",reason="judge_failed"}'] == 1
    assert change['fusewire_verdicts_total{model="j",result="void"}'] >= 1


@pytest.mark.parametrize(
    ("fates", "retries", "ambiguous"),
    [(["server_error"], 1, 0), (["close"], 1, 1), (["unauthorized"], 0, 0)],
    ids=["made again", "maybe paid twice", "not made again"],
)
async def test_calls_that_are_made_again_are_counted(
    settings: Settings,
    running: Running,
    model_server: ModelServer,
    *,
    fates: list[FaultKind | Fault],
    retries: int,
    ambiguous: int,
) -> None:
    faults = tuple(fate if isinstance(fate, Fault) else Fault(kind=fate) for fate in fates)
    model_server.set_script(Script(models={"a": ModelScript(faults=faults)}))
    change = Change()
    async with running(settings, *ALL) as client:
        await ask(client)

    assert change['fusewire_call_retries_total{tier="remote",model="a"}'] == retries
    assert change["fusewire_calls_maybe_paid_twice_total"] == ambiguous


# -- HTTP -------------------------------------------------------------------------------------


async def test_requests_are_counted_by_route_and_never_by_what_the_client_sends(
    settings: Settings, running: Running
) -> None:
    change = Change()
    async with running(settings, "ingest") as client, aiohttp.ClientSession(client.url) as http:
        for method, path in [
            ("GET", "/v1/fusions/unknown-1"),
            ("HEAD", "/v1/fusions/unknown-2"),
            ("GET", "/nowhere/at/all"),
            ("TRACE", "/v1/models"),
        ]:
            async with http.request(method, path) as response:
                assert response.status >= 400
        async with http.get("/healthz") as response:
            assert response.status == 200
        series = {sample for sample in _samples() if sample.startswith("fusewire_http_")}

    requests = "fusewire_http_requests_total"
    route = "/fusions/{fusion_id}"
    assert change[f'{requests}{{method="GET",route="{route}",status="404"}}'] == 2
    assert change[f'{requests}{{method="GET",route="none",status="404"}}'] == 1
    assert any('method="other"' in sample for sample in series)
    assert not any(word in sample for sample in series for word in ("unknown", "nowhere", "TRACE"))
    assert not any("healthz" in sample for sample in series)


# -- broker and database ----------------------------------------------------------------------


async def test_what_waits_for_a_consumer_and_what_it_has_in_hand(make_bus: MakeBus) -> None:
    bus = await make_bus("test", {"a": "remote"})
    for number in range(3):
        await bus.publish(round_subject(f"f{number}"), b"{}")
    subscription = await bus.js.pull_subscribe_bind(DISPATCHER_ROUND.name, DISPATCHER_ROUND.stream)
    await subscription.fetch(1)

    await consumers.look(bus.js_of, [DISPATCHER_ROUND])

    labels = '{stream="FW_ROUND",durable="dispatcher"}'
    assert value(f"fusewire_consumer_pending{labels}") == 2
    assert value(f"fusewire_consumer_ack_pending{labels}") == 1


async def test_what_cannot_be_read_hides_no_other_consumer(
    make_bus: MakeBus, nats: NatsServer
) -> None:
    bus = await make_bus("test", {"a": "remote"})
    gone = Durable("FW_ROUND", "gone", "fw.round.*")
    await bus.publish(round_subject("f1"), b"{}")

    await consumers.look(bus.js_of, [gone, DISPATCHER_ROUND])

    pending = 'fusewire_consumer_pending{stream="FW_ROUND",durable="dispatcher"}'
    assert value(pending) == 1
    await nats.kill()
    impatient = bus.client.jetstream(timeout=0.1)
    await consumers.look(lambda _stream: impatient, [DISPATCHER_ROUND])
    assert value(pending) == 1


async def test_a_service_watches_the_consumers_that_it_requires(
    make_bus: MakeBus, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after its broker was away."""
    monkeypatch.setattr(consumers, "EVERY_S", 0.05)
    bus = await make_bus("test", {"a": "remote"})
    await bus.require(DISPATCHER_ROUND)

    async def counts(number: int) -> bool:
        return value('fusewire_consumer_pending{stream="FW_ROUND",durable="dispatcher"}') == number

    await bus.publish(round_subject("f1"), b"{}")
    await eventually(lambda: counts(1))
    await nats.kill()
    await asyncio.sleep(0.2)
    await nats.start()

    async def published() -> bool:
        try:
            return await bus.publish(round_subject("f2"), b"{}")
        except Transient:
            return False

    await eventually(published)
    await eventually(lambda: counts(2))
    assert bus.faults() == []


async def test_what_a_stream_holds(make_bus: MakeBus) -> None:
    bus = await make_bus("test", {"a": "remote"})
    await bus.publish("fw.prompt.low.acme", b"{}")

    await StoreCapacity(bus).look()

    assert value('fusewire_stream_messages{stream="FW_PROMPT"}') == 1
    assert value('fusewire_stream_messages{stream="FW_ROUND"}') == 0


async def test_messages_of_a_batch_that_fail_are_counted(make_bus: MakeBus) -> None:
    bus = await make_bus("test", {"a": "remote"})
    change = Change()

    async def refuse(_batch: object) -> None:
        raise UnacceptableMessage("never")

    await bus.publish("fw.plan.f1", b"{}")
    loop = BatchLoop(bus, JUDGE, refuse, batch=8)
    await loop.start()
    dead = 'fusewire_messages_handled_total{service="test",stream="FW_CANDIDATE",result="dead"}'

    async def counted() -> bool:
        return change[dead] == 1

    await eventually(counted)
    await loop.stop(2)
    assert value(dead.replace("dead", "ok")) == 0, "all results begin at 0: an increase is seen"


async def test_a_database_that_is_away_is_counted() -> None:
    change = Change()
    store = Store(Database(url="postgresql+asyncpg://nobody@127.0.0.1:1/none"))
    with pytest.raises(Transient):
        async with store.read():
            pass
    await store.close()

    assert change["fusewire_database_failures_total"] == 1


# -- budgets and batches ----------------------------------------------------------------------

BOOK = Catalogue({"default": Pool((Member("a", "a"),))}, {"a": Model(False, (0.001, 0.01), 100)})


async def test_budgets_are_shown_with_what_is_spent_and_reserved(store: Store) -> None:
    async def book() -> Catalogue:
        return BOOK

    now = datetime(2026, 11, 30, 8, tzinfo=UTC)
    prompt = make_prompt(WHY, tenant="acme", submitted_at=now, deadline_at=now + timedelta(60))
    limits = [
        BudgetLimit("acme", "month", 50.0, 40.0),
        BudgetLimit("idle", "day", 7.0),
        BudgetLimit("pool:default", "month", 70.0),
        BudgetLimit("key:abc", "total", 1.0),
    ]
    budgets = Budgets(store, limits, book)
    submissions = Submissions(store, budgets)
    await submissions.add([prompt], [None])
    reserved_usd = estimate(prompt, BOOK).usd_max
    assert reserved_usd

    def figure(name: str, whose: str, period: str = "month") -> float | None:
        tenant, pool = ("", whose[5:]) if whose.startswith("pool:") else (whose, "")
        return value(
            f'fusewire_budget_{name}_usd{{tenant="{tenant}",pool="{pool}",period="{period}"}}'
        )

    await BudgetMetrics(budgets, lambda: now).look()

    assert (figure("limit", "acme"), figure("limit", "pool:default")) == (50, 70)
    for whose in ("acme", "pool:default"):
        assert figure("spent", whose) == 0
        assert figure("reserved", whose) == pytest.approx(reserved_usd)
    assert (figure("limit", "idle", "day"), figure("spent", "idle", "day")) == (7, 0)
    assert not [sample for sample in _samples() if "abc" in sample], "no label holds an id"

    async with store.write() as connection:
        await connection.exec_driver_sql("UPDATE budgets SET spent_usd = 12.5, reserved_usd = 0")
        # As if its budget had been for a day earlier.
        await connection.exec_driver_sql(
            "INSERT INTO budgets (tenant, period, reserved_usd, spent_usd)"
            " VALUES ('acme', '2026-11-30', 0, 99)"
        )
    await BudgetMetrics(budgets, lambda: now).look()
    assert (figure("spent", "acme"), figure("reserved", "acme")) == (12.5, 0)

    # Of the next month nothing is spent yet.
    await BudgetMetrics(budgets, lambda: now + timedelta(days=2)).look()
    assert figure("spent", "acme") == 0

    # What has no limit any more has no figures.
    await BudgetMetrics(Budgets(store, limits[1:], book), lambda: now).look()
    assert (figure("limit", "acme"), figure("spent", "acme")) == (None, None)
    assert figure("limit", "idle", "day") == 7


async def upload_batch(http: aiohttp.ClientSession, lines: int) -> None:
    data = "".join(json.dumps({"custom_id": f"c{n}", "prompt": WHY}) + "\n" for n in range(lines))
    form = aiohttp.FormData()
    form.add_field("purpose", "batch")
    form.add_field("file", data.encode(), filename="in.jsonl")
    async with http.post("/v1/files", data=form) as response:
        file = await response.json()
    body = {
        "input_file_id": file["id"], "endpoint": "/v1/fusions", "completion_window": "24h"
    }  # fmt: skip
    async with http.post("/v1/batches", json=body) as response:
        assert response.status == 200, await response.text()


async def test_lines_of_batches_in_flight_are_shown(settings: Settings, running: Running) -> None:
    limits = settings.limits.model_copy(update={"batch_window": 4})
    settings = settings.model_copy(update={"limits": limits})
    metrics.BATCH_LINES.set(99)
    async with running(settings, "ingest") as client, aiohttp.ClientSession(client.url) as http:

        async def shows(number: int) -> bool:
            return value("fusewire_batch_lines_in_flight") == number

        await eventually(lambda: shows(0))
        await upload_batch(http, 6)
        await eventually(lambda: shows(4))


# -- all of them ------------------------------------------------------------------------------


@asynccontextmanager
async def whole_stack(
    make_settings: MakeSettings, stack: Running, folder: Path
) -> AsyncIterator[Client]:
    """All services, an edge model, prices and a budget."""
    edge = {"kind": "edge", "path": str(folder), "slots": 2, "max_tokens": 8}
    base = make_settings(
        models={"small": edge},
        pool={"members": ["a", "b", "c", "small"], "route": "learned"},
        tenants={"default": {"budget_usd": 10_000}},
    )
    priced = {
        name: model.model_copy(update=PRICES) if model.kind == "remote" else model
        for name, model in base.models.items()
    }
    async with stack(base.model_copy(update={"models": priced})) as client:
        yield client


async def test_a_running_stack_shows_every_metric(
    make_settings: MakeSettings,
    stack: Running,
    model_server: ModelServer,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So what dashboards and alerts may name is what there is: see tests/unit/deploy."""
    monkeypatch.setattr("fusewire_ingest.budget_metrics.LOOK_EVERY_S", 0.1)
    monkeypatch.setattr("fusewire_ingest.capacity.LOOK_EVERY_S", 0.1)
    model_server.set_script(Script(models={"c": ModelScript(faults=(Fault(kind="unauthorized"),))}))
    async with whole_stack(make_settings, stack, tiny_folder) as client:
        await ask(client)
        async with aiohttp.ClientSession(client.url) as http:
            await upload_batch(http, 2)

            async def absent() -> set[str]:
                async with http.get("/metrics") as response:
                    families = list(text_string_to_metric_families(await response.text()))
                shown = {family.name for family in families if family.samples}
                return {family.name for family in metrics.REGISTRY.collect()} - shown

            async def complete() -> bool:
                return not await absent()

            with contextlib.suppress(AssertionError):
                await eventually(complete)
            assert await absent() == set()
