"""`fusewire query`: what it writes, the same on SQLite and PostgreSQL."""

import asyncio
import datetime as dt
import io
import json
import sqlite3
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from fusewire.settings import Database
from fusewire.store.engine import Store
from fusewire.testing.planted import Truth, fill
from fusewire_cli.main import app

TRUTH = Truth(now=dt.datetime(2026, 11, 30, tzinfo=dt.UTC))
QUERY = (
    "SELECT outcome_id, finished_at, day, is_degraded, is_fallback, accepted, n_asked, cost_usd,"
    " content, fallback_reason FROM v_outcome ORDER BY outcome_id"
)


async def command(*arguments: str, stdin: str | None = None) -> tuple[int, bytes, str]:
    """Run `fusewire` in a thread; returns exit code, stdout and stderr."""
    result = await asyncio.to_thread(CliRunner().invoke, app, list(arguments), input=stdin)
    return result.exit_code, result.stdout_bytes, result.stderr


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSEWIRE_DATA_DIR", str(tmp_path / "data"))


def use(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEWIRE_DATABASE__URL", database.url)


async def plant(database: Database, count: int) -> None:
    store = Store(database)
    await fill(store, TRUTH, count, 7)
    await store.close()


@pytest.mark.parametrize("form", ["csv", "json", "table", "parquet"])
async def test_both_databases_give_the_same_bytes(
    sqlite_database: Database,
    postgres_database: Database,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outputs = []
    for database in (sqlite_database, postgres_database):
        await plant(database, 60)
        use(database, monkeypatch)
        code, out, err = await command("query", QUERY, "-f", form, "--as-owner")
        assert (code, err) == (0, "")
        outputs.append(out)
        aggregate = (
            "SELECT max(finished_at) AS newest, max(day) AS last_day, sum(n_asked) AS n,"
            " count(*) AS accepted, avg(n_asked) AS mean, NULL AS a, 1.0 AS b FROM v_outcome"
            " GROUP BY pool"
        )
        if form != "parquet":
            outputs[-1] += (await command("query", aggregate, "-f", form, "--as-owner"))[1]
    assert outputs[0] == outputs[1]
    if form == "csv":
        lines = outputs[0].decode().splitlines()
        assert len(lines) == 63
        assert b",false,false," in outputs[0]
        assert lines[1].split(",")[1].endswith("Z")
    if form == "json":
        first, second = outputs[0].decode().strip().split("]\n[")
        assert len(json.loads(first + "]")) == 60
        (record,) = json.loads("[" + second)
        assert (record["n"], record["accepted"]) == (180, 60)
    if form == "parquet":
        schema = pq.read_table(io.BytesIO(outputs[0])).schema
        assert [field.type for field in schema] == [
            pa.string(), pa.timestamp("us", tz="UTC"), pa.date32(), pa.bool_(), pa.bool_(),
            pa.bool_(), pa.int64(), pa.float64(), pa.string(), pa.string(),
        ]  # fmt: skip


async def test_rows_are_cut_at_a_limit_and_that_is_told(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await plant(database, 30)
    use(database, monkeypatch)
    base = ("query", "--view", "v_answer", "--as-owner", "-f", "csv", "--max-rows")
    code, out, err = await command(*base, "7")
    assert (code, out.count(b"\n")) == (0, 8)
    assert "cut at 7 rows; --max-rows 0 for all" in err
    code, out, err = await command(*base, "90")
    assert (code, err) == (0, "")
    assert (await command(*base, "0"))[1] == out
    code, out, err = await command("query", "--view", "v_answer", "--as-owner", "-f", "parquet")
    assert pq.read_table(io.BytesIO(out)).num_rows == 90


_WITH_PEAK = """
import sys
from pathlib import Path
from fusewire_cli.main import run
try:
    run()
finally:
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
"""
"""Runs the command and prints the most memory that its process had, in KiB."""


async def test_many_rows_take_no_more_memory_than_some(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command is a process of its own: what this one has depends on the tests before."""
    use(sqlite_database, monkeypatch)
    numbers = (
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < :n)"
        " SELECT x, printf('%0800d', x) AS t FROM c"
    )
    for form in ("csv", "json", "parquet"):
        peaks = []
        for count in (40_000, 160_000):
            arguments = ("--param", f"n={count}", "-f", form, "-o", f"out.{form}")
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _WITH_PEAK, "query", numbers, *arguments,
                stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            out, _ = await process.communicate()
            assert process.returncode == 0
            peaks.append(int(out))
        # The 120,000 rows more would take 110 MB as tuples.
        assert peaks[1] - peaks[0] < 75_000, form
    assert Path("out.csv").stat().st_size > 80_000_000
    assert pq.ParquetFile("out.parquet").num_row_groups >= 4


async def test_without_pyarrow_parquet_says_what_to_install(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(database, monkeypatch)
    await plant(database, 1)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    code, out, err = await command(
        "query", "--view", "v_answer", "--as-owner", "-f", "parquet", "-o", "answers.parquet"
    )
    assert (code, out) == (2, b"")
    assert "install fusewire-cli[parquet]" in err


async def test_queries_are_saved_listed_and_run(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(sqlite_database, monkeypatch)
    sql = "-- How many in a pool?\nSELECT count(*) AS n FROM v_outcome WHERE pool = :pool"
    code, _, err = await command("query", "-", "--save", "mine", stdin=sql)
    assert code == 0, err
    _, out, _ = await command("query", "--list-saved", "-f", "json")
    entries = json.loads(out)
    assert entries[0] == {"name": "mine", "source": "own", "answers": "How many in a pool?"}
    assert len(entries) == 11
    _, out, _ = await command("query", "--saved", "mine", "--param", "pool=default", "-f", "json")
    assert json.loads(out) == [{"n": 0}]
    for arguments, message in (
        (("SELECT x FROM nowhere", "--save", "bad"), "no such table"),
        (("SELECT * FROM prompts", "--save", "bad"), "none of the views"),
        (("DELETE FROM votes", "--save", "bad"), "only a statement that reads"),
        (("SELECT 1", "--save", "../bad"), "cannot be the name of a query"),
        (("SELECT 1", "--save", "cost-by-day"), "ships with Fusewire"),
        (("--saved", "min"), "did you mean 'mine'?"),
        (("--view", "v_outcom"), "did you mean 'v_outcome'?"),
        (("SELECT 1", "--view", "v_vote"), "one of SQL, --view and --saved"),
        ((), "one of SQL, --view and --saved"),
        (("SELECT 1", "--param", "a"), "write --param name=value"),
        (("SELECT 1", "-o", "no/such/folder"), "cannot be written"),
    ):
        code, out, err = await command("query", *arguments)
        assert (code, out) == (2, b""), arguments
        assert message in err
    assert [path.name for path in Path("data/queries").iterdir()] == ["mine.sql"]


async def test_what_takes_too_long_has_its_own_message_and_code(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(database, monkeypatch)
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c"
    code, out, err = await command("query", endless, "--timeout", "0.5", "--as-owner")
    assert (code, out) == (1, b"")
    assert "the query ran longer than 0.5 s" in err
    assert "narrow it, or raise --timeout" in err


async def test_sums_are_made_anew(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    use(database, monkeypatch)
    assert (await command("db", "sums"))[1] == b"sums of 0 days made anew\n"
    await plant(database, 60)
    view = ("query", "--view", "v_pool_day", "--as-owner", "-f", "csv", "--max-rows", "0")
    before = sorted((await command(*view))[1].splitlines())
    store = Store(database)
    async with store.write() as connection:
        await connection.exec_driver_sql("UPDATE pool_days SET outcomes = outcomes + 7")
    await store.close()
    assert sorted((await command(*view))[1].splitlines()) != before
    code, out, err = await command("db", "sums")
    assert (code, err) == (0, "")
    assert out == b"sums of 30 days made anew\n"
    assert sorted((await command(*view))[1].splitlines()) == before


async def test_the_role_that_is_made_can_be_used(
    postgres_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(postgres_database, monkeypatch)
    code, _, err = await command("query", "SELECT 1 AS a")
    assert code == 2
    assert "analyst_url is not set" in err
    code, out, err = await command("db", "analyst", "readers_of_a_test")
    assert code == 0, err
    assert "role readers_of_a_test: created" in err
    monkeypatch.setenv("FUSEWIRE_DATABASE__ANALYST_URL", out.decode().strip())
    assert (await command("query", "SELECT current_user AS a", "-f", "csv"))[1] == (
        b"a\nreaders_of_a_test\n"
    )
    code, out, err = await command("db", "analyst", "readers_of_a_test")
    assert (code, out) == (0, b"")
    assert "its password is as it was" in err
    assert (await command("db", "analyst", 'x"; DROP'))[0] == 2


async def test_sqlite_needs_no_role(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(sqlite_database, monkeypatch)
    code, _, err = await command("db", "analyst", "readers")
    assert code == 2
    assert "SQLite has no roles" in err


async def test_a_database_in_use_is_read_and_one_without_views_is_told(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(sqlite_database, monkeypatch)
    writer = sqlite3.connect(sqlite_database.url.partition(":///")[2], isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert (await command("query", "SELECT count(*) AS n FROM v_vote", "-f", "csv"))[1] == b"n\n0\n"
    writer.execute("ROLLBACK")
    writer.close()
    use(Database(url=f"sqlite+aiosqlite:///{tmp_path}/none.db"), monkeypatch)
    code, out, err = await command("query", "SELECT 1 AS a")
    assert (code, out) == (2, b"")
    assert "nothing has been stored yet" in err
    assert not (tmp_path / "none.db").exists()
