"""`fusewire batch run`: a file of prompts in, a file of outcomes out, line for line."""

import asyncio
import hashlib
import json
import os
import shlex
import signal
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from fusewire import ids
from fusewire_cli.client import ApiError, Client
from fusewire_cli.screen import EXIT_FAULT, EXIT_INTERRUPTED, EXIT_SOME_FAILED, fail, note, progress
from fusewire_cli.session import client, settings
from fusewire_ingest.admission import RefusedError, parse

POLL_S = 0.2
GROUP = 50
ANSWERED = ("fused", "voted", "single")


@dataclass(frozen=True)
class Line:
    """One line of the input, as it will be submitted, or why it will not be."""

    index: int
    custom_id: str
    body: str | None
    error: dict[str, Any] | None


def read(source: Path, *, pool: str | None, mode: str | None, limit: int) -> list[Line]:
    """Read and check the whole file before anything is asked.

    Raises:
        SystemExit: the file cannot be read or has no lines.
    """
    try:
        with source.open("rb") as file:
            lines = list(_lines(file.read().splitlines(), pool, mode, limit))
    except OSError as exc:
        fail(f"{source} cannot be read: {exc.strerror}")
    if not lines:
        fail(f"{source} holds no lines", 'write one JSON object a line, such as {"custom_id": "1", "prompt": "…"}')
    return lines


def _lines(raw: list[bytes], pool: str | None, mode: str | None, limit: int) -> Iterator[Line]:
    seen: dict[str, int] = {}
    for number, data in enumerate(raw, start=1):
        text = data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data
        if not text.strip():
            continue
        custom_id = f"line-{number}"
        try:
            submission = parse(text, limit)
        except RefusedError as exc:
            yield _refused(number, custom_id, exc.code, exc.message, exc.param)
            continue
        custom_id = submission.custom_id or custom_id
        if custom_id in seen:
            message = f"custom_id '{custom_id}' stands in line {seen[custom_id]} already; give each line its own"
            yield _refused(number, custom_id, "custom_id_conflict", message, "custom_id")
            continue
        seen[custom_id] = number
        chosen = {key: value for key, value in (("pool", pool), ("mode", mode)) if value}
        # What the line says itself wins over the options.
        body = {**chosen, **submission.model_dump(mode="json", exclude_unset=True), "custom_id": custom_id}
        yield Line(number, custom_id, json.dumps(body), None)


def _refused(number: int, custom_id: str, code: str, message: str, param: str | None) -> Line:
    note(f"line {number}: {message}")
    return Line(number, custom_id, None, {"code": code, "message": message, "param": param})


def resume_from(out: Path, lines: list[Line]) -> int:
    """How many lines of the output stand already; a torn last line is cut off.

    Raises:
        SystemExit: the output belongs to another input.
    """
    if not out.exists():
        return 0
    data = out.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    done = [json.loads(line) for line in whole.splitlines()]
    mend = "choose another output file, or delete this one"
    if len(done) > len(lines):
        fail(f"{out} has more lines than the input", mend)
    for line, written in zip(lines, done, strict=False):
        if written.get("custom_id") != line.custom_id:
            fail(f"{out} belongs to another input: line {line.index} is '{line.custom_id}' here", mend)
    if len(whole) < len(data):
        with out.open("r+b") as file:
            file.truncate(len(whole))
    return len(done)


def run(source: Path, out: Path, *, pool: str | None, mode: str | None, window: int, processes: bool) -> None:
    """Run, or go on with, one file."""
    config = settings()
    lines = read(source, pool=pool, mode=mode, limit=config.limits.prompt_bytes)
    out.parent.mkdir(parents=True, exist_ok=True)
    start = resume_from(out, lines)
    if start:
        note(f"{start} of {len(lines)} lines are done already")
    # The same file with the same options is the same batch, so what was asked before is not asked again.
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    batch = ids.batch_id("default", digest, pool or "", mode or "")

    async def main() -> int:
        async with client(config, processes=processes) as api:
            job = Job(api, batch, lines, out, start, window)
            return await job.run()

    try:
        failed = uvloop.run(main()) if start < len(lines) else failed_in(out)
    except Interrupted:
        command = shlex.join(["fusewire", *sys.argv[1:]])
        note(f"interrupted; nothing is lost. Go on with:\n  {command}")
        sys.exit(EXIT_INTERRUPTED)
    except ApiError as exc:
        fail(exc.message)
    except OSError as exc:
        fail(f"the service cannot be reached: {exc}", "run the same command again; it goes on where it was", EXIT_FAULT)
    note(f"{len(lines) - failed} answered, {failed} failed → {out}")
    if failed:
        sys.exit(EXIT_SOME_FAILED)


def failed_in(out: Path) -> int:
    """How many lines of an output hold no answer."""
    done = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return sum(one.get("status") not in ANSWERED for one in done)


class Interrupted(Exception):  # noqa: N818 - a request to stop, not an error
    """Ctrl-C."""


class Job:
    """One run: submits ahead, up to a window, and writes in the order of the input."""

    def __init__(self, api: Client, batch: str, lines: list[Line], out: Path, start: int, window: int) -> None:
        self._api = api
        self._batch = batch
        self._lines = lines
        self._out = out
        self._window = window
        self._next = start
        self._waiting: deque[Line] = deque()
        self._ids: dict[int, str] = {}
        self._results: dict[int, dict[str, Any]] = {}
        self._written = start
        self._failed = 0
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Returns how many lines have failed, in earlier runs or in this one.

        Raises:
            Interrupted: after Ctrl-C; what was submitted goes on and is found at the next run.
        """
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(sig, self._stop.set)
        self._failed = failed_in(self._out) if self._written else 0
        with progress(len(self._lines), self._written) as bar, self._out.open("a", encoding="utf-8") as file:
            while self._written < len(self._lines):
                if self._stop.is_set():
                    raise Interrupted
                await self._submit()
                await self._collect()
                while self._waiting and self._waiting[0].index in self._results:
                    line = self._waiting.popleft()
                    result = self._results.pop(line.index)
                    file.write(json.dumps({"index": line.index, **result}, ensure_ascii=False) + "\n")
                    self._written += 1
                    self._failed += result.get("status") not in ANSWERED
                file.flush()
                bar(self._written, self._failed)
            os.fsync(file.fileno())
        return self._failed

    async def _submit(self) -> None:
        group: list[Line] = []
        while self._next < len(self._lines) and len(self._waiting) < self._window and len(group) < GROUP:
            line = self._lines[self._next]
            self._next += 1
            self._waiting.append(line)
            if line.error:
                self._results[line.index] = _failed(line, line.error)
            else:
                group.append(line)
        if not group:
            return
        for line, result in zip(
            group, await self._api.submit_lines([one.body or "" for one in group], self._batch), strict=True
        ):
            if "error" in result:
                self._results[line.index] = _failed(line, result["error"])
            else:
                self._ids[line.index] = result["id"]

    async def _collect(self) -> None:
        pending = {self._ids[one.index]: one for one in self._waiting if one.index in self._ids}
        if pending:
            for found in await self._api.get_many(list(pending)):
                if found["status"] != "running":
                    index = pending[found["id"]].index
                    self._results[index] = found
                    del self._ids[index]
        first = self._waiting[0] if self._waiting else None
        if first and first.index not in self._results:
            await asyncio.sleep(POLL_S)


def _failed(line: Line, error: dict[str, Any]) -> dict[str, Any]:
    return {
        "custom_id": line.custom_id,
        "status": "refused",
        "error_code": error["code"],
        "error": error["message"],
        "param": error["param"],
    }
