"""Runs batches: checks inputs, submits lines in fair turns, settles lines, ends batches.

All state is in SQL, and each step is one transaction that locks the batch's row. So the runner may
be killed at any point, and several ingest processes may run the same batches (docs/decisions/0021).
"""

import asyncio
import contextlib
import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import structlog

from fusewire import metrics
from fusewire.bus import fault
from fusewire.crash_points import CrashPoint, reach
from fusewire.errors import Transient
from fusewire.store.engine import Store
from fusewire.tasks import BackgroundTasks, cancel
from fusewire_ingest.batches import output as batch_output
from fusewire_ingest.batches.check import InputCheck
from fusewire_ingest.batches.steps import BatchSteps, affordable_lines
from fusewire_ingest.fair_queue import FairQueue, PendingLine
from fusewire_ingest.intake import Intake, refusal
from fusewire_ingest.release_window import ReleaseWindow
from fusewire_ingest.repository.batches import Batch, Batches
from fusewire_ingest.repository.lines import BatchLines, Kind
from fusewire_ingest.repository.submissions import Submissions

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 1.0
"""How long a lost announcement of an outcome can delay a batch."""
REST_S = 0.03
"""Pause between two looks, so that outcomes that come together settle in one transaction."""
ORPHANED_AFTER = timedelta(seconds=10)
"""A batch whose check or ending shows no sign of life for so long is taken over."""
BUDGET_PAUSE_S = 5.0
"""How soon lines that a budget does not allow are tried again."""
GROUP = 64
"""Lines that are submitted in one transaction."""
GROUP_BYTES = 2 * 1024 * 1024
ENDS: Final = {
    "expired": "expired",
    "request": "cancelled",
    "interrupted": "cancelled",
    "budget": "cancelled",
}
"""Final statuses of batches that were stopped, by reason; all others are completed."""


