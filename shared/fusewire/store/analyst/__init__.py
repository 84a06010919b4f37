"""The read-only connection for SQL that people write, and for reports."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from fusewire.settings import Database
from fusewire.store.analyst import postgresql, sqlite
from fusewire.store.analyst.result import (
    QueryError,
    QueryFailed,
    QueryRefused,
    QueryTimeout,
    ResultColumn,
    ResultRows,
)
from fusewire.store.analyst.statement import check_parameters, check_verb
from fusewire.store.engine import parse_url

NONE: Mapping[str, object] = MappingProxyType({})
CHUNK_ROWS = 1000


class Analyst:
    """Runs single SELECT statements on the views of `fusewire_v1`, the same on both databases.

    Each statement has a connection and a read-only transaction of its own, which are gone after it.

    Args:
        database: the settings. On PostgreSQL statements run as the role of `analyst_url`.
        timeout_s: how long a statement may take in the database.
        trusted: whether the statements are Fusewire's own: on PostgreSQL they may then run as the
            owner of the tables where `analyst_url` is not set.
    """

    def __init__(
        self, database: Database, *, timeout_s: float = 30.0, trusted: bool = False
    ) -> None:
        self._timeout_s = timeout_s
        self._url = parse_url(database)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self._postgresql_url = database.analyst_url or (database.url if trusted else None)

    async def __aenter__(self) -> Self:
        """Check that statements can be run at all. Raises QueryRefused."""
        if not self.is_sqlite and self._postgresql_url is None:
            raise QueryRefused(
                "[database] analyst_url is not set, and SQL that runs as the owner of the tables"
                " can do more than read the views",
                "run `fusewire db analyst NAME`, which makes a role for it and prints the address;"
                " or pass --as-owner, if whoever writes the SQL may do everything",
            )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is open between statements."""

    async def fetch(
        self, sql: str, parameters: Mapping[str, object] = NONE
    ) -> list[dict[str, Any]]:
        """Run a statement and return all of its rows, by column name.

        Values are None, str, int, float, bool, date, datetime in UTC, or bytes on both databases.

        Args:
            sql: one SELECT, with `:name` for each parameter.
            parameters: the values by name.

        Raises:
            QueryRefused: it does not only read views, or a parameter is missing.
            QueryFailed: the database reports an error in it.
            QueryTimeout: it took longer than `timeout_s`.
        """
        async with self.stream(sql, parameters) as rows:
            names = [column.name for column in rows.columns]
            records: list[dict[str, Any]] = []
            async for chunk in rows:
                records += (dict(zip(names, row, strict=True)) for row in chunk)
        return records

    @contextlib.asynccontextmanager
    async def stream(
        self, sql: str, parameters: Mapping[str, object] = NONE, *, chunk_rows: int = CHUNK_ROWS
    ) -> AsyncIterator[ResultRows]:
        """Run a statement: `async with analyst.stream(sql) as rows`, `async for chunk in rows`.

        `rows.columns` has names and types; each chunk is a list of at most `chunk_rows` tuples, so
        memory does not grow with the result. Raises like `fetch`, also while rows are read.
        """
        check_verb(sql)
        check_parameters(sql, parameters)
        async with self._select(sql, parameters, chunk_rows) as rows:
            yield rows

    def _select(
        self, sql: str, parameters: Mapping[str, object], chunk_rows: int
    ) -> contextlib.AbstractAsyncContextManager[ResultRows]:
        if self.is_sqlite:
            path = Path(self._url.database or "")
            return sqlite.select(
                path, sql, parameters, chunk_rows=chunk_rows, timeout_s=self._timeout_s
            )
        assert self._postgresql_url is not None, "checked on entry"
        return postgresql.select(
            self._postgresql_url,
            sql,
            parameters,
            chunk_rows=chunk_rows,
            timeout_s=self._timeout_s,
        )


__all__ = [
    "Analyst",
    "QueryError",
    "QueryFailed",
    "QueryRefused",
    "QueryTimeout",
    "ResultColumn",
    "ResultRows",
]
