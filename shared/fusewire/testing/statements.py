"""Records the SQL statements that a database gets."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event

from fusewire.store.engine import Store


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    """Inside the block, each statement is appended to the list."""
    texts: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        texts.append(statement)

    for engine in store.engines:
        event.listen(engine, "before_cursor_execute", note)
    yield texts
    for engine in store.engines:
        event.remove(engine, "before_cursor_execute", note)
