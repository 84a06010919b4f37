"""Processes: the fake models, `fusewire up`, and what they use."""

import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from fusewire.testing.model_script import Script
from fusewire_cli.local.run_file import RUN_FILE

ROOT = Path(__file__).parents[3]
BUILD = ROOT / "build"
START_S = 60.0

Pids = dict[str, int]


class Models:
    """The fake models, in a process of their own."""

    def __init__(self, port: int, pid: int) -> None:
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self.pid = pid
        self._control = f"http://127.0.0.1:{port}/_control"

    async def play(self, script: Script) -> None:
        """Behave so from now on, and count from nothing."""
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self._control}/script", data=script.model_dump_json()) as response,
        ):
            response.raise_for_status()

    async def calls(self, by: str = "by_model") -> dict[str, int]:
        """Requests since then by model, or `by_key`: by the key that a repeated call shares."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self._control}/stats") as response,
        ):
            return dict((await response.json(content_type=None))[by])


@contextlib.contextmanager
def models() -> Iterator[Models]:
    """Start them, and end them."""
    command = [sys.executable, "-m", "fusewire.testing.model_server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Models(json.loads(process.stdout.readline())["port"], process.pid)
        finally:
            process.terminate()


@contextlib.asynccontextmanager
async def fusewire_up(
    settings: dict[str, Any], folder: Path, *, processes: bool = False
) -> AsyncIterator[tuple[str, Pids]]:
    """`fusewire up` on a data folder: its URL and its processes. It may be killed meanwhile."""
    file = folder / "fusewire.json"
    file.write_text(json.dumps(settings))
    env = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith("FUSEWIRE_") or k == "FUSEWIRE_NATS_SERVER"
    }
    command = [
        str(Path(sys.executable).parent / "fusewire"),
        "up",
        *(["--processes"] if processes else []),
    ]
    (folder / RUN_FILE).unlink(missing_ok=True)
    with (folder / "up.log").open("w") as log:
        env["FUSEWIRE_CONFIG"] = str(file)
        child = await asyncio.create_subprocess_exec(*command, env=env, stdout=log, stderr=log)
    try:
        until = time.monotonic() + START_S
        while not (run := _read(folder / RUN_FILE)):
            if child.returncode is not None or time.monotonic() > until:
                raise RuntimeError(
                    f"fusewire up did not start:\n{(folder / 'up.log').read_text()[-2000:]}"
                )
            await asyncio.sleep(0.02)
        yield run["url"], {"up": child.pid, **run["pids"]}
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        await child.wait()


def kill(pids: Pids) -> None:
    """Kill a whole stack at once, as a power cut would, but for what the kernel still writes."""
    for pid in pids.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _read(file: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads(file.read_text()))
    return {}


def cpu_s(pid: int) -> float:
    """User and system time of a process, all its threads, in seconds."""
    # The name, in brackets, may hold blanks; utime and stime are fields 14 and 15 (proc(5)).
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, least and most of the rounds."""
    rounded = [round(v, 2) for v in values]
    return {
        "median": round(statistics.median(values), 2),
        "min": min(rounded),
        "max": max(rounded),
        "rounds": rounded,
    }
