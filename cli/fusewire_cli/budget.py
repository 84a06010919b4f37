"""`fusewire budget`: limits and spending of accounts. Works on the database directly."""

import asyncio
import math
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from fusewire.analysis.money import usd
from fusewire.contracts import NAME
from fusewire.settings import Settings
from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire_cli.keys import operator
from fusewire_cli.screen import RowFormat, fail, note, rows
from fusewire_cli.session import settings
from fusewire_ingest.admission.budgets import (
    BudgetLimit,
    Period,
    describe,
    key_account,
    split_account,
)
from fusewire_ingest.admission.rules import budget_limits, load_catalogue
from fusewire_ingest.repository.budgets import Balance, Budgets
from fusewire_ingest.repository.keys import ApiKeys

T = TypeVar("T")

COLUMNS = (
    "account",
    "period",
    "limit_usd",
    "soft_usd",
    "spent_usd",
    "reserved_usd",
    "left_usd",
    "source",
)


def show(account: str | None, form: RowFormat) -> None:
    """Print the limits of all accounts, or of one, and what is spent in the current periods."""
    config = settings()

    async def read(budgets: Budgets, store: Store) -> list[Balance]:
        accounts = None
        if account is not None:
            accounts = {await _existing_account(account, config, budgets, store)}
        return await budgets.balances(datetime.now(UTC), accounts)

    balances = [balance for balance in _with_budgets(config, read) if _is_limited(balance.limit)]
    rows(COLUMNS, [_cells(balance, form) for balance in balances], form)
    if account is not None and not balances:
        note(f"nothing limits {describe(account)}; `fusewire budget set` does")


def change(
    account: str,
    period: Period,
    *,
    hard_usd: float | None,
    soft_usd: float | None,
    is_removed: bool,
) -> None:
    """Set or remove a limit. What is not given of it stays as it is."""
    _check_amounts(hard_usd, soft_usd, is_removed=is_removed)
    config = settings()

    async def store_limit(budgets: Budgets, store: Store) -> BudgetLimit | None:
        own_account = await _existing_account(account, config, budgets, store)
        now = datetime.now(UTC)
        if is_removed:
            if not await budgets.limits.remove(own_account, period, now, operator()):
                fail(
                    f"no limit of {describe(own_account)} by {period} is stored here",
                    "`fusewire budget show` lists limits; those whose source is `configuration` "
                    "are in its file",
                )
            return None
        limit = _merge(await _present(budgets, own_account, period), hard_usd, soft_usd)
        await budgets.limits.change(limit, now, operator())
        return limit

    limit = _with_budgets(config, store_limit)
    if limit is None:
        note("removed; a limit of the configuration holds again, if there is one")
    else:
        note(f"{describe(limit.account)}: every ingest goes by it within 5 seconds")


def _check_amounts(hard_usd: float | None, soft_usd: float | None, *, is_removed: bool) -> None:
    is_given = hard_usd is not None or soft_usd is not None
    if is_removed == is_given:
        fail("give a limit, or none", "--usd, --soft-usd or both set one; --none removes it")
    for name, amount in (("--usd", hard_usd), ("--soft-usd", soft_usd)):
        if amount is not None and not math.isfinite(amount):
            fail(f"{name} {amount} is no amount of money", "give a number, 0 or more")


async def _present(budgets: Budgets, account: str, period: Period) -> BudgetLimit:
    await budgets.limits.read()
    limits = [limit for limit in budgets.limits.of(account) if limit.period == period]
    return limits[0] if limits else BudgetLimit(account, period)


def _merge(present: BudgetLimit, hard_usd: float | None, soft_usd: float | None) -> BudgetLimit:
    limit = replace(
        present,
        hard_usd=present.hard_usd if hard_usd is None else hard_usd,
        soft_usd=present.soft_usd if soft_usd is None else soft_usd,
    )
    if limit.soft_usd is not None and limit.soft_usd > (
        math.inf if limit.hard_usd is None else limit.hard_usd
    ):
        fail(
            f"the soft limit {usd(limit.soft_usd)} would be above the limit {usd(limit.hard_usd)},"
            " and never be passed",
            "give a lower --soft-usd, or a higher --usd",
        )
    return limit


async def _existing_account(account: str, config: Settings, budgets: Budgets, store: Store) -> str:
    """Check that an account can exist; returns it, of a key that of its budget."""
    kind, name = split_account(account)
    if kind == "pool" and name not in config.pools:
        pool_names = ", ".join(sorted(config.pools)) or "none"
        fail(f"there is no pool '{name[:63]}'", f"configured are: {pool_names}")
    if kind == "tenant" and not re.fullmatch(NAME, name):
        fail(
            f"'{name[:63]}' is no account",
            "give a tenant's name (a-z, 0-9, '-' and '_'), key:ID or pool:NAME",
        )
    if kind == "tenant" and name not in config.tenants:
        note(f"tenant '{name}' has no table [tenants.{name}] here; it may exist all the same")
    return await _account_of_key(name, budgets, store) if kind == "key" else account


async def _account_of_key(name: str, budgets: Budgets, store: Store) -> str:
    """The account of a key that exists."""
    if await ApiKeys(store).get(name) is None:
        fail(f"there is no key '{name[:8]}'", "`fusewire keys list` shows their ids")
    own_account = await budgets.account_of_key(name)
    if own_account != key_account(name):
        note(f"key '{name}' was made in place of another, and goes on with its budget")
    return own_account


def _is_limited(limit: BudgetLimit) -> bool:
    return limit.hard_usd is not None or limit.soft_usd is not None


def _cells(balance: Balance, form: RowFormat) -> list[Any]:
    limit, spending = balance.limit, balance.spending
    amounts = (
        limit.hard_usd,
        limit.soft_usd,
        spending.spent_usd,
        max(spending.reserved_usd, 0.0),
        balance.free_usd,
    )
    is_table = form is RowFormat.table
    return [
        limit.account,
        balance.period,
        *("" if is_table and amount is None else _amount(amount, form) for amount in amounts),
        "configuration" if limit.is_configured else "budget set",
    ]


def _amount(amount: float | None, form: RowFormat) -> Any:
    return usd(amount) if form is RowFormat.table else amount


def _with_budgets(config: Settings, work: Callable[[Budgets, Store], Awaitable[T]]) -> T:
    """Run work on the budgets, in a database of this version's schema."""

    async def run() -> T:
        store = Store(config.database)
        try:
            await store.ping()
            await migrate.check(store)
            now = datetime.now(UTC)
            budgets = Budgets(store, budget_limits(config), lambda: load_catalogue(config, now))
            return await work(budgets, store)
        finally:
            await store.close()

    return asyncio.run(run())
