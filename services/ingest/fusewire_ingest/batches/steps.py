"""What one transaction does to a batch: settle its lines, or submit more of them.

Both lock the batch's row first, so several ingest processes may run the same batches
(docs/decisions/0021). They run on a thread of the database, and wait for nothing else.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from fusewire.contracts import Prompt
from fusewire.crash_points import CrashPoint, reach
from fusewire_ingest.admission.budgets import describe
from fusewire_ingest.admission.refusal import RefusedError
from fusewire_ingest.batches.check import Reader
from fusewire_ingest.intake import refusal
from fusewire_ingest.repository.batches import Batch, Batches
from fusewire_ingest.repository.files import Files
from fusewire_ingest.repository.lines import BatchLines, HeldLine, SettledLines
from fusewire_ingest.repository.submissions import Acceptance, Submissions

_LineError = tuple[int, dict[str, Any]]
"""A line's number and its error."""


@dataclass(frozen=True)
class SettledBatch:
    """A batch after its lines were settled."""

    in_flight: int
    """How many of its lines still are."""
    is_running: bool
    """Whether more lines may be submitted."""
    is_finalizing: bool
    """Whether it has just come to its end."""


class BatchSteps:
    """The transactions by which a batch goes on.

    Args:
        batches, lines, files, submissions: the tables.
        reader: makes prompts of lines.
        clock: the time now, UTC.
    """

    def __init__(
        self,
        batches: Batches,
        lines: BatchLines,
        files: Files,
        submissions: Submissions,
        *,
        reader: Reader,
        clock: Callable[[], datetime],
    ) -> None:
        self._batches = batches
        self._lines = lines
        self._files = files
        self._submissions = submissions
        self._reader = reader
        self._clock = clock

    def settle(self, connection: Connection, batch_id: str, *, is_late: bool) -> SettledBatch:
        """Settle a batch's lines; stop or finalise it if that is due.

        Args:
            connection: the connection of the transaction.
            batch_id: the batch.
            is_late: whether its completion window has passed.
        """
        now = self._clock()
        batch = self._batches.lock_in(connection, batch_id)
        n_settled = batch.completed + batch.failed
        new_lines = self._lines.settle_in(connection, batch_id, n_settled)
        changes = _changed_sums(batch, new_lines)
        has_held, flying = self._lines.counts_in(connection, batch_id)
        if has_held:
            changed_batch = dataclasses.replace(batch, **changes)
            changes |= _stop_changes(changed_batch, flying, now, is_late=is_late)
        changed_batch = dataclasses.replace(batch, **changes)
        is_open = changed_batch.status in ("in_progress", "cancelling")
        is_stopped = changed_batch.status == "cancelling" or changed_batch.stop_reason is not None
        is_finalizing = is_open and not flying and (is_stopped or not has_held)
        if is_finalizing:
            changes |= {"status": "finalizing", "finalizing_at": now, "touched_at": now}
        if changes:
            self._batches.change_in(connection, batch_id, **changes)
        reach(CrashPoint.BATCH_SETTLED)
        is_running = not is_stopped and changes.get("status") is None
        return SettledBatch(flying, is_running=is_running, is_finalizing=is_finalizing)

    def submit(
        self, connection: Connection, batch_id: str, numbers: Sequence[int]
    ) -> list[Acceptance]:
        """Store the prompts of lines; call `Submissions.ready` before it.

        Returns:
            What became of each; nothing if the batch does not run any more.
        """
        batch = self._batches.lock_in(connection, batch_id)
        if batch.status != "in_progress":
            return []
        held_lines = self._lines.held_in(connection, batch_id, numbers)
        spans = [(line.byte_offset, line.byte_length) for line in held_lines]
        data = self._files.cut_in(connection, batch.input_file_id, spans)
        prompts, errors = self._read(batch, held_lines, data)
        acceptances = self._submissions.add_in(
            connection, list(prompts.values()), [None] * len(prompts)
        )
        fusion_ids, refusals = _split(prompts, acceptances)
        self._lines.fly_in(connection, batch_id, fusion_ids)
        new_lines = self._lines.fail_in(
            connection, batch_id, errors + refusals, batch.completed + batch.failed
        )
        changes = _changed_sums(batch, new_lines)
        accounts = [acceptance.account_over_budget for acceptance in acceptances]
        account = next(filter(None, accounts), None)
        waiting_for = f"the budget of {describe(account)}" if account else None
        if batch.waiting_for != waiting_for:
            changes["waiting_for"] = waiting_for
        if changes:
            self._batches.change_in(connection, batch_id, **changes)
        reach(CrashPoint.BATCH_LINES_STORED)
        return acceptances

    def _read(
        self, batch: Batch, held_lines: Sequence[HeldLine], data: Sequence[bytes]
    ) -> tuple[dict[int, Prompt], list[_LineError]]:
        """Make prompts by line, and errors of lines that are refused now.

        The check accepted them, but the configuration may have changed since.
        """
        prompts: dict[int, Prompt] = {}
        errors: list[_LineError] = []
        for line, raw in zip(held_lines, data, strict=True):
            try:
                prompts[line.line], _ = self._reader.read(batch, line.line, raw)
            except RefusedError as exc:
                errors.append((line.line, _error(exc)))
        return prompts, errors


