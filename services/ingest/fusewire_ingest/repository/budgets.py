"""Budgets: what accounts may spend, have reserved and have spent (docs/decisions/0056)."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain
from typing import Any

import structlog
from sqlalchemy import Connection, select

from fusewire import metrics
from fusewire.contracts import Prompt
from fusewire.store.audit import Action, insert_action
from fusewire.store.engine import Store
from fusewire.store.tables import budgets
from fusewire_ingest.admission.budgets import (
    DIGITS,
    BudgetKey,
    BudgetLimit,
    describe,
    period_of,
    split_account,
)
from fusewire_ingest.admission.estimate import Catalogue, estimate
from fusewire_ingest.admission.refusal import BudgetRefusedError, RefusedError
from fusewire_ingest.repository import budget_holds
from fusewire_ingest.repository.budget_holds import Spending
from fusewire_ingest.repository.budget_limits import BudgetLimits
from fusewire_ingest.repository.tenant_costs import TenantCost

log = structlog.get_logger(__name__)

ACTOR = "service:ingest"


@dataclass(frozen=True)
class Balance:
    """A limit, and what is spent and reserved of it in one period."""

    limit: BudgetLimit
    period: str
    """The period's name."""
    spending: Spending

    @property
    def free_usd(self) -> float | None:
        """What is left to reserve; None without a hard limit."""
        if self.limit.hard_usd is None:
            return None
        used_usd = self.spending.spent_usd + self.spending.reserved_usd
        return max(round(self.limit.hard_usd - used_usd, DIGITS), 0.0)


@dataclass(frozen=True)
class _BudgetRequest:
    """The most that a prompt may cost, and the limits that it has to fit."""

    prompt: Prompt
    limits: Mapping[BudgetKey, BudgetLimit]
    usd: float

    @property
    def holds(self) -> list[tuple[str, BudgetKey, float]]:
        """What `budget_holds.hold_in` takes."""
        return [(self.prompt.fusion_id, key, self.usd) for key in self.limits]


