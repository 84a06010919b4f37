"""What every intake does with a submission: admit it, commit it, hand it to the outbox."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from fusewire import telemetry
from fusewire.contracts import Prompt
from fusewire.errors import Transient
from fusewire_ingest.admission.admit import (
    PoolRule,
    RefusedError,
    Submission,
    TenantRule,
    admit,
    parse,
)
from fusewire_ingest.open_requests import OpenRequests
from fusewire_ingest.outbox import Outbox
from fusewire_ingest.repository.submissions import (
    Acceptance,
    EarlierRequest,
    GroupCommit,
    RequestIdentity,
    Submissions,
)

log = structlog.get_logger(__name__)

ATTACH_WITHIN = timedelta(minutes=15)
"""How long after its submission a request that is sent again still means the same fusion; or up to its deadline."""


@dataclass(frozen=True)
class Line:
    """One line of a JSONL body: accepted, or refused with the reason."""

    number: int
    accepted: Acceptance | None
    refused: RefusedError | None


class Intake:
    """Where HTTP, JSONL and the bus submit. What `submit` returns is committed."""

    def __init__(
        self,
        commit: GroupCommit,
        submissions: Submissions,
        outbox: Outbox,
        open_requests: OpenRequests,
        *,
        pools: Mapping[str, PoolRule],
        tenants: Callable[[str], TenantRule] = lambda _: TenantRule(),
        prompt_bytes: int,
        store_id: Callable[[], str] = lambda: "",
        clock: Callable[[], datetime],
    ) -> None:
        self._commit = commit
        self._submissions = submissions
        self._tenants = tenants
        self._outbox = outbox
        self.open_requests = open_requests
        self._pools = pools
        self._prompt_bytes = prompt_bytes
        self._store_id = store_id
        self._clock = clock

    def read(
        self,
        data: bytes,
        *,
        tenant: str,
        fallback_id: str,
        batch_id: str | None = None,
        limit: int | None = None,
    ) -> Prompt:
        """From bytes to a prompt. Raises RefusedError.

        Args:
            data: JSON.
            tenant: whose.
            fallback_id: its custom_id where it has none.
            batch_id: its batch where it names none.
            limit: the most bytes; that of a prompt without large images where it is not given.
        """
        submission = parse(data, limit or self._prompt_bytes)
        if batch_id and submission.batch_id is None:
            submission = submission.model_copy(update={"batch_id": batch_id})
        return self.admit(submission, tenant=tenant, fallback_id=fallback_id)

    def admit(
        self,
        submission: Submission,
        *,
        tenant: str,
        fallback_id: str,
        is_streamed: bool = False,
        depth: int = 0,
        deadline_at: datetime | None = None,
    ) -> Prompt:
        """From a submission to a prompt, by the rules of its tenant. Raises RefusedError."""
        prompt = admit(
            submission,
            tenant=tenant,
            fallback_id=fallback_id,
            pools=self._pools,
            now=self._clock(),
            rule=self._tenants(tenant),
            is_streamed=is_streamed,
            depth=depth,
            deadline_at=deadline_at,
        )
        return prompt.model_copy(update={"store_id": self._store_id()})

    async def attach(self, tenant: str, request_hash: str, *, is_again: bool) -> str | None:
        """The fusion that this request began when it was sent before, if this is that once more.

        It is where the client says so, where it has left meanwhile, or where the process that it waited at is gone.
        Two that wait at once are two.

        Args:
            tenant: whose.
            request_hash: equal for the same request of the same client.
            is_again: whether the client says so.
        """
        now = self._clock()
        twin = await self._submissions.newest(tenant, request_hash, now - ATTACH_WITHIN, now)
        if twin is None:
            return None
        if not is_again and twin.left_at is None and not await self._is_forsaken(twin):
            return None
        await self._submissions.hold(twin.fusion_id, self.open_requests.name)
        return twin.fusion_id

    async def _is_forsaken(self, twin: EarlierRequest) -> bool:
        if not twin.is_undecided or twin.held_by is None:
            return False
        return not await self.open_requests.is_held_by(twin.held_by, twin.fusion_id)

    async def prompt(self, tenant: str, fusion_id: str) -> Prompt | None:
        """What was submitted; None if a tenant has no such prompt."""
        return await self._submissions.get(tenant, fusion_id)

    async def leave(self, fusion_id: str) -> None:
        """Its client has left before it was answered."""
        try:
            await self._submissions.leave(fusion_id, self._clock())
        except Transient as exc:
            log.warning("ingest.leave_not_stored", fusion_id=fusion_id, fault=str(exc))

    async def cancel(self, tenant: str, fusion_ids: Sequence[str]) -> list[str]:
        """Make no further call for these. Returns those that had no outcome; their outcomes will say `cancelled`.

        What was paid for is let end, and stored. Raises Transient.
        """
        marked = await self._submissions.cancel(tenant, fusion_ids, self._clock())
        await self._outbox.tell_cancelled(marked)
        log.info("ingest.cancelled", asked=len(fusion_ids), running=len(marked))
        return marked

    async def submit(
        self, prompt: Prompt, *, source: str, request_hash: str | None = None
    ) -> Acceptance:
        """Commit one prompt.

        Args:
            prompt: what was admitted.
            source: which way it came, for the metrics.
            request_hash: by which `attach` finds it.

        Raises:
            RefusedError: its custom_id belongs to another prompt, or the tenant's budget does not allow it.
            Transient: it could not be committed.
        """
        traceparent = telemetry.trace_headers().get("traceparent")
        origin = RequestIdentity(request_hash, self.open_requests.name) if request_hash else None
        (accepted,) = await self._commit.add([prompt], traceparent, origin)
        if refused := refusal(accepted):
            raise refused
        self.hand_over([accepted], source)
        return accepted

    async def submit_lines(
        self, lines: Sequence[tuple[int, bytes]], *, tenant: str, batch_id: str
    ) -> list[Line]:
        """Commit the good lines of a JSONL body; the bad ones stop nobody. Raises Transient."""
        results: dict[int, Line] = {}
        good: list[tuple[int, Prompt]] = []
        for number, raw in lines:
            try:
                good.append(
                    (
                        number,
                        self.read(
                            raw, tenant=tenant, fallback_id=f"line-{number}", batch_id=batch_id
                        ),
                    )
                )
            except RefusedError as exc:
                results[number] = Line(number, None, exc)
        if good:
            committed = await self._commit.add(
                [p for _, p in good], telemetry.trace_headers().get("traceparent")
            )
            for (number, _), accepted in zip(good, committed, strict=True):
                refused = refusal(accepted)
                results[number] = Line(number, None if refused else accepted, refused)
            self.hand_over(committed, "jsonl")
        return [results[number] for number in sorted(results)]

    def hand_over(self, batch: Sequence[Acceptance], source: str) -> None:
        """What was committed goes to the outbox."""
        fresh = [a.prompt for a in batch if a.is_new]
        telemetry.ACCEPTED.labels(source).inc(len(fresh))
        traceparent = telemetry.trace_headers().get("traceparent")
        for prompt in fresh:
            self._outbox.offer(prompt, traceparent)
            log.debug(
                "ingest.accepted",
                fusion_id=prompt.fusion_id,
                pool=prompt.pool,
                mode=prompt.mode,
                source=source,
            )


def refusal(accepted: Acceptance) -> RefusedError | None:
    """Why a prompt was not accepted after all; None if it was."""
    if not accepted.is_conflict:
        return accepted.refused
    return RefusedError(
        "custom_id_conflict",
        f"custom_id '{accepted.prompt.custom_id}' was submitted before with another prompt or other settings; "
        "give this one an id of its own",
        "custom_id",
    )
