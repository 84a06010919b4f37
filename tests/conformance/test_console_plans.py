"""What pages ask of views of rows is looked up: none gets slower with stored outcomes."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text

from fusewire.settings import Database, Settings
from fusewire.store.analyst import Analyst
from fusewire.store.engine import Store
from fusewire.testing.planted import Truth, fill

MakeSettings = Callable[..., Settings]
ConsoleRunning = Callable[..., AbstractAsyncContextManager[aiohttp.ClientSession]]
ROWS = ("v_outcome", "v_answer", "v_verdict")
OWN_ROWS = ("newest", "sample", "minutes", "calls", "n", "s", "(subquery")
"""What statements have made themselves, bounded by a LIMIT or a time."""


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Analyst, str, Mapping[str, object]]]:
    """The statements that pages run."""
    seen: list[tuple[Analyst, str, Mapping[str, object]]] = []
    fetch = Analyst.fetch

    async def spy(analyst: Analyst, sql: str, parameters: Mapping[str, object] = {}) -> Any:
        seen.append((analyst, sql, parameters))
        return await fetch(analyst, sql, parameters)

    monkeypatch.setattr(Analyst, "fetch", spy)
    return seen


def whole_reads(steps: list[str]) -> list[str]:
    """Steps that read a table from end to end."""
    return [
        step
        for step in steps
        if "Seq Scan" in step
        or (
            step.startswith("SCAN ")
            # In the order of an index, up to a limit.
            and "USING INDEX" not in step
            and not step.removeprefix("SCAN ").startswith(OWN_ROWS)
        )
    ]


@pytest.mark.parametrize("path", ["/", "/models", "/batches/{}"])
async def test_rows_are_looked_up(
    make_settings: MakeSettings,
    database: Database,
    store: Store,
    console_alone: ConsoleRunning,
    statements: list[tuple[Analyst, str, Mapping[str, object]]],
    path: str,
) -> None:
    await fill(store, Truth(now=datetime.now(UTC), days=1.0), 200, 1)
    async with store.write() as connection:
        batch_id = (await connection.execute(text("SELECT batch_id FROM batches"))).scalar_one()
        if not store.is_sqlite:
            # Small tables are read whole, unless that is forbidden.
            name = store.url.database
            await connection.execute(text(f"ALTER DATABASE {name} SET enable_seqscan = off"))
    settings = make_settings(database=database)
    async with console_alone(settings) as web, web.get(path.format(batch_id)) as response:
        assert response.status == 200
    asked = [entry for entry in statements if any(view in entry[1] for view in ROWS)]
    assert len(asked) >= 3
    for analyst, sql, parameters in asked:
        explain = "EXPLAIN QUERY PLAN " if analyst.is_sqlite else "EXPLAIN "
        rows = await analyst.fetch(explain + sql, parameters)
        steps = [str(list(row.values())[-1]).strip() for row in rows]
        assert whole_reads(steps) == [], (sql, steps)
