"""What the running stack of a data folder has written about itself, for other commands."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fusewire.settings import Settings
from fusewire_cli.local.process import ProcessRecord

RUN_FILE = "up.json"
PROCESSES_FILE = "processes.json"


def write(
    data_dir: Path, runner: ProcessRecord, *, url: str, nats: str, pids: Mapping[str, int]
) -> None:
    """Say where it listens and what it consists of."""
    run = {
        "pid": runner.pid,
        "started": runner.started,
        "started_at": datetime.fromtimestamp(runner.started, UTC).isoformat(),
        "url": url,
        "nats": nats,
        "pids": dict(pids),
    }
    _replace(data_dir / RUN_FILE, json.dumps(run))


def remove(data_dir: Path) -> None:
    """It no longer runs."""
    for name in (RUN_FILE, PROCESSES_FILE):
        (data_dir / name).unlink(missing_ok=True)


def running(settings: Settings) -> str | None:
    """The address of the stack that runs on this data folder, if one does."""
    return _read(settings, "url")


def running_nats(settings: Settings) -> str | None:
    """The address of that stack's broker."""
    return _read(settings, "nats")


def _read(settings: Settings, key: str) -> str | None:
    try:
        text = (settings.data_dir / RUN_FILE).read_text()
        found: dict[str, Any] = json.loads(text)
        return str(found[key]) if ProcessRecord.decode(text).find() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def note_processes(data_dir: Path, processes: Iterable[ProcessRecord]) -> None:
    """Note the processes that the runner has started, in the order in which they have to end."""
    _replace(data_dir / PROCESSES_FILE, "".join(f"{process.encode()}\n" for process in processes))


def noted_processes(data_dir: Path) -> list[ProcessRecord]:
    """The processes that were noted last, by whichever runner."""
    try:
        return [
            ProcessRecord.decode(line)
            for line in (data_dir / PROCESSES_FILE).read_text().splitlines()
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _replace(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or the one before."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
