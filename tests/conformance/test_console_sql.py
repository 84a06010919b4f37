"""The console's page of SQL, on both databases."""

import asyncio
import contextlib
import csv
import io
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from html import unescape
from typing import Any

import aiohttp
import pyarrow.parquet as pq
import pytest
from sqlalchemy import text

from fusewire.settings import Database, Settings
from fusewire.store.analyst import Analyst, ResultRows
from fusewire.store.engine import Store
from fusewire.store.views import VIEWS
from fusewire.testing.analyst_role import as_analyst
from fusewire.testing.eventually import eventually
from fusewire.testing.planted import JudgeTruth, MemberTruth, PoolTruth, Truth, fill
from fusewire_console import service
from fusewire_console.access import Access, Visitor
from fusewire_console.pages import download, sql

MakeSettings = Callable[..., Settings]
ConsoleRunning = Callable[..., AbstractAsyncContextManager[aiohttp.ClientSession]]
NOW = datetime.now(UTC)
MEMBERS = tuple(MemberTruth(name) for name in ("alpha", "beta", "gamma"))
TRUTH = Truth(now=NOW, pools={"p": PoolTruth(MEMBERS, JudgeTruth())}, open_share=0.5, days=20.0)
ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c"
MANY = (
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < {}) SELECT x FROM c"
)
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
async def settings(make_settings: MakeSettings, database: Database) -> Settings:
    return make_settings(database=await as_analyst(database))


