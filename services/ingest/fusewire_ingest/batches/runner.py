"""Runs batches: checks their inputs, releases their lines in fair turns, notes what they come to, ends them.

All of its state is in SQL, and each step is one transaction that locks the batch's row: it can be killed at any
point, and several ingests run the same batches.
"""

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import structlog

from fusewire.bus import fault
from fusewire.errors import Transient
from fusewire.store.engine import Store
from fusewire_ingest.admission.refusal import RefusedError
from fusewire_ingest.batches import output as batch_output
from fusewire_ingest.batches.check import InputCheck, Reader
from fusewire_ingest.fair_queue import FairQueue, PendingLine
from fusewire_ingest.intake import Intake, refusal
from fusewire_ingest.repository.batches import Batch, Batches
from fusewire_ingest.repository.files import Files
from fusewire_ingest.repository.lines import BatchLines, HeldLine, SettledLines
from fusewire_ingest.repository.submissions import Submissions

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 1.0
"""How long a lost announcement of an outcome can delay a batch."""
REST_S = 0.03
"""Between two looks: outcomes that come together are noted together."""
ORPHANED_AFTER = timedelta(seconds=10)
"""A check that shows no sign of life for so long is begun again."""
BUDGET_PAUSE_S = 5.0
"""How long a tenant whose budget is used up waits for its lines to be tried again."""
GROUP = 64
"""Lines that are submitted in one transaction."""
GROUP_BYTES = 2 * 1024 * 1024
ENDS: Final = {
    "expired": "expired",
    "request": "cancelled",
    "interrupted": "cancelled",
    "budget": "cancelled",
}
"""How a batch ends that was stopped; any other is completed."""