def _split(
    numbers: Iterable[int], acceptances: Sequence[Acceptance]
) -> tuple[list[tuple[int, str]], list[_LineError]]:
    """The fusion ids of accepted lines, and the errors of refused ones.

    Lines that a budget does not allow now are in neither: they stay held.
    """
    fusion_ids: list[tuple[int, str]] = []
    errors: list[_LineError] = []
    for number, acceptance in zip(numbers, acceptances, strict=True):
        if acceptance.account_over_budget:
            continue
        if error := refusal(acceptance):
            errors.append((number, _error(error)))
        else:
            fusion_ids.append((number, acceptance.prompt.fusion_id))
    return fusion_ids, errors


def _error(error: RefusedError) -> dict[str, Any]:
    return {
        "code": error.code,
        "message": error.message,
        "param": error.param,
        "retryable": False,
        "stage": "admission",
    }


def _changed_sums(batch: Batch, new_lines: SettledLines) -> dict[str, Any]:
    """Add newly settled lines to a batch's sums; returns those that change."""
    sums = {
        "completed": batch.completed + new_lines.answered,
        "failed": batch.failed + new_lines.failed,
        "degraded": batch.degraded + new_lines.degraded,
        "tokens_in": batch.tokens_in + new_lines.tokens_in,
        "tokens_out": batch.tokens_out + new_lines.tokens_out,
        "tokens_cached": batch.tokens_cached + new_lines.tokens_cached,
        "tokens_thought": batch.tokens_thought + new_lines.tokens_thought,
        "cost_usd": batch.cost_usd + new_lines.cost_usd,
        "n_unpriced": batch.n_unpriced + new_lines.unpriced,
    }
    return {name: total for name, total in sums.items() if total != getattr(batch, name)}


def _stop_changes(batch: Batch, flying: int, now: datetime, *, is_late: bool) -> dict[str, Any]:
    """Changes that stop a running batch with held lines: it is late, or its cost limit is hit."""
    if batch.status != "in_progress":
        return {}
    if is_late:
        return {"stop_reason": "expired"}
    if batch.stop_reason is None and not flying and affordable_lines(batch, 0) < 1:
        return {"status": "cancelling", "stop_reason": "budget", "cancelling_at": now}
    return {}


def affordable_lines(batch: Batch, flying: int) -> int:
    """How many more lines may be in flight within a batch's `max_cost_usd`.

    A line is expected to cost the mean of the lines so far. Few lines make a poor estimate, so at
    most twice as many lines as have settled are in flight (docs/decisions/0024).
    """
    if batch.max_cost_usd is None:
        return 2**31
    n_settled = batch.completed + batch.failed
    slow_start = max(1, 2 * n_settled)
    n_priced = n_settled - batch.n_unpriced
    if not batch.cost_usd or not n_priced:
        return slow_start - flying
    mean_usd = batch.cost_usd / n_priced
    free_usd = batch.max_cost_usd - batch.cost_usd - batch.n_unpriced * mean_usd
    return min(slow_start, int(free_usd / mean_usd)) - flying
