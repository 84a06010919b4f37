"""The part that both workers share: the loop that takes tasks and publishes candidates."""

import abc
import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any, Protocol

import structlog
from nats.errors import Error as NatsError

from fusewire import metrics, telemetry
from fusewire.bus import Bus, Delivery, fault, retry_delay_s
from fusewire.cancel import CancelledFusions
from fusewire.contracts import (
    PRIORITIES,
    CallFailure,
    Candidate,
    ContractError,
    Task,
    Tasks,
    Tier,
    Token,
)
from fusewire.crash_points import CrashPoint, reach
from fusewire.errors import Transient
from fusewire.fence import UnfencedPrefix
from fusewire.loops import Release, ReleaseLoop
from fusewire.topology import (
    MAX_DELIVERIES,
    PRIORITY,
    REPEATED,
    Durable,
    candidate_subject,
    task_durable,
    token_subject,
)

log = structlog.get_logger(__name__)

KEPT_AFTER = timedelta(minutes=10)
"""How long after a task's deadline its candidate is still published, and its call remembered."""

MAX_CANDIDATE_BYTES = 900_000
"""Under NATS's default max_payload of 1 MiB, with room for headers."""


class TokenPublisher:
    """Publishes an answer piece by piece while it is being written, if the task is streamed."""

    def __init__(self, bus: Bus | None, task: Task) -> None:
        self._bus = bus if task.is_streamed else None
        self._task = task
        self._attempt = 1
        self._offset = 0
        self._merge = _merge(task)

    @property
    def is_enabled(self) -> bool:
        """Whether pieces are published at all."""
        return self._bus is not None

    async def __call__(self, text: str) -> None:
        """Publish the next piece."""
        if self._bus is None:
            return
        text = _storable(text)
        if self._merge:
            text = self._merge.add(text)
        if not text:
            return
        token = Token(
            fusion_id=self._task.fusion_id,
            round=self._task.round,
            call=self._task.call,
            attempt=self._attempt,
            offset=self._offset,
            text=text,
        )
        self._offset += len(text)
        # A lost piece is harmless: the candidate holds the whole text.
        with contextlib.suppress(NatsError, OSError):
            await self._bus.client.publish(token_subject(self._task.fusion_id), token.encode())
        reach(CrashPoint.WORKER_PIECE_PUBLISHED)

    def restart(self) -> None:
        """Begin a new attempt: readers drop what was published of the one before."""
        self._merge = _merge(self._task)
        if self._offset:
            self._attempt += 1
            self._offset = 0


def _merge(task: Task) -> UnfencedPrefix | None:
    # The judge removes fences from a merge, so they must not be published either
    # (docs/decisions/0027).
    return UnfencedPrefix() if task.kind == "write" else None


Make = Callable[[Task, TokenPublisher | None], Awaitable[Candidate | None]]
"""Makes the call of one task by its deadline; returns None if its candidate exists already.

It never raises for an error of a model or a provider: such a failure is a candidate too. Any other
exception is a fault of ours, and the tasks are delivered again. The second argument receives the
answer's text piece by piece if it is streamed.
"""


class Generate(Protocol):
    """Turns tasks into candidates."""

    def hold(
        self,
        tasks: Tasks,
        deliveries: int,
        on_begin: Callable[[], None],
        /,
        *,
        is_repeated: bool = False,
    ) -> AbstractAsyncContextManager[Make]:
        """Inside the block, this worker alone makes the calls of one message.

        Args:
            tasks: the calls to make.
            deliveries: how often the message has been delivered, this time included.
            on_begin: called when a call is about to be made, so that it no longer waits in the
                queue.
            is_repeated: whether calls may have been made that the ledger, which was lost, does not
                know of.
        """
        ...

    def stop(self) -> None:
        """Begin no further call that costs something; `Make` raises Transient instead."""
        ...

    async def aclose(self) -> None:
        """Close processes and connections."""
        ...


class CandidateOutbox(Protocol):
    """Where the candidates of an edge site wait until the hub has them."""

    def subject(self, task: Task) -> str:
        """Where the candidate of a task is published."""
        ...

    async def has_candidate(self, task: Task) -> bool:
        """Whether a task has its candidate already. Raises Transient."""
        ...


class FreeCalls(abc.ABC):
    """The `hold` of engines whose calls cost nothing, so that no ledger is needed."""

    @abc.abstractmethod
    async def generate(self, task: Task, tell: TokenPublisher | None = None) -> Candidate:
        """See `Make`."""

    def stop(self) -> None:  # noqa: B027 - there is nothing to do
        """See `Generate.stop`."""

    @contextlib.asynccontextmanager
    async def hold(
        self,
        tasks: Tasks,  # noqa: ARG002 - the signature is the protocol's
        deliveries: int,  # noqa: ARG002 - the signature is the protocol's
        on_begin: Callable[[], None],  # noqa: ARG002 - the signature is the protocol's
        /,
        *,
        is_repeated: bool = False,  # noqa: ARG002 - the signature is the protocol's
    ) -> AsyncIterator[Make]:
        """See `Generate.hold`. A message counts against the concurrency until its end."""
        yield self.generate


