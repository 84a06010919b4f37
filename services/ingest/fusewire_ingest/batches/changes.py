"""What clients may do with batches: make, stop, go on with, and try again what failed."""

from collections.abc import Callable
from datetime import datetime
from typing import Literal

import structlog

from fusewire import ids
from fusewire.store.engine import Store
from fusewire_ingest.admission.refusal import RefusedError
from fusewire_ingest.intake import Intake
from fusewire_ingest.openai.batch_request import CreateBatch, window
from fusewire_ingest.repository.batches import OVER, Batch, Batches
from fusewire_ingest.repository.files import Files
from fusewire_ingest.repository.lines import BatchLines, Only

log = structlog.get_logger(__name__)

Reason = Literal["request", "interrupted"]


class BatchChanges:
    """Changes of batches that clients ask for; the runner does the work."""

    def __init__(
        self,
        store: Store,
        batches: Batches,
        lines: BatchLines,
        files: Files,
        intake: Intake,
        *,
        wake: Callable[[str], None],
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._batches = batches
        self._lines = lines
        self._files = files
        self._intake = intake
        self._wake = wake
        self._clock = clock

    async def create(self, tenant: str, asked: CreateBatch, key: str) -> Batch:
        """Make a batch; the same key is the same batch.

        Raises:
            RefusedError: there is no such file, or the key is another batch's.
            Transient: nothing was made.
        """
        now = self._clock()
        await self._require(tenant, asked.input_file_id)
        batch = Batch(
            batch_id=f"batch_{ids.batch_id(tenant, key, '', '')}",
            tenant=tenant,
            status="validating",
            stop_reason=None,
            waiting_for=None,
            endpoint=asked.endpoint,
            input_file_id=asked.input_file_id,
            options=asked.options(),
            priority=asked.x_fusewire.priority,
            completion_window=asked.completion_window,
            errors=None,
            total=0,
            completed=0,
            failed=0,
            degraded=0,
            tokens_in=0,
            tokens_out=0,
            tokens_cached=0,
            tokens_thought=0,
            cost_usd=0.0,
            n_unpriced=0,
            max_cost_usd=asked.x_fusewire.max_cost_usd,
            created_at=now,
            touched_at=now,
            expires_at=now + window(asked.completion_window),
        )
        if await self._batches.add(batch):
            log.info("batch.created", batch_id=batch.batch_id, tenant=tenant)
            self._wake(batch.batch_id)
            return batch
        found = await self._found(tenant, batch.batch_id)
        if found.options != batch.options:
            raise RefusedError(
                "idempotency_conflict",
                f"this Idempotency-Key made '{found.batch_id}' of another file or with other options; use a new one",
                "Idempotency-Key",
            )
        return found

    async def cancel(
        self, tenant: str, batch_id: str, *, drain: bool, reason: Reason
    ) -> Batch | None:
        """Submit no more of it; without `drain`, also stop what is in flight. None if there is none of that id."""
        now = self._clock()
        if await self._batches.get(tenant, batch_id) is None:
            return None
        await self._batches.change(
            batch_id,
            "validating",
            "in_progress",
            status="cancelling",
            stop_reason=reason,
            cancelling_at=now,
        )
        batch = await self._found(tenant, batch_id)
        if not drain and batch.status not in OVER:
            await self._intake.cancel(tenant, await self._lines.flying(batch_id))
        self._wake(batch_id)
        return batch

    async def resume(self, tenant: str, batch_id: str, max_cost_usd: float | None) -> Batch | None:
        """Go on with the lines that a stopped batch still holds; None if there is none of that id.

        Args:
            tenant: whose.
            batch_id: which.
            max_cost_usd: another limit, over all that the batch has cost; None leaves it as it is.

        Raises:
            RefusedError: it was not stopped, or what it has in flight is being cancelled.
        """
        now = self._clock()
        async with self._store.write() as connection:
            batch = await self._batches.find_in(connection, tenant, batch_id)
            if batch is None:
                return None
            # One that waits for what is in flight has not lost anything yet, and simply goes on.
            is_draining = batch.status == "cancelling" and batch.stop_reason != "request"
            if batch.status != "cancelled" and not is_draining:
                raise RefusedError(
                    "batch_state",
                    f"'{batch_id}' is {batch.status}; only a cancelled batch is resumed",
                )
            await self._batches.forget_written_in(connection, batch_id)
            await self._batches.change_in(
                connection,
                batch_id,
                # One that was stopped in its check is checked again.
                status="in_progress" if batch.in_progress_at else "validating",
                stop_reason=None,
                max_cost_usd=batch.max_cost_usd if max_cost_usd is None else max_cost_usd,
                touched_at=now,
                expires_at=now + window(batch.completion_window),
                cancelling_at=None,
                finalizing_at=None,
                cancelled_at=None,
            )
        self._wake(batch_id)
        log.info("batch.resumed", batch_id=batch_id, tenant=tenant)
        return await self._found(tenant, batch_id)

    async def retry(self, tenant: str, batch_id: str, only: Only) -> Batch | None:
        """Make a batch of a batch's failed lines; asked again, the same one. None if there is none of that id.

        Raises:
            RefusedError: it is not over, or no line of it failed.
        """
        now = self._clock()
        old = await self._batches.get(tenant, batch_id)
        if old is None:
            return None
        if old.status not in OVER or old.in_progress_at is None:
            raise RefusedError(
                "batch_state", f"'{batch_id}' is {old.status}; only what has run is tried again"
            )
        await self._require(tenant, old.input_file_id)
        options = CreateBatch.model_validate(old.asked)
        options = options.model_copy(
            update={"metadata": {**(options.metadata or {}), "retry_of": batch_id}}
        )
        new = Batch(
            **{
                **vars(old),
                "batch_id": f"batch_{ids.batch_id(tenant, f'retry {batch_id} {old.failed}', only, '')}",
                "status": "in_progress",
                "options": options.options(),
                **dict.fromkeys(("completed", "failed", "degraded", "n_unpriced"), 0),
                **dict.fromkeys(("tokens_in", "tokens_out", "tokens_cached", "tokens_thought"), 0),
                **dict.fromkeys(
                    ("stop_reason", "waiting_for", "finalizing_at", "completed_at", "expired_at"),
                    None,
                ),
                **dict.fromkeys(("cancelling_at", "cancelled_at"), None),
                "cost_usd": 0.0,
                "created_at": now,
                "touched_at": now,
                "in_progress_at": now,
                "expires_at": now + window(old.completion_window),
            }
        )
        async with self._store.write() as connection:
            if await self._batches.add_in(connection, new):
                # What a cancelled batch holds is what resuming it goes on with.
                count = await self._lines.copy_in(
                    connection, batch_id, new.batch_id, only, with_held=old.status == "expired"
                )
                if not count:
                    raise RefusedError(
                        "batch_state", f"'{batch_id}' has no failed lines to try again; see `only`"
                    )
                await self._batches.change_in(connection, new.batch_id, total=count)
        self._wake(new.batch_id)
        return await self._found(tenant, new.batch_id)

    async def _require(self, tenant: str, file_id: str) -> None:
        if await self._files.get(tenant, file_id, self._clock()) is None:
            raise RefusedError(
                "unknown_file", f"there is no file '{file_id}'; upload it first", "input_file_id"
            )

    async def _found(self, tenant: str, batch_id: str) -> Batch:
        found = await self._batches.get(tenant, batch_id)
        assert found is not None
        return found
