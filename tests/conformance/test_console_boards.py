"""The console's pages on leaderboards, judges and pools: the figures of the reports, on both
databases."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html import unescape
from html.parser import HTMLParser

import aiohttp
import pytest
from sqlalchemy import text

from fusewire.analysis.reports.judge import judge_report
from fusewire.analysis.reports.leaderboard import rank_by_wins
from fusewire.analysis.reports.period import Period
from fusewire.analysis.reports.pool import pool_report
from fusewire.settings import Database, Settings
from fusewire.store.analyst import Analyst
from fusewire.store.engine import Store
from fusewire.store.sums import bucket_bounds
from fusewire.testing.planted import JudgeTruth, MemberTruth, PoolTruth, Truth, fill
from fusewire_cli.report import reading
from fusewire_cli.report.reading import ReportFilter
from fusewire_console import formats
from fusewire_console.access import Access, Visitor
from fusewire_console.figures.judge import agreement_figures, bias_figures, care_figures
from fusewire_console.figures.pool_value import describe_lift
from fusewire_console.pages import judge, pools

MakeSettings = Callable[..., Settings]
ConsoleRunning = Callable[..., AbstractAsyncContextManager[aiohttp.ClientSession]]
NOW = datetime.now(UTC)
MEMBERS = (
    MemberTruth("alpha", strength=0.8, accuracy=0.8, cost_usd=0.004, failure_rate=0.1, family="al"),
    MemberTruth("beta", strength=0.0, accuracy=0.7, latency_ms=2000),
    MemberTruth("gamma", strength=-0.8, accuracy=0.5, cost_usd=0.0, tier="edge"),
)
JUDGE = JudgeTruth(family="al", position_bias=0.6, family_bias=0.5)
TRUTH = Truth(
    now=NOW,
    pools={"p": PoolTruth(MEMBERS, JUDGE), "small": PoolTruth(MEMBERS[:2])},
    open_share=0.6,
    days=20.0,
)
PAGES = ("/leaderboard", "/judge", "/pools")
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def settings(make_settings: MakeSettings, database: Database) -> Settings:
    return make_settings(database=database)


@pytest.fixture
async def web(
    settings: Settings, store: Store, console_alone: ConsoleRunning
) -> AsyncIterator[aiohttp.ClientSession]:
    """The console on 300 planted outcomes in each of two pools, with votes on some."""
    await fill(store, TRUTH, 300, 1)
    async with store.write() as connection:
        await connection.execute(
            text(
                "INSERT INTO votes (fusion_id, voter_hash, choice, created_at, changed_at)"
                " SELECT fusion_id, 'v', CASE WHEN latency_ms > 1500 THEN 'fused' ELSE 'beta' END,"
                " finished_at, finished_at FROM outcomes WHERE pool = 'p' AND judge_model ="
                " 'judge' AND winner IS NOT NULL"
            )
        )
    async with console_alone(settings) as web:
        yield web


@pytest.fixture
async def empty_web(
    settings: Settings, console_alone: ConsoleRunning
) -> AsyncIterator[aiohttp.ClientSession]:
    async with console_alone(settings) as web:
        yield web


async def page(web: aiohttp.ClientSession, path: str, status: int = 200) -> str:
    async with web.get(path, allow_redirects=False) as response:
        assert response.status == status, await response.text()
        return await response.text()


class _TableReader(HTMLParser):
    """Reads all tables of a page as rows of texts, and the rest as text."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self._is_cell = False
        self.text = ""

    def handle_starttag(self, tag: str, _attributes: object) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag == "br":
            self.handle_data(" ")
        elif tag in ("p", "dd"):
            self.text += " "
        self._is_cell = tag in ("th", "td") or (self._is_cell and tag in ("span", "br"))

    def handle_endtag(self, tag: str) -> None:
        self._is_cell = self._is_cell and tag == "span"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._is_cell:
            self.tables[-1][-1][-1] += data


def read(html: str) -> _TableReader:
    reader = _TableReader()
    reader.feed(html)
    reader.text = " ".join(reader.text.split())
    return reader


