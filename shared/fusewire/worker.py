"""What both workers share: the loop that takes tasks and gives candidates."""

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

from fusewire import telemetry
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
from fusewire.errors import Transient
from fusewire.fence import UnfencedPrefix
from fusewire.pull import Release, ReleaseLoop
from fusewire.topology import (
    MAX_DELIVERIES,
    REPEATED,
    candidate_subject,
    task_durable,
    token_subject,
)

log = structlog.get_logger(__name__)

KEPT_AFTER = timedelta(minutes=10)
"""How long after its deadline a candidate that the broker does not take is kept, and a call that was made is known."""

MAX_CANDIDATE_BYTES = 900_000
"""Under NATS's default max_payload of 1 MiB, with room for headers."""


class TokenPublisher:
    """Publishes an answer while it is being written, for whoever reads along."""

    def __init__(self, bus: Bus | None, task: Task) -> None:
        self._bus = bus if task.is_streamed else None
        self._task = task
        self._attempt = 1
        self._offset = 0
        self._merge = _merge(task)

    @property
    def is_heard(self) -> bool:
        """Whether anybody wants to know."""
        return self._bus is not None

    async def __call__(self, text: str) -> None:
        """Tell the next piece."""
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
        # Nobody is harmed if it is lost: the candidate holds the whole.
        with contextlib.suppress(NatsError, OSError):
            await self._bus.client.publish(token_subject(self._task.fusion_id), token.encode())

    def restart(self) -> None:
        """The call is made again; what was told of it counts no more."""
        self._merge = _merge(self._task)
        if self._offset:
            self._attempt += 1
            self._offset = 0


def _merge(task: Task) -> UnfencedPrefix | None:
    # Judge takes fences out of a merge; what it would take out shall not have been told.
    return UnfencedPrefix() if task.kind == "write" else None


Make = Callable[[Task, TokenPublisher | None], Awaitable[Candidate | None]]
"""Makes the call of one task, and returns by its deadline at the latest; None where its candidate has come already.

It never raises for what a model or a provider did: a failure is a candidate too. What it raises is a fault of ours; the
tasks are then delivered again. The second argument is given the answer's text piece by piece, if it comes so.
"""


class Generate(Protocol):
    """Turns tasks into candidates."""

    def hold(
        self, tasks: Tasks, deliveries: int, begun: Callable[[], None], *, is_repeated: bool = False
    ) -> AbstractAsyncContextManager[Make]:
        """While inside, the calls of one message are this worker's to make.

        Args:
            tasks: what to ask.
            deliveries: how often the message has been delivered, this time included.
            begun: to be told when a call is about to be made, so that it no longer stands in line.
            is_repeated: whether calls may have been made for them of which the ledger knows nothing, as it was lost.
        """
        ...

    def stop(self) -> None:
        """Begin no call any more that costs something; whoever would is told Transient."""
        ...

    async def aclose(self) -> None:
        """Let go of processes and connections."""
        ...


class FreeCalls(abc.ABC):
    """The `hold` of engines whose calls cost nothing, so that nothing need be remembered of them."""

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
        begun: Callable[[], None],  # noqa: ARG002 - the signature is the protocol's
        *,
        is_repeated: bool = False,  # noqa: ARG002 - the signature is the protocol's
    ) -> AsyncIterator[Make]:
        """See `Generate.hold`. A message stands in line until it has ended."""
        yield self.generate


def failure_candidate(
    task: Task, failure: CallFailure, *, provider: str, at: datetime, cost_usd: float | None = None
) -> Candidate:
    """The candidate of a task that was not, or not successfully, tried."""
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
    """The same without a NUL in any text: PostgreSQL keeps none, and reads no JSON that has one, whatever is asked."""
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd")
    if isinstance(value, dict):
        return {_storable(key): _storable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(inner) for inner in value]
    return value


def _encoded(candidate: Candidate) -> bytes:
    """Its JSON, with nothing in it that cannot be stored."""
    body = candidate.encode()
    if b"\\u0000" not in body:
        return body
    return Candidate.model_validate(_storable(candidate.model_dump())).encode()


def _held() -> None:
    """A message that stands in no line."""


def _too_large(candidate: Candidate) -> Candidate:
    failure = CallFailure(
        code="answer_too_large",
        message=f"the answer exceeds {MAX_CANDIDATE_BYTES} bytes, which is what a message holds; lower max_tokens",
        retryable=False,
    )
    return candidate.model_copy(update={"content": None, "error": failure})


