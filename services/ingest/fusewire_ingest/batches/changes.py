"""Changes of batches that clients may request: create, cancel, resume and retry."""

import dataclasses
from collections.abc import Callable
from datetime import datetime
from typing import Literal

import structlog
from sqlalchemy import Connection

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
    """Changes of batches that clients request; the runner does the work."""

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

    async def create(
        self, tenant: str, request: CreateBatch, key: str, *, key_id: str | None = None
    ) -> Batch:
        """Create a batch; if the idempotency key is known already, return the batch that it made.

        Its lines count for the budget of the API key `key_id`, if it came with one.

        Raises:
            RefusedError: there is no such file, or the key made a batch of other options.
            Transient: nothing was created.
        """
        now = self._clock()
        await self._require_file(tenant, request.input_file_id)
        batch = Batch(
            batch_id=f"batch_{ids.batch_id(tenant, key, '', '')}",
            tenant=tenant,
            status="validating",
            stop_reason=None,
            waiting_for=None,
            endpoint=request.endpoint,
            input_file_id=request.input_file_id,
            options=request.options(),
            priority=request.x_fusewire.priority,
            completion_window=request.completion_window,
            errors=None,
            max_cost_usd=request.x_fusewire.max_cost_usd,
            created_at=now,
            touched_at=now,
            expires_at=now + window(request.completion_window),
            key_id=key_id,
        )
        # The id follows from the key, so a request that is sent again meets its own row.
        if await self._batches.add(batch):
            log.info("batch.created", batch_id=batch.batch_id, tenant=tenant)
            self._wake(batch.batch_id)
            return batch
        stored_batch = await self._get(tenant, batch.batch_id)
        if stored_batch.options != batch.options:
            raise RefusedError(
                "idempotency_conflict",
                f"this Idempotency-Key made '{stored_batch.batch_id}' of another file or with "
                "other options; use a new one",
                "Idempotency-Key",
            )
        return stored_batch

    async def cancel(
        self, tenant: str, batch_id: str, *, drain: bool, reason: Reason
    ) -> Batch | None:
        """Stop submitting a batch's lines.

        Args:
            tenant: the tenant that it must belong to.
            batch_id: the batch.
            drain: let lines in flight end; otherwise their fusions are cancelled.
            reason: why it is stopped.

        Returns:
            None if the tenant has no such batch.
        """
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
        batch = await self._get(tenant, batch_id)
        if not drain and batch.status not in OVER:
            await self._intake.cancel(tenant, await self._lines.flying_ids(batch_id))
        self._wake(batch_id)
        return batch

    async def resume(self, tenant: str, batch_id: str, max_cost_usd: float | None) -> Batch | None:
        """Continue a stopped batch with the lines that it still holds.

        Args:
            tenant: the tenant that it must belong to.
            batch_id: the batch.
            max_cost_usd: a new limit for the whole batch; None leaves it as it is.

        Returns:
            None if the tenant has no such batch.

        Raises:
            RefusedError: it was not stopped, its lines in flight are being cancelled, or its input
                file was deleted.
        """
        now = self._clock()
        stopped_batch = await self._batches.get(tenant, batch_id)
        if stopped_batch and stopped_batch.status == "cancelled":
            await self._require_file(tenant, stopped_batch.input_file_id)

        def resume_in(connection: Connection) -> Batch | None:
            batch = self._batches.find_in(connection, tenant, batch_id)
            if batch is None:
                return None
            # A batch that only waits for its lines in flight has lost nothing yet, and continues.
            is_draining = batch.status == "cancelling" and batch.stop_reason != "request"
            if batch.status != "cancelled" and not is_draining:
                raise RefusedError(
                    "batch_state",
                    f"'{batch_id}' is {batch.status}; only a cancelled batch is resumed",
                )
            self._batches.delete_output_in(connection, batch_id)
            self._batches.change_in(
                connection,
                batch_id,
                # A batch that was stopped during its check is checked again.
                status="in_progress" if batch.in_progress_at else "validating",
                stop_reason=None,
                max_cost_usd=batch.max_cost_usd if max_cost_usd is None else max_cost_usd,
                touched_at=now,
                expires_at=now + window(batch.completion_window),
                cancelling_at=None,
                finalizing_at=None,
                cancelled_at=None,
            )
            return batch

        if await self._store.run(resume_in, write=True) is None:
            return None
        self._wake(batch_id)
        log.info("batch.resumed", batch_id=batch_id, tenant=tenant)
        return await self._get(tenant, batch_id)

    async def retry(
        self, tenant: str, batch_id: str, only: Only, *, key_id: str | None = None
    ) -> Batch | None:
        """Create a batch of a batch's failed lines; repeated requests get the same new batch.

        Its lines count for the budget of the API key `key_id`, if it came with one.

        Returns:
            None if the tenant has no such batch.

        Raises:
            RefusedError: it is not over, or it has no failed lines.
        """
        now = self._clock()
        old = await self._batches.get(tenant, batch_id)
        if old is None:
            return None
        if old.status not in OVER or old.in_progress_at is None:
            raise RefusedError(
                "batch_state", f"'{batch_id}' is {old.status}; only what has run is tried again"
            )
        await self._require_file(tenant, old.input_file_id)
        new = dataclasses.replace(_retry_of(old, only, now), key_id=key_id)

        def add_in(connection: Connection) -> None:
            if self._batches.add_in(connection, new):
                # Held lines of a cancelled batch are not retried: it may be resumed with them.
                count = self._lines.copy_in(
                    connection, batch_id, new.batch_id, only, with_held=old.status == "expired"
                )
                if not count:
                    raise RefusedError(
                        "batch_state", f"'{batch_id}' has no failed lines to try again; see `only`"
                    )
                self._batches.change_in(connection, new.batch_id, total=count)

        await self._store.run(add_in, write=True)
        self._wake(new.batch_id)
        return await self._get(tenant, new.batch_id)

    async def _require_file(self, tenant: str, file_id: str) -> None:
        if await self._files.get(tenant, file_id, self._clock()) is None:
            raise RefusedError(
                "unknown_file", f"there is no file '{file_id}'; upload it first", "input_file_id"
            )

    async def _get(self, tenant: str, batch_id: str) -> Batch:
        batch = await self._batches.get(tenant, batch_id)
        assert batch is not None
        return batch


def _retry_of(old: Batch, only: Only, now: datetime) -> Batch:
    """A new batch that retries failed lines of an old one; the same id until more have failed."""
    request = CreateBatch.model_validate(old.parsed_options)
    metadata = {**(request.metadata or {}), "retry_of": old.batch_id}
    request = request.model_copy(update={"metadata": metadata})
    key = f"retry {old.batch_id} {old.failed}"
    return dataclasses.replace(
        old,
        batch_id=f"batch_{ids.batch_id(old.tenant, key, only, '')}",
        status="in_progress",
        stop_reason=None,
        waiting_for=None,
        options=request.options(),
        completed=0,
        failed=0,
        degraded=0,
        tokens_in=0,
        tokens_out=0,
        tokens_cached=0,
        tokens_thought=0,
        cost_usd=0.0,
        n_unpriced=0,
        created_at=now,
        touched_at=now,
        expires_at=now + window(old.completion_window),
        in_progress_at=now,
        finalizing_at=None,
        completed_at=None,
        expired_at=None,
        cancelling_at=None,
        cancelled_at=None,
    )
