"""The verdict of a comparison, by a rule that is declared before any prompt is looked at. Pure.

**The rule.** Three differences are looked at, all B less A on the same prompts:

- quality: on how many more of 100 prompts B is better: right by the gold label where only A is
  wrong, or, without labels, better as the judge says in both orders or by margin; a judge that
  contradicts itself counts as a tie;
- cost: the mean difference in USD;
- latency: the median difference in ms.

B may be shipped if it is *not worse* and there is *a reason*. Not worse: the lower bound of the
95 % interval of quality is above minus the margin (a non-inferiority test at 2.5 %, one-sided). A
reason: one of the three differences is in B's favour beyond doubt, which is that its 99 % interval
excludes 0. As three are looked at, where nothing differs something is shipped at most 3 times in
100 (Bonferroni), whatever the three have to do with each other. Both conditions must hold, so that
they need no further adjustment (Berger, "Multiparameter hypothesis testing and acceptance
sampling", Technometrics 24, 1982).

The same holds for A. If only B may be shipped it is SHIP B, if only A may, SHIP A; else it is TOO
CLOSE: nobody may, or both may, each for a reason of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

from fusewire.analysis.compare.intervals import (
    Z95,
    discordance,
    mean_difference,
    points,
    quantile,
)
from fusewire.analysis.compare.quality import QualitySource, read_worths
from fusewire.analysis.compare.rows import Pair
from fusewire.analysis.measures import LEAST_N, Interval

Z_REASON = NormalDist().inv_cdf(0.995)
"""Of a two-sided interval of 99 %."""
Z_POWER = NormalDist().inv_cdf(0.8)

Decision = Literal["SHIP A", "SHIP B", "TOO CLOSE"]
Reason = Literal["better", "cheaper", "faster"]


@dataclass(frozen=True)
class Look:
    """A difference, B less A: its 95 % interval, and the wider one that a reason needs.

    `interval` and `strict` are None if fewer than LEAST_N prompts tell.
    """

    n: int
    interval: Interval | None
    strict: Interval | None
    a: float | None = None
    """What A costs, in USD per prompt, or takes, in ms (the median); likewise `b`."""
    b: float | None = None


@dataclass(frozen=True)
class Header:
    """The verdict, what it rests on, and in words why."""

    decision: Decision
    margin_points: float
    quality_source: QualitySource | None
    quality: Look
    cost: Look
    latency: Look
    reasons_a: tuple[Reason, ...]
    reasons_b: tuple[Reason, ...]
    n_more: int | None
    """Prompts that would decide with a probability of 80 %; None if none would, or it is
    decided."""
    because: str


def judge_header(pairs: Sequence[Pair], margin_points: float) -> Header:
    """Apply the rule of this module to pairs, of which there may be none."""
    source, worths = read_worths(pairs)
    choices = [worth.choice for worth in worths]
    quality = _look_at_quality(choices)
    cost, latency = _look_at_cost(pairs), _look_at_latency(pairs)
    reasons_a = _reasons(quality, cost, latency, sign=-1)
    reasons_b = _reasons(quality, cost, latency, sign=1)
    may_ship_a = _is_not_worse(quality, margin_points, sign=-1) and bool(reasons_a)
    may_ship_b = _is_not_worse(quality, margin_points, sign=1) and bool(reasons_b)
    decision: Decision = "TOO CLOSE"
    if may_ship_a != may_ship_b:
        decision = "SHIP A" if may_ship_a else "SHIP B"
    n_more = None
    if decision == "TOO CLOSE" and not may_ship_a:
        n_more = _n_more(choices, margin_points, reasons_a, reasons_b)
    header = Header(
        decision,
        margin_points,
        source,
        quality,
        cost,
        latency,
        reasons_a,
        reasons_b,
        n_more,
        because="",
    )
    return _explain(header)


def _look_at_quality(choices: Sequence[int]) -> Look:
    if len(choices) < LEAST_N:
        return Look(len(choices), None, None)
    return Look(len(choices), points(choices), points(choices, Z_REASON))


def _look_at_cost(pairs: Sequence[Pair]) -> Look:
    costs = [
        (pair.a.cost_usd, pair.b.cost_usd)
        for pair in pairs
        if pair.a.cost_usd is not None and pair.b.cost_usd is not None
    ]
    n = len(costs)
    if n < LEAST_N:
        return Look(n, None, None)
    differences = [b - a for a, b in costs]
    return Look(
        n,
        mean_difference(differences),
        mean_difference(differences, Z_REASON),
        a=sum(a for a, _ in costs) / n,
        b=sum(b for _, b in costs) / n,
    )


def _look_at_latency(pairs: Sequence[Pair]) -> Look:
    latencies = [
        (pair.a.latency_ms, pair.b.latency_ms)
        for pair in pairs
        if pair.a.latency_ms is not None and pair.b.latency_ms is not None
    ]
    if len(latencies) < LEAST_N:
        return Look(len(latencies), None, None)
    differences = [b - a for a, b in latencies]
    return Look(
        len(latencies),
        quantile(differences, 0.5),
        quantile(differences, 0.5, Z_REASON),
        a=quantile([a for a, _ in latencies], 0.5).value,
        b=quantile([b for _, b in latencies], 0.5).value,
    )


def _is_not_worse(quality: Look, margin_points: float, *, sign: int) -> bool:
    """Whether B (1) or A (-1) is worse by less than the margin, beyond doubt."""
    if quality.interval is None:
        return False
    worst = quality.interval.low if sign > 0 else -quality.interval.high
    return worst > -margin_points


def _is_above(look: Look, sign: int) -> bool:
    """Whether a difference is above 0 (1) or below it (-1), beyond doubt."""
    if look.strict is None:
        return False
    return look.strict.low > 0 if sign > 0 else look.strict.high < 0


def _reasons(quality: Look, cost: Look, latency: Look, *, sign: int) -> tuple[Reason, ...]:
    """What speaks for B (1) or A (-1), beyond doubt."""
    holds: dict[Reason, bool] = {
        "better": _is_above(quality, sign),
        "cheaper": _is_above(cost, -sign),
        "faster": _is_above(latency, -sign),
    }
    return tuple(reason for reason, is_so in holds.items() if is_so)


def _n_more(
    choices: Sequence[int],
    margin_points: float,
    reasons_a: tuple[Reason, ...],
    reasons_b: tuple[Reason, ...],
) -> int | None:
    """How many more prompts would decide, with a power of 80 %.

    If a side has a reason, it has to be shown not to be worse than the margin: from
    (z₁ + z₂)² (p - d²) / (margin + d)² prompts, p being the share on which the two differ and d
    the side's lead (Liu and others, "Tests for equivalence or non-inferiority for paired binary
    data", Statistics in Medicine 21, 2002). Without any, a difference as large as the margin has
    to be found: (z₁ √p + z₂ √(p - margin²))² / margin² (Connor, "Sample size for testing
    differences in proportions for the paired-sample design", Biometrics 43, 1987).
    """
    if not choices:
        return None
    p, margin = discordance(choices), margin_points / 100
    lead = sum(choices) / len(choices)
    leads = [lead] * bool(reasons_b) + [-lead] * bool(reasons_a)
    needs = [
        (Z95 + Z_POWER) ** 2 * max(p - d**2, 0.0) / (margin + d) ** 2
        for d in leads
        if margin + d > 0
    ]
    if not leads and margin > 0:
        root = math.sqrt(max(p - margin**2, 0.0))
        needs = [(Z_REASON * math.sqrt(p) + Z_POWER * root) ** 2 / margin**2]
    if not needs:
        return None
    more = math.ceil(min(needs)) - len(choices)
    return max(more, LEAST_N - len(choices)) if more > 0 or len(choices) < LEAST_N else None


def _explain(header: Header) -> Header:
    """Add why, in a sentence."""
    return replace(header, because=_because(header))


def _because(header: Header) -> str:
    if header.quality_source is None:
        return "nothing says which of the two is better: no labels, and no verdicts between them"
    if header.quality.interval is None:
        return f"only {header.quality.n} prompts tell which is better; {LEAST_N} are the least"
    if header.decision == "TOO CLOSE":
        return _because_too_close(header, header.quality.interval)
    name = header.decision[-1]
    reasons = header.reasons_a if name == "A" else header.reasons_b
    return f"{name} is {_and(reasons)}, and not worse by {header.margin_points:g} points or more"


def _because_too_close(header: Header, quality: Interval) -> str:
    margin = f"{header.margin_points:g} points"
    if header.reasons_a and header.reasons_b:
        return (
            f"A is {_and(header.reasons_a)}, B is {_and(header.reasons_b)}:"
            " a choice of what matters more"
        )
    if reasons := header.reasons_a or header.reasons_b:
        name = "A" if header.reasons_a else "B"
        return f"{name} is {_and(reasons)}, but may be worse by {margin} or more"
    if max(-quality.low, quality.high) < header.margin_points:
        return f"the two are equal within {margin}, and neither is cheaper or faster beyond doubt"
    return "neither is better, cheaper or faster beyond doubt"


def _and(reasons: Sequence[str]) -> str:
    return " and ".join(reasons)
