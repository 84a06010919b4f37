"""What both workers share: the loop that takes tasks and gives candidates."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol

import structlog

from fusewire import telemetry
from fusewire.bus import Bus, Delivery, fault
from fusewire.contracts import PRIORITIES, CallFailure, Candidate, ContractError, Task, Tier
from fusewire.errors import Transient
from fusewire.pull import PriorityLoop
from fusewire.topology import MAX_DELIVERIES, candidate_subject, task_durable

log = structlog.get_logger(__name__)

MAX_CANDIDATE_BYTES = 900_000
"""Under NATS's default max_payload of 1 MiB, with room for headers."""


class Generate(Protocol):
    """Turns a task into a candidate.

    It never raises for what a model or a provider did: a failure is a candidate too. What it
    raises is a fault of ours; the task is then delivered again.
    """

    async def generate(self, task: Task) -> Candidate:
        """Make the call. Returns by `task.deadline_at` at the latest."""
        ...

    async def aclose(self) -> None:
        """Let go of processes and connections."""
        ...


def failed(task: Task, failure: CallFailure, *, provider: str, at: datetime) -> Candidate:
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
        attempts=0,
        started_at=at,
        finished_at=at,
    )


def _storable(candidate: Candidate) -> Candidate:
    """PostgreSQL keeps no NUL character in a text, so none goes further than here."""
    if candidate.content is None or "\x00" not in candidate.content:
        return candidate
    return candidate.model_copy(update={"content": candidate.content.replace("\x00", "\ufffd")})


class Worker:
    """One loop per model: take a task, make the call, publish the candidate, acknowledge."""

    def __init__(
        self,
        bus: Bus,
        generate: Generate,
        concurrency: Mapping[str, int],
        *,
        tier: Tier,
        clock: Callable[[], datetime],
    ) -> None:
        self._bus = bus
        self._generate = generate
        self._tier = tier
        self._clock = clock
        self._durables = {m: [task_durable(m, tier, p) for p in PRIORITIES] for m in concurrency}
        self._loops = [
            PriorityLoop(bus, self._durables[model], self.handle, concurrency=hands)
            for model, hands in concurrency.items()
        ]

    async def start(self) -> None:
        """Check that every durable is there, then begin."""
        await self._bus.require(*(d for durables in self._durables.values() for d in durables))
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
        candidate = _storable(await self._candidate(task, delivery.deliveries))
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
        return None

    async def _candidate(self, task: Task, deliveries: int) -> Candidate:
        if refused := self._refused(task):
            return failed(task, refused, provider=self._tier, at=self._clock())
        try:
            return await self._generate.generate(task)
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
        log.info(
            "worker.candidate",
            call=candidate.call,
            round=candidate.round,
            model=candidate.model,
            result=result,
            attempts=candidate.attempts,
            latency_ms=round(candidate.latency_ms, 1),
            completion_tokens=candidate.usage.completion_tokens,
        )
