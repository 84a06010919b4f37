"""Runs tasks on hosted models: a place, the ledger, the retry loop, a candidate."""

import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

import structlog

from fusewire import telemetry
from fusewire.contracts import PRIORITIES, Candidate, Task, Tasks
from fusewire.crash_points import CrashPoint, reach
from fusewire.errors import Transient
from fusewire.settings import RemoteModel
from fusewire.worker import KEPT_AFTER, Make, TokenPublisher
from fusewire_worker_remote.backoff import Backoff
from fusewire_worker_remote.call import ModelCaller
from fusewire_worker_remote.candidate import CallTally, make_candidate, uncalled_candidate
from fusewire_worker_remote.dialects import DialectStore, MemoryDialects
from fusewire_worker_remote.endpoint import Endpoints, TimeSource
from fusewire_worker_remote.errors import Failure
from fusewire_worker_remote.large_body import BlobSource
from fusewire_worker_remote.lease import FindEnded, LeaseTerms, LedgerLease
from fusewire_worker_remote.ledger import MAX_UNKNOWN, Ledger, TaskCalls
from fusewire_worker_remote.place import Place
from fusewire_worker_remote.providers import ProviderReply
from fusewire_worker_remote.transport import Transport

log = structlog.get_logger(__name__)

_RESULTS_LOST = Failure(
    "timeout", "calls were made and their results are unknowable", retryable=False
)


CandidateLookup = Callable[[str, int, Collection[str]], Awaitable[Collection[str]]]
"""Returns those of a fusion's calls in a round that have a candidate; all if the fusion is over.

Raises:
    Transient: nobody can tell now.
"""


async def _find_none(fusion_id: str, round_: int, calls: Collection[str]) -> Collection[str]:  # noqa: ARG001 - the signature is the protocol's
    return ()


def _ignore_start() -> None:
    """Do nothing: no message waits for its first call to begin."""


