"""A task's place at an endpoint: a slot and the breaker's permit, for one call at a time."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime

from fusewire_worker_remote.backoff import PATIENT_S
from fusewire_worker_remote.endpoint import CallPermit, Endpoint, TimeSource
from fusewire_worker_remote.errors import Failure
from fusewire_worker_remote.providers import ProviderReply

CHECK_S = 5.0
"""The longest sleep of a task that waits for a breaker: after it, the worker may be stopping."""

DEADLINE_PASSED = Failure(
    "deadline_exceeded", "the deadline passed before a call could be made", retryable=False
)
_TOO_MANY_RETRIES = Failure(
    "server_error",
    "too many calls of this model are being made again",
    retryable=True,
    retry_after_s=CHECK_S,
)


class Place:
    """A task's place at an endpoint.

    A patient task, such as a batch's, waits while no call may be made, and one that somebody waits
    for ends at once: the others' answers are fused (docs/decisions/0062).

    Args:
        endpoint: where its calls go.
        rank: of its priority; 0 is the most urgent.
        deadline_at: when its calls must have ended.
        times: sources of time and chance.
        sleep: waits for seconds.
        raise_if_stopping: raises Transient if this worker begins no call any more.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        rank: int,
        deadline_at: datetime,
        *,
        times: TimeSource,
        sleep: Callable[[float], Awaitable[None]],
        raise_if_stopping: Callable[[], None],
    ) -> None:
        self._endpoint = endpoint
        self._rank = rank
        self._deadline_at = deadline_at
        self._times = times
        self._sleep = sleep
        self._raise_if_stopping = raise_if_stopping
        self._has_slot = False
        self._permit: CallPermit | None = None
        self.has_waited = False
        """Whether it has waited for a breaker or the retry budget."""

    @property
    def latency_s(self) -> float | None:
        """How long an answer takes here in the mean; None if nobody knows yet."""
        return self._endpoint.latency_s

    async def take(self, *, is_retry: bool = False) -> Failure | None:
        """Wait until a call may be made; return a failure if none is to be made.

        Args:
            is_retry: whether the call takes of the retry budget.

        Raises:
            Transient: the worker stops.
        """
        while self._permit is None:
            refusal = self._refusal(is_retry=is_retry)
            if refusal is None:
                await self._enter(is_retry=is_retry)
            elif self._is_worth_waiting(refusal):
                await self._wait(refusal)
            else:
                self._count_refusal(refusal)
                return refusal
        return None

    def is_refused(self, *, is_retry: bool) -> bool:
        """Whether the task had better end than wait for leave to call again."""
        refusal = self._refusal(is_retry=is_retry)
        if refusal is None or self._is_worth_waiting(refusal):
            return False
        self._count_refusal(refusal)
        return True

    def leave(self, result: ProviderReply | Failure | None = None) -> None:
        """Give the place back; nothing happens if it is not taken.

        Args:
            result: what came of the call; None if none was made, or it was cancelled.
        """
        permit, self._permit = self._permit, None
        if permit is not None:
            self._endpoint.end(permit, result)
        if self._has_slot:
            self._has_slot = False
            self._endpoint.slots.release()

    def _refusal(self, *, is_retry: bool) -> Failure | None:
        """Return why no call may be made now; None if one may."""
        if self._left_s() <= 0:
            return DEADLINE_PASSED
        if is_retry and not self._endpoint.retries.has_retry(self._times.timer()):
            return _TOO_MANY_RETRIES
        return self._endpoint.refusal()

    def _is_worth_waiting(self, refusal: Failure) -> bool:
        left_s = self._left_s()
        return refusal.retryable and left_s > PATIENT_S and (refusal.retry_after_s or 0) < left_s

    async def _wait(self, refusal: Failure) -> None:
        self.has_waited = True
        wait_s = (refusal.retry_after_s or 0.0) + self._times.rng()
        await self._sleep(min(wait_s, CHECK_S))
        self._raise_if_stopping()

    async def _enter(self, *, is_retry: bool) -> None:
        """Wait for a slot and take the permit; neither, after the deadline or a refusal."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._left_s()):
                self._has_slot = await self._endpoint.slots.acquire(self._rank)
        if not self._has_slot:
            return
        self._raise_if_stopping()
        self._permit = self._endpoint.begin()
        if self._permit is None:
            self.leave()
        elif is_retry:
            # Another may have taken the last one since; one more does no harm.
            self._endpoint.retries.take(self._times.timer())
        else:
            self._endpoint.retries.add_call()

    def _left_s(self) -> float:
        return (self._deadline_at - self._times.clock()).total_seconds()

    def _count_refusal(self, refusal: Failure) -> None:
        if refusal is not DEADLINE_PASSED:
            is_budget = refusal is _TOO_MANY_RETRIES
            self._endpoint.count_refusal("retry_budget" if is_budget else "breaker")