class Budgets:
    """The tables `budgets` and `budget_holds`.

    A prompt reserves the most that it can cost in each of its accounts, in the transaction that
    stores it. Once it has an outcome, that is settled: replaced by what was spent. The rows of
    `budgets` are locked while they are checked, so that several ingest processes never reserve the
    same money twice (docs/decisions/0025).

    Args:
        store: the database.
        limits: those of the configuration.
        book: loads the prices.
        unknown_usd_per_mtok: what a million tokens of a model without a price count as.
        monotonic: a clock, s.
    """

    def __init__(
        self,
        store: Store,
        limits: Sequence[BudgetLimit],
        book: Callable[[], Awaitable[Catalogue]],
        *,
        unknown_usd_per_mtok: float | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self.limits = BudgetLimits(store, limits, monotonic)
        self.tenant_costs = TenantCost(store)
        self._load = book
        self._unknown_usd_per_mtok = unknown_usd_per_mtok
        self._book: Catalogue | None = None
        self._loading = asyncio.Lock()

    async def ready(self) -> None:
        """Read the limits, and at the first of them the prices. Raises Transient.

        Loading those takes a second, for which `reserve_in` must not wait.
        """
        await self.limits.read()
        if self.limits.is_empty:
            return
        async with self._loading:
            if self._book is None:
                self._book = await self._load()

    def reserve_in(
        self, connection: Connection, prompts: Sequence[Prompt]
    ) -> dict[str, RefusedError]:
        """Reserve the highest cost of prompts that are stored in this transaction, after `ready`.

        Returns:
            By fusion, why a prompt may not be accepted; nothing is reserved for it.
        """
        if self.limits.is_empty:
            return {}
        refusals: dict[str, RefusedError] = {}
        requests: list[_BudgetRequest] = []
        for prompt in prompts:
            limits = self.limits.of_prompt_in(connection, prompt.tenant, prompt.pool, prompt.key_id)
            if not limits:
                continue
            try:
                requests.append(self._request(prompt, limits))
            except RefusedError as exc:
                refusals[prompt.fusion_id] = exc
        return refusals | _reserve_in(connection, requests)

    def _request(self, prompt: Prompt, limits: Sequence[BudgetLimit]) -> _BudgetRequest:
        """The highest cost of a prompt. Raises RefusedError if it is limited and unknown."""
        assert self._book is not None
        cost = estimate(prompt, self._book)
        hard_limit = next((limit for limit in limits if limit.hard_usd is not None), None)
        if cost.usd_max is None and hard_limit is not None:
            raise _unknown_price(hard_limit.account, cost.unpriced)
        by_key = {limit.key(prompt.submitted_at): limit for limit in limits}
        return _BudgetRequest(prompt, by_key, round(cost.usd_max or 0.0, DIGITS))

    async def settle(self, now: datetime) -> int:
        """Settle what has ended; returns how many holds and late costs. Raises Transient.

        Also what older code has reserved, and of fusions that never end: see
        `budget_holds.settle_in`. At most SETTLE_MOST of each kind.
        """
        # Read first: a write would queue for SQLite's lock, mostly for nothing.
        if not await self._store.run(
            lambda connection: budget_holds.is_any_due_in(connection, now), write=False
        ):
            return 0
        await self.limits.read()
        count = await self._store.run(
            lambda connection: self._settle_in(connection, now), write=True
        )
        # A transaction of its own: each locks its budgets in one pass, in their order.
        return count + await self._store.run(
            lambda connection: self._settle_late_in(connection, now), write=True
        )

    def _settle_in(self, connection: Connection, now: datetime) -> int:
        budget_holds.take_over_in(connection)
        count, keys = budget_holds.settle_in(connection, now, self._unknown_usd_per_mtok)
        self._report_soft_in(connection, keys, now)
        return count

    def _settle_late_in(self, connection: Connection, now: datetime) -> int:
        rows = budget_holds.take_late_costs_in(connection)
        costs: list[tuple[BudgetKey, float]] = []
        for row in rows:
            limits = self.limits.of_prompt_in(connection, row.tenant, row.pool, _key_id(row))
            costs += [(limit.key(row.submitted_at), row.usd) for limit in limits]
        self._report_soft_in(connection, budget_holds.spend_in(connection, costs), now)
        return len(rows)

    def _report_soft_in(
        self, connection: Connection, keys: Iterable[BudgetKey], now: datetime
    ) -> None:
        """Report the soft limits that spending in these rows of `budgets` has passed."""
        for key in sorted(keys):
            for limit in self.limits.of(key[0]):
                if limit.soft_usd is None or limit.period != period_of(key[1]):
                    continue
                spent_usd = budget_holds.mark_soft_in(connection, key, limit.soft_usd, now)
                if spent_usd is not None:
                    detail = {"soft_usd": limit.soft_usd, "spent_usd": spent_usd}
                    _report_in(connection, "budget.soft_limit_passed", key, now, detail)
                    metrics.BUDGET_SOFT_PASSED.labels(split_account(key[0])[0]).inc()

    async def balances(
        self, at: datetime, accounts: Collection[str] | None = None
    ) -> list[Balance]:
        """List limits with what is spent in the periods that a time is in. Raises Transient.

        Args:
            at: the time.
            accounts: only those of these accounts.
        """
        await self.limits.read()
        limits = [
            limit for limit in self.limits.all() if accounts is None or limit.account in accounts
        ]
        if not limits:
            return []
        keys = [limit.key(at) for limit in limits]
        query = select(budgets).where(
            budgets.c.account.in_({account for account, _ in keys}),
            budgets.c.period.in_({period for _, period in keys}),
        )
        async with self._store.read() as connection:
            rows = (await connection.execute(query)).all()
        spending = {(row.account, row.period): budget_holds.spending(row) for row in rows}
        return [
            Balance(limit, key[1], spending.get(key, Spending()))
            for limit, key in zip(limits, keys, strict=True)
        ]

    async def account_of_key(self, key_id: str) -> str:
        """The account of a key. Raises Transient."""
        return await self._store.run(
            lambda connection: self.limits.account_of_key_in(connection, key_id), write=False
        )

    async def spent_by_day(self, account: str) -> dict[str, float]:
        """What an account has spent, USD, by the name of the day. Raises Transient."""
        query = select(budgets.c.period, budgets.c.spent_usd).where(budgets.c.account == account)
        async with self._store.read() as connection:
            rows = (await connection.execute(query)).all()
        return {row.period: row.spent_usd for row in rows if period_of(row.period) == "day"}


class _LockedBudgets:
    """Rows of `budgets` that a transaction has locked, with what it reserves of them."""

    def __init__(self, connection: Connection, keys: Collection[BudgetKey]) -> None:
        # Sorted: transactions that lock several budgets must lock them in the same order.
        self.spending = {key: budget_holds.lock_in(connection, key) for key in sorted(keys)}

    def tightest_exceeded(self, request: _BudgetRequest) -> Balance | None:
        """Of the limits that a request does not fit, the one with the least left."""
        balances = [
            Balance(limit, key[1], self.spending[key]) for key, limit in request.limits.items()
        ]
        # What costs nothing fits always, also where a limit was lowered below what is spent.
        too_small = [
            (balance.free_usd, balance)
            for balance in balances
            if balance.free_usd is not None and request.usd > balance.free_usd
        ]
        return min(too_small, key=lambda pair: pair[0])[1] if too_small else None

    def reserve(self, request: _BudgetRequest) -> None:
        """Count a request as reserved."""
        for key in request.limits:
            reserved_usd = self.spending[key].reserved_usd + request.usd
            self.spending[key] = replace(self.spending[key], reserved_usd=reserved_usd)


def _reserve_in(
    connection: Connection, requests: Sequence[_BudgetRequest]
) -> dict[str, RefusedError]:
    """Reserve costs in the order of the requests; returns, by fusion, why some do not fit."""
    keys = set(chain.from_iterable(request.limits for request in requests))
    rows = _LockedBudgets(connection, keys)
    refusals: dict[str, RefusedError] = {}
    first_refusals: dict[BudgetKey, _BudgetRequest] = {}
    holds: list[tuple[str, BudgetKey, float]] = []
    for request in requests:
        tightest = rows.tightest_exceeded(request)
        if tightest is None:
            rows.reserve(request)
            holds += request.holds
        else:
            refusals[request.prompt.fusion_id] = _budget_exceeded(tightest, request.usd)
            first_refusals.setdefault((tightest.limit.account, tightest.period), request)
    budget_holds.hold_in(connection, holds)
    for key, request in first_refusals.items():
        if rows.spending[key].hard_reached_at is None:
            _report_hard_in(connection, key, request)
    return refusals


def _report_hard_in(connection: Connection, key: BudgetKey, request: _BudgetRequest) -> None:
    at = request.prompt.submitted_at
    budget_holds.mark_hard_in(connection, key, at)
    detail = {"hard_usd": request.limits[key].hard_usd, "refused_usd": request.usd}
    _report_in(connection, "budget.hard_limit_reached", key, at, detail)


def _report_in(
    connection: Connection, action: str, key: BudgetKey, at: datetime, detail: dict[str, Any]
) -> None:
    """Enter what has become of a budget in the audit log, and log it."""
    account, period = key
    kind, name = split_account(account)
    tenant = name if kind == "tenant" else None
    details = {"period": period, **detail}
    entry = Action(at, ACTOR, action, tenant=tenant, target=account, detail=details)
    connection.execute(insert_action(entry))
    log.warning(action, account=account, period=period, **detail)


def _key_id(row: Any) -> str | None:
    """The key of a prompt, from its stored body; None also if its texts were deleted."""
    key_id: str | None = json.loads(row.body).get("key_id") if row.body else None
    return key_id


def _unknown_price(account: str, models: Sequence[str]) -> RefusedError:
    names = ", ".join(f"'{model}'" for model in models)
    return RefusedError(
        "price_unknown",
        f"{describe(account)} has a budget, and the price of {names} is not known; the operator "
        "can set input_usd_per_mtok and output_usd_per_mtok for it (0 where it costs nothing), or "
        "[limits] unknown_price_usd_per_mtok for all such models",
    )


def _budget_exceeded(balance: Balance, usd: float) -> BudgetRefusedError:
    limit, spending = balance.limit, balance.spending
    assert limit.hard_usd is not None
    metrics.BUDGET_REFUSED.labels(split_account(limit.account)[0]).inc()
    return BudgetRefusedError(
        f"this may cost up to {usd:.6f} USD, and {describe(limit.account)} has "
        f"{balance.free_usd or 0.0:.6f} left in {balance.period}: {spending.spent_usd:.6f} spent "
        f"and {max(spending.reserved_usd, 0.0):.6f} reserved of {limit.hard_usd:.6f}; what is "
        "reserved is settled when it ends; lower max_tokens, or ask the operator for a higher "
        "budget (`fusewire budget set`)",
        account=limit.account,
        fits_later=round(spending.spent_usd + usd, DIGITS) <= limit.hard_usd,
    )