def failure_candidate(
    task: Task, failure: CallFailure, *, provider: str, at: datetime, cost_usd: float | None = None
) -> Candidate:
    """The candidate of a task that was not tried, or failed."""
    return Candidate(
        task_id=task.task_id,
        fusion_id=task.fusion_id,
        round=task.round,
        call=task.call,
        member=task.member,
        model=task.model,
        tier=task.tier,
        provider=provider,
        error=failure,
        cost_usd=cost_usd,
        attempts=0,
        started_at=at,
        finished_at=at,
    )


def _storable(value: Any) -> Any:
    """Replace NUL in all texts: PostgreSQL stores none, and cannot read JSON that holds one."""
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd")
    if isinstance(value, dict):
        return {_storable(key): _storable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(inner) for inner in value]
    return value


def _encode_storable(candidate: Candidate) -> bytes:
    """The JSON of a candidate, without anything that cannot be stored."""
    body = candidate.encode()
    if b"\\u0000" not in body:
        return body
    return Candidate.model_validate(_storable(candidate.model_dump())).encode()


def _keep_count() -> None:
    """A release for a message that no loop counts."""


def _too_large(candidate: Candidate) -> Candidate:
    failure = CallFailure(
        code="answer_too_large",
        message=f"the answer exceeds {MAX_CANDIDATE_BYTES} bytes, which is what a message holds; "
        "lower max_tokens",
        retryable=False,
    )
    return candidate.model_copy(update={"content": None, "error": failure})