@pytest.fixture
async def web(
    settings: Settings, store: Store, console_alone: ConsoleRunning, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[aiohttp.ClientSession]:
    """The console on 120 planted outcomes; no statement ends by its timeout."""
    monkeypatch.setattr(service, "SQL_TIMEOUT_S", 3600.0)
    await fill(store, TRUTH, 120, 1)
    async with console_alone(settings) as web:
        yield web


async def page(
    web: aiohttp.ClientSession, path: str = "/sql", status: int = 200, **query: str
) -> str:
    async with web.get(path, params=query, allow_redirects=False) as response:
        assert response.status == status, await response.text()
        return await response.text()


async def run(web: aiohttp.ClientSession, statement: str, **fields: str) -> str:
    """Press Run."""
    async with web.post("/sql", data={"sql": statement, **fields}) as response:
        assert response.status == 200, await response.text()
        return await response.text()


async def rows(web: aiohttp.ClientSession, form: str, statement: str, **fields: str) -> bytes:
    async with web.post(f"/sql/rows.{form}", data={"sql": statement, **fields}) as response:
        assert response.status == 200
        assert response.headers["content-disposition"] == f'attachment; filename="rows.{form}"'
        return await response.read()


def table(html: str) -> list[list[str]]:
    """The texts of the rows."""
    body = re.search(r"<tbody>(.*?)</tbody>", html, re.DOTALL)
    lines = re.findall(r"<tr>(.*?)</tr>", body[1] if body else "", re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", line, re.DOTALL) for line in lines]
    return [[unescape(re.sub(r"<[^>]+>", "", cell)) for cell in line] for line in cells]


def shown_statement(html: str) -> str:
    found = re.search(r"<textarea[^>]*>\n(.*?)</textarea>", html, re.DOTALL)
    assert found
    return unescape(found[1])


async def test_a_short_statement_stands_in_the_address(web: aiohttp.ClientSession) -> None:
    statement = "SELECT COUNT(*) AS n, NULL AS missing\r\nFROM v_outcome"
    async with web.post("/sql", data={"sql": statement}, allow_redirects=False) as response:
        assert response.status == 303
        address = response.headers["location"]
    assert address.startswith("/sql?sql=SELECT")
    html = await page(web, address)
    assert table(html) == [["120", "–"]]
    assert shown_statement(html) == statement.replace("\r\n", "\n")
    assert "1 row<" in html
    assert f'href="{address.replace("&", "&amp;")}"' in html, "a link to share"


async def test_a_long_statement_stands_in_no_address(web: aiohttp.ClientSession) -> None:
    statement = "SELECT COUNT(*) FROM v_outcome WHERE pool <> '" + "x" * 20_000 + "'"
    async with web.post("/sql", data={"sql": statement}, allow_redirects=False) as response:
        assert response.status == 200
        html = await response.text()
    assert table(html) == [["120"]]
    assert "too long for a link" in html
    assert shown_statement(html) == statement


async def test_an_error_is_told_and_the_text_stays(web: aiohttp.ClientSession) -> None:
    for statement, what in (
        ("SELECT nothing FROM v_outcome", "nothing"),
        ("SELECT * FROM prompts", "To mend it:"),
        ("DELETE FROM votes", "only a statement that reads is run here"),
        ("SELECT 1; SELECT 2", "there is more than one statement"),
        (f"SELECT '{HOSTILE}' FROM nowhere", "nowhere"),
    ):
        for html in (await run(web, statement), await post_for_page(web, statement)):
            assert what in unescape(html)
            assert 'role="alert"' in html
            assert shown_statement(html) == statement
            assert HOSTILE not in html
            assert not table(html)


async def post_for_page(web: aiohttp.ClientSession, statement: str) -> str:
    """What a download that fails shows."""
    async with web.post("/sql/rows.csv", data={"sql": statement}) as response:
        assert response.headers["content-type"].startswith("text/html")
        return await response.text()


async def test_a_table_is_cut_and_a_download_is_not(web: aiohttp.ClientSession) -> None:
    statement = MANY.format(1234)
    html = await run(web, statement)
    assert [row[0] for row in table(html)] == [str(n) for n in range(1, 501)]
    assert "500 rows, and there are more" in html
    lines = (await rows(web, "csv", statement)).decode().splitlines()
    assert lines == ["x", *(str(n) for n in range(1, 1235))]
    assert "there are more" not in await run(web, MANY.format(500))


async def test_long_cells_and_wide_results_are_cut(web: aiohttp.ClientSession) -> None:
    html = await run(web, f"SELECT '{'y' * 299}z{'w' * 700}' AS long, 1 AS n")
    assert table(html) == [["y" * 299 + "z …", "1"]]
    cell = f"'{'v' * 300}' AS c"
    wide = "SELECT " + ", ".join(f"{cell}{n}" for n in range(40)) + f" FROM ({MANY.format(400)}) t"
    html = await run(web, wide)
    assert len(html) < 2 * sql.TABLE_CHARS
    assert "and there are more" in html
    assert 0 < len(table(html)) < 400


async def test_csv_and_parquet_are_what_the_statement_gives(
    web: aiohttp.ClientSession, settings: Settings
) -> None:
    statement = (
        "SELECT outcome_id, finished_at, is_degraded, agreement, content, batch_id"
        " FROM v_outcome ORDER BY outcome_id"
    )
    async with Analyst(settings.database, trusted=True) as analyst:
        records = await analyst.fetch(statement)
    given = pq.read_table(io.BytesIO(await rows(web, "parquet", statement))).to_pylist()
    assert given == records
    lines = list(csv.reader(io.StringIO((await rows(web, "csv", statement)).decode())))
    assert lines[0] == list(records[0])
    assert [line[0] for line in lines[1:]] == [record["outcome_id"] for record in records]


async def test_many_rows_come_in_pieces_up_to_the_limit(
    web: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    statement = "SELECT x, 'row ' || x AS name FROM (" + MANY.format(130_000) + ") t"
    assert len((await rows(web, "csv", statement)).splitlines()) == 130_001
    written = pq.ParquetFile(io.BytesIO(await rows(web, "parquet", statement)))
    assert written.metadata.num_rows == 130_000
    assert written.num_row_groups == 3
    assert written.read().column("x").to_pylist() == list(range(1, 130_001))
    monkeypatch.setattr(download, "MOST_ROWS", 1500)
    assert len((await rows(web, "csv", statement)).splitlines()) == 1501


async def test_a_download_that_breaks_looks_broken(
    web: aiohttp.ClientSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that cannot be read comes after the first pieces were sent."""
    monkeypatch.setattr(download, "PIECE_BYTES", 1)
    is_sqlite = settings.database.url.startswith("sqlite")
    read = "json_extract({}, '$')" if is_sqlite else "CAST({} AS integer)"
    number = read.format("CASE WHEN x < 3000 THEN '1' ELSE 'x' END")
    statement = f"SELECT {number} AS n FROM ({MANY.format(4000)}) t"
    async with web.post("/sql/rows.csv", data={"sql": statement}) as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_without_pyarrow_there_is_no_parquet(
    web: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Download Parquet" in await page(web)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    html = await page(web)
    assert "Download Parquet" not in html
    assert "Parquet needs pyarrow" in html


async def test_saved_queries_run_by_their_links(
    web: aiohttp.ClientSession, settings: Settings
) -> None:
    folder = settings.data_dir / "queries"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.sql").write_text(
        "-- How many <b>in</b> a pool?\nSELECT COUNT(*) FROM v_outcome WHERE pool = :pool"
    )
    html = await page(web)
    links = re.findall(r'href="(/sql\?saved=[^"]+)"', html)
    assert len(links) == 11
    assert links[0] == "/sql?saved=mine"
    assert "How many &lt;b&gt;in&lt;/b&gt; a pool?" in html
    for link in links[1:]:
        html = await page(web, link)
        assert 'role="alert"' not in html, link
        assert "rows<" in html or "row<" in html, link
    html = await page(web, "/sql?saved=mine")
    assert "Give a value for :pool" in html
    assert table(await run(web, shown_statement(html), **{"p.pool": "p"})) == [["120"]]
    lines = await rows(web, "csv", shown_statement(html), **{"p.pool": "q"})
    assert lines.splitlines()[1:] == [b"0"]
    assert "no saved query is called &#39;min&#39;" in await page(web, "/sql?saved=min")


async def test_each_view_is_explained(web: aiohttp.ClientSession) -> None:
    html = await page(web)
    for view in VIEWS:
        assert f"<code>{view.name}</code>" in html
        for column in view.columns:
            assert f"<code>{column.name}</code>" in html
    assert len(html.encode()) < 200_000


async def test_an_outcome_s_id_leads_to_it(web: aiohttp.ClientSession) -> None:
    html = await run(web, "SELECT outcome_id FROM v_outcome LIMIT 1")
    outcome_id = table(html)[0][0]
    assert f'href="/outcomes/{outcome_id}"' in html


async def test_what_is_stored_is_shown_as_text(web: aiohttp.ClientSession, store: Store) -> None:
    for value in (
        HOSTILE,
        "a" * 100_000,
        "e" + "\u0301" * 500,
        "\u202eevil\u202c \u05d0\u05d1",
    ):
        async with store.write() as connection:
            await connection.execute(text("UPDATE outcomes SET content = :it"), {"it": value})
        html = await run(web, "SELECT content FROM v_outcome LIMIT 1")
        assert table(html)[0][0] == (value if len(value) <= 300 else value[:300] + " …")
        assert HOSTILE not in html
        assert not re.search(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=", html)


async def test_another_page_s_link_is_not_run_before_it_was_read(
    web: aiohttp.ClientSession,
) -> None:
    address = "/sql?sql=SELECT+1+AS+n"
    for site, is_run in (("cross-site", False), ("same-site", False), ("same-origin", True)):
        async with web.get(address, headers={"sec-fetch-site": site}) as response:
            html = await response.text()
        assert bool(table(html)) is is_run
        assert ("Another page led here" in html) is not is_run
        assert shown_statement(html) == "SELECT 1 AS n"


class Watch:
    """Counts the statements that run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.running = 0
        stream = Analyst.stream

        @contextlib.asynccontextmanager
        async def count(*args: Any, **options: Any) -> AsyncIterator[ResultRows]:
            self.running += 1
            try:
                async with stream(*args, **options) as rows:
                    yield rows
            finally:
                self.running -= 1

        monkeypatch.setattr(Analyst, "stream", count)


@pytest.mark.parametrize("path", ["/sql", "/sql/rows.csv"])
async def test_a_statement_ends_when_the_visitor_leaves(
    web: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    watch = Watch(monkeypatch)
    # Too long for an address, so that it is run at once.
    statement = f"{ENDLESS} -- {'x' * 5000}"
    request = asyncio.ensure_future(web.post(path, data={"sql": statement}))
    await eventually(lambda: watch.running == 1)
    request.cancel()
    await eventually(lambda: watch.running == 0)


async def test_a_download_ends_when_the_visitor_leaves(
    web: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    statement = f"SELECT x, '{'y' * 1000}' AS y FROM ({MANY.format(10**9)}) t"
    async with web.post("/sql/rows.csv", data={"sql": statement}) as response:
        assert await response.content.read(1000)
        assert watch.running == 1
        response.close()
    await eventually(lambda: watch.running == 0)


async def test_what_takes_too_long_is_ended_and_told(
    settings: Settings, console_alone: ConsoleRunning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SQL_TIMEOUT_S", 0.5)
    async with console_alone(settings) as web:
        html = await run(web, ENDLESS)
    assert "the query ran longer than 0.5 s" in html
    assert "fusewire query --timeout" in html
    assert shown_statement(html) == ENDLESS


async def test_without_a_role_postgresql_says_how_to_make_it(
    make_settings: MakeSettings,
    postgres_database: Database,
    console_alone: ConsoleRunning,
) -> None:
    settings = make_settings(database=postgres_database)
    async with console_alone(settings) as web:
        html = await run(web, "SELECT 1")
    assert "[database] analyst_url is not set" in html
    assert "fusewire db analyst NAME" in html
    assert shown_statement(html) == "SELECT 1"


async def test_an_empty_database_has_a_page(
    settings: Settings, console_alone: ConsoleRunning
) -> None:
    async with console_alone(settings) as web:
        assert "Saved queries" in await page(web)
        html = await run(web, "SELECT * FROM v_outcome")
    assert "0 rows" in html


async def test_a_tenant_may_not_write_sql(
    web: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def tenant(self: Access, key: str | None) -> Visitor:
        return Visitor("acme", None, None, frozenset({"read"}), False)

    monkeypatch.setattr(Access, "visitor", tenant)
    await page(web, "/sql?sql=SELECT+1", status=403)
    for path in ("/sql", "/sql/rows.csv", "/sql/rows.parquet"):
        async with web.post(path, data={"sql": "SELECT 1"}) as response:
            assert response.status == 403
