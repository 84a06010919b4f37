"""What is held for running fusions: by several writers at once, and whatever becomes of them."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text

from fusewire.contracts import Prompt, Usage
from fusewire.settings import Database
from fusewire.store.engine import Store
from fusewire.store.tables import (
    api_keys,
    budgets,
    candidates,
    late_costs,
    outcomes,
    prompts,
    reservations,
)
from fusewire.testing.factories import T0, make_candidate, make_prompt
from fusewire.testing.rows import make_row
from fusewire_ingest.admission.budgets import BudgetKey, BudgetLimit
from fusewire_ingest.admission.estimate import Catalogue, Member, Model, Pool, estimate
from fusewire_ingest.repository.budget_holds import RELEASED_AFTER
from fusewire_ingest.repository.budgets import Budgets
from fusewire_ingest.repository.erasures import Erasures, ErasureTarget
from fusewire_ingest.repository.submissions import Acceptance, Submissions

A = Member("a", "a")
BOOK = Catalogue(
    {"default": Pool((A,)), "other": Pool((A,)), "dear": Pool((Member("u", "u"),))},
    {"a": Model(False, (0.001, 0.01), 100), "u": Model(False, None, 100)},
)
HOUR = timedelta(hours=1)


async def load_book() -> Catalogue:
    return BOOK


def ingest(store: Store, *limits: BudgetLimit, **options: Any) -> Submissions:
    """An ingest process with these limits in its configuration."""
    return Submissions(store, Budgets(store, limits, load_book, **options))


def usd_max(prompt: Prompt) -> float:
    usd = estimate(prompt, BOOK).usd_max
    assert usd is not None
    return usd


async def add(submissions: Submissions, *batch: Prompt) -> list[Acceptance]:
    return await submissions.add(batch, [None] * len(batch))


def codes(acceptances: Sequence[Acceptance]) -> list[str | None]:
    return [acceptance.refused.code if acceptance.refused else None for acceptance in acceptances]


async def end(store: Store, prompt: Prompt, cost_usd: float | None) -> None:
    """Store an outcome, as the judge does."""
    row = make_row(outcomes, fusion_id=prompt.fusion_id, tenant=prompt.tenant, cost_usd=cost_usd)
    async with store.write() as connection:
        await connection.execute(insert(outcomes).values(row))


async def store_call(store: Store, prompt: Prompt, call: str, **fields: Any) -> None:
    candidate = make_candidate(call=call, prompt=prompt, **fields)
    row = make_row(
        candidates, fusion_id=prompt.fusion_id, call=call, body=candidate.model_dump_json()
    )
    async with store.write() as connection:
        await connection.execute(insert(candidates).values(row))


async def figures(store: Store) -> dict[BudgetKey, tuple[float, float]]:
    """What is reserved and spent, by account and period."""
    async with store.read() as connection:
        rows = (await connection.execute(select(budgets))).all()
    return {
        (row.account, row.period): (round(row.reserved_usd, 9), round(row.spent_usd, 9))
        for row in rows
    }


async def count(store: Store, table: str) -> int:
    async with store.read() as connection:
        return int((await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one())


async def replace_keys(store: Store, *key_ids: str) -> None:
    """Keys of `acme`, each made in place of the one before."""
    before = [None, *key_ids]
    async with store.write() as connection:
        for key_id, replaced_id in zip(key_ids, before, strict=False):
            chain = {"replaces": replaced_id, "first_key_id": key_ids[0]}
            row = make_row(api_keys, key_id=key_id, tenant="acme", **chain)
            await connection.execute(insert(api_keys).values(row))


# -- several accounts -------------------------------------------------------------------------


async def test_a_prompt_has_to_fit_every_limit_of_its_accounts(store: Store) -> None:
    prompt = make_prompt(tenant="acme", key_id="k1")
    usd = usd_max(prompt)
    limits = [
        BudgetLimit("acme", "day", 2 * usd),
        BudgetLimit("acme", "month", 9 * usd),
        BudgetLimit("pool:default", "total", 3 * usd),
        BudgetLimit("key:k1", "month", usd),
    ]
    submissions = ingest(store, *limits)

    def of(custom_id: str, **fields: Any) -> Prompt:
        return make_prompt(**{"tenant": "acme", "custom_id": custom_id, **fields})

    batch = [
        of("first", key_id="k1"),
        of("key", key_id="k1"),
        of("second"),
        of("day"),
        of("other", tenant="else"),
        of("pool", tenant="else"),
        of("free", tenant="else", pool="other"),
    ]
    acceptances = await add(submissions, *batch)

    assert [acceptance.prompt.custom_id for acceptance in acceptances if acceptance.refused] == [
        "key",
        "day",
        "pool",
    ]
    assert [acceptance.account_over_budget for acceptance in acceptances] == [
        None,
        "key:k1",
        None,
        "acme",
        None,
        "pool:default",
        None,
    ]
    held = {key: round(reserved / usd) for key, (reserved, _) in (await figures(store)).items()}
    day, month = T0.strftime("%Y-%m-%d"), T0.strftime("%Y-%m")
    assert held == {
        ("acme", day): 2,
        ("acme", month): 2,
        ("pool:default", "total"): 3,
        ("key:k1", month): 1,
        ("key:k1", day): 1,
    }


async def test_a_key_that_replaces_another_goes_on_with_its_budget(store: Store) -> None:
    await replace_keys(store, "k1", "k2", "k3")
    prompt = make_prompt(tenant="acme", key_id="k1")
    submissions = ingest(store, BudgetLimit("key:k1", "total", usd_max(prompt)))

    first, again, other = await add(
        submissions,
        prompt,
        make_prompt(tenant="acme", key_id="k3", custom_id="two"),
        make_prompt(tenant="acme", key_id="k4", custom_id="three"),
    )

    assert codes([first, again, other]) == [None, "budget_exceeded", None]
    assert again.account_over_budget == "key:k1"


async def test_a_repetition_with_another_key_is_the_same_prompt(store: Store) -> None:
    submissions = ingest(store)
    await add(submissions, make_prompt(key_id="k1"))
    (again,) = await add(submissions, make_prompt(key_id="k2"))
    assert (again.is_new, again.is_conflict) == (False, False)


async def test_limits_in_sql_win_and_are_read_again_within_five_seconds(store: Store) -> None:
    now = [100.0]
    prompt = make_prompt(tenant="acme")
    submissions = ingest(store, BudgetLimit("acme", "month", 0.0), monotonic=lambda: now[0])
    operator = Budgets(store, [], load_book).limits
    assert codes(await add(submissions, prompt)) == ["budget_exceeded"]

    await operator.change(BudgetLimit("acme", "month", usd_max(prompt)), T0, "operator:test")
    now[0] += 4.0
    assert codes(await add(submissions, prompt)) == [None]

    assert await operator.remove("acme", "month", T0, "operator:test")
    assert not await operator.remove("acme", "month", T0, "operator:test")
    now[0] += 4.0
    next_prompt = make_prompt(tenant="acme", custom_id="two")
    assert codes(await add(submissions, next_prompt)) == ["budget_exceeded"]


# -- the last cent ----------------------------------------------------------------------------


async def test_of_two_requests_for_the_last_cent_one_wins(database: Database) -> None:
    rivals = [make_prompt(tenant="acme", custom_id=f"c{number}") for number in range(2)]
    limit = BudgetLimit("acme", "month", usd_max(rivals[0]))

    def submit(prompt: Prompt) -> list[str | None]:
        async def run() -> list[str | None]:
            store = Store(database)
            try:
                return codes(await add(ingest(store, limit), prompt))
            finally:
                await store.close()

        return asyncio.run(run())

    # Threads, so that each has connections, and on SQLite a lock, of its own.
    results = await asyncio.gather(*(asyncio.to_thread(submit, prompt) for prompt in rivals))

    assert sorted(str(code) for (code,) in results) == ["None", "budget_exceeded"]


WRITERS = 4
STEPS = 12
LIMITS = (
    BudgetLimit("acme", "day", 6.0),
    BudgetLimit("acme", "month", 9.0),
    BudgetLimit("beta", "total", 4.0),
    BudgetLimit("key:k1", "month", 3.0),
    BudgetLimit("pool:default", "total", 8.0),
)


class Writer:
    """An ingest process and the judge: accepts prompts, ends them and settles, in random order."""

    def __init__(self, database: Database, seed: int, number: int) -> None:
        self._database = database
        self._number = number
        self._random = random.Random(f"{seed} {number}")
        self._running: list[Prompt] = []
        self._count = 0
        self.spent: dict[BudgetKey, float] = defaultdict(float)
        """What its fusions have cost, by row of `budgets`."""
        self.refused = 0

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        store = Store(self._database)
        submissions = ingest(store, *LIMITS)
        for _ in range(STEPS):
            step = self._random.choice((self._add, self._add, self._end, self._settle))
            await step(store, submissions)
            await self._check(store)
        while self._running:
            await self._end(store, submissions)
        await store.close()

    async def _add(self, store: Store, submissions: Submissions) -> None:
        batch = [self._prompt() for _ in range(self._random.randint(1, 4))]
        acceptances = await add(submissions, *batch)
        self._running += [one.prompt for one in acceptances if not one.refused]
        self.refused += sum(acceptance.refused is not None for acceptance in acceptances)

    def _prompt(self) -> Prompt:
        self._count += 1
        return make_prompt(
            tenant=self._random.choice(("acme", "beta", "free")),
            pool=self._random.choice(("default", "other")),
            key_id=self._random.choice((None, "k1", "k2", "k9")),
            custom_id=f"w{self._number}-{self._count}",
            sampling={"max_tokens": self._random.randint(1, 100)},
        )

    async def _end(self, store: Store, _: Submissions) -> None:
        if not self._running:
            return
        prompt = self._running.pop(self._random.randrange(len(self._running)))
        usd = usd_max(prompt)
        cost_usd = self._random.choice((None, 0.0, usd, usd * self._random.random()))
        await end(store, prompt, cost_usd)
        for limit in LIMITS:
            if self._counts(limit.account, prompt):
                self.spent[limit.key(prompt.submitted_at)] += usd if cost_usd is None else cost_usd

    def _counts(self, account: str, prompt: Prompt) -> bool:
        # k2 has replaced k1.
        key = f"key:{'k1' if prompt.key_id == 'k2' else prompt.key_id}"
        return account in (prompt.tenant, f"pool:{prompt.pool}", key)

    async def _settle(self, _: Store, submissions: Submissions) -> None:
        await submissions.settle(T0)

    async def _check(self, store: Store) -> None:
        """No account has ever more spent and reserved than it may spend."""
        rows = await figures(store)
        for limit in LIMITS:
            reserved, spent = rows.get(limit.key(T0), (0.0, 0.0))
            assert limit.hard_usd is not None
            assert reserved + spent <= limit.hard_usd + 1e-6, limit


@pytest.mark.parametrize("seed", range(4))
async def test_writers_at_once_never_overspend(database: Database, seed: int) -> None:
    store = Store(database)
    await replace_keys(store, "k1", "k2")
    writers = [Writer(database, seed, number) for number in range(WRITERS)]

    await asyncio.gather(*(asyncio.to_thread(writer.run) for writer in writers))
    submissions = ingest(store, *LIMITS)
    while await submissions.settle(T0):
        pass

    assert await count(store, "budget_holds") == 0
    rows = await figures(store)
    for limit in LIMITS:
        key = limit.key(T0)
        reserved, spent = rows.get(key, (0.0, 0.0))
        assert reserved == pytest.approx(0, abs=1e-6)
        assert spent == pytest.approx(sum(writer.spent[key] for writer in writers)), limit
    assert sum(writer.refused for writer in writers) > 0, "the limits are low enough to matter"
    await store.close()


# -- what becomes of a hold -------------------------------------------------------------------


async def test_a_fusion_that_never_ends_gives_back_what_it_held(store: Store) -> None:
    prompt, other = make_prompt(tenant="acme"), make_prompt(tenant="acme", custom_id="two")
    submissions = ingest(store, BudgetLimit("acme", "total", 50.0))
    await add(submissions, prompt, other)
    await store_call(store, prompt, "a", cost_usd=0.25)
    await store_call(store, prompt, "b", cost_usd=None)
    too_early = prompt.deadline_at + RELEASED_AFTER

    assert await submissions.settle(too_early) == 0
    assert await submissions.settle(too_early + timedelta(seconds=1)) == 2

    assert await figures(store) == {("acme", "total"): (0.0, 0.25)}


async def test_a_fusion_that_is_gone_gives_back_what_it_held(store: Store) -> None:
    submissions = ingest(store, BudgetLimit("acme", "total", 50.0))
    prompt = make_prompt(tenant="acme")
    await add(submissions, prompt)
    async with store.write() as connection:
        # As older code erases, which knows no holds.
        await connection.execute(delete(prompts))

    assert await submissions.settle(T0) == 1
    assert await figures(store) == {("acme", "total"): (0.0, 0.0)}


@pytest.mark.parametrize("has_outcome", [True, False])
async def test_a_fusion_that_is_erased_is_settled_before(store: Store, has_outcome: bool) -> None:
    prompt = make_prompt(tenant="acme", key_id="k1")
    submissions = ingest(
        store,
        BudgetLimit("acme", "total", 50.0),
        BudgetLimit("key:k1", "total", 50.0),
        BudgetLimit("pool:default", "total", 50.0),
    )
    await add(submissions, prompt)
    if has_outcome:
        await end(store, prompt, 0.25)
    erasures = Erasures(store)
    erasure = await erasures.begin("acme", "hash", T0, "operator:ada")

    await erasures.erase_fusions(erasure.erasure_id, ErasureTarget("acme", prompt.custom_id))

    # Calls may still be under way if there is no outcome.
    spent = 0.25 if has_outcome else round(usd_max(prompt), 9)
    assert set((await figures(store)).values()) == {(0.0, spent)}
    assert await count(store, "budget_holds") == 0
    assert await submissions.settle(T0 + 9 * HOUR) == 0


async def test_a_tenant_is_erased_with_the_budgets_of_its_keys(store: Store) -> None:
    await replace_keys(store, "k1")
    limits = [BudgetLimit("acme", "total", 50.0), BudgetLimit("key:k1", "month", 5.0)]
    for limit in limits:
        await Budgets(store, [], load_book).limits.change(limit, T0, "operator:test")
    submissions = ingest(store, BudgetLimit("pool:default", "total", 50.0))
    await add(submissions, make_prompt(tenant="acme", key_id="k1"))
    erasures = Erasures(store)
    erasure = await erasures.begin("acme", None, T0, "operator:ada")

    await erasures.erase_fusions(erasure.erasure_id, ErasureTarget("acme"))
    await erasures.erase_tenant(erasure.erasure_id, "acme")

    assert set(await figures(store)) == {("pool:default", "total")}
    async with store.read() as connection:
        left = (await connection.execute(text("SELECT account FROM budget_limits"))).scalars()
        assert list(left) == ["acme"], "the operator's limit of the tenant stays"


async def test_what_older_code_has_reserved_is_settled(store: Store) -> None:
    ended, running = make_prompt(tenant="acme"), make_prompt(tenant="acme", custom_id="two")
    await add(ingest(store), ended, running)
    async with store.write() as connection:
        for prompt in (ended, running):
            row = {"fusion_id": prompt.fusion_id, "tenant": "acme", "period": "2026-11", "usd": 2.0}
            await connection.execute(insert(reservations).values(row))
        row = {"account": "acme", "period": "2026-11", "reserved_usd": 4.0, "spent_usd": 1.0}
        await connection.execute(insert(budgets).values(row))
    await end(store, ended, 0.5)
    submissions = ingest(store)

    assert await submissions.settle(T0) == 1

    assert await figures(store) == {("acme", "2026-11"): (2.0, 1.5)}
    assert (await count(store, "reservations"), await count(store, "budget_holds")) == (0, 1)


async def test_a_late_cost_counts_in_every_account(store: Store) -> None:
    await replace_keys(store, "k1", "k2")
    prompt = make_prompt(tenant="acme", key_id="k2")
    limits = [
        BudgetLimit("acme", "month", 50.0),
        BudgetLimit("key:k1", "total", 50.0),
        BudgetLimit("pool:default", "total", 50.0),
    ]
    submissions = ingest(store, *limits)
    await add(submissions, prompt)
    await end(store, prompt, 0.25)
    async with store.write() as connection:
        row = {"fusion_id": prompt.fusion_id, "round": 0, "call": "b", "usd": 0.5}
        await connection.execute(insert(late_costs).values(row))

    assert await submissions.settle(T0) == 5

    assert set((await figures(store)).values()) == {(0.0, 0.75)}


# -- clocks and prices ------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [timedelta(seconds=2), timedelta(days=-40), timedelta(days=400)])
async def test_spending_counts_in_the_period_of_its_hold(store: Store, jump: timedelta) -> None:
    midnight = datetime(2026, 12, 1, tzinfo=UTC)
    before = midnight - timedelta(seconds=1)
    prompt = make_prompt(tenant="acme", submitted_at=before, deadline_at=before + 9999 * HOUR)
    limits = [BudgetLimit("acme", "day", 5.0), BudgetLimit("acme", "month", 5.0)]
    submissions = ingest(store, *limits)
    await add(submissions, prompt)
    await end(store, prompt, 0.25)

    # The clock of the one who settles has moved over midnight and the month's end, or back.
    assert await submissions.settle(before + jump) == 2

    held = {("acme", "2026-11-30"): (0.0, 0.25), ("acme", "2026-11"): (0.0, 0.25)}
    assert await figures(store) == held
    after = make_prompt(
        tenant="acme", custom_id="two", submitted_at=midnight, deadline_at=midnight + HOUR
    )
    await add(submissions, after)
    usd = round(usd_max(after), 9)
    begun = {("acme", "2026-12-01"): (usd, 0.0), ("acme", "2026-12"): (usd, 0.0)}
    assert await figures(store) == {**held, **begun}


async def test_a_budget_of_zero_lets_free_models_answer(store: Store) -> None:
    free = make_prompt(tenant="acme", residency="edge-only", custom_id="free")
    submissions = ingest(store, BudgetLimit("acme", "month", 0.0))
    assert usd_max(free) == 0

    assert codes(await add(submissions, free, make_prompt(tenant="acme"))) == [
        None,
        "budget_exceeded",
    ]
    # Also where the budget was lowered after something was spent.
    async with store.write() as connection:
        await connection.execute(budgets.update().values(spent_usd=3.0))
    again = make_prompt(tenant="acme", residency="edge-only", custom_id="again")
    assert codes(await add(submissions, again)) == [None]


async def test_calls_without_a_price_count_by_their_tokens(store: Store) -> None:
    prompt = make_prompt(tenant="acme", pool="dear")
    submissions = ingest(
        store, BudgetLimit("acme", "total", soft_usd=1.0), unknown_usd_per_mtok=2_000.0
    )
    await add(submissions, prompt)
    usage = Usage(prompt_tokens=100, completion_tokens=400)
    await store_call(store, prompt, "a", cost_usd=None, usage=usage)
    await store_call(store, prompt, "b", cost_usd=0.5)
    await end(store, prompt, None)

    assert await submissions.settle(T0) == 1

    assert await figures(store) == {("acme", "total"): (0.0, 1.5)}
