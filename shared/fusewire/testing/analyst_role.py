"""The role of analysts, for tests that run SQL as they do."""

from sqlalchemy import make_url

from fusewire.settings import Database
from fusewire.store.analyst import role
from fusewire.store.engine import Store


async def as_analyst(database: Database) -> Database:
    """The settings with `analyst_url`, whose role is made for it on PostgreSQL."""
    store = Store(database)
    if store.is_sqlite:
        await store.close()
        return database
    name = f"analyst_{store.url.database}"
    try:
        await role.grant(
            store, name, role.scram_verifier("password1234", b"salt" * 4), is_reset=True
        )
    finally:
        await store.close()
    url = make_url(database.url).set(username=name, password="password1234")
    return Database(url=database.url, analyst_url=url.render_as_string(hide_password=False))
