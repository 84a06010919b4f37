"""A database that an older version filled: what a migration computes from stored outcomes."""

from datetime import UTC, datetime
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire.store.views import VIEWS
from fusewire.testing.planted import Truth, fill

SUMS = ("v_pool_day", "v_model_day", "v_win_matrix", "v_judge_bias", "v_latency_hist")


async def rows(store: Store, sql: str) -> list[tuple[Any, ...]]:
    async with store.read() as connection:
        return sorted(tuple(row) for row in await connection.execute(text(sql)))


async def test_sums_and_verdicts_of_an_older_schema_are_filled(store: Store) -> None:
    await fill(store, Truth(now=datetime(2026, 11, 20, tzinfo=UTC), days=3), 300, 7)
    shown = 'SELECT fusion_id, "call", shown, chars, swap_of, is_by_margin FROM verdicts'
    before = {view: await rows(store, f"SELECT * FROM {view}") for view in SUMS}
    verdicts = await rows(store, shown)
    assert all(before.values())
    assert any(verdict[4] for verdict in verdicts)

    async with store.write() as connection:
        await connection.run_sync(_downgrade)
    assert await migrate.upgrade(store) == ("0014", migrate.head())

    assert _plain(await rows(store, shown)) == _plain(verdicts)
    for view in SUMS:
        assert _rounded(await rows(store, f"SELECT * FROM {view}")) == _rounded(before[view]), view


def _downgrade(connection: Connection) -> None:
    for view in reversed(VIEWS):
        connection.execute(text(f"DROP VIEW {view.name}"))
    config = Config()
    config.set_main_option("script_location", str(migrate.folder()))
    config.attributes["connection"] = connection
    command.downgrade(config, "0014")


def _plain(verdicts: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Without the spaces of JSON, which say nothing."""
    return [tuple(str(value).replace(" ", "") for value in verdict) for verdict in verdicts]


def _rounded(records: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [
        tuple(round(value, 9) if isinstance(value, float) else value for value in record)
        for record in records
    ]
