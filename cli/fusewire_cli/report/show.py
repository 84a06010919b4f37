"""The reports on the terminal. Numbers stand beside everything that is drawn."""

from fusewire.analysis.measures import Interval
from fusewire.analysis.money import usd
from fusewire.analysis.ranking import MatrixCell
from fusewire.analysis.reports.judge import BiasTest, JudgeReport, JudgeRow
from fusewire.analysis.reports.leaderboard import (
    JudgeBoard,
    LeaderboardReport,
    ModelRow,
    PoolBoard,
    RankRow,
)
from fusewire.analysis.reports.pool import AblationRow, LiftRow, PoolReport, PoolRow
from fusewire_cli.report.drawing import (
    DASH,
    interval,
    milliseconds,
    percent,
    rate_text,
)
from fusewire_cli.report.page import Page, PageTable

AXIS = 24
NARROW_AXIS = 16
BIAS_AXIS = 13


# -- leaderboard ------------------------------------------------------------------------------


def show_leaderboard(report: LeaderboardReport, page: Page) -> None:
    """Draw `fusewire report leaderboard`."""
    page.text(f"{report.period} (UTC days)")
    for pool in report.pools:
        _show_pool_board(pool, report, page)


def _show_pool_board(pool: PoolBoard, report: LeaderboardReport, page: Page) -> None:
    page.gap()
    page.title(f"pool {pool.pool}")
    rows = [_quality_cells(row) for row in pool.models]
    page.table(PageTable(("model", "asked>", "labels>", "right>", "won>"), rows))
    page.gap()
    rows = [_cost_cells(row) for row in pool.models]
    headings = ("model", "tier", "failed>", "USD>", "per win>", "p50>", "p95>")
    page.table(PageTable(headings, rows))
    for board in pool.boards:
        page.gap()
        _show_judge_board(board, report, page)


def _quality_cells(row: ModelRow) -> tuple[str, ...]:
    return (
        row.model,
        f"{row.asked:,}",
        f"{row.accuracy.n:,}" if row.accuracy else DASH,
        rate_text(row.accuracy),
        rate_text(row.win_share),
    )


def _cost_cells(row: ModelRow) -> tuple[str, ...]:
    return (
        row.model,
        row.tier,
        rate_text(row.failure),
        usd(row.cost_usd),
        usd(row.cost_per_win_usd) if row.wins else DASH,
        milliseconds(row.p50_ms),
        milliseconds(row.p95_ms),
    )


def _show_judge_board(board: JudgeBoard, report: LeaderboardReport, page: Page) -> None:
    page.title(f"strength as judged by {board.judge}")
    if board.is_self_graded:
        page.text("self-graded: this judge decided outcomes that it grades here")
    if board.has_own_family:
        page.text("judged by its own family: some models are of it")
    _show_ranks(board, report, page)
    page.gap()
    page.title(f"pairs as judged by {board.judge}, ties as half")
    better = [cell for cell in board.cells if _is_shown(cell)]
    page.table(PageTable(("model", "against", "n>", "won>", "0 … 100 %"), list(map(_pair, better))))
    for ring in board.cycles:
        page.text(f"no order holds: {' beats '.join((*ring, ring[0]))}")


def _show_ranks(board: JudgeBoard, report: LeaderboardReport, page: Page) -> None:
    lowest, highest = _strength_axis(board.ranks)
    rows = [_rank_cells(row, lowest, highest) for row in board.ranks]
    headings = ("model", "n>", "strength>", f"{lowest:.2g} … {highest:.2g}")
    page.table(PageTable(headings, rows))
    if any(row.is_own_family for row in board.ranks):
        page.text("* of the judge's own family")
    if report.earlier:
        changes = [
            (row.model, _ratio_text(row.earlier), _ratio_text(row.ratio)) for row in board.ranks
        ]
        page.gap()
        columns = ("model", f"{report.earlier}>", "grew by the factor>")
        page.table(PageTable(columns, changes))


def _is_shown(cell: MatrixCell) -> bool:
    """Whether it is the direction of a pair that is shown: that of the better model."""
    share = cell.rate.count / cell.rate.n
    return share > 0.5 or (share == 0.5 and cell.model < cell.opponent)


def _pair(cell: MatrixCell) -> tuple[str, ...]:
    rate = cell.rate
    drawing = interval(rate.low, rate.value, rate.high, 0.0, 1.0, NARROW_AXIS + 1)
    return cell.model, cell.opponent, f"{rate.n:,}", rate_text(rate), drawing


def _strength_axis(ranks: tuple[RankRow, ...]) -> tuple[float, float]:
    intervals = [row.strength for row in ranks if row.strength]
    lows, highs = [it.low for it in intervals], [it.high for it in intervals]
    return min(lows, default=0.0), max(highs, default=1.0)


def _rank_cells(row: RankRow, lowest: float, highest: float) -> tuple[str, ...]:
    drawing = ""
    if row.strength:
        it = row.strength
        drawing = interval(it.low, it.value, it.high, lowest, highest, AXIS)
    name = f"{row.model} *" if row.is_own_family else row.model
    return name, f"{row.n:,}", _ratio_text(row.strength), drawing


