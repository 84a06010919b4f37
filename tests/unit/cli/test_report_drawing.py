"""Bars, intervals and pages of reports."""

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.analysis.measures import Interval, rate
from fusewire.analysis.money import usd
from fusewire.analysis.ranking import MatrixCell
from fusewire.analysis.reports.cost import CostKey, CostReport, CostRow
from fusewire.analysis.reports.drift import (
    DriftFigure,
    DriftReport,
    Estimate,
    PoolDrift,
)
from fusewire.analysis.reports.judge import (
    BiasTest,
    JudgeReport,
    JudgeRow,
    LabelAgreement,
    PoolFallback,
    VoteAgreement,
)
from fusewire.analysis.reports.leaderboard import (
    JudgeBoard,
    LeaderboardReport,
    ModelRow,
    PoolBoard,
    RankRow,
)
from fusewire.analysis.reports.period import Period, parse_periods
from fusewire.analysis.reports.pool import AblationRow, LiftRow, PoolReport, PoolRow
from fusewire_cli.report.drawing import (
    bar,
    interval,
    milliseconds,
    percent,
    rate_text,
    usd_interval,
)
from fusewire_cli.report.page import Page, PageTable
from fusewire_cli.report.show import show_judge, show_leaderboard, show_pool
from fusewire_cli.report.show_cost import show_cost, show_drift

RECENT, EARLIER = parse_periods("7d", "28d", datetime(2026, 11, 30, tzinfo=UTC))


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "    "),
        (0.5, "██  "),
        (1.0, "████"),
        (1 / 32, "▏   "),
        (0.3, "█▎  "),
        (None, "    "),
        (-1.0, "    "),
        (7.0, "████"),
    ],
)
def test_a_bar_fills_its_share(share: float | None, text: str) -> None:
    assert bar(share, 4) == text


@pytest.mark.parametrize(
    ("low", "value", "high", "text"),
    [
        (0.25, 0.5, 0.75, "  ├─●─┤  "),
        (0.25, None, 0.75, "  ├───┤  "),
        (0.0, 0.5, 1.0, "├───●───┤"),
        (0.5, 0.5, 0.5, "    ●    "),
        (0.5, None, 0.5, "    ─    "),
        (0.25, 0.25, 0.75, "  ●───┤  "),
        (-5.0, 0.5, 5.0, "├───●───┤"),
        (2.0, 3.0, 4.0, "        ●"),
    ],
)
def test_an_interval_stands_at_its_place(
    low: float, value: float | None, high: float, text: str
) -> None:
    assert interval(low, value, high, 0, 1, 9) == text


@given(st.lists(st.floats(-10, 10), min_size=5, max_size=5), st.integers(1, 40))
def test_a_drawing_is_as_wide_as_it_shall_be(numbers: list[float], width: int) -> None:
    low, value, high = sorted(numbers[:3])
    lowest, highest = sorted(numbers[3:])
    assert len(interval(low, value, high, lowest, highest, width)) == width
    assert len(bar(value, width)) == width


def test_numbers_as_text() -> None:
    assert rate_text(rate(50, 100)) == "50.0 % (40.4–59.6)"
    assert rate_text(rate(5, 10)) == "– (23.7–76.3)"
    assert rate_text(rate(0, 0)) == rate_text(None) == percent(None) == milliseconds(None) == "–"
    assert (usd(None), usd(0.0), usd(0.00412), usd(1234.5)) == (
        "unknown", "0.00", "0.00412", "1,234.50",
    )  # fmt: skip
    assert usd_interval(Interval(0.5, 0.25, 0.75)) == "0.500 (0.250–0.750)"
    assert (usd(-0.5, "+z"), usd(1.5, "+z"), usd(0.0, "+z")) == ("-0.500", "+1.50", "+0.00")
    assert usd(0.00000123) == "0.00000123"
    assert usd_interval(None) == "–"
    assert (milliseconds(812.4), milliseconds(1600.0)) == ("812 ms", "1.6 s")


RATE = rate(1234, 12345)


def leaderboard_report() -> LeaderboardReport:
    models = tuple(
        ModelRow(name, "hosted", 12345, RATE, RATE, 1234, RATE, 123.0, None, 812.0, 1600.0)
        for name in ("mistral-small", "gpt")
    )
    ranks = (
        RankRow("mistral-small", 9999, Interval(1.5, 1.2, 2.0), is_own_family=True),
        RankRow("gpt", 29, None, is_own_family=False),
    )
    cells = (MatrixCell("mistral-small", "gpt", 4, rate(70, 100)),
             MatrixCell("gpt", "mistral-small", 4, rate(30, 100)))  # fmt: skip
    board = JudgeBoard("j", True, True, ranks, cells, (("a", "b", "c"),))
    return LeaderboardReport(RECENT, EARLIER, (PoolBoard("p", models, (board,)),))