class Runner:
    """The loop.

    Args:
        store: the database.
        batches, lines, files, submissions: its tables.
        intake: admits prompts and hands them to the outbox.
        check: of inputs.
        reader: makes prompts of lines.
        shares: of tenants that have another than 1.
        window: how many lines of all batches are in flight at once.
        clock: gives the time, UTC.
    """

    def __init__(
        self,
        store: Store,
        batches: Batches,
        lines: BatchLines,
        files: Files,
        submissions: Submissions,
        *,
        intake: Intake,
        check: InputCheck,
        reader: Reader,
        shares: Mapping[str, float],
        window: int,
        clock: Any,
    ) -> None:
        self._store = store
        self._batches = batches
        self._lines = lines
        self._files = files
        self._submissions = submissions
        self._intake = intake
        self._check = check
        self._reader = reader
        self._shares = shares
        self._window = window
        self._clock = clock
        self._turns = FairQueue()
        self._woken = asyncio.Event()
        self._is_any = False
        self._own: set[str] = set()
        """Batches that were asked for here: their checks begin at once."""
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._paused: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="ingest-batches")

    async def stop(self) -> None:
        """End; whatever was begun goes on at the next start."""
        tasks = [task for task in (self._task, *self._jobs.values()) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def faults(self) -> list[str]:
        """Names of loops that have ended."""
        return [f"{self._task.get_name()} has ended"] if self._task and self._task.done() else []

    def wake(self, batch_id: str | None = None) -> None:
        """Look soon; `batch_id` was changed here."""
        if batch_id:
            self._own.add(batch_id)
        self._woken.set()

    def outcome_announced(self) -> None:
        """Look soon, if a batch waits for one."""
        if self._is_any:
            self._woken.set()

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            try:
                await self.look()
            except Transient as exc:
                log.warning("batch.look_failed", fault=str(exc))
                await asyncio.sleep(LOOK_EVERY_S)
            except Exception as exc:  # noqa: BLE001 - a loop that ended would hold every batch in silence
                log.error("batch.look_broken", fault=fault(exc))  # noqa: TRY400 - no text of its
                await asyncio.sleep(LOOK_EVERY_S)
            await asyncio.sleep(REST_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), LOOK_EVERY_S)

    async def look(self) -> None:
        """Take every batch a step further."""
        open_ = await self._batches.open()
        self._is_any = bool(open_)
        if not open_:
            return
        in_flight = await self._lines.in_flight()
        running = []
        for batch in open_:
            if batch.status in ("validating", "finalizing"):
                self._begin(batch)
            elif await self._step(batch, in_flight):
                running.append(batch)
        await self._release(running, in_flight)

    def _begin(self, batch: Batch) -> None:
        """Do in the background what reads a whole batch: one check at a time, and any number of endings."""
        job = self._jobs.get(batch.batch_id)
        is_ours = batch.batch_id in self._own or batch.touched_at < self._clock() - ORPHANED_AFTER
        is_checking = batch.status == "validating" and any(
            t.get_name() == "validating" for t in self._jobs.values()
        )
        if job or not is_ours or is_checking:
            return
        work = self._validate(batch) if batch.status == "validating" else self._finalise(batch)
        self._jobs[batch.batch_id] = asyncio.create_task(
            self._guarded(batch, work), name=batch.status
        )

    async def _guarded(self, batch: Batch, work: Coroutine[Any, Any, None]) -> None:
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
        now = self._clock()
        if faults:
            await self._lines.drop(batch.batch_id)
            values = {"status": "failed", "failed_at": now, "errors": json.dumps(faults)}
            await self._batches.change(batch.batch_id, "validating", **values)
        else:
            values = {"status": "in_progress", "in_progress_at": now, "total": total}
            await self._batches.change(batch.batch_id, "validating", **values)
        log.info("batch.checked", batch_id=batch.batch_id, lines=total, faults=len(faults))

    async def _finalise(self, batch: Batch) -> None:
        now = self._clock()
        status = ENDS.get(batch.stop_reason or "", "completed")
        ended = Batch(**{**vars(batch), "status": status})
        expiry = batch.asked.get("output_expires_after")
        written: list[dict[str, Any]] = []
        for kind, purpose in (("output", "batch_output"), ("error", "batch_error")):
            size = await _size(
                batch_output.written(self._lines, ended, "output" if kind == "output" else "error")
            )
            if size:
                written.append(
                    {
                        "file_id": f"file-{batch.batch_id}-{kind}",
                        "tenant": batch.tenant,
                        "purpose": purpose,
                        "filename": f"{batch.batch_id}_{kind}.jsonl",
                        "bytes": size,
                        "is_whole": True,
                        "batch_id": batch.batch_id,
                        "created_at": now,
                        "expires_at": now + timedelta(seconds=expiry["seconds"])
                        if expiry
                        else None,
                    }
                )
        if await self._batches.end(
            batch, written, status=status, waiting_for=None, **{f"{status}_at": now}
        ):
            self._own.discard(batch.batch_id)
            counts = {"total": batch.total, "answered": batch.completed, "failed": batch.failed}
            log.info(
                "batch.ended",
                batch_id=batch.batch_id,
                status=status,
                reason=batch.stop_reason,
                **counts,
            )

    async def _step(self, batch: Batch, in_flight: dict[str, int]) -> bool:
        """Note what has settled, and what follows from it; returns whether lines of it may go."""
        is_late = batch.status == "in_progress" and batch.expires_at <= self._clock()
        flying = in_flight.get(batch.batch_id, 0)
        if flying and not await self._lines.is_due(batch.batch_id) and not is_late:
            return batch.status == "in_progress"
        async with self._store.write() as connection:
            now = self._clock()
            batch = await self._batches.lock_in(connection, batch.batch_id)
            before = batch.completed + batch.failed
            settled = await self._lines.settle_in(connection, batch.batch_id, before)
            changes = _added(batch, settled)
            is_held, flying = await self._lines.counts_in(connection, batch.batch_id)
            in_flight[batch.batch_id] = flying
            if batch.status == "in_progress":
                if is_late and is_held:
                    changes |= {"stop_reason": "expired"}
                elif (
                    batch.stop_reason is None
                    and is_held
                    and not flying
                    and _left(_with(batch, changes), 0) < 1
                ):
                    changes |= {
                        "status": "cancelling",
                        "stop_reason": "budget",
                        "cancelling_at": now,
                    }
            found = _with(batch, changes)
            is_stopped = found.status == "cancelling" or found.stop_reason is not None
            if (
                found.status in ("in_progress", "cancelling")
                and not flying
                and (is_stopped or not is_held)
            ):
                changes |= {"status": "finalizing", "finalizing_at": now, "touched_at": now}
                self.wake(batch.batch_id)
            if changes:
                await self._batches.change_in(connection, batch.batch_id, **changes)
        return not is_stopped and changes.get("status") is None

    async def _release(self, running: Sequence[Batch], in_flight: Mapping[str, int]) -> None:
        """Submit lines, as many as there is room for, of each tenant's batches in their order."""
        room = self._window - sum(in_flight.values())
        now_s = asyncio.get_running_loop().time()
        by_tenant: dict[str, list[str]] = defaultdict(list)
        most: dict[str, int] = {}
        for batch in running:
            if self._paused.get(batch.tenant, 0.0) <= now_s:
                by_tenant[batch.tenant].append(batch.batch_id)
                most[batch.batch_id] = _left(batch, in_flight.get(batch.batch_id, 0))
        if room <= 0 or not by_tenant:
            return
        waiting = {
            tenant: _capped(await self._lines.waiting(ids, room), most)
            for tenant, ids in by_tenant.items()
        }
        chosen: dict[str, list[PendingLine]] = defaultdict(list)
        for one in self._turns.choose(waiting, room, self._shares):
            chosen[one.batch_id].append(one)
        for batch_id, lines in chosen.items():
            for group in _groups(lines):
                await self._submit(batch_id, [one.line for one in group])

    async def _submit(self, batch_id: str, numbers: Sequence[int]) -> None:
        """Submit some lines: what is stored of them and what the batch says of them is one transaction."""
        await self._submissions.ready()
        async with self._store.write() as connection:
            batch = await self._batches.lock_in(connection, batch_id)
            if batch.status != "in_progress":
                return
            held = await self._lines.held_in(connection, batch_id, numbers)
            spans = [(one.byte_offset, one.byte_length) for one in held]
            data = await self._files.cut_in(connection, batch.input_file_id, spans)
            prompts, failed = self._read(batch, held, data)
            accepted = await connection.run_sync(
                self._submissions.add_in, list(prompts.values()), [None] * len(prompts)
            )
            flown: list[tuple[int, str]] = []
            waits_for = None
            for line, one in zip(prompts, accepted, strict=True):
                if one.is_over_budget:
                    waits_for = f"the budget of tenant '{batch.tenant}'"
                elif why := refusal(one):
                    failed.append((line, _error(why)))
                else:
                    flown.append((line, one.prompt.fusion_id))
            await self._lines.fly_in(connection, batch_id, flown)
            done = await self._lines.fail_in(
                connection, batch_id, failed, batch.completed + batch.failed
            )
            changes = _added(batch, done)
            if batch.waiting_for != waits_for:
                changes["waiting_for"] = waits_for
            if changes:
                await self._batches.change_in(connection, batch_id, **changes)
        if waits_for:
            self._paused[batch.tenant] = asyncio.get_running_loop().time() + BUDGET_PAUSE_S
        self._intake.hand_over([one for one in accepted if refusal(one) is None], "batch")

    def _read(
        self, batch: Batch, held: Sequence[HeldLine], data: Sequence[bytes]
    ) -> tuple[dict[int, Any], list[Any]]:
        """Prompts by line, and what can no longer be read: the configuration may have changed since the check."""
        prompts: dict[int, Any] = {}
        failed: list[tuple[int, dict[str, Any]]] = []
        for one, raw in zip(held, data, strict=True):
            try:
                prompts[one.line], _ = self._reader.read(batch, one.line, raw)
            except RefusedError as exc:
                failed.append((one.line, _error(exc)))
        return prompts, failed


