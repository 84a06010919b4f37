"""Files in which a running stack describes itself to other commands."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fusewire.settings import Nats, Settings
from fusewire_cli.local import broker_keys
from fusewire_cli.local.process import ProcessRecord

RUN_FILE = "up.json"
PROCESSES_FILE = "processes.json"


def write(
    data_dir: Path, runner: ProcessRecord, *, url: str, nats: str, pids: Mapping[str, int]
) -> None:
    """Write where the stack listens, and its processes."""
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
    """Remove the files of a stack that has stopped."""
    for name in (RUN_FILE, PROCESSES_FILE):
        (data_dir / name).unlink(missing_ok=True)


def running(settings: Settings) -> str | None:
    """The address of the stack that runs on this data folder, if one does."""
    return _read(settings, "url")


def broker(settings: Settings) -> Nats | None:
    """How to connect to the broker that is configured.

    If that is the embedded one, None unless a stack runs on this data folder.
    """
    if settings.nats.url != "embedded":
        return settings.nats
    url = _read(settings, "nats")
    if url is None:
        return None
    return with_keys(settings.nats, url, broker_keys.folder_of(settings.data_dir))


def with_keys(nats: Nats, url: str, keys: Path) -> Nats:
    """How to connect to an embedded broker. One that an earlier release runs has no keys."""
    nkey = keys if keys.exists() else None
    return nats.model_copy(update={"url": url, "nkey": nkey, "credentials": None})


def _read(settings: Settings, key: str) -> str | None:
    try:
        text = (settings.data_dir / RUN_FILE).read_text()
        run: dict[str, Any] = json.loads(text)
        return str(run[key]) if ProcessRecord.decode(text).find() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def note_processes(data_dir: Path, processes: Iterable[ProcessRecord]) -> None:
    """Write down the processes of a runner, in the order in which they have to end."""
    _replace(data_dir / PROCESSES_FILE, "".join(f"{process.encode()}\n" for process in processes))


def noted_processes(data_dir: Path) -> list[ProcessRecord]:
    """The processes that the last runner on this folder wrote down."""
    try:
        return [
            ProcessRecord.decode(line)
            for line in (data_dir / PROCESSES_FILE).read_text().splitlines()
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _replace(path: Path, text: str) -> None:
    """Replace a file atomically: a reader sees the old text or the new one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
