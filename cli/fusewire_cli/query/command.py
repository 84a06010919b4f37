"""What `fusewire query` does with its arguments."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from fusewire.settings import Database
from fusewire.store.analyst import Analyst, QueryError, QueryTimeout, ResultRows, saved
from fusewire.store.analyst.result import size
from fusewire.store.analyst.statement import check_verb, parameter_names, parameter_value
from fusewire.store.analyst.writers import Writer
from fusewire.store.engine import parse_url
from fusewire_cli.query.writers import stdout_for, writer
from fusewire_cli.schema import find_view
from fusewire_cli.screen import EXIT_FAULT, QueryFormat, RowFormat, fail, note, rows
from fusewire_cli.session import settings

MAX_ROWS = 1_000_000
MAX_TABLE_ROWS = 10_000
MAX_TABLE_BYTES = 64 * 1024**2
"""What a table keeps in memory."""


@dataclass(frozen=True)
class Source:
    """Where the statement is from: exactly one of these is given."""

    sql: str | None = None
    view: str | None = None
    saved: str | None = None


@dataclass(frozen=True)
class Request:
    """How a statement is run and its rows are written."""

    form: QueryFormat = QueryFormat.table
    output: Path | None = None
    timeout_s: float = 30.0
    max_rows: int | None = None
    """None: the format's own limit; 0: all."""
    is_owner: bool = False
    parameters: Sequence[str] = field(default=())
    """Of the form `name=value`."""

    @property
    def limit(self) -> int | None:
        """How many rows are written; None for all."""
        if self.max_rows is not None:
            return self.max_rows or None
        return MAX_TABLE_ROWS if self.form is QueryFormat.table else MAX_ROWS


def run(source: Source, request: Request) -> None:
    """Run a statement and write its rows."""
    config = settings()
    parameters = _parameters(request.parameters)
    with _query_errors():
        sql = _statement(source, config.data_dir)
        asyncio.run(_run(config.database, sql, parameters, request))


def save(name: str, source: Source, request: Request) -> None:
    """Keep a statement under a name, if the database can run it."""
    config = settings()
    with _query_errors():
        saved.check_name(name)
        sql = _statement(source, config.data_dir)
        asyncio.run(_explain(config.database, sql, request))
    path, is_replaced = saved.keep(name, sql, config.data_dir)
    note(f"{'replaced' if is_replaced else 'saved'}: {path}; run it with --saved {name}")


def list_saved(form: QueryFormat) -> None:
    """Print the saved queries, the user's own first."""
    if form is QueryFormat.parquet:
        fail("the list of queries is not written as Parquet", "use -f table, json or csv")
    queries = (*saved.own(settings().data_dir), *saved.built_in())
    records = [(query.name, query.source, query.about) for query in queries]
    rows(("name", "source", "answers"), records, RowFormat(form.value))


def explain_view(name: str) -> None:
    """Print what a view means, its columns, and its SQL on the configured database."""
    view = find_view(name)
    print(f"-- {view.comment}")
    for column in view.columns:
        print(f"--   {column.name} ({column.type}): {column.comment}")
    print(f"{view.create(parse_url(settings().database).get_backend_name())};")


def _statement(source: Source, data_dir: Path) -> str:
    if sum(value is not None for value in (source.sql, source.view, source.saved)) != 1:
        fail("there must be one of SQL, --view and --saved", 'such as: fusewire query "SELECT 1"')
    if source.saved is not None:
        return saved.find(source.saved, data_dir).sql
    if source.view is not None:
        return f"SELECT * FROM {find_view(source.view).name}"  # noqa: S608 - a name of ours
    return sys.stdin.read() if source.sql == "-" else source.sql or ""


def _parameters(texts: Sequence[str]) -> dict[str, object]:
    parameters: dict[str, object] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name.isidentifier():
            fail(f"'{text}' is no parameter", "write --param name=value")
        if name in parameters:
            fail(f"the parameter :{name} is given twice", "give each once")
        parameters[name] = parameter_value(value)
    return parameters


@contextlib.contextmanager
def _query_errors() -> Iterator[None]:
    try:
        yield
    except QueryTimeout as exc:
        fail(exc.what, exc.mend, EXIT_FAULT)
    except QueryError as exc:
        fail(exc.what, exc.mend)


async def _explain(database: Database, sql: str, request: Request) -> None:
    check_verb(sql)
    values = dict.fromkeys(parameter_names(sql))
    async with _analyst(database, request) as analyst:
        plan = sql if sql.lstrip().upper().startswith("EXPLAIN") else f"EXPLAIN {sql}"
        await analyst.fetch(plan, values)


async def _run(
    database: Database, sql: str, parameters: Mapping[str, object], request: Request
) -> None:
    async with (
        _analyst(database, request) as analyst,
        analyst.stream(sql, parameters) as result,
    ):
        with _open(request) as stream, writer(request.form, stream, result.columns) as out:
            n_rows, is_cut = await _write(out, result, request)
    if is_cut:
        is_long = request.form is QueryFormat.table and n_rows != request.limit
        more = "use -f csv or json for more" if is_long else "--max-rows 0 for all"
        note(f"cut at {n_rows:,} rows; {more}")


def _analyst(database: Database, request: Request) -> Analyst:
    return Analyst(database, timeout_s=request.timeout_s, trusted=request.is_owner)


async def _write(out: Writer, result: ResultRows, request: Request) -> tuple[int, bool]:
    """Write rows up to the limit. Returns how many, and whether there are more."""
    n_rows = n_bytes = 0
    async for chunk in result:
        if request.limit is not None and n_rows + len(chunk) > request.limit:
            out.write(chunk[: request.limit - n_rows])
            return request.limit, True
        if request.form is QueryFormat.table:
            n_bytes += sum(map(size, chunk))
            if n_bytes > MAX_TABLE_BYTES:
                return n_rows, True
        out.write(chunk)
        n_rows += len(chunk)
    return n_rows, False


@contextlib.contextmanager
def _open(request: Request) -> Iterator[IO[bytes]]:
    """The stream to write to. A file appears under its name when it is complete."""
    if request.output is None:
        yield stdout_for(request.form)
        return
    part = request.output.with_name(f".{request.output.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            yield stream
        part.replace(request.output)
    except OSError as exc:
        fail(f"{request.output} cannot be written: {exc.strerror}", "choose another --output")
    finally:
        part.unlink(missing_ok=True)