async def _size(lines: AsyncIterator[bytes]) -> int:
    size = 0
    async for line in lines:
        size += len(line)
    return size


def _error(why: RefusedError) -> dict[str, Any]:
    return {
        "code": why.code,
        "message": why.message,
        "param": why.param,
        "retryable": False,
        "stage": "admission",
    }


def _added(batch: Batch, settled: SettledLines) -> dict[str, Any]:
    """A batch's sums, where they change."""
    sums = {
        "completed": batch.completed + settled.answered,
        "failed": batch.failed + settled.failed,
        "degraded": batch.degraded + settled.degraded,
        "tokens_in": batch.tokens_in + settled.tokens_in,
        "tokens_out": batch.tokens_out + settled.tokens_out,
        "tokens_cached": batch.tokens_cached + settled.tokens_cached,
        "tokens_thought": batch.tokens_thought + settled.tokens_thought,
        "cost_usd": batch.cost_usd + settled.cost_usd,
        "n_unpriced": batch.n_unpriced + settled.unpriced,
    }
    return {name: value for name, value in sums.items() if value != getattr(batch, name)}


def _with(batch: Batch, changes: Mapping[str, Any]) -> Batch:
    return Batch(**{**vars(batch), **changes})


def _left(batch: Batch, flying: int) -> int:
    """How many more lines a batch's own limit of cost allows to be in flight.

    A line is taken to cost what lines cost so far. Until that is known, they go slowly: twice as many as settled.
    """
    if batch.max_cost_usd is None:
        return 2**31
    settled = batch.completed + batch.failed
    begun = max(1, 2 * settled)
    priced = settled - batch.n_unpriced
    if not batch.cost_usd or not priced:
        return begun - flying
    mean = batch.cost_usd / priced
    affordable = int((batch.max_cost_usd - batch.cost_usd - batch.n_unpriced * mean) / mean)
    return min(begun, affordable) - flying


def _capped(lines: Sequence[PendingLine], most: Mapping[str, int]) -> list[PendingLine]:
    seen: dict[str, int] = defaultdict(int)
    kept = []
    for one in lines:
        seen[one.batch_id] += 1
        if seen[one.batch_id] <= most[one.batch_id]:
            kept.append(one)
    return kept


def _groups(lines: Sequence[PendingLine]) -> list[list[PendingLine]]:
    groups: list[list[PendingLine]] = []
    size = 0
    for one in lines:
        if not groups or len(groups[-1]) >= GROUP or size + one.cost > GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(one)
        size += one.cost
    return groups
