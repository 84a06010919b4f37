"""For tests: planted outcomes in which every text that a client or a model writes is hostile.

Names of a model are too, which no configuration allows: what shows them must not rely on that.
"""

import json
import warnings
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, MetaData, String, Table, bindparam, select, update
from sqlalchemy.exc import SAWarning

from fusewire.store.engine import Store

MARK = "<script>alert(1)</script>"
NAME = "<script>alert(2)"
"""In place of the model `gamma`."""
TEXT = (
    f"{MARK}\"'><img src=x onerror=alert(3)>"
    "{{ 7 * 7 }} <hx-partial hx-target='body'>gone</hx-partial> "
    "\u202eמימין לשמאל من اليمين\u2069 "
    f"Z{chr(0x0336) * 30}a{chr(0x0351) * 30}lgo "
    f"{'w' * 300}\r\n\tend"
)
"""Tags, a template's braces, right-to-left text, combining characters, and a long word."""
LARGE = (TEXT * (1024 * 1024 // len(TEXT) + 1))[: 1024 * 1024]
LARGE_OUTCOMES = 3
"""The newest outcomes, whose texts have a mebibyte each."""
_BODIES = ("prompts", "rounds", "candidates", "outcomes")
_KEYS = frozenset({"content", "reason", "message", "provider_code", "provider_param"})
"""Fields of bodies with texts of clients and models."""
_COLUMNS = {
    "outcomes": ("content", "reason", "error"),
    "answers": ("content", "provider_code", "provider_param"),
}
_OLD_NAME = "gamma"


async def make_hostile(store: Store) -> None:
    """Replace texts of planted outcomes."""
    await store.run(_replace, write=True)


def _replace(connection: Connection) -> None:
    # Tables are the business of the store: here they are what the database has.
    metadata = MetaData()
    with warnings.catch_warnings():
        # Indexes by an expression are not read, and not needed.
        warnings.filterwarnings("ignore", "Skipped unsupported reflection", SAWarning)
        metadata.reflect(connection)
    outcomes = metadata.tables["outcomes"]
    newest = select(outcomes.c.fusion_id).order_by(outcomes.c.finished_at.desc())
    large = set(connection.execute(newest.limit(LARGE_OUTCOMES)).scalars())
    for name in _BODIES:
        _replace_bodies(connection, metadata.tables[name], large)
    for name, columns in _COLUMNS.items():
        table = metadata.tables[name]
        for column in columns:
            is_text = table.c[column].isnot(None) | table.c.fusion_id.in_(large)
            connection.execute(update(table).where(is_text).values({column: TEXT}))
            is_large = table.c.fusion_id.in_(large)
            connection.execute(update(table).where(is_large).values({column: LARGE}))
    for name in ("prompts", "outcomes"):
        table = metadata.tables[name]
        connection.execute(update(table).values(custom_id=TEXT[:200] + table.c.custom_id))
    batches = metadata.tables["batches"]
    options = json.dumps({"metadata": {"name": TEXT, TEXT[:60]: TEXT}})
    connection.execute(update(batches).values(options=options, waiting_for=TEXT[:256]))
    _rename(connection, (table for table in metadata.sorted_tables if table.name != "audit_log"))


def _replace_bodies(connection: Connection, table: Table, large: set[str]) -> None:
    keys = list(table.primary_key)
    changes = []
    for row in connection.execute(select(*keys, table.c.body)).mappings():
        text = LARGE if row[table.c.fusion_id] in large else TEXT
        body = json.dumps(_hostile(json.loads(row[table.c.body]), text))
        changes.append({f"key_{column.name}": row[column] for column in keys} | {"new": body})
    statement = update(table).values(body=bindparam("new"))
    for column in keys:
        statement = statement.where(column == bindparam(f"key_{column.name}"))
    connection.execute(statement, changes)


def _hostile(value: Any, text: str) -> Any:
    if isinstance(value, list):
        return [_hostile(inner, text) for inner in value]
    if isinstance(value, dict):
        return {key: _hostile_field(key, inner, text) for key, inner in value.items()}
    return value


def _hostile_field(key: str, value: Any, text: str) -> Any:
    return text if key in _KEYS and isinstance(value, str) else _hostile(value, text)


def _rename(connection: Connection, tables: Iterable[Table]) -> None:
    """Rename a model wherever its name stands, in bodies too."""
    for table in tables:
        for column in table.columns:
            if isinstance(column.type, String):
                connection.exec_driver_sql(
                    f"UPDATE {table.name} SET {column.name} = REPLACE({column.name}, ?, ?)"
                    f" WHERE {column.name} LIKE ?",
                    (_OLD_NAME, NAME, f"%{_OLD_NAME}%"),
                )
