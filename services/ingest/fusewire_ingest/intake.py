"""The intake behind HTTP, JSONL, batches and the bus: admits, commits, hands to the outbox."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from fusewire import metrics, telemetry
from fusewire.contracts import Prompt
from fusewire.crash_points import CrashPoint, reach
from fusewire.errors import Transient
from fusewire_ingest.admission.admit import (
    RefusedError,
    Submission,
    TenantRule,
    admit,
    parse,
)
from fusewire_ingest.admission.rates import Limits
from fusewire_ingest.open_requests import OpenRequests
from fusewire_ingest.outbox import Outbox
from fusewire_ingest.rate_limits import RateLimitError, RateLimits
from fusewire_ingest.repository.group_commit import GroupCommit
from fusewire_ingest.repository.submissions import (
    Acceptance,
    EarlierRequest,
    RequestIdentity,
    Submissions,
)

log = structlog.get_logger(__name__)

ATTACH_WITHIN = timedelta(minutes=15)
"""A repeated request finds its first one for so long after that was sent, or to its deadline."""

NO_LIMITS: Limits = {}


@dataclass(frozen=True)
class Line:
    """One line of a JSONL body: accepted, or refused with the reason."""

    number: int
    accepted: Acceptance | None
    refused: RefusedError | None


class Intake:
    """Admits and commits submissions. What `submit` and `submit_lines` return is committed."""

    def __init__(
        self,
        commit: GroupCommit,
        submissions: Submissions,
        outbox: Outbox,
        open_requests: OpenRequests,
        *,
        rate_limits: RateLimits,
        tenants: Callable[[str], TenantRule],
        prompt_bytes: int,
        store_id: Callable[[], str] = lambda: "",
        clock: Callable[[], datetime],
    ) -> None:
        self._commit = commit
        self._submissions = submissions
        self._tenants = tenants
        self._outbox = outbox
        self.open_requests = open_requests
        self._rate_limits = rate_limits
        self.last_prompt_at: float | None = None
        """When the last prompt came that is no line of a batch, by the event loop's clock."""
        self._prompt_bytes = prompt_bytes
        self._store_id = store_id
        self._clock = clock

    def read(
        self,
        data: bytes,
        *,
        tenant: str,
        fallback_id: str,
        key_id: str | None = None,
        batch_id: str | None = None,
        limit: int | None = None,
    ) -> Prompt:
        """Parse and admit a prompt. Raises RefusedError.

        Args:
            data: a Submission in JSON.
            tenant: the tenant that sends it.
            fallback_id: its custom_id if it has none.
            key_id: the API key that it came with.
            batch_id: its batch if it names none.
            limit: the most bytes; by default that of a prompt without large images.
        """
        submission = parse(data, limit or self._prompt_bytes)
        if batch_id and submission.batch_id is None:
            submission = submission.model_copy(update={"batch_id": batch_id})
        return self.admit(submission, tenant=tenant, fallback_id=fallback_id, key_id=key_id)

    def admit(
        self,
        submission: Submission,
        *,
        tenant: str,
        fallback_id: str,
        key_id: str | None = None,
        is_streamed: bool = False,
        depth: int = 0,
        deadline_at: datetime | None = None,
    ) -> Prompt:
        """Make a prompt of a submission, by the rules of its tenant. Raises RefusedError."""
        rule = self._tenants(tenant)
        prompt = admit(
            submission,
            tenant=tenant,
            fallback_id=fallback_id,
            pools=rule.pools,
            now=self._clock(),
            residency=rule.residency,
            is_streamed=is_streamed,
            depth=depth,
            deadline_at=deadline_at,
        )
        return prompt.model_copy(update={"store_id": self._store_id(), "key_id": key_id})

    async def attach(self, tenant: str, request_hash: str, *, is_again: bool) -> str | None:
        """Find the fusion that this request began when it was sent before, if it is a repetition.

        It is a repetition if the client says so, if the client of the earlier request has left, or
        if the process at which it waited no longer holds it. Two equal requests that wait at the
        same time are two fusions (docs/decisions/0018).

        Args:
            tenant: the tenant that sends it.
            request_hash: equal for the same request of the same client.
            is_again: whether the client says that it is a repetition.

        Returns:
            The fusion's id; None if the request is new.
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
        """Whether no client waits any more for a fusion that has no outcome yet."""
        if not twin.is_undecided or twin.held_by is None:
            return False
        return not await self.open_requests.is_held_by(twin.held_by, twin.fusion_id)

    async def prompt(self, tenant: str, fusion_id: str) -> Prompt | None:
        """Read a submitted prompt; None if the tenant has no such prompt."""
        return await self._submissions.get(tenant, fusion_id)

    async def leave(self, fusion_id: str) -> None:
        """Note that a fusion's client has left before it was answered."""
        try:
            await self._submissions.leave(fusion_id, self._clock())
        except Transient as exc:
            log.warning("ingest.leave_not_stored", fusion_id=fusion_id, fault=str(exc))

    async def cancel(self, tenant: str, fusion_ids: Sequence[str]) -> list[str]:
        """Cancel fusions; returns the ids of those that had no outcome.

        No further calls are made for them, and their outcomes will say `cancelled`. Calls that are
        already paid for may end, and are stored. Raises Transient.
        """
        cancelled_ids = await self._submissions.cancel(tenant, fusion_ids, self._clock())
        reach(CrashPoint.INGEST_CANCELLED)
        await self._outbox.publish_cancellations(cancelled_ids)
        log.info("ingest.cancelled", asked=len(fusion_ids), running=len(cancelled_ids))
        return cancelled_ids

    async def submit(
        self,
        prompt: Prompt,
        *,
        source: str,
        request_hash: str | None = None,
        limits: Limits = NO_LIMITS,
    ) -> Acceptance:
        """Commit one prompt.

        Args:
            prompt: the admitted prompt.
            source: the way it came, for the metrics.
            request_hash: the hash by which `attach` finds it.
            limits: the rate limits of its sender.

        Raises:
            RefusedError: its custom_id is another prompt's, or the budget does not allow it.
            RateLimitError: its sender has to wait.
            Transient: it could not be committed.
        """
        self.last_prompt_at = asyncio.get_running_loop().time()
        traceparent = telemetry.trace_headers().get("traceparent")
        origin = RequestIdentity(request_hash, self.open_requests.name) if request_hash else None
        with self._rate_limits.counting(limits) as count:
            count.add(prompt)
            (acceptance,) = await self._commit.add([prompt], traceparent, origin)
            count.note_acceptances([acceptance])
        if error := refusal(acceptance):
            raise error
        self.hand_over([acceptance], source)
        return acceptance

    async def submit_lines(
        self,
        lines: Sequence[tuple[int, bytes]],
        *,
        tenant: str,
        batch_id: str,
        key_id: str | None = None,
        limits: Limits = NO_LIMITS,
    ) -> list[Line]:
        """Commit the good lines of a JSONL body; bad lines do not affect them. Raises Transient.

        Lines beyond the rate limits of their sender are refused.
        """
        results: dict[int, Line] = {}
        prompts: dict[int, Prompt] = {}
        with self._rate_limits.counting(limits) as count:
            for number, raw in lines:
                fallback_id = f"line-{number}"
                try:
                    prompt = self.read(
                        raw,
                        tenant=tenant,
                        fallback_id=fallback_id,
                        key_id=key_id,
                        batch_id=batch_id,
                    )
                    count.add(prompt)
                    prompts[number] = prompt
                except RefusedError as exc:
                    results[number] = Line(number, None, exc)
                except RateLimitError as exc:
                    error = RefusedError("rate_limited", exc.message)
                    results[number] = Line(number, None, error)
            acceptances = await self._commit_lines(prompts, results)
            count.note_acceptances(acceptances)
        self.hand_over(acceptances, "jsonl")
        return [results[number] for number in sorted(results)]

    async def _commit_lines(
        self, prompts: Mapping[int, Prompt], results: dict[int, Line]
    ) -> list[Acceptance]:
        """Commit prompts by line, and add the result of each."""
        if not prompts:
            return []
        traceparent = telemetry.trace_headers().get("traceparent")
        acceptances = await self._commit.add(list(prompts.values()), traceparent)
        for number, acceptance in zip(prompts, acceptances, strict=True):
            error = refusal(acceptance)
            results[number] = Line(number, None if error else acceptance, error)
        return acceptances

    def hand_over(self, batch: Sequence[Acceptance], source: str) -> None:
        """Offer the new prompts of a committed batch to the outbox, and count them."""
        new_prompts = [acceptance.prompt for acceptance in batch if acceptance.is_new]
        metrics.ACCEPTED.labels(source).inc(len(new_prompts))
        traceparent = telemetry.trace_headers().get("traceparent")
        for prompt in new_prompts:
            self._outbox.offer(prompt, traceparent)
            log.debug(
                "ingest.accepted",
                fusion_id=prompt.fusion_id,
                pool=prompt.pool,
                mode=prompt.mode,
                source=source,
            )


def refusal(acceptance: Acceptance) -> RefusedError | None:
    """Why a prompt was refused at its commit; None if it was accepted."""
    if not acceptance.is_conflict:
        return acceptance.refused
    return RefusedError(
        "custom_id_conflict",
        f"custom_id '{acceptance.prompt.custom_id}' was submitted before with another prompt or "
        "other settings; give this one an id of its own",
        "custom_id",
    )