def judge_report() -> JudgeReport:
    test = BiasTest(RATE, 0.3333, "bias")
    row = JudgeRow(
        "p", "j", 12345, test, RATE, BiasTest(RATE, 0.1, "no bias seen"),
        BiasTest(rate(0, 0), None, "too few"), RATE, RATE, RATE,
        VoteAgreement(RATE, 0.61), LabelAgreement(RATE, RATE, RATE),
    )  # fmt: skip
    return JudgeReport("Tests.", (row,), (PoolFallback("p", RATE),))


def cost_report() -> CostReport:
    row = CostRow(
        "default", 12345, 5, 1234.5, 1000.0, 234.5, 0.19, None, Interval(0.1, 0.09, 0.11), 50, 40,
        0.2,
    )  # fmt: skip
    return CostReport(RECENT, CostKey.pool, row, (row,), (), None, 12.5)


def drift_report() -> DriftReport:
    share = DriftFigure(
        "win share", "gpt", "share", Estimate(1234, 0.1, 0.0, 0.2), Estimate(12345, 0.2, 0.1, 0.3),
        Interval(-0.1, -0.15, -0.05), "differs",
    )  # fmt: skip
    cost = DriftFigure(
        "cost", None, "usd", Estimate(1234, 0.1, 0.0, 0.2),
        Estimate(12345, 0.2, 0.1, 0.3), Interval(-0.1, -0.15, 0.05), "no difference seen",
    )  # fmt: skip
    few = DriftFigure(
        "p95", None, "ms", Estimate(3, None, 1.0, 2.0), Estimate(0, None, None, None), None,
        "too few",
    )  # fmt: skip
    pool = PoolDrift("p", True, {"c2": 1234}, {"c1": 12345}, (share, cost, few))
    return DriftReport(RECENT, EARLIER, 2, (pool,))


def pool_report() -> PoolReport:
    lift = LiftRow("gold", 12345, RATE, "mistral-small", RATE, RATE, 0.02,
                   Interval(0.02, 0.01, 0.03), 12345)  # fmt: skip
    ablation = AblationRow("mistral-small", RATE, RATE, 5, 2, 12.5, None)
    row = PoolRow("p", 12345, RATE, RATE, RATE, RATE, {"complete": RATE}, (lift,), (ablation,))
    return PoolReport((row,))


SCREENS = [
    (show_leaderboard, leaderboard_report()),
    (show_judge, judge_report()),
    (show_cost, cost_report()),
    (show_drift, drift_report()),
    (show_pool, pool_report()),
]


@pytest.mark.parametrize(("show", "report"), SCREENS, ids=[show.__name__ for show, _ in SCREENS])
def test_a_report_is_the_same_at_80_columns_as_in_a_file(
    show: Any, report: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is folded, cut or coloured."""
    show(report, Page(80))
    narrow = capsys.readouterr().out
    show(report, Page())
    wide = capsys.readouterr().out

    assert max(map(len, narrow.splitlines())) <= 80
    assert "\x1b" not in narrow
    assert "…" not in re.sub(r"\S+ … \S+|\(\S+…\S+\)", "", narrow)
    assert [
        line.split()
        for line in narrow.splitlines()
        if "of 20" not in line and "about one" not in line
    ] == [line.split() for line in wide.splitlines() if "of 20" not in line]


def test_marks_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show_leaderboard(leaderboard_report(), Page(80))
    text = capsys.readouterr().out

    assert "self-graded" in text
    assert "judged by its own family" in text
    assert "no order holds: a beats b beats c beats a" in text
    assert re.search(r"mistral-small \* +9,999 +1\.50", text)
    assert re.search(r"gpt +29 +–", text)
    assert "gpt            mistral-small" not in text


def test_findings_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show_judge(judge_report(), Page(80))
    text = capsys.readouterr().out
    assert "follows place" in text
    assert "no bias seen" in text
    assert "too few" in text
    assert "kappa 0.61" in text

    show_drift(drift_report(), Page(80))
    text = capsys.readouterr().out
    assert "the configuration was changed" in text
    assert re.search(r"win share, gpt .*-10\.0 \(-15\.0…-5\.0\) +differs", text) is not None
    assert re.search(r"p95 +0/3 +– +– +– +too few", text)


def test_a_model_is_drawn_as_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    """Not read as markup."""
    Page(80).table(PageTable(("model", "n>"), [("[red]a[/red]", "1")]))
    assert "[red]a[/red]" in capsys.readouterr().out


def test_period_in_words() -> None:
    assert str(Period(None, RECENT.last)) == "the beginning to 2026-11-30"
