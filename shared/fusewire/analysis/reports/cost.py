"""What outcomes cost: of members and judge, hosted and edge, per accepted answer."""

from dataclasses import dataclass
from enum import StrEnum

from fusewire.analysis.measures import LEAST_N, Interval, mean
from fusewire.analysis.reports.period import Period
from fusewire.analysis.reports.rows import Row, Rows, amount, count


class CostKey(StrEnum):
    """What costs are grouped by."""

    pool = "pool"
    model = "model"
    day = "day"
    tenant = "tenant"


@dataclass(frozen=True)
class CostRow:
    """Costs of a pool, a day or a tenant, or of all. Sums are of priced outcomes alone."""

    key: str
    outcomes: int
    unpriced: int
    """Outcomes whose cost is unknown: they are in none of the sums."""
    usd: float | None
    """None where no outcome is priced."""
    panel_usd: float | None
    judge_usd: float | None
    judge_share: float | None
    """Of `usd`; None where that is 0 or unknown."""
    late_usd: float | None
    """Of calls that ended after their outcome; not in `usd`. None where none is known."""
    usd_per_outcome: Interval | None
    """None under LEAST_N priced outcomes."""
    labelled: int
    """Priced outcomes with a label."""
    accepted: int
    """Those that are right."""
    usd_per_accepted: float | None
    """What the labelled ones cost, for each right one; None under LEAST_N labelled."""


@dataclass(frozen=True)
class CallCostRow:
    """Costs of a model's calls, as member or as judge."""

    model: str
    tier: str | None
    """edge or hosted; None of a judge, whose tier views do not have."""
    role: str
    """member or judge."""
    calls: int
    """Answers, or judged outcomes."""
    unpriced: int
    usd: float | None


@dataclass(frozen=True)
class CostReport:
    """`fusewire report cost`."""

    period: Period
    by: CostKey
    total: CostRow | None
    """None without outcomes."""
    rows: tuple[CostRow, ...]
    """By pool, day or tenant; empty by model."""
    calls: tuple[CallCostRow, ...]
    """By model."""
    edge_usd: float | None
    """Of members at the edge; None where none is priced."""
    hosted_usd: float | None
    """Of hosted members."""


@dataclass(frozen=True)
class CostRows:
    """What the report is made of."""

    totals: Rows
    """One row of sums of `v_outcome`: outcomes, priced, usd, usd_squares, panel_usd, judge_usd,
    late_usd, labelled, accepted, labelled_usd."""
    groups: Rows = ()
    """The same for each `key`."""
    members: Rows = ()
    """Sums of `v_answer`: model, tier, calls, unpriced, usd."""
    judges: Rows = ()
    """Sums of `v_outcome`: model, calls, unpriced, usd."""


def cost_report(rows: CostRows, period: Period, by: CostKey) -> CostReport:
    """Add up what is priced, and count what is not."""
    calls = [_call_row(row, "member") for row in rows.members]
    calls += [_call_row(row, "judge") for row in rows.judges]
    total = _cost_row("all", rows.totals[0]) if rows.totals else None
    groups = [_cost_row(str(row["key"]), row) for row in rows.groups]
    if by is not CostKey.day:
        groups.sort(key=lambda row: (-(row.usd or 0.0), row.key))
    return CostReport(
        period=period,
        by=by,
        total=total if total and total.outcomes else None,
        rows=tuple(groups),
        calls=tuple(sorted(calls, key=lambda row: (-(row.usd or 0.0), row.role, row.model))),
        edge_usd=_add(calls, "edge"),
        hosted_usd=_add(calls, "hosted"),
    )


def _cost_row(key: str, row: Row) -> CostRow:
    outcomes, n_labels = count(row, "outcomes"), count(row, "labelled")
    usd, accepted = amount(row, "usd"), count(row, "accepted")
    judge_usd, labelled_usd = amount(row, "judge_usd"), amount(row, "labelled_usd")
    has_rate = n_labels >= LEAST_N and accepted and labelled_usd is not None
    return CostRow(
        key=key,
        outcomes=outcomes,
        unpriced=outcomes - count(row, "priced"),
        usd=usd,
        panel_usd=amount(row, "panel_usd"),
        judge_usd=judge_usd,
        judge_share=judge_usd / usd if usd and judge_usd is not None else None,
        late_usd=amount(row, "late_usd"),
        usd_per_outcome=cost_per_outcome(row),
        labelled=n_labels,
        accepted=accepted,
        usd_per_accepted=(labelled_usd or 0.0) / accepted if has_rate else None,
    )


def cost_per_outcome(row: Row) -> Interval | None:
    """The mean cost of priced outcomes, from `priced`, `usd` and `usd_squares`."""
    n, usd, squares = count(row, "priced"), amount(row, "usd"), amount(row, "usd_squares")
    if n < LEAST_N or usd is None or squares is None:
        return None
    interval = mean(usd, squares, n)
    return interval and Interval(interval.value, max(interval.low, 0.0), interval.high)


def _call_row(row: Row, role: str) -> CallCostRow:
    calls, n_unpriced, usd = count(row, "calls"), count(row, "unpriced"), amount(row, "usd")
    if calls and n_unpriced == calls and not usd:
        # Only failures had a cost, which was 0: nothing is known of what an answer costs.
        usd = None
    tier = str(row["tier"]) if role == "member" else None
    return CallCostRow(str(row["model"]), tier, role, calls, n_unpriced, usd)


def _add(calls: list[CallCostRow], tier: str) -> float | None:
    amounts = [row.usd for row in calls if row.tier == tier and row.usd is not None]
    return sum(amounts) if amounts else None
