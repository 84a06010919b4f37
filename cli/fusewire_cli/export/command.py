"""`fusewire export`: writes views to a folder, and only what has changed since the last time."""

import contextlib
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

from fusewire.settings import Database
from fusewire.store.engine import parse_url
from fusewire_cli.export import FileFormat, days, duckdb_views, manifest, selects
from fusewire_cli.export.days import DayJob, TemporaryFile
from fusewire_cli.export.folder import hold, read_manifest
from fusewire_cli.export.manifest import WHOLE, FileEntry, Manifest, Stamp, ViewFiles
from fusewire_cli.export.reading import Reader
from fusewire_cli.export.writing import missing_library
from fusewire_cli.screen import EXIT_FAULT, RowFormat, fail, note, rows
from fusewire_cli.session import settings
from fusewire_cli.since import since_time


@dataclass(frozen=True)
class Options:
    """What a user asks for, and when."""

    now: datetime
    views: tuple[str, ...] = selects.DEFAULT
    since: date | None = None
    full: bool = False
    prune: bool = False


def options(views: Sequence[str] | None, since: str | None, *, full: bool, prune: bool) -> Options:
    """What a user asks for, as the command line says it."""
    names = tuple(dict.fromkeys(views or selects.DEFAULT))
    start = since_time(since)
    first_day = start.date() if start else None
    return Options(datetime.now(UTC), names, first_day, full=full, prune=prune)


@dataclass
class ViewReport:
    """What was done with a view."""

    rows: int = 0
    files: int = 0
    bytes: int = 0
    seconds: float = 0.0
    skipped_days: int = 0
    kept_days: list[str] = field(default_factory=list)
    removed_days: list[str] = field(default_factory=list)

    def add(self, file: TemporaryFile, size: int) -> None:
        """Count a file that is in its place."""
        self.rows += file.rows
        self.files += 1
        self.bytes += size
        self.seconds = round(self.seconds + file.seconds, 3)


@dataclass
class _FolderWriter:
    """An export that runs: the folder, and what was done so far."""

    folder: Path
    temporary: Path
    form: FileFormat
    manifest: Manifest
    now: datetime
    reports: dict[str, ViewReport]

    def place(self, files: Sequence[TemporaryFile]) -> None:
        """Put the files of a day in their places, and name them in the manifest."""
        for file in files:
            name = f"day={file.day}/part-0" if file.day else "part-0"
            path = f"{file.view}/{name}.{self.form}"
            size = file.path.stat().st_size
            manifest.replace(file.path, self.folder / path)
            is_final = file.day is not None and manifest.is_final(file.day, self.now)
            entry = FileEntry(path, file.rows, size, is_final, file.stamp)
            self.manifest.views[file.view].files[str(file.day or WHOLE)] = entry
            self.reports[file.view].add(file, size)
        self.save()

    def job(self, day: date | None, views: Sequence[str]) -> DayJob:
        """What to write of a day."""
        return DayJob(day, tuple(views), self.form, self.temporary)

    def remove(self, view: str, day: str) -> None:
        """Remove the file of a day that the database has lost."""
        entry = self.manifest.views[view].files.pop(day)
        path = self.folder / entry.path
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody has put something else there
            path.parent.rmdir()
        self.reports[view].removed_days.append(day)

    def save(self) -> None:
        """Write the manifest."""
        manifest.write(self.folder, self.manifest, self.temporary / manifest.NAME)


def export(form: FileFormat, folder: Path, options: Options, *, as_json: bool) -> None:
    """Write views to a folder, and print what was written."""
    unknown = [name for name in options.views if name not in selects.BY_NAME]
    if unknown:
        fail(f"there is no view {unknown[0]}", f"the views are {', '.join(selects.BY_NAME)}")
    if missing_library():
        fail(
            "an export needs pyarrow, which is not installed",
            "install fusewire-cli[parquet]",
        )
    start = time.perf_counter()
    database = settings().database
    with days.open_reader(database) as reader, _full_disk(folder), hold(folder) as temporary:
        content = read_manifest(folder, form, _fingerprint(database), full=options.full)
        reports = {name: ViewReport() for name in options.views}
        running = _FolderWriter(folder, temporary, form, content, options.now, reports)
        count = _run(running, reader, database, options)
    if not count:
        note("no outcomes are stored yet")
    _print(running, time.perf_counter() - start, as_json=as_json)


