"""The commands of `fusewire batch`: what each one does."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop

from fusewire import replies
from fusewire.contracts import Prompt
from fusewire.settings import Settings
from fusewire_cli import fusing
from fusewire_cli.batch import POLL_S
from fusewire_cli.batch.checking import CheckReport, LineRules, check
from fusewire_cli.batch.custom_ids import Ids, new_ids
from fusewire_cli.batch.ending import conclude
from fusewire_cli.batch.faults import refuse
from fusewire_cli.batch.inputs import as_jsonl
from fusewire_cli.batch.options import RUN_KEY, ResultFormat, RunOptions
from fusewire_cli.batch.output import STDOUT, Output, open_output
from fusewire_cli.batch.watch import (
    InterruptedRunError,
    Progress,
    Stop,
    figures,
    follow,
    read_settled,
    write,
)
from fusewire_cli.client import ApiError, Client
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


@contextlib.contextmanager
def checked_input(
    options: RunOptions, config: Settings, visit: Callable[[Prompt], None] | None = None
) -> Iterator[tuple[Path, CheckReport, Ids]]:
    """The input as a checked JSONL file, with the report of the check and its custom_ids.

    Prints the warnings of the check.

    Args:
        options: the file, and the options to run it with.
        config: limits and pools.
        visit: called with the prompt of each line.

    Raises:
        SystemExit: the input has faults, or no lines.
    """
    limits = config.limits
    rules = LineRules(
        pools=pool_rules(config),
        limit=limits.prompt_bytes,
        now=datetime.now(UTC),
        most_lines=limits.batch_lines,
        pool=options.pool,
        mode=options.mode,
        is_elsewhere=is_elsewhere(),
    )
    with as_jsonl(options.source, options.columns, limits.prompt_bytes) as path, new_ids() as ids:
        report = check(path, rules, ids, visit)
        if report.n_faults:
            refuse(options.source, report.faults, report.n_faults)
        if not report.count:
            mend = 'write one JSON object a line, such as {"custom_id": "1", "prompt": "…"}'
            fail(f"{options.source} holds no lines", mend)
        if report.count_without_id:
            note(f"lines without a custom_id: {report.count_without_id}; theirs is line-<number>")
        for warning, count in report.warnings.items():
            note(f"{warning} (lines: {count})")
        yield path, report, ids


def run(options: RunOptions, shape: ResultFormat, *, show: ProgressStyle, processes: bool) -> None:
    """Run a file, or go on with it where it was interrupted."""
    config = settings()
    with (
        checked_input(options, config) as (path, report, ids),
        open_output(shape.out or STDOUT, ids, order=shape.order, form=shape.form) as output,
    ):
        if output.lines == report.count:
            answered_count = output.lines - output.failed
            note(f"{answered_count} answered, {output.failed} failed → {output.name}, already")
            sys.exit(EXIT_SOME_FAILED if output.failed else 0)

        async def main() -> int:
            stop = _listen(DRAINING, config)
            async with client(config, processes=processes) as api:
                batch = await _attach(api, options, path, report, stop)
                return await _follow_to_end(api, batch, output, show, stop)

        code = _run_main(main())
    sys.exit(code)


def submit(options: RunOptions) -> None:
    """Create a batch of a file on the Fusewire that runs, and print its id."""
    config = settings()
    with checked_input(options, config) as (path, report, _ids):

        async def main() -> int:
            stop = _listen("stopping", config)
            async with client(config, embeds=False) as api:
                batch = await _attach(api, options, path, report, stop)
            print(batch["id"])
            return 0

        code = _run_main(main())
    sys.exit(code)


async def _attach(
    api: Client, options: RunOptions, path: Path, report: CheckReport, stop: Stop
) -> replies.batches.Batch:
    """The batch of a file: the existing one, resumed if it was stopped, or a new one."""
    key = options.key(report.digest)
    batch = await stop.guard(_find_by_key(api, key))
    if batch is None:
        file_id = await stop.guard(api.upload(path))
        try:
            return await api.create_batch(options.body(file_id, report.endpoint, key), key)
        except ApiError as exc:
            # Another process has created the batch in the meantime, from its own upload.
            batch = await _find_by_key(api, key)
            if exc.code != "idempotency_conflict" or batch is None:
                raise
    counts = batch["request_counts"]
    settled_count = counts["completed"] + counts["failed"]
    note(f"{batch['id']} is there: {settled_count} of {counts['total']} lines are done already")
    reason = batch["x_fusewire"]["stop_reason"]
    if reason == "request":
        mend = f"go on with `fusewire batch resume {batch['id']}`, or make another with --name"
        fail(f"{batch['id']} was cancelled", mend)
    if reason in ("interrupted", "budget"):
        return await stop.guard(_resume(api, batch["id"], options.max_cost_usd))
    return batch


async def _resume(api: Client, batch_id: str, max_cost_usd: float | None) -> replies.batches.Batch:
    """Resume a batch. If it is still stopping, wait until it has stopped.

    Raises:
        ApiError: the batch cannot be resumed.
    """
    while True:
        batch = await api.batch(batch_id)
        if batch["status"] in ("validating", "in_progress"):
            return batch
        try:
            return await api.resume_batch(batch_id, max_cost_usd)
        except ApiError as exc:
            status = (await api.batch(batch_id))["status"]
            is_ending = status in ("cancelling", "finalizing", "cancelled")
            if exc.code != "batch_state" or not is_ending:
                raise
        await asyncio.sleep(POLL_S)


async def _find_by_key(api: Client, key: str) -> replies.batches.Batch | None:
    """The batch with this run key in its metadata, if there is one."""
    async for batch in api.batches():
        if (batch.get("metadata") or {}).get(RUN_KEY) == key:
            return batch
    return None


async def _follow_to_end(
    api: Client,
    batch: replies.batches.Batch,
    output: Output | None,
    show: ProgressStyle,
    stop: Stop,
) -> int:
    """Follow a batch to its end, or stop it if the user asks. Returns the exit code."""
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
    """Resume a batch, and follow it to its end."""

    async def begin(api: Client) -> replies.batches.Batch:
        return await _resume(api, batch_id, max_cost_usd)

    _follow_from(begin, shape, show=show, processes=processes)


def retry(
    batch_id: str, shape: ResultFormat, only: str, *, show: ProgressStyle, processes: bool
) -> None:
    """Ask a batch's failed lines again, as a new batch, and follow that to its end."""

    async def begin(api: Client) -> replies.batches.Batch:
        batch = await api.retry_batch(batch_id, only)
        note(f"{batch['id']} retries {batch_id}")
        return batch

    _follow_from(begin, shape, show=show, processes=processes)


