"""Budgets of tenants: reserved when a prompt is accepted, settled when it has ended."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from fusewire.contracts import Prompt
from fusewire.settings import Database, Settings
from fusewire.store.engine import Store
from fusewire.store.tables import late_costs
from fusewire.testing.eventually import eventually
from fusewire.testing.factories import T0, make_prompt
from fusewire_cli.client import Client
from fusewire_ingest.admission.budgets import BudgetLimit, period_name
from fusewire_ingest.admission.estimate import Catalogue, Member, Model, Pool, estimate
from fusewire_ingest.repository.budgets import Budgets
from fusewire_ingest.repository.submissions import Acceptance, Submissions

BOOK = Catalogue(
    {"default": Pool((Member("a", "a"),)), "dear": Pool((Member("u", "u"),))},
    {"a": Model(False, (0.001, 0.01), 100), "u": Model(False, None)},
)


def prompts(count: int, **overrides: Any) -> list[Prompt]:
    return [
        make_prompt("Why?", tenant="acme", custom_id=f"c{n}", **overrides) for n in range(count)
    ]


USD = estimate(prompts(1)[0], BOOK).usd_max or 0.0


async def known() -> Catalogue:
    return BOOK


def capped(store: Store, prompts_: float) -> Submissions:
    """The budget is for so many prompts at their highest cost."""
    return limited(store, BudgetLimit("acme", "month", USD * prompts_))


def limited(store: Store, *limits: BudgetLimit, **options: Any) -> Submissions:
    """An ingest process with these limits in its configuration."""
    return Submissions(store, Budgets(store, limits, known, **options))


async def add(submissions: Submissions, *some: Prompt) -> list[Acceptance]:
    return await submissions.add(some, [None] * len(some))


def codes(accepted: list[Acceptance]) -> list[str | None]:
    return [one.refused.code if one.refused else None for one in accepted]


async def standing(store: Store) -> tuple[float, float]:
    async with store.read() as connection:
        (row,) = await connection.execute(text("SELECT reserved_usd, spent_usd FROM budgets"))
    return row[0], row[1]


@pytest.mark.parametrize(
    ("period", "key"), [("day", "2026-11-30"), ("month", "2026-11"), ("total", "total")]
)
def test_a_period_is_of_utc(period: Any, key: str) -> None:
    assert period_name(period, datetime.fromisoformat("2026-12-01T00:30:00+01:00")) == key


async def test_what_does_not_fit_is_refused_and_not_stored(store: Store) -> None:
    accepted = await add(capped(store, 2.5), *prompts(4))

    assert codes(accepted) == [None, None, "budget_exceeded", "budget_exceeded"]
    assert list(await standing(store)) == pytest.approx([2 * USD, 0.0])
    async with store.read() as connection:
        for table in ("prompts", "fusions", "budget_holds"):
            assert (
                await connection.execute(text(f"SELECT count(*) FROM {table}"))
            ).scalar() == 2, table
    assert codes(await add(capped(store, 3), *prompts(4))) == [None, None, None, "budget_exceeded"]


async def test_a_repetition_is_reserved_for_once(store: Store) -> None:
    submissions = capped(store, 1)
    first = await add(submissions, *prompts(1), *prompts(1))
    again = await add(submissions, *prompts(1))

    assert codes(first + again) == [None, None, None]
    assert list(await standing(store)) == pytest.approx([USD, 0.0])


async def test_many_at_once_are_not_promised_the_same_money(store: Store) -> None:
    each = [capped(store, 3) for _ in range(5)]
    found = await asyncio.gather(
        *(add(each[n % 5], prompt) for n, prompt in enumerate(prompts(12)))
    )

    assert [one for (one,) in map(codes, found)].count(None) == 3
    assert list(await standing(store)) == pytest.approx([3 * USD, 0.0])


async def test_without_a_price_nothing_is_promised(store: Store) -> None:
    (one,) = await add(capped(store, 9), *prompts(1, pool="dear"))

    assert one.refused is not None
    assert (one.refused.code, "'u'" in one.refused.message) == ("price_unknown", True)
    (free,) = await add(capped(store, 9), make_prompt("Why?", pool="dear"))
    assert free.is_new, "another tenant has no budget"


async def test_what_came_after_its_outcome_is_spent_too(store: Store) -> None:
    submissions = capped(store, 3)
    first, other = prompts(2)
    foreign = make_prompt(tenant="free")
    await add(submissions, first, other, foreign)
    before = await standing(store)
    late = [(first, "b", 0.5), (first, "c", 0.25), (other, "b", 0.125), (foreign, "b", 9.0)]
    async with store.write() as connection:
        rows = [
            {"fusion_id": p.fusion_id, "round": 0, "call": call, "usd": usd}
            for p, call, usd in late
        ]
        await connection.execute(late_costs.insert(), rows)

    assert await submissions.settle(T0) == 4
    assert await submissions.settle(T0) == 0

    assert await standing(store) == pytest.approx((before[0], 0.875))
    async with store.read() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM late_costs"))).scalar() == 0


# -- on the real parts ------------------------------------------------------------------------


PRICES = {"input_usd_per_mtok": 1_000.0, "output_usd_per_mtok": 2_000.0}
BUDGET = 1_000.0


@pytest.fixture
def settings(make_settings: Callable[..., Settings], database: Database) -> Settings:
    base = make_settings(database=database, tenants={"default": {"budget_usd": BUDGET}})
    models = {name: model.model_copy(update=PRICES) for name, model in base.models.items()}
    return base.model_copy(update={"models": models})


async def test_an_outcome_turns_what_was_reserved_into_what_it_cost(
    settings: Settings, stack: Callable[..., AbstractAsyncContextManager[Client]]
) -> None:
    store = Store(settings.database)
    most: dict[str, float] = {}

    async def nothing_reserved() -> bool:
        return (await standing(store))[0] == pytest.approx(0)

    async with stack(settings) as client:
        costs = []
        for mode in ("best-of", "merge", "debate"):
            shown = await client.submit(
                {"prompt": f"Say something long of {mode}.", "mode": mode, "max_tokens": 50}
            )
            async with store.read() as connection:
                rows = await connection.execute(text("SELECT fusion_id, usd FROM budget_holds"))
                most |= {row[0]: row[1] for row in rows}
            done = await client.get(shown["id"], wait_s=30)
            cost = done["cost_usd"]
            assert cost is not None
            assert 0 < cost <= most.get(shown["id"], BUDGET), (
                "the most that it can cost was reserved"
            )
            costs.append(cost)
        await eventually(nothing_reserved)
        assert (await standing(store))[1] == pytest.approx(sum(costs))

        # What cannot be known has cost what was reserved, and is counted once.
        async with store.write() as connection:
            await connection.execute(text("UPDATE outcomes SET cost_usd = NULL"))
            (fusion,) = (
                await connection.execute(text("SELECT min(fusion_id) FROM outcomes"))
            ).one()
            period = period_name("month", datetime.now(UTC))
            row = {"of": fusion, "period": period}
            await connection.execute(
                text(
                    "INSERT INTO reservations (fusion_id, tenant, period, usd) "
                    "VALUES (:of, 'default', :period, 5)"
                ),
                row,
            )
            await connection.execute(text("UPDATE budgets SET reserved_usd = reserved_usd + 5"))
        await eventually(nothing_reserved)
        assert (await standing(store))[1] == pytest.approx(sum(costs) + 5)
    await store.close()


async def test_a_batch_waits_for_the_budget_in_its_way_and_goes_on(
    settings: Settings,
    stack: Callable[..., AbstractAsyncContextManager[Client]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fusewire_ingest.batches.runner.BUDGET_PAUSE_S", 0.2)
    monkeypatch.setattr("fusewire_ingest.repository.budget_limits.READ_EVERY_S", 0.1)
    both_pools = {**settings.pools, "other": settings.pools["default"]}
    settings = settings.model_copy(update={"pools": both_pools})
    store = Store(settings.database)
    limits = Budgets(store, [], known).limits
    await limits.change(BudgetLimit("pool:default", "total", 0.0), T0, "operator:test")

    async with stack(settings) as client:

        async def create(pool: str) -> str:
            path = tmp_path / f"{pool}.jsonl"
            path.write_text('{"prompt": "Why?", "max_tokens": 5}\n' * 2)
            body = {
                "input_file_id": await client.upload(path),
                "endpoint": "/v1/fusions",
                "completion_window": "24h",
                "x_fusewire": {"pool": pool},
            }
            return (await client.create_batch(body, pool))["id"]

        async def waits_for(batch_id: str) -> str | None:
            return (await client.batch(batch_id))["x_fusewire"]["waiting_for"]

        async def is_completed(batch_id: str) -> bool:
            batch = await client.batch(batch_id)
            return batch["status"] == "completed" and batch["request_counts"]["completed"] == 2

        waiting_id = await create("default")
        assert await eventually(lambda: waits_for(waiting_id)) == "the budget of pool 'default'"
        # Another batch of the tenant has another pool's budget.
        other_id = await create("other")
        await eventually(lambda: is_completed(other_id))
        assert not await is_completed(waiting_id)

        await limits.change(BudgetLimit("pool:default", "total", BUDGET), T0, "operator:test")
        await eventually(lambda: is_completed(waiting_id))
        assert await waits_for(waiting_id) is None
    await store.close()
