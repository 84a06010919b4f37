"""`fusewire batch`: what its commands do."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop

from fusewire import ids as keys
from fusewire import replies
from fusewire.contracts import Prompt
from fusewire.settings import Settings
from fusewire_cli import fusing
from fusewire_cli.batch import POLL_S
from fusewire_cli.batch.checking import CheckReport, LineRules, check
from fusewire_cli.batch.custom_ids import Ids, new_ids
from fusewire_cli.batch.ending import conclude
from fusewire_cli.batch.faults import refuse
from fusewire_cli.batch.inputs import Columns, as_jsonl
from fusewire_cli.batch.output import STDOUT, Output, opened
from fusewire_cli.batch.watch import (
    InterruptedRunError,
    Progress,
    Stop,
    figures,
    follow,
    settled,
    write,
)
from fusewire_cli.client import ApiError, Client, Form, Order
from fusewire_cli.screen import (
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_SOME_FAILED,
    ProgressStyle,
    RowFormat,
    fail,
    note,
    rows,
)
from fusewire_cli.session import client, end_at_once, end_soon, is_elsewhere, settings
from fusewire_ingest.admission.rules import pool_rules

RUN_KEY = "fusewire_run"
"""The metadata of a batch that says which file with which options it is."""
DRAINING = "stopping: what is in flight is waited for a moment; Ctrl-C again ends at once"
COLUMNS = (
    "id",
    "status",
    "total",
    "done",
    "failed",
    "degraded",
    "cost_usd",
    "rate_per_s",
    "eta_s",
    "stop_reason",
    "name",
)


@dataclass(frozen=True)
class RunOptions:
    """A file, and how it shall be run."""

    source: Path
    columns: Columns = field(default_factory=Columns)
    pool: str | None = None
    mode: str | None = None
    priority: str | None = None
    max_cost_usd: float | None = None
    completion_window: str = "24h"
    name: str | None = None

    def key(self, digest: str) -> str:
        """The same for the same prompts and what decides their answers: then it is the same batch."""
        return keys.digest("run", digest, self.pool or "", self.mode or "", self.name or "").hex()[
            :40
        ]

    def body(self, file_id: str, endpoint: str, key: str) -> dict[str, Any]:
        """What makes a batch of it."""
        ours = {
            "pool": self.pool,
            "mode": self.mode,
            "priority": self.priority,
            "max_cost_usd": self.max_cost_usd,
        }
        named = {"name": self.name} if self.name else {}
        return {
            "input_file_id": file_id,
            "endpoint": endpoint,
            "completion_window": self.completion_window,
            "metadata": {RUN_KEY: key, **named},
            "x_fusewire": {name: value for name, value in ours.items() if value is not None},
        }


@dataclass(frozen=True)
class ResultFormat:
    """How results are written."""

    out: Path | None
    order: Order
    form: Form


@contextlib.contextmanager
def checked(
    asked: RunOptions, config: Settings, visit: Callable[[Prompt], None] | None = None
) -> Iterator[tuple[Path, CheckReport, Ids]]:
    """The input as a JSONL file, checked whole. Fails with its faults."""
    limits = config.limits
    rules = LineRules(
        pools=pool_rules(config),
        limit=limits.prompt_bytes,
        now=datetime.now(UTC),
        most_lines=limits.batch_lines,
        pool=asked.pool,
        mode=asked.mode,
        is_elsewhere=is_elsewhere(),
    )
    with as_jsonl(asked.source, asked.columns, limits.prompt_bytes) as path, new_ids() as ids:
        found = check(path, rules, ids, visit)
        if found.n_faults:
            refuse(asked.source, found.faults, found.n_faults)
        if not found.count:
            mend = 'write one JSON object a line, such as {"custom_id": "1", "prompt": "…"}'
            fail(f"{asked.source} holds no lines", mend)
        if found.unnamed:
            note(f"lines without a custom_id: {found.unnamed}; theirs is line-<number>")
        for warning, count in found.warnings.items():
            note(f"{warning} (lines: {count})")
        yield path, found, ids


def run(asked: RunOptions, shape: ResultFormat, *, show: ProgressStyle, processes: bool) -> None:
    """Run a file, or go on with it."""
    config = settings()
    with (
        checked(asked, config) as (path, found, ids),
        opened(shape.out or STDOUT, ids, order=shape.order, form=shape.form) as output,
    ):
        if output.lines == found.count:
            note(
                f"{output.lines - output.failed} answered, {output.failed} failed → {output.name}, already"
            )
            sys.exit(EXIT_SOME_FAILED if output.failed else 0)

        async def main() -> int:
            stop = _stop(DRAINING, config)
            async with client(config, processes=processes) as api:
                batch = await _attach(api, asked, path, found, stop)
                return await _see_through(api, batch, output, show, stop)

        code = _end(main())
    sys.exit(code)


def submit(asked: RunOptions) -> None:
    """Make a batch of a file, and leave it to the Fusewire that runs."""
    config = settings()
    with checked(asked, config) as (path, found, _ids):

        async def main() -> int:
            stop = _stop("stopping", config)
            async with client(config, embeds=False) as api:
                batch = await _attach(api, asked, path, found, stop)
            print(batch["id"])
            return 0

        code = _end(main())
    sys.exit(code)


async def _attach(
    api: Client, asked: RunOptions, path: Path, checked: CheckReport, stop: Stop
) -> replies.batches.Batch:
    """The batch of a file: the one that there is, or a new one."""
    key = asked.key(checked.digest)
    batch = await stop.guard(_found(api, key))
    if batch is None:
        file_id = await stop.guard(api.upload(path))
        try:
            return await api.create_batch(asked.body(file_id, checked.endpoint, key), key)
        except ApiError as exc:
            # Somebody else has made it in the meantime, of another upload.
            batch = await _found(api, key)
            if exc.code != "idempotency_conflict" or batch is None:
                raise
    counts = batch["request_counts"]
    done = counts["completed"] + counts["failed"]
    note(f"{batch['id']} is there: {done} of {counts['total']} lines are done already")
    reason = batch["x_fusewire"]["stop_reason"]
    if reason == "request":
        mend = f"go on with `fusewire batch resume {batch['id']}`, or make another with --name"
        fail(f"{batch['id']} was cancelled", mend)
    if reason in ("interrupted", "budget"):
        return await stop.guard(_resumed(api, batch["id"], asked.max_cost_usd))
    return batch


async def _resumed(api: Client, batch_id: str, max_cost_usd: float | None) -> replies.batches.Batch:
    """A batch that goes on. One that was stopped and is about to be over is waited for. Raises ApiError."""
    while True:
        batch = await api.batch(batch_id)
        if batch["status"] in ("validating", "in_progress"):
            return batch
        try:
            return await api.resume_batch(batch_id, max_cost_usd)
        except ApiError as exc:
            is_ending = (await api.batch(batch_id))["status"] in (
                "cancelling",
                "finalizing",
                "cancelled",
            )
            if exc.code != "batch_state" or not is_ending:
                raise
        await asyncio.sleep(POLL_S)


async def _found(api: Client, key: str) -> replies.batches.Batch | None:
    async for batch in api.batches():
        if (batch.get("metadata") or {}).get(RUN_KEY) == key:
            return batch
    return None


async def _see_through(
    api: Client,
    batch: replies.batches.Batch,
    output: Output | None,
    show: ProgressStyle,
    stop: Stop,
) -> int:
    """Follow a batch to its end, or stop it; returns the exit code."""
    with Progress(show) as progress:
        batch = await follow(api, batch["id"], output, progress, stop, cancels=True)
    return conclude(batch, output, is_interrupted=stop.is_asked)


def resume(
    batch_id: str,
    shape: ResultFormat,
    max_cost_usd: float | None,
    *,
    show: ProgressStyle,
    processes: bool,
) -> None:
    """Go on with a batch, and see it through."""

    async def begin(api: Client) -> replies.batches.Batch:
        return await _resumed(api, batch_id, max_cost_usd)

    _go_on(begin, shape, show=show, processes=processes)


def retry(
    batch_id: str, shape: ResultFormat, only: str, *, show: ProgressStyle, processes: bool
) -> None:
    """Ask a batch's failed lines again, as a batch of their own, and see it through."""

    async def begin(api: Client) -> replies.batches.Batch:
        batch = await api.retry_batch(batch_id, only)
        note(f"{batch['id']} retries {batch_id}")
        return batch

    _go_on(begin, shape, show=show, processes=processes)


