"""The reports on costs and drift on the terminal."""

from fusewire.analysis.money import usd
from fusewire.analysis.reports.cost import CallCostRow, CostKey, CostReport, CostRow
from fusewire.analysis.reports.drift import DriftFigure, DriftReport, Estimate, PoolDrift, Unit
from fusewire_cli.report.drawing import DASH, bar, milliseconds, percent, usd_interval
from fusewire_cli.report.page import Page, PageTable

BAR = 16
SMALL_BAR = 6


def show_cost(report: CostReport, page: Page) -> None:
    """Draw `fusewire report cost`."""
    page.text(f"{report.period} (UTC days); sums are of outcomes whose cost is known")
    page.text("hosted and edge members: of all their answers whose cost is known")
    total = report.total
    if total is None:
        return
    page.gap()
    page.table(PageTable(("", "", ""), _total_rows(report, total)))
    page.gap()
    if report.by is CostKey.model:
        most = max((row.usd or 0.0 for row in report.calls), default=0.0)
        headings = ("model", "as", "tier", "calls>", "unpriced>", "USD>", "")
        page.table(PageTable(headings, [_call_cells(row, most) for row in report.calls]))
        return
    most = max((row.usd or 0.0 for row in report.rows), default=0.0)
    columns = ("outcomes>", "unpriced>", "USD>", "judge>", "USD/outcome>", "USD/right>", "")
    rows = [_cost_cells(row, most) for row in report.rows]
    page.table(PageTable((report.by.value, *columns), rows))


def _total_rows(report: CostReport, total: CostRow) -> list[tuple[str, str, str]]:
    usd_ = total.usd or 0.0

    def part(name: str, amount: float | None) -> tuple[str, str, str]:
        if amount is None:
            return name, "unknown", ""
        share = amount / usd_ if usd_ else None
        return name, f"{usd(amount)} USD", f"{bar(share, BAR)} {percent(share)}"

    accepted = f"{usd(total.usd_per_accepted)} USD" if total.usd_per_accepted is not None else DASH
    return [
        ("outcomes", f"{total.outcomes:,}", f"{total.unpriced:,} unpriced, in no sum"),
        ("all", "unknown" if total.usd is None else f"{usd(total.usd)} USD", ""),
        part("members", total.panel_usd),
        part("judge", total.judge_usd),
        part("hosted members", report.hosted_usd),
        part("edge members", report.edge_usd),
        ("after the outcome",
         f"{usd(total.late_usd)} USD" if total.late_usd is not None else "none known", "in no sum"),
        ("per outcome", usd_interval(total.usd_per_outcome), ""),
        ("per accepted", accepted, f"{total.accepted:,} of {total.labelled:,} labelled"),
    ]  # fmt: skip


def _cost_cells(row: CostRow, most: float) -> tuple[str, ...]:
    return (
        row.key,
        f"{row.outcomes:,}",
        f"{row.unpriced:,}",
        usd(row.usd),
        percent(row.judge_share, 0),
        DASH if row.usd_per_outcome is None else usd(row.usd_per_outcome.value),
        DASH if row.usd_per_accepted is None else usd(row.usd_per_accepted),
        bar(row.usd / most if row.usd and most else None, SMALL_BAR),
    )


def _call_cells(row: CallCostRow, most: float) -> tuple[str, ...]:
    return (
        row.model,
        row.role,
        row.tier or DASH,
        f"{row.calls:,}",
        f"{row.unpriced:,}",
        usd(row.usd),
        bar(row.usd / most if row.usd and most else None, BAR),
    )


# -- drift ------------------------------------------------------------------------------------


def show_drift(report: DriftReport, page: Page) -> None:
    """Draw `fusewire report drift`."""
    page.text(f"recent {report.recent}, earlier {report.earlier} (UTC days)")
    for pool in report.pools:
        page.gap()
        _show_pool_drift(pool, page)
    page.gap()
    page.text(
        f"{report.compared} figures are compared, each with a 95 % interval:"
        " of 20 that are as they were, about one seems to differ"
    )


def _show_pool_drift(pool: PoolDrift, page: Page) -> None:
    page.title(f"pool {pool.pool}")
    page.text(f"configurations, recent: {_configs_text(pool.recent_configs)}")
    page.text(f"configurations, earlier: {_configs_text(pool.earlier_configs)}")
    if pool.is_reconfigured:
        page.text("the configuration was changed: what differs may be that change, and no drift")
    rows = [_figure_cells(figure) for figure in pool.figures]
    headings = ("figure", "n>", "before>", "now>", "difference>", "")
    page.table(PageTable(headings, rows))


def _configs_text(configs: dict[str, int]) -> str:
    return ", ".join(f"{name} ({n:,} outcomes)" for name, n in configs.items()) or "no outcomes"


def _figure_cells(figure: DriftFigure) -> tuple[str, ...]:
    name = f"{figure.name}, {figure.model}" if figure.model else figure.name
    change = DASH
    if figure.change:
        it, unit = figure.change, figure.unit
        bounds = f"({_with_sign(it.low, unit)}…{_with_sign(it.high, unit)})"
        change = f"{_with_sign(it.value, unit)} {bounds}"
    return (
        name,
        f"{figure.earlier.n:,}/{figure.recent.n:,}",
        _estimate_text(figure.earlier, figure.unit),
        _estimate_text(figure.recent, figure.unit),
        change,
        "" if figure.finding == "no difference seen" else figure.finding,
    )


def _estimate_text(estimate: Estimate, unit: Unit) -> str:
    value = estimate.value
    if value is None:
        return DASH
    if unit == "share":
        return percent(value)
    return usd(value) if unit == "usd" else milliseconds(value)


def _with_sign(value: float, unit: Unit) -> str:
    if unit == "share":
        return f"{100 * value:+.1f}"
    return usd(value, "+z") if unit == "usd" else f"{value:+.0f}"
