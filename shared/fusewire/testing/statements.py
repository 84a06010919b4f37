"""What is said to a database."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event

from fusewire.store.engine import Store


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    """While inside, the list grows by each statement."""
    said: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        said.append(statement)

    for engine in store.engines:
        event.listen(engine, "before_cursor_execute", note)
    yield said
    for engine in store.engines:
        event.remove(engine, "before_cursor_execute", note)