async def test_rows_that_are_no_sums_are_looked_up(store: Store) -> None:
    """However many outcomes there are, the newest are found by an index, and votes by outcome."""
    await fill(store, TRUTH, 100, 1)
    for sql in (judge.VERDICTS, judge.LABELS, judge.VOTES, pools.CLOSINGS, pools.RIGHTS):
        async with store.read() as connection:
            explain = "EXPLAIN QUERY PLAN " if store.is_sqlite else "EXPLAIN "
            if not store.is_sqlite:
                # Small tables are read whole, unless that is forbidden.
                await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            rows = await connection.exec_driver_sql(explain + sql.replace(":pool", "'p'"))
            steps = [str(row[-1]).strip() for row in rows]
        if sql != judge.VOTES:
            assert [step for step in steps if "ix_outcomes_pool" in step], sql
            assert not [step for step in steps if re.search("SCAN (o|a|v)$|Seq Scan", step)], sql
        elif store.is_sqlite:
            assert [step for step in steps if step.startswith("SEARCH o")]
            assert not [step for step in steps if "ix_outcomes_pool" in step]


async def test_the_leaderboard_has_the_figures_of_the_report(
    web: aiohttp.ClientSession, database: Database
) -> None:
    which = ReportFilter("p", period=Period(None, NOW.date()))
    async with Analyst(database, trusted=True) as analyst:
        rows = await reading.read_leaderboard(analyst, which, None)
        cells = await analyst.fetch("SELECT * FROM v_win_matrix WHERE pool = 'p'")
    expected = rank_by_wins(rows.models, rows.latencies, bucket_bounds())
    board = read(await page(web, "/leaderboard?pool=p"))
    models, matrix = board.tables

    assert [row[0].split()[0] for row in models[1:]] == [row.model for row in expected]
    for row, model in zip(models[1:], expected, strict=True):
        assert row[1] == formats.count(model.asked)
        value, interval = formats.rate(model.failure).split(" (")
        assert row[2] == f"{value} {interval.removesuffix(')')}, n {model.failure.n}"
        assert row[3] == formats.count(model.wins)
        assert row[4:6] == [formats.usd(model.cost_usd), formats.usd(model.cost_per_win_usd)]
        assert row[6:] == [formats.ms(model.p50_ms), formats.ms(model.p95_ms)]
        for rate in (model.win_share, model.accuracy):
            assert rate
            assert f"{model.model} {formats.rate(rate)} n {rate.n}" in board.text
    names = [row[0] for row in matrix[1:]]
    assert names == ["alpha", "beta", "gamma"]
    assert len(cells) == 6
    for cell in cells:
        shown = matrix[1 + names.index(cell["model"])][1 + names.index(cell["opponent"])]
        assert shown.startswith(formats.percent(cell["win_rate"], 0))
        assert shown.endswith(f"n {cell['n']}")
    assert "Pairs as judged by judge self-graded own family" in board.text


async def test_a_period_chooses_days_and_keeps_the_pool(
    web: aiohttp.ClientSession, database: Database
) -> None:
    # A date, as midnight may pass between NOW and the console's own clock.
    since = NOW.date() - timedelta(days=5)
    async with Analyst(database, trusted=True) as analyst:
        (expected,) = await analyst.fetch(
            "SELECT SUM(asked) AS n FROM v_model_day WHERE pool = 'p' AND model = 'beta'"
            " AND day >= :since",
            {"since": since},
        )
    html = await page(web, f"/leaderboard?pool=p&since={since}")
    (row,) = [row for row in read(html).tables[0] if row[0] == "beta"]
    assert 0 < int(row[1]) == int(expected["n"]) < 300
    assert f'href="/leaderboard?since={since}&amp;pool=small"' in html
    assert "is no period" in await page(web, "/leaderboard?since=soon")


async def test_the_judge_page_says_what_the_report_says(
    web: aiohttp.ClientSession, database: Database
) -> None:
    async with Analyst(database, trusted=True) as analyst:
        report = judge_report(await reading.read_judge(analyst, ReportFilter("p")))
    (expected,) = report.judges
    found = read(await page(web, "/judge?pool=p")).text

    assert expected.place.finding == "bias"
    assert expected.votes
    assert expected.labels
    figures = (*bias_figures(expected), *care_figures(expected), *agreement_figures(expected))
    assert len(figures) == 11
    for figure in figures:
        assert figure.rate
        rate = formats.rate(figure.rate) if figure.rate.n else formats.DASH
        n = f"n {figure.rate.n:,}"
        if figure.fair_rate is not None:
            n += f", fair {formats.percent(figure.fair_rate)}"
        words = (figure.title, figure.finding, rate, n, figure.sentence)
        assert " ".join(filter(None, words)) in found
    (pool,) = report.pools
    assert f"Decided by a rule {formats.rate(pool.fallbacks)} n 300" in found