def _run(running: _FolderWriter, reader: Reader, database: Database, options: Options) -> int:
    """Write what has to be written; returns how many outcomes the database has."""
    for name in options.views:
        _check_columns(running, name)
    # From here on the folder is known as an export, so that it can be gone on with.
    running.save()
    with reader.snapshot():
        outcomes = reader.read_stamps(selects.stamps("v_outcome", reader.dialect, of_day=False))
        votes = reader.read_stamps(selects.stamps("v_vote", reader.dialect, of_day=False))
    by_day = _plan(running, {"v_vote": votes}, outcomes, options)
    n_rows = sum(outcomes[str(day)].count for day in by_day if str(day) in outcomes)
    jobs = [running.job(day, names) for day, names in sorted(by_day.items())]
    for files in days.write_days(reader, database, jobs, n_rows):
        running.place(files)
    whole = [name for name in options.views if name not in selects.BY_DAY]
    running.place(days.write_day(reader, running.job(None, whole)))
    duckdb_views.write(running.folder, running.manifest, running.temporary)
    return sum(stamp.count for stamp in outcomes.values())


def _check_columns(running: _FolderWriter, name: str) -> None:
    """Make ready for a view; one that was written with other columns is written again."""
    with_day = running.form is not FileFormat.parquet
    view = selects.BY_NAME[name]
    names = [column.name for column in selects.columns(view, with_day=with_day)]
    content = running.manifest.views.setdefault(name, ViewFiles(names))
    if content.columns != names:
        files = {
            day: FileEntry(entry.path, entry.rows, entry.bytes)
            for day, entry in content.files.items()
        }
        running.manifest.views[name] = ViewFiles(names, files)


def _plan(
    running: _FolderWriter,
    own_stamps: Mapping[str, Mapping[str, Stamp]],
    stamps: Mapping[str, Stamp],
    options: Options,
) -> dict[date, list[str]]:
    """The views that have to be written, by day. `own_stamps` are those of views with their own."""
    by_day: defaultdict[date, list[str]] = defaultdict(list)
    for name in options.views:
        if name in selects.BY_DAY:
            for day in _days_to_write(running, name, own_stamps.get(name, stamps), options):
                by_day[day].append(name)
    return by_day


def _days_to_write(
    running: _FolderWriter, name: str, stamps: Mapping[str, Stamp], options: Options
) -> Iterator[date]:
    """The days of a view that have to be written; others are counted, kept or removed."""
    files = running.manifest.views[name].files
    report = running.reports[name]
    first = str(options.since or "")
    for day in sorted(day for day in stamps.keys() | files.keys() if day >= first):
        entry = files.get(day)
        if entry and not manifest.is_intact(running.folder, entry):
            entry = None
        match manifest.choose_step(entry, stamps.get(day), prune=options.prune, full=options.full):
            case "write":
                yield date.fromisoformat(day)
            case "skip":
                report.skipped_days += 1
            case "keep":
                report.kept_days.append(day)
            case "remove":
                running.remove(name, day)


def _fingerprint(database: Database) -> str:
    """Names a database in a folder that others may read, without its address."""
    url = parse_url(database)
    name = url.database or ""
    if url.get_backend_name() == "sqlite":
        name = str(Path(name).resolve())
    address = f"{url.get_backend_name()}://{url.host}:{url.port}/{name}"
    return hashlib.sha256(address.encode()).hexdigest()[:12]


@contextlib.contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as exc:
        fail(
            f"{folder} cannot be written: {exc.strerror or exc}",
            "make room or mend the folder, and run it again: it goes on where it ended,"
            " and no file is half written",
            EXIT_FAULT,
        )


def _print(running: _FolderWriter, seconds: float, *, as_json: bool) -> None:
    for name, report in running.reports.items():
        if report.kept_days:
            note(
                f"{name}: the database has lost rows of {len(report.kept_days)} days"
                f" ({report.kept_days[0]} to {report.kept_days[-1]}), which the folder keeps;"
                " --prune removes them"
            )
    if as_json:
        views = {name: vars(report) for name, report in running.reports.items()}
        document = {
            "folder": str(running.folder),
            "format": running.form,
            "views": views,
            "seconds": round(seconds, 3),
        }
        print(json.dumps(document, ensure_ascii=False))
        return
    records = [
        (
            name,
            report.rows,
            report.files,
            report.bytes,
            f"{report.seconds:.1f}",
            report.skipped_days,
        )
        for name, report in running.reports.items()
    ]
    headings = ("view", "rows", "files", "bytes", "seconds", "days unchanged")
    rows(headings, records, RowFormat.table)
