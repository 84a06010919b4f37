"""SQL on the views: one SELECT of an operator, its rows as a table, and as CSV or Parquet."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any
from urllib.parse import urlencode

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from fusewire.store.analyst import (
    Analyst,
    QueryError,
    QueryTimeout,
    ResultColumn,
    ResultRows,
    cells,
    saved,
)
from fusewire.store.analyst.result import Row
from fusewire.store.analyst.statement import parameter_names, parameter_value
from fusewire.store.analyst.writers import has_parquet
from fusewire.store.views import VIEWS
from fusewire_console.access import Visitor
from fusewire_console.pages import page
from fusewire_console.pages.disconnect import DisconnectError, until_disconnect
from fusewire_console.pages.download import FORMS, MOST_ROWS, Download
from fusewire_console.site import Site
from fusewire_console.views import OperatorsOnlyError

TABLE_ROWS = 500
CELL_CHARS = 300
TABLE_CHARS = 500_000
"""What a page shows of a result at most: so that it opens at once, however wide its rows are."""
NARROW_CHARS = 40
"""Of the longest text of a column that is not wrapped."""
ADDRESS_CHARS = 4000
"""Of an address; a longer statement stands in no address."""
PARAMETER = "p."
"""What the names of a statement's parameters begin with in a form."""

Cells = tuple[str | None, ...]


@dataclass(frozen=True)
class Statement:
    """What a visitor wants to run."""

    sql: str = ""
    texts: Mapping[str, str] = field(default_factory=dict)
    """A value for each of its parameters, as it was typed; "" for none so far."""

    @property
    def values(self) -> dict[str, object]:
        """The values of its parameters."""
        return {name: parameter_value(text) for name, text in self.texts.items()}

    @property
    def missing(self) -> list[str]:
        """The parameters without a value."""
        return [name for name, text in self.texts.items() if not text]

    @property
    def address(self) -> str | None:
        """Where it is run again; None if it is too long for an address."""
        fields = {PARAMETER + name: text for name, text in self.texts.items() if text}
        address = "/sql?" + urlencode({"sql": self.sql, **fields})
        return address if len(address) <= ADDRESS_CHARS else None


@dataclass(frozen=True)
class Result:
    """The rows of a statement, as the page shows them."""

    columns: list[tuple[str, str]]
    """Name, and the class of its cells."""
    rows: list[Cells]
    """Texts; None for NULL."""
    is_cut: bool
    """Whether there are more rows."""
    ms: float


def parse(fields: Mapping[str, Any] | FormData, sql: str | None = None) -> Statement:
    """Read a statement from the fields of a form or an address."""
    # A browser sends lines that end with CR LF.
    text = str(fields.get("sql") or "") if sql is None else sql
    text = text.replace("\r\n", "\n").strip()
    names = parameter_names(text)
    return Statement(text, {name: str(fields.get(PARAMETER + name) or "") for name in names})


async def run(analyst: Analyst, statement: Statement) -> Result:
    """Run a statement, as far as the page shows its rows. Raises QueryError."""
    start = time.perf_counter()
    async with analyst, analyst.stream(statement.sql, statement.values) as result:
        rows, is_cut = await _read(result)
        columns = [
            (column.name, _cell_class(column, map(itemgetter(place), rows)))
            for place, column in enumerate(result.columns)
        ]
    return Result(columns, rows, is_cut, 1000 * (time.perf_counter() - start))


async def _read(result: ResultRows) -> tuple[list[Cells], bool]:
    """The texts of the first rows, and whether there are more."""
    rows: list[Cells] = []
    n_chars = 0
    async for chunk in result:
        for row in map(_cells, chunk):
            if len(rows) == TABLE_ROWS or n_chars > TABLE_CHARS:
                return rows, True
            rows.append(row)
            n_chars += len("".join(filter(None, row)))
    return rows, False


def _cells(row: Row) -> Cells:
    return tuple(map(_cell, row))


