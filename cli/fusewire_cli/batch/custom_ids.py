"""The custom_ids of a batch."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager


class Ids:
    """Custom_ids and their line numbers, on disk: a million of them would fill the memory."""

    def __init__(self) -> None:
        # The empty name: SQLite makes a temporary file and deletes it with the connection.
        self._db = sqlite3.connect("")
        self._db.execute(
            "CREATE TABLE ids (custom_id TEXT PRIMARY KEY, line INTEGER NOT NULL) WITHOUT ROWID"
        )

    def add(self, custom_id: str, line: int) -> int | None:
        """Add an id. Returns the line that has it already, or None if the id is new."""
        if self._db.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (custom_id, line)).rowcount:
            return None
        return self.line(custom_id)

    def line(self, custom_id: str) -> int | None:
        """The line of an id; None if the id is unknown."""
        row = self._db.execute("SELECT line FROM ids WHERE custom_id = ?", (custom_id,)).fetchone()
        return int(row[0]) if row else None

    def up_to(self, line: int) -> int:
        """Count the lines up to and including this one."""
        return int(
            self._db.execute("SELECT count(*) FROM ids WHERE line <= ?", (line,)).fetchone()[0]
        )

    def close(self) -> None:
        """Delete all ids."""
        self._db.close()


@contextmanager
def new_ids() -> Iterator[Ids]:
    """An empty set of ids, deleted at the end of the block."""
    ids = Ids()
    try:
        yield ids
    finally:
        ids.close()
