"""The custom_ids of a batch."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager


class Ids:
    """Custom_ids and their lines. On disk, as a million of them would fill the memory."""

    def __init__(self) -> None:
        # SQLite's name for a file of its own that vanishes with the connection.
        self._db = sqlite3.connect("")
        self._db.execute(
            "CREATE TABLE ids (custom_id TEXT PRIMARY KEY, line INTEGER NOT NULL) WITHOUT ROWID"
        )

    def add(self, custom_id: str, line: int) -> int | None:
        """Note an id; where it is taken, the line that has it."""
        if self._db.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (custom_id, line)).rowcount:
            return None
        return self.line(custom_id)

    def line(self, custom_id: str) -> int | None:
        """The line of an id."""
        found = self._db.execute(
            "SELECT line FROM ids WHERE custom_id = ?", (custom_id,)
        ).fetchone()
        return int(found[0]) if found else None

    def up_to(self, line: int) -> int:
        """How many lines there are up to this one."""
        return int(
            self._db.execute("SELECT count(*) FROM ids WHERE line <= ?", (line,)).fetchone()[0]
        )

    def close(self) -> None:
        """Forget all."""
        self._db.close()


@contextmanager
def new_ids() -> Iterator[Ids]:
    """An empty set of ids."""
    ids = Ids()
    try:
        yield ids
    finally:
        ids.close()
