"""What both workers share: the loop that takes tasks and gives candidates."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol

import structlog
from nats.errors import Error as NatsError

from fusewire import telemetry
from fusewire.bus import Bus, Delivery, fault
from fusewire.cancel import Cancelled
from fusewire.contracts import PRIORITIES, CallFailure, Candidate, ContractError, Task, Tier, Token
from fusewire.errors import Transient
from fusewire.fence import Untouched
from fusewire.pull import PriorityLoop
from fusewire.topology import MAX_DELIVERIES, candidate_subject, task_durable, token_subject

log = structlog.get_logger(__name__)

MAX_CANDIDATE_BYTES = 900_000
"""Under NATS's default max_payload of 1 MiB, with room for headers."""


class Tell:
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


def _merge(task: Task) -> Untouched | None:
    # Judge takes fences out of a merge; what it would take out shall not have been told.
    return Untouched() if task.kind == "write" else None


class Generate(Protocol):
    """Turns a task into a candidate.

    It never raises for what a model or a provider did: a failure is a candidate too. What it
    raises is a fault of ours; the task is then delivered again.
    """

    async def generate(self, task: Task, tell: Tell | None = None) -> Candidate:
        """Make the call. Returns by `task.deadline_at` at the latest.

        Args:
            task: what to ask.
            tell: to be given the answer's text piece by piece, if it comes so and somebody reads along.
        """
        ...

    async def aclose(self) -> None:
        """Let go of processes and connections."""
        ...


def failed(
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


def _storable(text: str) -> str:
    """PostgreSQL keeps no NUL character in a text, so none goes further than here."""
    return text.replace("\x00", "\ufffd")


class Worker:
    """One loop per model: take a task, make the call, publish the candidate, acknowledge.

    Args:
        bus: the service's connection.
        generate: makes the calls.
        concurrency: by model, how many tasks are in hand at once.
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
        self._cancelled = Cancelled(on_cancel)
        self._tier = tier
        self._clock = clock
        self._durables = {m: [task_durable(m, tier, p) for p in PRIORITIES] for m in concurrency}
        self._loops = [
            PriorityLoop(bus, self._durables[model], self.handle, concurrency=hands)
            for model, hands in concurrency.items()
        ]

    async def start(self) -> None:
        """Check that every durable is there, listen for what is cancelled, then begin."""
        await self._bus.require(*(d for durables in self._durables.values() for d in durables))
        await self._cancelled.listen(self._bus)
        for loop in self._loops:
            await loop.start()

    async def stop(self, drain_s: float) -> None:
        """Take no more; finish what runs within `drain_s`."""
        await asyncio.gather(*(loop.stop(drain_s) for loop in self._loops))
        await self._generate.aclose()

    def stalled(self) -> list[str]:
        """Names of loops that no longer turn."""
        return [loop.name for loop in self._loops if loop.stalled()]

    async def handle(self, delivery: Delivery) -> None:
        """One task: exactly one candidate."""
        task = Task.decode(delivery.data)
        telemetry.bind_fusion(task.fusion_id)
        candidate = await self._candidate(task, delivery.deliveries)
        if candidate.content is not None:
            candidate = candidate.model_copy(update={"content": _storable(candidate.content)})
        body = candidate.encode()
        if len(body) > MAX_CANDIDATE_BYTES:
            failure = CallFailure(
                code="answer_too_large",
                message=f"the answer has {len(body)} bytes, a message holds {MAX_CANDIDATE_BYTES}; lower max_tokens",
                retryable=False,
            )
            candidate = candidate.model_copy(update={"content": None, "error": failure})
            body = candidate.encode()
        # False means that an earlier delivery of this task has published already: done either way.
        await self._bus.publish(
            candidate_subject(task.fusion_id, task.round, task.call), body, msg_id=task.task_id, only_if_new=True
        )
        self._report(candidate)

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
                code="cancelled", message="it was cancelled before the call could begin", retryable=False
            )
        return None

    async def _candidate(self, task: Task, deliveries: int) -> Candidate:
        if refused := self._refused(task):
            return failed(task, refused, provider=self._tier, at=self._clock(), cost_usd=0.0)
        try:
            return await self._generate.generate(task, Tell(self._bus, task))
        except (Transient, ContractError):
            raise
        except Exception as exc:
            if deliveries < MAX_DELIVERIES:
                raise
            # The fusion must not wait for a task that will never succeed.
            failure = CallFailure(code="poison", message=f"the worker failed: {fault(exc)}", retryable=False)
            candidate = failed(task, failure, provider=self._tier, at=self._clock())
            await self._bus.publish(
                candidate_subject(task.fusion_id, task.round, task.call), candidate, only_if_new=True
            )
            raise

    def _report(self, candidate: Candidate) -> None:
        result = candidate.error.code if candidate.error else "ok"
        telemetry.CANDIDATES.labels(candidate.tier, candidate.model, result).inc()
        telemetry.CALL_SECONDS.labels(candidate.tier, candidate.model).observe(candidate.latency_ms / 1000)
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