class Runner:
    """The loop that runs all batches.

    Args:
        store: the database.
        batches, lines, submissions: its tables.
        steps: settles and submits lines.
        intake: admits prompts and hands them to the outbox.
        check: checks inputs.
        shares: shares of the window by tenant, if other than 1.
        window: how many lines of all batches may be in flight at once, at most.
        clock: the time now, UTC.
    """

    def __init__(
        self,
        store: Store,
        batches: Batches,
        lines: BatchLines,
        submissions: Submissions,
        *,
        steps: BatchSteps,
        intake: Intake,
        check: InputCheck,
        shares: Mapping[str, float],
        window: int,
        clock: Any,
    ) -> None:
        self._store = store
        self._batches = batches
        self._lines = lines
        self._submissions = submissions
        self._steps = steps
        self._intake = intake
        self._check = check
        self._shares = shares
        self._window = ReleaseWindow(window, window)
        self._late_s = 0.0
        """How much later than it should the last look began."""
        self._clock = clock
        self._turns = FairQueue()
        self._wake_event = asyncio.Event()
        self._has_open = False
        """Whether there was an open batch at the last look."""
        self._own: set[str] = set()
        """Batches that were changed at this process, whose jobs begin at once."""
        self._jobs: dict[str, asyncio.Task[None]] = {}
        """Checks and endings in the background, by batch; a task is named by the batch's status."""
        self._pause_ends: dict[str, float] = {}
        """By batch that waits for a budget: when its lines are tried again (the loop's clock)."""
        self._background = BackgroundTasks()

    def start(self) -> None:
        """Start the loop."""
        self._background.start("ingest-batches", self._run())

    async def stop(self) -> None:
        """Stop; unfinished work continues at the next start."""
        await self._background.stop()
        await cancel(list(self._jobs.values()))

    def faults(self) -> list[str]:
        """Name the loop if it has ended."""
        return self._background.faults()

    def wake(self, batch_id: str | None = None) -> None:
        """Look soon, because `batch_id` was changed at this process."""
        if batch_id:
            self._own.add(batch_id)
        self._wake_event.set()

    def outcome_announced(self) -> None:
        """Look soon, if there is an open batch, because a fusion has ended."""
        if self._has_open:
            self._wake_event.set()

    async def _run(self) -> None:
        while True:
            self._wake_event.clear()
            try:
                await self.look()
            except Transient as exc:
                log.warning("batch.look_failed", fault=str(exc))
                await asyncio.sleep(LOOK_EVERY_S)
            except Exception as exc:  # noqa: BLE001 - a loop that ended would hold every batch in silence
                log.error("batch.look_broken", fault=fault(exc))  # noqa: TRY400 - no text of its
                await asyncio.sleep(LOOK_EVERY_S)
            rested_at = asyncio.get_running_loop().time()
            await asyncio.sleep(REST_S)
            self._late_s = asyncio.get_running_loop().time() - rested_at - REST_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake_event.wait(), LOOK_EVERY_S)

    async def look(self) -> None:
        """Settle lines, advance every open batch, and submit lines. Raises Transient."""
        open_batches = await self._batches.find_open()
        self._has_open = bool(open_batches)
        if not open_batches:
            metrics.BATCH_LINES.set(0)
            return
        in_flight = await self._lines.in_flight()
        metrics.BATCH_LINES.set(sum(in_flight.values()))
        running = []
        for batch in open_batches:
            if batch.status in ("validating", "finalizing"):
                self._start_job(batch)
            elif await self._step(batch, in_flight):
                running.append(batch)
        await self._release(running, in_flight)

    def _start_job(self, batch: Batch) -> None:
        """Check or end a batch in the background, since that reads all of its lines.

        At most one check runs at a time, and any number of endings.
        """
        job = self._jobs.get(batch.batch_id)
        is_ours = batch.batch_id in self._own or batch.touched_at < self._clock() - ORPHANED_AFTER
        job_names = [task.get_name() for task in self._jobs.values()]
        is_checking = batch.status == "validating" and "validating" in job_names
        if job or not is_ours or is_checking:
            return
        work = self._validate(batch) if batch.status == "validating" else self._finalise(batch)
        self._jobs[batch.batch_id] = asyncio.create_task(
            self._run_job(batch, work), name=batch.status
        )

    async def _run_job(self, batch: Batch, work: Coroutine[Any, Any, None]) -> None:
        """Await a job; if it fails, a later look starts it again after a pause."""
        try:
            await work
        except Transient as exc:
            log.warning(
                "batch.job_failed", batch_id=batch.batch_id, what=batch.status, fault=str(exc)
            )
            await asyncio.sleep(LOOK_EVERY_S)
        except Exception as exc:  # noqa: BLE001 - it is begun again; the batch says what it waits for
            log.error(  # noqa: TRY400 - no text of its
                "batch.job_broken", batch_id=batch.batch_id, what=batch.status, fault=fault(exc)
            )
            await asyncio.sleep(ORPHANED_AFTER.total_seconds())
        finally:
            del self._jobs[batch.batch_id]
            self.wake()

    async def _validate(self, batch: Batch) -> None:
        total, faults = await self._check.run(batch)
        reach(CrashPoint.BATCH_CHECKED)
        now = self._clock()
        changes: dict[str, Any]
        if faults:
            await self._lines.drop(batch.batch_id)
            changes = {"status": "failed", "failed_at": now, "errors": json.dumps(faults)}
        else:
            changes = {"status": "in_progress", "in_progress_at": now, "total": total}
        await self._batches.change(batch.batch_id, "validating", **changes)
        log.info("batch.checked", batch_id=batch.batch_id, lines=total, faults=len(faults))

    async def _finalise(self, batch: Batch) -> None:
        now = self._clock()
        status = ENDS.get(batch.stop_reason or "", "completed")
        ended_batch = dataclasses.replace(batch, status=status)
        kinds: tuple[Kind, ...] = ("output", "error")
        file_rows: list[dict[str, Any]] = []
        for kind in kinds:
            # Rendered once for its size alone: an outcome never changes, so neither does the file
            # (docs/decisions/0023).
            size = await _size(batch_output.file_lines(self._lines, ended_batch, kind))
            if size:
                file_rows.append(_file_row(batch, kind, size, now))
        reach(CrashPoint.BATCH_RENDERED)
        has_ended = await self._batches.end(
            batch, file_rows, status=status, waiting_for=None, **{f"{status}_at": now}
        )
        if has_ended:
            self._own.discard(batch.batch_id)
            self._pause_ends.pop(batch.batch_id, None)
            log.info(
                "batch.ended",
                batch_id=batch.batch_id,
                status=status,
                reason=batch.stop_reason,
                total=batch.total,
                answered=batch.completed,
                failed=batch.failed,
            )

    async def _step(self, batch: Batch, in_flight: dict[str, int]) -> bool:
        """Settle a batch's lines, and stop or finalise it if that is due.

        Updates its count in `in_flight`; returns whether its lines may be submitted.
        """
        is_late = batch.status == "in_progress" and batch.expires_at <= self._clock()
        flying = in_flight.get(batch.batch_id, 0)
        # Looked at without a lock first, as most looks find nothing to settle.
        if flying and not await self._lines.is_due(batch.batch_id) and not is_late:
            return batch.status == "in_progress"
        settled_batch = await self._store.run(
            lambda connection: self._steps.settle(connection, batch.batch_id, is_late=is_late),
            write=True,
        )
        in_flight[batch.batch_id] = settled_batch.in_flight
        if settled_batch.is_finalizing:
            self.wake(batch.batch_id)
        return settled_batch.is_running

    async def _release(self, running: Sequence[Batch], in_flight: Mapping[str, int]) -> None:
        """Submit lines while the window has room, each tenant's batches in their order."""
        # Over all batches: a short queue lets prompts of higher priority pass
        # (docs/decisions/0022), and a shorter one while they come and this process is late (57).
        now_s = asyncio.get_running_loop().time()
        window = self._window.adjust(self._late_s, self._intake.last_prompt_at, now_s)
        room = min(window - sum(in_flight.values()), self._window.at_once)
        by_tenant: dict[str, list[str]] = defaultdict(list)
        limits: dict[str, int] = {}
        for batch in running:
            if self._pause_ends.get(batch.batch_id, 0.0) <= now_s:
                by_tenant[batch.tenant].append(batch.batch_id)
                flying = in_flight.get(batch.batch_id, 0)
                limits[batch.batch_id] = affordable_lines(batch, flying)
        if room <= 0 or not by_tenant:
            return
        waiting = {
            tenant: _within_limits(await self._lines.find_held(ids, room), limits)
            for tenant, ids in by_tenant.items()
        }
        lines_by_batch: dict[str, list[PendingLine]] = defaultdict(list)
        for line in self._turns.choose(waiting, room, self._shares):
            lines_by_batch[line.batch_id].append(line)
        for batch_id, lines in lines_by_batch.items():
            for group in _groups(lines):
                await self._submit(batch_id, [line.line for line in group])

    async def _submit(self, batch_id: str, numbers: Sequence[int]) -> None:
        """Submit lines of a batch."""
        await self._submissions.ready()
        acceptances = await self._store.run(
            lambda connection: self._steps.submit(connection, batch_id, numbers), write=True
        )
        reach(CrashPoint.BATCH_LINES_COMMITTED)
        if any(acceptance.account_over_budget for acceptance in acceptances):
            # The batch alone: another of the tenant may have a key or a pool with money left.
            self._pause_ends[batch_id] = asyncio.get_running_loop().time() + BUDGET_PAUSE_S
        accepted = [acceptance for acceptance in acceptances if refusal(acceptance) is None]
        self._intake.hand_over(accepted, "batch")


