"""What a folder of exported files holds, and which days a further export has to write.

An outcome belongs to the UTC day of its `finished_at`, and so do its answers, verdicts and pairs.
A vote belongs to the day of its `created_at`. Each day of a view is one file, written whole.

The rule for a day, from what the manifest and the database say of it:

- An outcome is committed a little after its `finished_at`, and answers that come late add to
  `cost_late_usd`. So a day is *final* only if it was read an hour or more after its end. A day
  that was not final when it was written is written again.
- Of a final day the database is asked for a stamp: the number of rows, the latest time, and the
  sum of the microseconds of all times. An index answers that without reading a row. Outcomes do
  not change, so a day with an equal stamp is skipped. Of votes, the times are those of the latest
  change, so a changed vote makes another stamp.
- A final day with fewer rows than were written has lost some to retention or an erasure. It is
  kept as it is, or written again with `--prune`. A day without any row is kept, or removed with
  `--prune`.
- Any other stamp is written again, and so is a day whose file is missing or has another length,
  or was written with other columns.

Two changes are not seen: a deletion and an addition in one final day with the same sum of
microseconds, and an answer that comes more than an hour after the day's end. `--full` writes all.

The file is put in its place before the manifest names it. An export that is killed in between
leaves a file that the next one writes again.

Views of sums and of batches have no days that end: each is one file, always written again.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Literal

from fusewire.store.views import CONTRACT

NAME = "export.json"
WHOLE = ""
"""In place of the day, for a view that is one file."""
SETTLE = timedelta(hours=1)
"""How long after its end a day may still change."""

Step = Literal["write", "skip", "keep", "remove"]


@dataclass(frozen=True)
class Stamp:
    """What tells whether the rows of a day are the same: they are not compared themselves."""

    count: int
    latest: str
    checksum: int


@dataclass(frozen=True)
class FileEntry:
    """A file of the export. `stamp` is None where a view is one file."""

    path: str
    rows: int
    bytes: int
    is_final: bool = False
    stamp: Stamp | None = None


@dataclass
class ViewFiles:
    """The files of a view, by day."""

    columns: list[str]
    files: dict[str, FileEntry] = field(default_factory=dict)


@dataclass
class Manifest:
    """What a folder holds. `database` tells which one it is from, without naming it."""

    format: str
    database: str
    views: dict[str, ViewFiles] = field(default_factory=dict)

    def encode(self) -> str:
        """As JSON."""
        return json.dumps({"contract": CONTRACT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def decode(cls, text: str) -> "Manifest":
        """Read what `encode` wrote. Raises ValueError if it is something else."""
        try:
            body = json.loads(text)
            if body["contract"] != CONTRACT:
                raise ValueError(f"its contract is {body['contract']}, and not {CONTRACT}")
            views = {name: _view_files(entry) for name, entry in body["views"].items()}
            return cls(body["format"], body["database"], views)
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"it has no valid {exc}") from None


def _view_files(body: Mapping[str, Any]) -> ViewFiles:
    files = {day: _file_entry(entry) for day, entry in body["files"].items()}
    return ViewFiles(body["columns"], files)


def _file_entry(body: Mapping[str, Any]) -> FileEntry:
    stamp = body["stamp"]
    return FileEntry(**{**body, "stamp": Stamp(**stamp) if stamp else None})


def is_final(day: date, now: datetime) -> bool:
    """Whether the rows of a UTC day can be expected not to change any more."""
    return datetime.combine(day, time(), UTC) + timedelta(days=1) + SETTLE <= now


def choose_step(entry: FileEntry | None, stamp: Stamp | None, *, prune: bool, full: bool) -> Step:
    """What is to be done with a day of a view.

    Args:
        entry: what the manifest says of it, if its file is as it was written.
        stamp: what the database says of it; None if it has no rows of that day.
        prune: whether the folder shall lose what the database has lost.
        full: whether all that is stored is written again.
    """
    if stamp is None:
        return "remove" if prune or entry is None else "keep"
    if entry is None or entry.stamp is None or full or not entry.is_final:
        return "write"
    if stamp == entry.stamp:
        return "skip"
    if stamp.count < entry.stamp.count and not prune:
        return "keep"
    return "write"


def read(folder: Path) -> Manifest | None:
    """The manifest of a folder; None if it has none. Raises ValueError if it cannot be read."""
    try:
        return Manifest.decode((folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def is_intact(folder: Path, entry: FileEntry) -> bool:
    """Whether a file has the length that was written."""
    try:
        return (folder / entry.path).stat().st_size == entry.bytes
    except OSError:
        return False


def replace(source: Path, target: Path) -> None:
    """Put a file, which is written and synced, in its place, so that it stays there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
    for folder in (target.parent, target.parent.parent):
        sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(folder: Path, manifest: Manifest, temporary: Path) -> None:
    """Replace the manifest of a folder."""
    with temporary.open("w", encoding="utf-8") as file:
        file.write(manifest.encode())
        file.flush()
        os.fsync(file.fileno())
    replace(temporary, folder / NAME)