def _follow_from(
    begin: Callable[[Client], Coroutine[Any, Any, replies.batches.Batch]],
    shape: ResultFormat,
    *,
    show: ProgressStyle,
    processes: bool,
) -> None:
    """Begin a batch, follow it to its end, and exit. Results are written only with an output."""
    config = settings()

    async def main() -> int:
        stop = _listen(DRAINING, config)
        async with client(config, processes=processes) as api:
            batch = await begin(api)
            if shape.out is None:
                return await _follow_to_end(api, batch, None, show, stop)
            with new_ids() as ids:
                await _load_ids(api, batch["id"], shape, ids)
                with open_output(shape.out, ids, order=shape.order, form=shape.form) as output:
                    return await _follow_to_end(api, batch, output, show, stop)

    sys.exit(_run_main(main()))


async def _load_ids(api: Client, batch_id: str, shape: ResultFormat, ids: Ids) -> None:
    """Load the ids of settled lines, if the output file holds results already."""
    if shape.out in (None, STDOUT) or not shape.out.exists() or not shape.out.stat().st_size:
        return
    async for _raw, line in read_settled(
        api, batch_id, order=shape.order, form=shape.form, after=0
    ):
        ids.add(line["custom_id"], line["index"])


def watch(batch_id: str, *, show: ProgressStyle) -> None:
    """Follow a batch without changing it, and exit as `run` does."""
    config = settings()

    async def main() -> int:
        stop = _listen("no longer watching", config)
        async with client(config) as api:
            with Progress(show) as progress:
                batch = await follow(api, batch_id, None, progress, stop, cancels=False)
        return EXIT_INTERRUPTED if stop.is_asked else conclude(batch, None)

    sys.exit(_run_main(main()))


def status(batch_id: str | None, *, as_json: bool) -> None:
    """Print the state of one batch, or of all."""

    async def main() -> list[replies.batches.Batch]:
        async with client(settings()) as api:
            if batch_id:
                return [await api.batch(batch_id)]
            return [batch async for batch in api.batches()]

    batches = fusing.run(main())
    if as_json:
        print(json.dumps(batches[0] if batch_id else batches, ensure_ascii=False))
        return
    now_s = datetime.now(UTC).timestamp()
    rows(COLUMNS, [_status_row(batch, now_s) for batch in batches], RowFormat.table)


def _status_row(batch: replies.batches.Batch, now_s: float) -> list[Any]:
    # The name stands in the metadata, the stop reason in the extensions.
    cells = {
        **batch,
        **batch["x_fusewire"],
        **(batch.get("metadata") or {}),
        **figures(batch, now_s),
    }
    return [cells.get(column) for column in COLUMNS]


def cancel(batch_id: str, *, drain: bool) -> None:
    """Stop a batch."""

    async def main() -> replies.batches.Batch:
        async with client(settings()) as api:
            return await api.cancel_batch(batch_id, drain=drain, reason="request")

    note(f"{batch_id}: {fusing.run(main())['status']}")


def results(batch_id: str, shape: ResultFormat) -> None:
    """Write the settled results of a batch."""

    async def main() -> tuple[replies.batches.Batch, int]:
        async with client(settings()) as api:
            batch = await api.batch(batch_id)
            with new_ids() as ids:
                await _load_ids(api, batch_id, shape, ids)
                with open_output(
                    shape.out or STDOUT, ids, order=shape.order, form=shape.form
                ) as output:
                    await write(api, batch_id, output)
                    return batch, output.lines

    batch, count = fusing.run(main())
    settled_count = batch["request_counts"]["completed"] + batch["request_counts"]["failed"]
    if count < settled_count and shape.order == "line":
        note(
            f"{count} of {settled_count} settled lines, up to the first that has not settled; "
            "--as-completed gives all"
        )


def _listen(notice: str, config: Settings) -> Stop:
    """Listen for signals to stop; print the notice at the first."""
    return Stop(
        at_once=lambda: end_at_once(EXIT_INTERRUPTED),
        at_last=lambda: end_soon(EXIT_INTERRUPTED),
        notice=notice,
        drain_s=config.limits.drain_s,
    ).listen()


def _run_main(main: Coroutine[Any, Any, int]) -> int:
    """Run a command's work. Returns its exit code.

    Raises:
        SystemExit: the API refused something, or the service cannot be reached.
    """
    try:
        return uvloop.run(main)
    except InterruptedRunError:
        note("interrupted; nothing was submitted")
        return EXIT_INTERRUPTED
    except ApiError as exc:
        fail(exc.message, exc.mend, exc.exit_code)
    except BrokenPipeError:
        # The reader of stdout has closed it: no fault of the service.
        raise
    except OSError as exc:
        fail(
            f"the service cannot be reached: {exc}",
            "run the same command again; it goes on where it was",
            EXIT_FAULT,
        )
