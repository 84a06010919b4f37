"""Founder: what an accepted answer costs, and how long the slowest 5 % take. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import stdev
from typing import Literal

from fusewire.analysis.compare.cards import (
    Card,
    Evidence,
    Lens,
    SideName,
    Step,
    choose_evidence,
)
from fusewire.analysis.compare.intervals import Z95, log_ratio, quantile
from fusewire.analysis.compare.quality import read_worths
from fusewire.analysis.compare.rows import Pair, Rules
from fusewire.analysis.measures import LEAST_N, Interval

MOST_UNPRICED = 0.05
"""If more of its answers have no price, nothing is said of what it costs."""

Acceptance = Literal["right by label", "preferred by the judge"]
"""When an answer is accepted."""

FOUNDER = Lens(
    "Founder",
    "What does a good answer cost, and how slow is it at worst?",
    "50 × min(1, budget / USD per accepted answer) + 50 × min(1, budget / p95 latency); without a"
    " budget, the lower value of the two is it",
    "% saved per accepted answer",
)


@dataclass(frozen=True)
class Price:
    """What a side costs and how long it takes, over the same prompts as the other."""

    n: int
    n_unpriced: int
    usd_per_1000: float | None
    """Of the answers that have a price; None if none has."""
    usd_per_accepted: float | None
    """None if fewer than LEAST_N prompts tell, or more than MOST_UNPRICED are unpriced."""
    accepted_means: Acceptance | None
    p95_ms: Interval | None


def prices(pairs: Sequence[Pair]) -> tuple[Price, Price]:
    """What A and B cost."""
    return _price(pairs, "a"), _price(pairs, "b")


def _price(pairs: Sequence[Pair], name: SideName) -> Price:
    sides = [pair.side(name) for pair in pairs if pair.side(name).is_answered]
    costs = [side.cost_usd for side in sides if side.cost_usd is not None]
    n_unpriced = len(sides) - len(costs)
    latencies = [side.latency_ms for side in sides if side.latency_ms is not None]
    spending = _spending(pairs)
    usd_per_accepted = None
    is_priced = n_unpriced <= MOST_UNPRICED * len(sides)
    if spending and len(spending.costs[name]) >= LEAST_N and is_priced:
        n_accepted = sum(spending.accepted[name])
        usd_per_accepted = math.fsum(spending.costs[name]) / n_accepted if n_accepted else None
    return Price(
        n=len(sides),
        n_unpriced=n_unpriced,
        usd_per_1000=1000 * math.fsum(costs) / len(costs) if costs else None,
        usd_per_accepted=usd_per_accepted,
        accepted_means=spending.means if spending else None,
        p95_ms=quantile(latencies, 0.95) if len(latencies) >= LEAST_N else None,
    )


@dataclass(frozen=True)
class _Spending:
    """Costs, and whether they bought an accepted answer, per prompt with both prices known."""

    means: Acceptance
    costs: dict[SideName, list[float]]
    accepted: dict[SideName, list[float]]


def _spending(pairs: Sequence[Pair]) -> _Spending | None:
    source, worths = read_worths(pairs)
    costs: dict[SideName, list[float]] = {"a": [], "b": []}
    accepted: dict[SideName, list[float]] = {"a": [], "b": []}
    for worth in worths:
        cost_a, cost_b = worth.pair.a.cost_usd, worth.pair.b.cost_usd
        if cost_a is None or cost_b is None:
            continue
        costs["a"].append(cost_a)
        costs["b"].append(cost_b)
        accepted["a"].append(worth.a)
        accepted["b"].append(worth.b)
    if not costs["a"]:
        return None
    means: Acceptance = "right by label" if source == "labels" else "preferred by the judge"
    return _Spending(means, costs, accepted)


def founder(pairs: Sequence[Pair], rules: Rules) -> Card:
    """USD per accepted answer and p95 latency, against budgets or the other."""
    price_a, price_b = prices(pairs)
    n = len(pairs)
    spending = _spending(pairs)
    details = (_details("A", price_a), _details("B", price_b))
    if price_a.usd_per_accepted is None or price_b.usd_per_accepted is None:
        return FOUNDER.unknown(n, _missing(pairs, price_a, price_b), details)
    if price_a.p95_ms is None or price_b.p95_ms is None:
        return FOUNDER.unknown(n, f"fewer than {LEAST_N} latencies", details)
    assert spending is not None
    usd = (price_a.usd_per_accepted, price_b.usd_per_accepted)
    p95 = (price_a.p95_ms.value, price_b.p95_ms.value)
    usd_budget = rules.budget_usd if rules.budget_usd is not None else min(usd)
    ms_budget = rules.budget_ms if rules.budget_ms is not None else min(p95)
    parts = [
        50 * _within(usd_budget, cost) + 50 * _within(ms_budget, ms)
        for cost, ms in zip(usd, p95, strict=True)
    ]
    saving = _saving(spending)
    step = _step(price_b, rules, saving, (price_a.p95_ms, price_b.p95_ms))
    card = FOUNDER.card(len(spending.costs["a"]), (parts[0], parts[1]), saving, step, details)
    return replace(card, evidence=_evidence(pairs, usd))


def _within(budget: float, value: float) -> float:
    return 1.0 if value <= budget else budget / value


def _saving(spending: _Spending) -> Interval | None:
    """How many % less B costs per accepted answer than A; None if one costs nothing."""
    ratios = {
        name: log_ratio(spending.costs[name], spending.accepted[name]) for name in spending.costs
    }
    ratio_a, ratio_b = ratios["a"], ratios["b"]
    if ratio_a is None or ratio_b is None:
        return None
    value = ratio_b[0] - ratio_a[0]
    moves = [b - a for a, b in zip(ratio_a[1], ratio_b[1], strict=True)]
    half = Z95 * stdev(moves) / math.sqrt(len(moves))
    value_low, value_high = (100 * (1 - math.exp(value + sign * half)) for sign in (1, -1))
    return Interval(100 * (1 - math.exp(value)), value_low, value_high)


def _step(
    price_b: Price, rules: Rules, saving: Interval | None, p95: tuple[Interval, Interval]
) -> Step:
    """`skip` if B is over a budget, or without one costs more or is slower, beyond doubt."""
    assert price_b.usd_per_accepted is not None
    a, b = p95
    is_dear = saving is not None and saving.high < 0
    is_slow = b.low > a.high
    if rules.budget_usd is not None:
        is_dear = price_b.usd_per_accepted > rules.budget_usd
    if rules.budget_ms is not None:
        is_slow = b.value > rules.budget_ms
    return "skip" if is_dear or is_slow else "ship"


def _evidence(pairs: Sequence[Pair], usd: tuple[float, float]) -> Evidence | None:
    speaks: Literal["for B", "against B"] = "for B" if usd[1] < usd[0] else "against B"
    sign = 1 if speaks == "for B" else -1
    with_costs = [
        pair
        for pair in pairs
        if pair.a.cost_usd is not None
        and pair.b.cost_usd is not None
        and pair.judgement.reason
        and sign * (pair.a.cost_usd - pair.b.cost_usd) > 0
    ]
    if not with_costs:
        return None
    largest = max(
        with_costs,
        key=lambda pair: (
            abs((pair.a.cost_usd or 0) - (pair.b.cost_usd or 0)),
            pair.order,
        ),
    )
    return choose_evidence([largest], speaks)


def _details(name: str, price: Price) -> str:
    cost = "–" if price.usd_per_accepted is None else f"USD {price.usd_per_accepted:.4g}"
    p95 = "–"
    if price.p95_ms is not None:
        p95 = f"{price.p95_ms.value:,.0f} ms ({price.p95_ms.low:,.0f} to {price.p95_ms.high:,.0f})"
    return f"{name}: {cost} per accepted answer, p95 {p95}"


def _missing(pairs: Sequence[Pair], *both: Price) -> str:
    if any(price.n_unpriced > MOST_UNPRICED * price.n for price in both):
        return "more than 5 % of the answers have no price"
    spending = _spending(pairs)
    if spending is None:
        return "no labels or verdicts say which answers are accepted"
    n = len(spending.costs["a"])
    if n < LEAST_N:
        return f"{n} prompts have prices, and labels or verdicts; {LEAST_N} are the least"
    return "not a single answer was accepted"