async def _size(lines: AsyncIterator[bytes]) -> int:
    size = 0
    async for line in lines:
        size += len(line)
    return size


def _file_row(batch: Batch, kind: Kind, size: int, now: datetime) -> dict[str, Any]:
    """The row of a file that a batch writes; the file's content is not stored."""
    expiry = batch.parsed_options.get("output_expires_after")
    return {
        "file_id": f"file-{batch.batch_id}-{kind}",
        "tenant": batch.tenant,
        "purpose": f"batch_{kind}",
        "filename": f"{batch.batch_id}_{kind}.jsonl",
        "bytes": size,
        "is_whole": True,
        "batch_id": batch.batch_id,
        "created_at": now,
        "expires_at": now + timedelta(seconds=expiry["seconds"]) if expiry else None,
    }


def _within_limits(lines: Sequence[PendingLine], limits: Mapping[str, int]) -> list[PendingLine]:
    """The first lines of each batch, at most as many as its limit."""
    counts: Counter[str] = Counter()
    lines_within = []
    for line in lines:
        counts[line.batch_id] += 1
        if counts[line.batch_id] <= limits[line.batch_id]:
            lines_within.append(line)
    return lines_within


def _groups(lines: Sequence[PendingLine]) -> list[list[PendingLine]]:
    """Split lines into groups of at most GROUP lines and GROUP_BYTES, or of one longer line."""
    groups: list[list[PendingLine]] = []
    size = 0
    for line in lines:
        if not groups or len(groups[-1]) >= GROUP or size + line.cost > GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(line)
        size += line.cost
    return groups