class Worker:
    """One loop per queue: take tasks, make the calls, publish each candidate, acknowledge.

    Args:
        bus: the service's connection.
        generate: makes the calls.
        concurrency: by queue, how many messages may wait here for their calls at once.
        tier: whose tasks it takes.
        clock: the time now.
        on_cancel: called with each cancelled fusion, to abort its calls. Without it such calls end
            by themselves, and their candidates are stored.
        outbox: where candidates go, at an edge site; None publishes them to the hub at once.
    """

    def __init__(
        self,
        bus: Bus,
        generate: Generate,
        concurrency: Mapping[str, int],
        *,
        tier: Tier,
        clock: Callable[[], datetime],
        on_cancel: Callable[[str], None] | None = None,
        outbox: CandidateOutbox | None = None,
    ) -> None:
        self._bus = bus
        self._outbox = outbox
        self._generate = generate
        self._cancelled = CancelledFusions(on_cancel)
        self._tier = tier
        self._clock = clock
        self._durables: list[Durable] = []
        self._loops: list[ReleaseLoop] = []
        for queue, limit in concurrency.items():
            durables = [task_durable(queue, tier, priority) for priority in PRIORITIES]
            self._durables += durables
            # A call at the edge takes long, and another worker may be free for it. A call of a
            # hosted model waits for nobody here, and its delivery is known to be the first.
            loop = ReleaseLoop(
                bus, durables, self.handle, concurrency=limit, hands_back=tier == "edge"
            )
            self._loops.append(loop)
        self._running: dict[str, asyncio.Future[None]] = {}
        """By `Tasks.key`, the messages in hand."""

    async def start(self) -> None:
        """Check that every durable exists, listen for cancellations, then begin.

        At an edge site nothing is checked: the link to the hub may be down now.
        """
        if self._outbox is None:
            await self._bus.require(*self._durables)
        await self._cancelled.listen(self._bus)
        for loop in self._loops:
            await loop.start()

    async def stop(self, drain_s: float) -> None:
        """Take no more messages; finish running calls within `drain_s`, and hand back the rest."""
        self._generate.stop()
        await asyncio.gather(*(loop.stop(drain_s) for loop in self._loops))
        await self._generate.aclose()

    def is_cut_off(self) -> bool:
        """Whether this is an edge site that does not reach the hub now."""
        pullers = itertools.chain.from_iterable(loop.pullers() for loop in self._loops)
        return any(puller.is_across_link and puller.missing_s() for puller in pullers)

    def faults(self) -> list[str]:
        """Why it does no work any more; empty while it does."""
        return list(itertools.chain.from_iterable(loop.faults() for loop in self._loops))

    async def handle(self, delivery: Delivery, release: Release = _keep_count) -> None:
        """Make the calls of one message: each task ends in exactly one candidate.

        Args:
            delivery: the message.
            release: called when the message no longer counts against the concurrency.
        """
        tasks = Tasks.decode(delivery.data)
        telemetry.bind_fusion(tasks.fusion_id)
        if running := self._running.get(tasks.key):
            # Redelivered while its calls are under way: wait for these.
            release()
            await asyncio.shield(running)
            return
        running = self._running[tasks.key] = asyncio.ensure_future(
            self._process_tasks(tasks, delivery, release)
        )
        running.add_done_callback(lambda _: self._running.pop(tasks.key, None))
        await running

    async def _process_tasks(self, tasks: Tasks, delivery: Delivery, release: Release) -> None:
        is_repeated = REPEATED in delivery.headers
        # Calls may have been made for a repeated message, as for a redelivered one.
        deliveries = delivery.deliveries + is_repeated
        async with self._generate.hold(tasks, deliveries, release, is_repeated=is_repeated) as make:
            calls = [self._process_task(task, make, deliveries) for task in tasks.each()]
            # If one fails, the others still run to their end: they may be paid for.
            results = await asyncio.gather(*calls, return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            reach(CrashPoint.WORKER_DONE)

    async def _process_task(self, task: Task, make: Make, deliveries: int) -> None:
        candidate = await self._candidate(task, make, deliveries)
        if candidate is None:
            return
        body = _encode_storable(candidate)
        if len(body) > MAX_CANDIDATE_BYTES:
            candidate = _too_large(candidate)
            body = _encode_storable(candidate)
        reach(CrashPoint.WORKER_ANSWERED)
        await self._publish(task, body)
        reach(CrashPoint.WORKER_PUBLISHED)
        self._report(candidate)

    async def _publish(self, task: Task, body: bytes) -> None:
        """Publish a candidate; retry while the broker is away, as the answer may be paid for.

        Raises:
            Transient: the deadline passed more than `KEPT_AFTER` ago.
        """
        subject = self._subject(task)
        for tries in itertools.count(1):
            try:
                # The first candidate is the end of its call, whichever worker made it
                # (docs/decisions/0041).
                await self._bus.publish(
                    subject,
                    body,
                    msg_id=task.task_id,
                    headers={PRIORITY: task.priority},
                    only_if_new=True,
                )
            except Transient as exc:
                if self._clock() > task.deadline_at + KEPT_AFTER:
                    raise
                log.warning(
                    "worker.candidate_not_published",
                    call=task.call,
                    round=task.round,
                    fault=str(exc),
                )
                await asyncio.sleep(retry_delay_s(tries, 1.0))
            else:
                return

    def _subject(self, task: Task) -> str:
        if self._outbox:
            return self._outbox.subject(task)
        return candidate_subject(task.fusion_id, task.round, task.call)

    def _refusal(self, task: Task) -> CallFailure | None:
        """Why a task is not even tried; None if it is."""
        if task.tier != self._tier:
            text = f"a task for tier {task.tier} reached a worker of tier {self._tier}"
            return CallFailure(code="bad_request", message=text, retryable=False)
        if task.residency == "edge-only" and self._tier != "edge":
            # The dispatcher prevents this; a second check before content leaves the edge.
            text = "the content of an edge-only prompt may not leave the edge"
            return CallFailure(code="bad_request", message=text, retryable=False)
        if task.deadline_at <= self._clock():
            text = "the deadline had passed before the call could begin"
            return CallFailure(code="deadline_exceeded", message=text, retryable=False)
        if task.fusion_id in self._cancelled:
            return CallFailure(
                code="cancelled",
                message="it was cancelled before the call could begin",
                retryable=False,
            )
        return None

    async def _candidate(self, task: Task, make: Make, deliveries: int) -> Candidate | None:
        # The link may have lost an acknowledgement after the candidate was stored.
        if self._outbox and deliveries > 1 and await self._outbox.has_candidate(task):
            return None
        if refusal := self._refusal(task):
            # After a redelivery the cost of a paid call is unknown: it may have been made before.
            cost = 0.0 if deliveries == 1 or self._tier == "edge" else None
            return failure_candidate(
                task, refusal, provider=self._tier, at=self._clock(), cost_usd=cost
            )
        try:
            return await make(task, TokenPublisher(self._bus, task))
        except (Transient, ContractError):
            raise
        except Exception as exc:
            if deliveries < MAX_DELIVERIES:
                raise
            # The fusion must not wait for a task that will never succeed.
            failure = CallFailure(
                code="poison", message=f"the worker failed: {fault(exc)}", retryable=False
            )
            candidate = failure_candidate(task, failure, provider=self._tier, at=self._clock())
            await self._bus.publish(self._subject(task), candidate, only_if_new=True)
            raise

    def _report(self, candidate: Candidate) -> None:
        result = candidate.error.code if candidate.error else "ok"
        metrics.count_candidate(candidate)
        log.debug(
            "worker.candidate",
            call=candidate.call,
            round=candidate.round,
            model=candidate.model,
            result=result,
            attempts=candidate.attempts,
            latency_ms=round(candidate.latency_ms, 1),
            completion_tokens=candidate.usage.completion_tokens if candidate.usage else None,
        )
