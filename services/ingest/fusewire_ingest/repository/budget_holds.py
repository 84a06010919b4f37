"""What running fusions may spend, in SQL: held in `budgets`, and settled when they have ended.

All of it happens within a transaction of the caller. Rows of `budgets` are locked in the order of
their keys, so that no two transactions wait for each other.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    Connection,
    and_,
    bindparam,
    delete,
    insert,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from fusewire.store.tables import (
    budget_holds,
    budgets,
    candidates,
    late_costs,
    outcomes,
    prompts,
    reservations,
)
from fusewire_ingest.admission.budgets import TOKENS_PER_MTOK, BudgetKey

SETTLE_MOST = 500
"""The most holds that one transaction settles."""
RELEASED_AFTER = timedelta(hours=1)
"""How long after its deadline a fusion without an outcome counts as one that never ends."""

_OPEN = {
    "sqlite": sqlite.insert(budgets).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(budgets).on_conflict_do_nothing(),
}
# Parameters must not be named like the columns: SQLAlchemy reserves those names in an UPDATE.
_IS_BUDGET = and_(budgets.c.account == bindparam("of"), budgets.c.period == bindparam("within"))
_LOCK = select(budgets).where(_IS_BUDGET).with_for_update()
_MOVE = (
    update(budgets)
    .where(_IS_BUDGET)
    .values(
        reserved_usd=budgets.c.reserved_usd + bindparam("reserved"),
        spent_usd=budgets.c.spent_usd + bindparam("spent"),
    )
)
_MARK_SOFT = (
    update(budgets)
    .where(
        _IS_BUDGET,
        budgets.c.soft_passed_at.is_(None),
        budgets.c.spent_usd > bindparam("soft"),
    )
    .values(soft_passed_at=bindparam("at", type_=budgets.c.soft_passed_at.type))
    .returning(budgets.c.spent_usd)
)
_MARK_HARD = (
    update(budgets)
    .where(_IS_BUDGET)
    .values(hard_reached_at=bindparam("at", type_=budgets.c.hard_reached_at.type))
)

_HELD = (
    select(
        budget_holds.c.fusion_id,
        budget_holds.c.account,
        budget_holds.c.period,
        budget_holds.c.usd,
        outcomes.c.fusion_id.is_not(None).label("has_outcome"),
        outcomes.c.cost_usd,
    )
    .outerjoin(outcomes, outcomes.c.fusion_id == budget_holds.c.fusion_id)
    .order_by(budget_holds.c.fusion_id)
)
_DUE = (
    _HELD.outerjoin(prompts, prompts.c.fusion_id == budget_holds.c.fusion_id)
    .where(
        or_(
            outcomes.c.fusion_id.is_not(None),
            prompts.c.fusion_id.is_(None),
            prompts.c.deadline_at < bindparam("before", type_=prompts.c.deadline_at.type),
        )
    )
    .limit(SETTLE_MOST)
    # Another replica is settling those that are locked.
    .with_for_update(skip_locked=True, of=budget_holds)
)
_OF_FUSIONS = _HELD.where(
    budget_holds.c.fusion_id.in_(bindparam("keys", expanding=True))
).with_for_update(of=budget_holds)
_DELETE = delete(budget_holds).where(
    tuple_(budget_holds.c.fusion_id, budget_holds.c.account, budget_holds.c.period).in_(
        bindparam("keys", expanding=True)
    )
)
_RESERVED = select(reservations).order_by(reservations.c.fusion_id)
_CALLS = select(candidates.c.fusion_id, candidates.c.is_late, candidates.c.body).where(
    candidates.c.fusion_id.in_(bindparam("keys", expanding=True))
)
_LATE = (
    select(
        late_costs.c.fusion_id,
        late_costs.c.round,
        late_costs.c.call,
        late_costs.c.usd,
        prompts.c.tenant,
        prompts.c.pool,
        prompts.c.submitted_at,
        prompts.c.body,
    )
    .join(prompts, prompts.c.fusion_id == late_costs.c.fusion_id)
    .order_by(late_costs.c.fusion_id)
    .limit(SETTLE_MOST)
    .with_for_update(skip_locked=True, of=late_costs)
)
_DELETE_LATE = delete(late_costs).where(
    tuple_(late_costs.c.fusion_id, late_costs.c.round, late_costs.c.call).in_(
        bindparam("keys", expanding=True)
    )
)


@dataclass(frozen=True)
class Spending:
    """What an account has spent and reserved in a period, USD."""

    spent_usd: float = 0.0
    reserved_usd: float = 0.0
    soft_passed_at: datetime | None = None
    hard_reached_at: datetime | None = None


@dataclass(frozen=True)
class BudgetChange:
    """What is added to a row of `budgets`, USD."""

    reserved_usd: float = 0.0
    spent_usd: float = 0.0

    def plus(self, other: "BudgetChange") -> "BudgetChange":
        """The sum of both."""
        return BudgetChange(
            self.reserved_usd + other.reserved_usd, self.spent_usd + other.spent_usd
        )


def lock_in(connection: Connection, key: BudgetKey) -> Spending:
    """Lock a row of `budgets`, which is made if there is none, and read it."""
    values = _key_values(key)
    row = connection.execute(_LOCK, values).one_or_none()
    if row is None:
        empty = {"account": key[0], "period": key[1], "reserved_usd": 0.0, "spent_usd": 0.0}
        connection.execute(_OPEN[connection.dialect.name], empty)
        row = connection.execute(_LOCK, values).one()
    return spending(row)


def spending(row: Any) -> Spending:
    """A row of `budgets`."""
    return Spending(row.spent_usd, row.reserved_usd, row.soft_passed_at, row.hard_reached_at)


def hold_in(connection: Connection, holds: Sequence[tuple[str, BudgetKey, float]]) -> None:
    """Hold USD for fusions, in rows of `budgets` that the caller has locked."""
    if not holds:
        return
    rows = [
        {"fusion_id": fusion_id, "account": key[0], "period": key[1], "usd": usd}
        for fusion_id, key, usd in holds
    ]
    connection.execute(insert(budget_holds), rows)
    move_in(connection, _add_up((key, BudgetChange(reserved_usd=usd)) for _, key, usd in holds))


def move_in(connection: Connection, changes: Mapping[BudgetKey, BudgetChange]) -> None:
    """Add to rows of `budgets` that exist."""
    for key in sorted(changes):
        amounts = {"reserved": changes[key].reserved_usd, "spent": changes[key].spent_usd}
        connection.execute(_MOVE, {**_key_values(key), **amounts})


def mark_soft_in(
    connection: Connection, key: BudgetKey, soft_usd: float, at: datetime
) -> float | None:
    """Note that spending has passed a soft limit.

    Returns:
        What is spent, USD; None if it has not passed the limit, or that was noted before.
    """
    values = {**_key_values(key), "soft": soft_usd, "at": at}
    spent_usd: float | None = connection.execute(_MARK_SOFT, values).scalar()
    return spent_usd


def mark_hard_in(connection: Connection, key: BudgetKey, at: datetime) -> None:
    """Note that a hard limit has refused a prompt."""
    connection.execute(_MARK_HARD, {**_key_values(key), "at": at})


def is_any_due_in(connection: Connection, now: datetime) -> bool:
    """Whether there is something to take over or to settle. It locks nothing for long."""
    values = {"before": now - RELEASED_AFTER}
    return any(
        connection.execute(query.limit(1), values).first() is not None
        for query in (_RESERVED, _DUE, _LATE)
    )


def take_over_in(connection: Connection) -> int:
    """Move what older code has reserved to `budget_holds`; returns how many."""
    query = _RESERVED.limit(SETTLE_MOST).with_for_update(skip_locked=True)
    return _move_reservations_in(connection, connection.execute(query).all())


def settle_in(
    connection: Connection, now: datetime, unknown_usd_per_mtok: float | None
) -> tuple[int, set[BudgetKey]]:
    """Settle holds of fusions that have ended, are gone or never end, at most SETTLE_MOST.

    Where the cost of an outcome is not known, the calls without a price count by their tokens. If
    no price is given for those, the held amount counts as spent. Of fusions without an outcome,
    what is known of their calls does.

    Args:
        connection: of a transaction of the caller.
        now: the time.
        unknown_usd_per_mtok: what a million tokens of a call without a price cost.

    Returns:
        How many, and the rows of `budgets` that have changed.
    """
    rows = connection.execute(_DUE, {"before": now - RELEASED_AFTER}).all()
    unclear_ids = {
        row.fusion_id
        for row in rows
        if not row.has_outcome or (row.cost_usd is None and unknown_usd_per_mtok is not None)
    }
    costs = _costs_of_calls_in(connection, unclear_ids, unknown_usd_per_mtok or 0.0)
    keys = _settle_rows_in(
        connection, [(row, _spent_usd(row, costs.get(row.fusion_id))) for row in rows]
    )
    return len(rows), keys


def release_in(connection: Connection, fusion_ids: Collection[str]) -> None:
    """Settle all holds of fusions, before they are deleted.

    What a fusion has cost counts as spent, or all that is held if that is not known: calls may
    still be under way whose cost nobody will be told.
    """
    keys = {"keys": sorted(fusion_ids)}
    # Before the budgets: whoever settles these locks them in this order.
    is_late = late_costs.c.fusion_id.in_(bindparam("keys", expanding=True))
    connection.execute(delete(late_costs).where(is_late), keys)
    query = _RESERVED.where(reservations.c.fusion_id.in_(bindparam("keys", expanding=True)))
    _move_reservations_in(connection, connection.execute(query.with_for_update(), keys).all())
    rows = connection.execute(_OF_FUSIONS, keys).all()
    _settle_rows_in(connection, [(row, _spent_usd(row, None)) for row in rows])


def take_late_costs_in(connection: Connection) -> Sequence[Any]:
    """Delete costs of calls that ended after their outcome, at most SETTLE_MOST.

    Returns:
        Rows of `late_costs`, with their prompt's `tenant`, `pool`, `submitted_at` and `body`. Only
        the transaction that deletes a cost may count it.
    """
    rows = connection.execute(_LATE).all()
    if rows:
        keys = [(row.fusion_id, row.round, row.call) for row in rows]
        connection.execute(_DELETE_LATE, {"keys": keys})
    return rows


def spend_in(connection: Connection, costs: Iterable[tuple[BudgetKey, float]]) -> set[BudgetKey]:
    """Count costs as spent that were not held; returns the rows of `budgets` they are in."""
    changes = _add_up((key, BudgetChange(spent_usd=usd)) for key, usd in costs)
    for key in sorted(changes):
        lock_in(connection, key)
    move_in(connection, changes)
    return set(changes)


def _key_values(key: BudgetKey) -> dict[str, str]:
    return {"of": key[0], "within": key[1]}


def _add_up(changes: Iterable[tuple[BudgetKey, BudgetChange]]) -> dict[BudgetKey, BudgetChange]:
    sums: dict[BudgetKey, BudgetChange] = defaultdict(BudgetChange)
    for key, change in changes:
        sums[key] = sums[key].plus(change)
    return sums


def _move_reservations_in(connection: Connection, rows: Sequence[Any]) -> int:
    if rows:
        ids = [row.fusion_id for row in rows]
        connection.execute(delete(reservations).where(reservations.c.fusion_id.in_(ids)))
        holds = [
            {
                "fusion_id": row.fusion_id,
                "account": row.tenant,
                "period": row.period,
                "usd": row.usd,
            }
            for row in rows
        ]
        connection.execute(insert(budget_holds), holds)
    return len(rows)


def _settle_rows_in(connection: Connection, rows: Sequence[tuple[Any, float]]) -> set[BudgetKey]:
    """Replace held amounts with spent ones. The caller has locked the rows of `budget_holds`."""
    if not rows:
        return set()
    keys = [(row.fusion_id, row.account, row.period) for row, _ in rows]
    connection.execute(_DELETE, {"keys": keys})
    changes = _add_up(
        ((row.account, row.period), BudgetChange(-row.usd, spent_usd)) for row, spent_usd in rows
    )
    move_in(connection, changes)
    return set(changes)


def _spent_usd(row: Any, cost_of_calls_usd: float | None) -> float:
    """What a fusion has cost, as far as that is known; else what is held for it."""
    cost_usd = row.cost_usd if row.cost_usd is not None else cost_of_calls_usd
    return float(row.usd if cost_usd is None else cost_usd)


def _costs_of_calls_in(
    connection: Connection, fusion_ids: Collection[str], unknown_usd_per_mtok: float
) -> dict[str, float]:
    """What is known of the costs of fusions' calls, USD."""
    if not fusion_ids:
        return {}
    costs = dict.fromkeys(fusion_ids, 0.0)
    for row in connection.execute(_CALLS, {"keys": sorted(fusion_ids)}):
        # Those are counted by themselves: see `take_late_costs_in`.
        if not row.is_late:
            costs[row.fusion_id] += _cost_of_call(json.loads(row.body), unknown_usd_per_mtok)
    return costs


def _cost_of_call(candidate: Mapping[str, Any], unknown_usd_per_mtok: float) -> float:
    cost_usd = candidate.get("cost_usd")
    if cost_usd is not None:
        return float(cost_usd)
    usage = candidate.get("usage") or {}
    tokens = usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0)
    return float(tokens * unknown_usd_per_mtok / TOKENS_PER_MTOK)