def _go_on(
    begin: Callable[[Client], Coroutine[Any, Any, replies.batches.Batch]],
    shape: ResultFormat,
    *,
    show: ProgressStyle,
    processes: bool,
) -> None:
    config = settings()

    async def main() -> int:
        stop = _stop(DRAINING, config)
        async with client(config, processes=processes) as api:
            batch = await begin(api)
            if shape.out is None:
                return await _see_through(api, batch, None, show, stop)
            with new_ids() as ids:
                await _learn(api, batch["id"], shape, ids)
                with opened(shape.out, ids, order=shape.order, form=shape.form) as output:
                    return await _see_through(api, batch, output, show, stop)

    sys.exit(_end(main()))


async def _learn(api: Client, batch_id: str, shape: ResultFormat, ids: Ids) -> None:
    """Note the lines that have settled, where an output is to be gone on with."""
    if shape.out in (None, STDOUT) or not shape.out.exists() or not shape.out.stat().st_size:
        return
    async for _raw, line in settled(api, batch_id, order=shape.order, form=shape.form, after=0):
        ids.add(line["custom_id"], line["index"])


def watch(batch_id: str, *, show: ProgressStyle) -> None:
    """Follow a batch, without a hand in it."""
    config = settings()

    async def main() -> int:
        stop = _stop("no longer watching", config)
        async with client(config) as api:
            with Progress(show) as progress:
                batch = await follow(api, batch_id, None, progress, stop, cancels=False)
        return EXIT_INTERRUPTED if stop.is_asked else conclude(batch, None)

    sys.exit(_end(main()))


