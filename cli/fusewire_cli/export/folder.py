"""The folder of an export: whether it may be used, its lock, and its temporary files."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from fusewire_cli.export import FileFormat, manifest
from fusewire_cli.export.manifest import Manifest
from fusewire_cli.screen import fail

LOCK = ".export.lock"
TEMPORARY = ".export.tmp"


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[Path]:
    """Lock the folder, which is made if need be; yields an empty folder for temporary files.

    The lock is the operating system's, which ends with the process: one that was killed leaves a
    file, and no lock. The file holds the pid, for the message.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir()}
    except (FileExistsError, NotADirectoryError):
        fail(f"{folder} is not a folder", "name a folder")
    if manifest.NAME not in names and names - {LOCK, TEMPORARY}:
        fail(
            f"{folder} is not an export, and not empty",
            "name a new folder, or one that `fusewire export` has written",
        )
    with (folder / LOCK).open("a+", encoding="ascii") as lock:
        _take(lock.fileno(), folder)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        temporary = folder / TEMPORARY
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _take(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = (folder / LOCK).read_text(encoding="ascii").strip()
        fail(
            f"another export writes to {folder} (process {pid or 'unknown'})",
            "wait for its end, or name another folder",
        )


def read_manifest(folder: Path, form: FileFormat, database: str, *, full: bool) -> Manifest:
    """The folder's manifest, or a new one. Fails if it is of another export."""
    try:
        content = manifest.read(folder)
    except ValueError as exc:
        fail(f"{folder / manifest.NAME} cannot be read: {exc}", "name a new folder")
    if content is None:
        return Manifest(form, database)
    if content.format != form:
        fail(
            f"{folder} holds {content.format} files",
            f"name another folder for {form}, or export {content.format}",
        )
    if content.database != database and not full:
        fail(
            f"{folder} holds an export of another database",
            "name another folder; or pass --full, if the database has only moved",
        )
    content.database = database
    return content