class RemoteGenerate:
    """Implements `fusewire.worker.Generate` for hosted models.

    `hold` and the function that it yields raise `EntryBusy` while another delivery of the tasks is
    being worked on, `LedgerUnavailable` when the ledger cannot be reached, and `Transient` when
    nobody can tell which candidates have come. In each case the tasks should be delivered again
    later.

    Args:
        models: models by their names in the configuration.
        ledger: where paid calls are noted.
        dialects: what is known of the models; None starts without any knowledge.
        lookup: tells which candidates have come; by default none.
        clock: gives the current time, with a zone.
        sleep: waits for seconds between attempts.
        rng: draws from [0, 1), for jitter.
        timer: gives seconds that never go back.
        images: the store of the large parts of prompts.
        worker_id: differs from that of every other worker that runs at the same time.
        lease_s: seconds after this worker's death until another may take its tasks.
        backoff: the waits between attempts.
    """

    def __init__(
        self,
        models: Mapping[str, RemoteModel],
        ledger: Ledger,
        dialects: DialectStore | None = None,
        *,
        lookup: CandidateLookup = _find_none,
        clock: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]],
        rng: Callable[[], float],
        timer: Callable[[], float] = time.monotonic,
        images: BlobSource | None = None,
        worker_id: str,
        lease_s: float = 15.0,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
    ) -> None:
        self._models = dict(models)
        self._times = TimeSource(timer, clock, rng)
        self._endpoints = Endpoints(self._models, self._times)
        self._ledger = ledger
        self._lookup = lookup
        self._clock = clock
        self._sleep = sleep
        # With the time of the start, so that a restarted worker is not taken for its former self.
        self._owner = f"{worker_id}@{clock():%Y%m%dT%H%M%S.%f}"
        self._lease_numbers = itertools.count(1)
        self._lease_duration = timedelta(seconds=lease_s)
        self._backoff = backoff
        self._transport = Transport(images=images)
        self._caller = ModelCaller(self._transport, dialects or MemoryDialects(), clock)
        self._is_stopping = False

    def stop(self) -> None:
        """See `Generate.stop`."""
        self._is_stopping = True

    async def aclose(self) -> None:
        """See `Generate.aclose`."""
        await self._transport.aclose()

    @asynccontextmanager
    async def hold(
        self,
        tasks: Tasks,
        deliveries: int,
        on_start: Callable[[], None],
        *,
        is_repeated: bool = False,
    ) -> AsyncIterator[Make]:
        """See `Generate.hold`."""
        find_ended = partial(self._lookup, tasks.fusion_id, tasks.round)
        earlier = tuple(task.call for task in tasks.each()) if is_repeated else ()
        async with self._lease(
            tasks.key,
            tasks.deadline_at,
            find_ended,
            is_first=deliveries == 1 and not is_repeated,
            earlier=earlier,
        ) as lease:

            async def make(task: Task, publisher: TokenPublisher | None) -> Candidate | None:
                if lease.has_ended(task.call):
                    return None
                return await self._generate(task, publisher, lease, on_start)

            yield make

    async def generate(self, task: Task, publisher: TokenPublisher | None = None) -> Candidate:
        """Run a single task, noted under its own id; otherwise like `hold`."""
        find_ended = partial(self._lookup, task.fusion_id, task.round)
        async with self._lease(task.task_id, task.deadline_at, find_ended, is_first=False) as lease:
            candidate = await self._generate(task, publisher, lease, _ignore_start)
        if candidate is None:
            raise Transient("the fusion is over", retry_after_s=0)
        return candidate

    def _lease(
        self,
        key: str,
        deadline_at: datetime,
        find_ended: FindEnded,
        *,
        is_first: bool,
        earlier: Collection[str] = (),
    ) -> LedgerLease:
        owner = f"{self._owner}#{next(self._lease_numbers)}"
        terms = LeaseTerms(owner, self._lease_duration, deadline_at + KEPT_AFTER, self._clock)
        return LedgerLease(self._ledger, key, terms, find_ended, is_first=is_first, earlier=earlier)

    async def _generate(
        self,
        task: Task,
        publisher: TokenPublisher | None,
        lease: LedgerLease,
        on_start: Callable[[], None],
    ) -> Candidate | None:
        model = self._find_model(task)
        if isinstance(model, Failure):
            return self._end_uncalled(task, model)
        if publisher is not None and not (task.is_streamed and publisher.is_enabled):
            publisher = None
        place = Place(
            self._endpoints.of(task.model),
            PRIORITIES.index(task.priority),
            task.deadline_at,
            times=self._times,
            sleep=self._sleep,
            raise_if_stopping=self._raise_if_stopping,
        )
        try:
            refusal = await place.take()
            if refusal is not None:
                return self._end_uncalled(task, refusal)
            if place.has_waited and await self._is_over(task):
                return None
            on_start()
            return await self._call(task, model, lease, publisher, place)
        finally:
            place.leave()

    async def _is_over(self, task: Task) -> bool:
        """Whether nobody needs the task any more, as its fusion was decided without it."""
        try:
            return task.call in await self._lookup(task.fusion_id, task.round, (task.call,))
        except Transient:
            return False

    def _find_model(self, task: Task) -> RemoteModel | Failure:
        """Return the model to call for a task, or the failure if it cannot be called."""
        if task.residency == "edge-only":
            log.error("remote.edge_only_refused", task_id=task.task_id, fusion_id=task.fusion_id)
            message = "an edge-only task came to worker-remote"
            return Failure("bad_request", message, retryable=False)
        model = self._models.get(task.model)
        if model is None:
            message = f"model '{task.model}' is not configured here"
            return Failure("model_not_found", message, retryable=False)
        if model.api_key_env and model.api_key is None:
            log.error("remote.key_not_set", model=task.model, variable=model.api_key_env)
            message = f"the environment variable {model.api_key_env} is not set"
            return Failure("unauthorized", message, retryable=False, param=model.api_key_env)
        return model

    def _raise_if_stopping(self) -> None:
        # A call that is cut while this process drains would have to be made again
        # (docs/decisions/0032).
        if self._is_stopping:
            raise Transient("this worker stops, and begins no call", retry_after_s=0)

    async def _call(
        self,
        task: Task,
        model: RemoteModel,
        lease: LedgerLease,
        publisher: TokenPublisher | None,
        place: Place,
    ) -> Candidate:
        """Call until there is an answer or a final failure: the only retry loop there is."""
        task_calls = await lease.begin(task.call, model.max_attempts)
        if task_calls is None:
            return await self._end(task, lease, _RESULTS_LOST, CallTally(usage=None))
        tally = CallTally(usage=None) if task_calls.unknown else CallTally()
        # Retried here and by no SDK: the ledger needs to see each attempt (docs/decisions/0020).
        while True:
            result = await self._attempt(task, model, lease, publisher, place=place, tally=tally)
            if isinstance(result, ProviderReply):
                return await self._end(task, lease, result, tally)
            wait_s = self._wait_s(task, model, task_calls, result, place)
            if wait_s is None:
                return await self._end(task, lease, result, tally)
            tally.add_failure(result)
            await lease.pause(task.call, ambiguous=result.ambiguous)
            reach(CrashPoint.REMOTE_PAUSED)
            await self._sleep(wait_s)
            if await place.take(is_retry=_takes_budget(result)) is not None:
                # What it may cost is in the ledger and the tally already.
                failure = replace(result, ambiguous=False, billed=False, usage=None)
                return await self._end(task, lease, failure, tally)
            task_calls = await lease.resend(task.call)

    async def _attempt(
        self,
        task: Task,
        model: RemoteModel,
        lease: LedgerLease,
        publisher: TokenPublisher | None,
        *,
        place: Place,
        tally: CallTally,
    ) -> ProviderReply | Failure:
        """Make one attempt, and leave the place to others."""
        if publisher is not None and tally.attempts:
            publisher.restart()
        calls_before = tally.calls
        tally.attempts += 1
        attempt = task_calls.attempts if (task_calls := lease.calls(task.call)) else 0
        reach(CrashPoint.REMOTE_SENT)
        with telemetry.span("model call", model=task.model, call=task.call, attempt=attempt):
            result = await lease.during(self._caller.call(task, model, publisher, tally))
        reach(CrashPoint.REMOTE_CALLED)
        place.leave(result if tally.calls > calls_before else None)
        if isinstance(result, Failure):
            log.warning(
                "remote.call_failed",
                task_id=task.task_id,
                model=task.model,
                code=result.code,
                attempt=attempt,
                ambiguous=result.ambiguous,
            )
        return result

    def _wait_s(
        self,
        task: Task,
        model: RemoteModel,
        task_calls: TaskCalls,
        failure: Failure,
        place: Place,
    ) -> float | None:
        """Return the seconds until the next attempt, or None if there is none."""
        # A result that is unknowable may be paid for: once more is called, and not again.
        if not failure.retryable or task_calls.unknown + failure.ambiguous >= MAX_UNKNOWN:
            return None
        wait_s = self._backoff.wait_s(
            attempt=task_calls.attempts,
            max_attempts=model.max_attempts,
            now=self._clock(),
            # An attempt that cannot end by the deadline is not made.
            deadline=task.deadline_at - timedelta(seconds=place.latency_s or 0.0),
            random=self._times.rng(),
            retry_after_s=failure.retry_after_s,
        )
        if wait_s is None or place.is_refused(is_retry=_takes_budget(failure)):
            return None
        return wait_s

    async def _end(
        self, task: Task, lease: LedgerLease, result: ProviderReply | Failure, tally: CallTally
    ) -> Candidate:
        task_calls = lease.calls(task.call)
        assert task_calls is not None, "a call ends only after it was begun"
        candidate = await make_candidate(
            task, self._models[task.model], task_calls, result, tally, clock=self._clock
        )
        return await lease.end(candidate)

    def _end_uncalled(self, task: Task, failure: Failure) -> Candidate:
        return uncalled_candidate(task, self._models.get(task.model), failure, self._clock())


def _takes_budget(failure: Failure) -> bool:
    """Whether a call that is made again takes of the retry budget.

    One that the provider asks for, by telling when, does not multiply an outage.
    """
    return failure.code != "rate_limited" or failure.retry_after_s is None