def status(batch_id: str | None, *, as_json: bool) -> None:
    """Print how one batch stands, or all."""

    async def main() -> list[replies.batches.Batch]:
        async with client(settings()) as api:
            return [await api.batch(batch_id)] if batch_id else [one async for one in api.batches()]

    found = fusing.run(main())
    if as_json:
        print(json.dumps(found[0] if batch_id else found, ensure_ascii=False))
        return
    now_s = datetime.now(UTC).timestamp()
    shown = []
    for batch in found:
        known = {
            **batch,
            **batch["x_fusewire"],
            **(batch.get("metadata") or {}),
            **figures(batch, now_s),
        }
        shown.append([known.get(column) for column in COLUMNS])
    rows(COLUMNS, shown, RowFormat.table)


def cancel(batch_id: str, *, drain: bool) -> None:
    """Stop a batch."""

    async def main() -> replies.batches.Batch:
        async with client(settings()) as api:
            return await api.cancel_batch(batch_id, drain=drain, reason="request")

    note(f"{batch_id}: {fusing.run(main())['status']}")


def results(batch_id: str, shape: ResultFormat) -> None:
    """Write what has settled of a batch."""

    async def main() -> tuple[replies.batches.Batch, int]:
        async with client(settings()) as api:
            batch = await api.batch(batch_id)
            with new_ids() as ids:
                await _learn(api, batch_id, shape, ids)
                with opened(shape.out or STDOUT, ids, order=shape.order, form=shape.form) as output:
                    await write(api, batch_id, output)
                    return batch, output.lines

    batch, count = fusing.run(main())
    done = batch["request_counts"]["completed"] + batch["request_counts"]["failed"]
    if count < done and shape.order == "line":
        note(
            f"{count} of {done} settled lines, up to the first that has not settled; --as-completed gives all"
        )


def _stop(notice: str, config: Settings) -> Stop:
    return Stop(
        at_once=lambda: end_at_once(EXIT_INTERRUPTED),
        at_last=lambda: end_soon(EXIT_INTERRUPTED),
        notice=notice,
        drain_s=config.limits.drain_s,
    ).listen()


def _end(main: Coroutine[Any, Any, int]) -> int:
    """Run a command's work. Fails with one message where it was refused or cannot reach the service."""
    try:
        return uvloop.run(main)
    except InterruptedRunError:
        note("interrupted; nothing was submitted")
        return EXIT_INTERRUPTED
    except ApiError as exc:
        fail(exc.message, exc.mend, exc.exit_code)
    except BrokenPipeError:
        raise
    except OSError as exc:
        fail(
            f"the service cannot be reached: {exc}",
            "run the same command again; it goes on where it was",
            EXIT_FAULT,
        )
