"""The analysts' read-only connection, on SQLite and on PostgreSQL."""

from fusewire.settings import Database
from fusewire.store.analyst import Analyst
from fusewire.store.views import VIEWS


async def test_each_view_can_be_read(database: Database) -> None:
    async with Analyst(database, trusted=True) as analyst:
        for view in VIEWS:
            async with analyst.stream(f"SELECT * FROM {view.name}") as rows:
                assert [(c.name, c.type) for c in rows.columns] == [
                    (c.name, c.type) for c in view.columns
                ]
                assert [chunk async for chunk in rows] == []