async def test_the_value_of_a_pool_is_that_of_the_report(
    web: aiohttp.ClientSession, database: Database
) -> None:
    async with Analyst(database, trusted=True) as analyst:
        report = pool_report(await reading.read_pool(analyst, ReportFilter("p")))
    (expected,) = report.pools
    html = await page(web, "/pools?pool=p")
    found = read(html)

    assert {lift.audit_source for lift in expected.lifts} == {"gold", "votes"}
    for lift in expected.lifts:
        assert describe_lift(lift) in found.text
        for rate in (lift.fused, lift.single, lift.oracle):
            assert formats.rate(rate) in found.text
    for rate in (expected.degraded, expected.failed, expected.fallbacks, expected.disagreements):
        assert f"{formats.percent(rate.value)} {100 * rate.low:.1f} to" in found.text
    for name, rate in expected.closed_by.items():
        assert f"{name} {formats.rate(rate)}" in found.text
    (table,) = found.tables
    assert [row[0] for row in table[1:]] == [row.model for row in expected.ablations]
    for row, it in zip(table[1:], expected.ablations, strict=True):
        assert row[4] == formats.usd(it.cost_usd)
        assert row[6] == formats.usd(it.usd_per_point)
        assert row[2].startswith(formats.percent(it.score_loss.value))
    assert len(re.findall("<circle ", html)) == 3


async def test_what_is_missing_is_said_with_the_command_that_gives_it(
    settings: Settings, store: Store, console_alone: ConsoleRunning
) -> None:
    await fill(store, replace(TRUTH, gold_share=0.0, open_share=0.0), 60, 1)
    async with console_alone(settings) as web:
        pools = read(await page(web, "/pools?pool=p")).text
        board = read(await page(web, "/leaderboard?pool=p")).text
        judge = read(await page(web, "/judge?pool=small")).text
    assert "No prompt had a gold label" in pools
    assert "fusewire vote OUTCOME MEMBER" in pools
    assert "Nothing can be drawn" in pools
    assert "No prompt of these days has a label" in board
    assert "No verdicts yet" in judge


async def test_without_outcomes_each_page_says_how_to_get_some(
    empty_web: aiohttp.ClientSession,
) -> None:
    for path in PAGES:
        html = await page(empty_web, path)
        assert "yet</h2>" in html
        assert "<code>fusewire " in html


async def test_a_pool_that_is_not_there_is_named_as_text(web: aiohttp.ClientSession) -> None:
    for path in PAGES:
        html = await page(web, f"{path}?pool=%3Cscript%3Ealert(1)%3C/script%3E")
        assert HOSTILE not in html
        assert f"There is no pool '{HOSTILE}'" in unescape(html)
        assert 'href="' + path + '?pool=p"' in html


async def test_names_that_are_stored_are_shown_as_text(
    web: aiohttp.ClientSession, store: Store
) -> None:
    async with store.write() as connection:
        for table, column in (
            ("model_days", "model"),
            ("pair_days", "model"),
            ("judge_days", "judge_model"),
            ("pair_days", "judge_model"),
            ("pool_days", "pool"),
        ):
            await connection.execute(
                text(
                    f"UPDATE {table} SET {column} = :it WHERE {column} IN ('alpha', 'judge', 'p')"
                ),
                {"it": HOSTILE},
            )
    for path in PAGES:
        for pool in ("p", "small"):
            html = await page(web, f"{path}?pool={pool}")
            assert HOSTILE not in html
            assert HOSTILE in unescape(html)


async def test_the_pages_load_nothing_and_run_nothing_of_their_own(
    web: aiohttp.ClientSession,
) -> None:
    for path in PAGES:
        html = await page(web, f"{path}?pool=p")
        assert not re.search(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=", html)
        for link in re.findall(r'href="(/(?:leaderboard|judge|pools)[^"]*)"', html):
            await page(web, unescape(link))


async def test_who_is_no_operator_sees_none_of_them(
    web: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def visitor(_self: Access, _key: str | None) -> Visitor:
        return Visitor("acme", "fw-key", "key", frozenset({"admin", "read"}), is_operator=False)

    monkeypatch.setattr(Access, "visitor", visitor)
    for path in PAGES:
        html = await page(web, path, 403)
        assert "This page adds up all tenants" in html
        assert "alpha" not in html