def _cell(value: Any) -> str | None:
    if value is None:
        return None
    text = cells.text(value)
    return text if len(text) <= CELL_CHARS else text[:CELL_CHARS] + " …"


def _cell_class(column: ResultColumn, texts: Iterable[str | None]) -> str:
    if column.type in ("integer", "real", "timestamp", "date"):
        return "number"
    longest = max(map(len, filter(None, texts)), default=0)
    return "text wide" if longest > NARROW_CHARS else "text"


def routes(site: Site) -> list[Route]:
    """`/sql`, and `/sql/rows.csv` and `/sql/rows.parquet`."""

    async def show(request: Request, visitor: Visitor) -> Response:
        _check(visitor)
        name = request.query_params.get("saved")
        try:
            query = saved.find(name, site.settings.data_dir) if name else None
        except QueryError as exc:
            return _page(site, visitor, Statement(), error=exc)
        statement = parse(request.query_params, query.sql if query else None)
        return await _run_and_show(site, request, visitor, statement, query)

    async def send(request: Request, visitor: Visitor) -> Response:
        _check(visitor)
        statement = parse(await request.form())
        # So that the statement can be shared, kept as a bookmark, and sent again by going back.
        if statement.address:
            return RedirectResponse(statement.address, 303)
        return await _run_and_show(site, request, visitor, statement)

    downloads = [
        page.route(site, f"/sql/rows.{form}", partial(_download, site, form), method="POST")
        for form in FORMS
    ]
    return [
        page.route(site, "/sql", show),
        page.route(site, "/sql", send, method="POST"),
        *downloads,
    ]


async def _download(site: Site, form: str, request: Request, visitor: Visitor) -> Response:
    _check(visitor)
    statement = parse(await request.form())
    if statement.missing:
        return _page(site, visitor, statement)
    rows = Download(site.sql_analyst, statement.sql, statement.values, form)
    try:
        await until_disconnect(request, rows.start())
    except QueryError as exc:
        return _page(site, visitor, statement, error=exc)
    except DisconnectError:
        return Response()
    return rows


def _check(visitor: Visitor) -> None:
    if not visitor.is_operator:
        raise OperatorsOnlyError


async def _run_and_show(
    site: Site,
    request: Request,
    visitor: Visitor,
    statement: Statement,
    query: saved.SavedQuery | None = None,
) -> Response:
    is_foreign = _is_foreign(request)
    if not statement.sql or statement.missing or is_foreign:
        return _page(site, visitor, statement, query=query, is_foreign=is_foreign)
    try:
        result = await until_disconnect(request, run(site.sql_analyst, statement))
    except QueryError as exc:
        return _page(site, visitor, statement, query=query, error=exc)
    except DisconnectError:
        return Response()
    return _page(site, visitor, statement, query=query, result=result)


def _is_foreign(request: Request) -> bool:
    """Whether another web page led here: what it wants to run is read by the visitor first."""
    site = request.headers.get("sec-fetch-site", "none")
    return request.method == "GET" and site not in ("none", "same-origin")


def _page(
    site: Site,
    visitor: Visitor,
    statement: Statement,
    *,
    query: saved.SavedQuery | None = None,
    result: Result | None = None,
    error: QueryError | None = None,
    is_foreign: bool = False,
) -> Response:
    mend = error.mend if error else ""
    if isinstance(error, QueryTimeout):
        mend = "narrow it, or give it more time with `fusewire query --timeout`"
    return page.render(
        site,
        "sql.html",
        visitor,
        statement=statement,
        current=query,
        result=result,
        error=error,
        mend=mend,
        is_foreign=is_foreign,
        own=saved.own(site.settings.data_dir),
        built_in=saved.built_in(),
        views=VIEWS,
        has_parquet=has_parquet(),
        limits={"rows": TABLE_ROWS, "chars": CELL_CHARS, "download": MOST_ROWS},
        prefix=PARAMETER,
    )