def _ratio_text(ratio: Interval | None) -> str:
    if ratio is None:
        return DASH
    return f"{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


# -- judge ------------------------------------------------------------------------------------


def show_judge(report: JudgeReport, page: Page) -> None:
    """Draw `fusewire report judge`."""
    for row in report.judges:
        _show_judge_row(row, page)
        page.gap()
    rows = [(it.pool, f"{it.fallbacks.n:,}", rate_text(it.fallbacks)) for it in report.pools]
    page.table(PageTable(("pool", "outcomes>", "decided by a rule for want of a judge>"), rows))
    page.gap()
    page.text(report.tests)


def _show_judge_row(row: JudgeRow, page: Page) -> None:
    page.title(f"judge {row.judge} in pool {row.pool}: {row.verdicts:,} verdicts")
    tests = (("first shown", row.place), ("longest", row.length), ("own family", row.family))
    rows = [_bias_cells(name, test) for name, test in tests]
    headings = ("won by the", "n>", "rate>", "fair>", "0 … 100 %", "finding")
    page.table(PageTable(headings, rows))
    rates = [
        ("another winner in the opposite order", row.flips),
        ("verdicts repaired", row.repaired),
        ("verdicts asked for again", row.reasked),
        ("controls picked", row.controls),
    ]
    if row.votes:
        rates.append((f"people agree{_kappa_text(row)}", row.votes.rate))
    if row.labels:
        rates.append(("right by label", row.labels.accepted))
        rates.append(("a right answer was there", row.labels.oracle))
        rates.append(("right where one was there", row.labels.choice))
    cells = [(name, f"{rate.n:,}", rate_text(rate)) for name, rate in rates]
    page.table(PageTable(("", "n>", "rate>"), cells))
    if row.votes is None:
        page.text("no votes of people yet")


def _kappa_text(row: JudgeRow) -> str:
    if row.votes is None or row.votes.kappa is None:
        return ""
    return f", kappa {row.votes.kappa:.2f}"


def _bias_cells(name: str, test: BiasTest) -> tuple[str, ...]:
    rate = test.rate
    finding: str = test.finding
    if test.finding == "bias":
        finding = {"first shown": "follows place", "longest": "follows length"}.get(
            name, "follows family"
        )
    drawing = interval(rate.low, rate.value, rate.high, 0.0, 1.0, BIAS_AXIS)
    return name, f"{rate.n:,}", rate_text(rate), percent(test.fair_rate), drawing, finding


# -- pool -------------------------------------------------------------------------------------


def show_pool(report: PoolReport, page: Page) -> None:
    """Draw `fusewire report pool`."""
    for row in report.pools:
        _show_pool_row(row, page)
        page.gap()


def _show_pool_row(row: PoolRow, page: Page) -> None:
    page.title(f"pool {row.pool}: {row.outcomes:,} outcomes")
    rates = [
        ("degraded", row.degraded),
        ("failed", row.failed),
        ("decided by a rule for want of a judge", row.fallbacks),
        ("closed answers that differed", row.disagreements),
        *((f"panel ended: {name}", rate) for name, rate in row.closed_by.items()),
    ]
    page.table(PageTable(("", "rate>"), [(name, rate_text(rate)) for name, rate in rates]))
    for lift in row.lifts:
        page.gap()
        _show_lift(lift, page)
    if not row.lifts:
        page.text("no labels and no votes: whether fusing is right more often is not known")
        return
    page.gap()
    headings = ("without", "n>", "lost>", "lost at most>", "USD>", "USD/point>")
    page.table(PageTable(headings, [_ablation_cells(it) for it in row.ablations]))


def _show_lift(lift: LiftRow, page: Page) -> None:
    page.title(f"right by {lift.audit_source}, n {lift.n:,}")
    rates = (
        ("fused", lift.fused),
        (f"best single: {lift.best_single}", lift.single),
        ("oracle", lift.oracle),
    )
    rows = []
    for name, rate in rates:
        drawing = interval(rate.low, rate.value, rate.high, 0.0, 1.0, AXIS + 1)
        rows.append((name, rate_text(rate), drawing))
    page.table(PageTable(("", "rate>", "0 … 100 %"), rows))
    page.text(f"lift {_points(lift.lift)}{_paired_text(lift)}")


def _points(share: float | None) -> str:
    return DASH if share is None else f"{100 * share:+.1f} points"


def _paired_text(lift: LiftRow) -> str:
    if lift.paired is None:
        return ""
    it = lift.paired
    finding = "no difference seen" if it.low <= 0 <= it.high else "it differs"
    return (
        f"; paired {_points(it.value)} ({100 * it.low:+.1f} to {100 * it.high:+.1f}),"
        f" n {lift.n_paired:,}: {finding}"
    )


def _ablation_cells(row: AblationRow) -> tuple[str, ...]:
    return (
        row.model,
        f"{row.score_loss.n:,}",
        rate_text(row.score_loss),
        rate_text(row.sole_best),
        usd(row.cost_usd),
        DASH if row.usd_per_point is None else usd(row.usd_per_point),
    )