class Worker:
    """One loop per queue: take the tasks of a round, make the calls, publish each candidate, acknowledge.

    Args:
        bus: the service's connection.
        generate: makes the calls.
        concurrency: by queue, how many messages may stand in line here at once.
        tier: whose tasks it takes.
        clock: the time now.
        on_cancel: told the fusions that are cancelled, to end what runs for them. Without it such calls end by
            themselves, and are stored.
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
    ) -> None:
        self._bus = bus
        self._generate = generate
        self._cancelled = CancelledFusions(on_cancel)
        self._tier = tier
        self._clock = clock
        self._durables = {q: [task_durable(q, tier, p) for p in PRIORITIES] for q in concurrency}
        self._loops = [
            ReleaseLoop(bus, self._durables[queue], self.handle, concurrency=hands)
            for queue, hands in concurrency.items()
        ]
        self._running: dict[str, asyncio.Future[None]] = {}
        """By key, the messages in hand."""

    async def start(self) -> None:
        """Check that every durable is there, listen for what is cancelled, then begin."""
        await self._bus.require(*(d for durables in self._durables.values() for d in durables))
        await self._cancelled.listen(self._bus)
        for loop in self._loops:
            await loop.start()

    async def stop(self, drain_s: float) -> None:
        """Take no more; finish what runs within `drain_s`, and hand back what has not begun."""
        self._generate.stop()
        await asyncio.gather(*(loop.stop(drain_s) for loop in self._loops))
        await self._generate.aclose()

    def faults(self) -> list[str]:
        """Why it does no work any more; empty while it does."""
        return [fault for loop in self._loops for fault in loop.faults()]

    async def handle(self, delivery: Delivery, release: Release = _held) -> None:
        """The tasks of one message: of each exactly one candidate.

        Args:
            delivery: the message.
            release: to be called when it no longer stands in line.
        """
        tasks = Tasks.decode(delivery.data)
        telemetry.bind_fusion(tasks.fusion_id)
        if running := self._running.get(tasks.key):
            # Delivered again while its calls are under way: they are what it asks for.
            release()
            await asyncio.shield(running)
            return
        running = self._running[tasks.key] = asyncio.ensure_future(
            self._all(tasks, delivery, release)
        )
        running.add_done_callback(lambda _: self._running.pop(tasks.key, None))
        await running

    async def _all(self, tasks: Tasks, delivery: Delivery, release: Release) -> None:
        is_repeated = REPEATED in delivery.headers
        # Of a repeated message calls may have been made, too.
        deliveries = delivery.deliveries + is_repeated
        async with self._generate.hold(tasks, deliveries, release, is_repeated=is_repeated) as make:
            one_by_one = [self._one(task, make, deliveries) for task in tasks.each()]
            # Whatever becomes of one, the others have their end: they may be paid for.
            ends = await asyncio.gather(*one_by_one, return_exceptions=True)
            for end in ends:
                if isinstance(end, BaseException):
                    raise end

    async def _one(self, task: Task, make: Make, deliveries: int) -> None:
        candidate = await self._candidate(task, make, deliveries)
        if candidate is None:
            return
        body = _encoded(candidate)
        if len(body) > MAX_CANDIDATE_BYTES:
            candidate = _too_large(candidate)
            body = _encoded(candidate)
        await self._publish(task, body)
        self._report(candidate)

    async def _publish(self, task: Task, body: bytes) -> None:
        """Publish a candidate, however long the broker is away: it may be paid for, and nobody else has it.

        Raises:
            Transient: its deadline is long past.
        """
        subject = candidate_subject(task.fusion_id, task.round, task.call)
        for tries in itertools.count(1):
            try:
                await self._bus.publish(subject, body, msg_id=task.task_id, only_if_new=True)
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

    def _refused(self, task: Task) -> CallFailure | None:
        """Why a task is not even tried, if it is not."""
        if task.tier != self._tier:
            text = f"a task for tier {task.tier} reached a worker of tier {self._tier}"
            return CallFailure(code="bad_request", message=text, retryable=False)
        if task.residency == "edge-only" and self._tier != "edge":
            # Dispatcher sees to it; whoever calls a hosted model makes sure once more.
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
        if refused := self._refused(task):
            # Of an earlier delivery a call may have been made.
            cost = 0.0 if deliveries == 1 else None
            return failure_candidate(
                task, refused, provider=self._tier, at=self._clock(), cost_usd=cost
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
            await self._bus.publish(
                candidate_subject(task.fusion_id, task.round, task.call),
                candidate,
                only_if_new=True,
            )
            raise

    def _report(self, candidate: Candidate) -> None:
        result = candidate.error.code if candidate.error else "ok"
        telemetry.CANDIDATES.labels(candidate.tier, candidate.model, result).inc()
        telemetry.CALL_SECONDS.labels(candidate.tier, candidate.model).observe(
            candidate.latency_ms / 1000
        )
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
