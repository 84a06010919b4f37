"""The candidate in which a task ends: an answer or a failure, with its tokens and its price."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fusewire.contracts import CallFailure, Candidate, Task, Usage
from fusewire.pricing import UNKNOWN, Price, price
from fusewire.settings import RemoteModel
from fusewire_worker_remote.errors import Failure
from fusewire_worker_remote.ledger import TaskCalls
from fusewire_worker_remote.providers import ProviderReply

MOST_THOUGHT_CHARS = 10_000
"""Most characters of a thought that are kept, so that answer and thought fit one message."""


@dataclass(slots=True)
class CallTally:
    """The calls that this process has made for one task, and the tokens of those that failed."""

    usage: Usage | None = Usage()  # noqa: RUF009 - frozen
    """None as soon as the tokens of a call that may be paid for are unknown."""
    attempts: int = 0
    """Attempts of this process; the ledger counts those of all."""
    calls: int = 0
    """Calls in these attempts: more than one per attempt if parameters were refused."""

    def add_failure(self, failure: Failure) -> None:
        """Add the tokens of a failed call."""
        self.usage = _sum(self.usage, _usage_of(failure))


async def make_candidate(
    task: Task,
    model: RemoteModel,
    task_calls: TaskCalls,
    result: ProviderReply | Failure,
    tally: CallTally,
    *,
    clock: Callable[[], datetime],
) -> Candidate:
    """Return the candidate for the result of a task's last call.

    Args:
        task: the task.
        model: the model that was called.
        task_calls: the calls of all workers for the task.
        result: what came of the last call.
        tally: the calls of this process, and the tokens of the earlier ones.
        clock: gives the current time, with a zone.
    """
    failure = result if isinstance(result, Failure) else None
    reply = result if isinstance(result, ProviderReply) else None
    is_maybe_paid = failure is None or failure.ambiguous or failure.billed
    paid_calls = task_calls.unknown + is_maybe_paid
    usage = _sum(tally.usage, _usage_of(result))
    cost = await _cost(model, task_calls, usage, reply, paid_calls=paid_calls)
    return Candidate(
        **_task_fields(task),
        provider=model.provider,
        content=reply.content if reply else None,
        tool_calls=reply.tool_calls if reply else (),
        error=_call_failure(failure, retryable=task_calls.unknown == 0) if failure else None,
        finish_reason=result.finish_reason,
        provider_reason=reply.provider_reason if reply else None,
        reasoning=_shorten(reply.reasoning) if reply else None,
        usage=usage,
        cost_usd=cost.usd,
        cost_prompt_usd=cost.prompt_usd,
        price_version=cost.version,
        # Refused parameters make several calls of one attempt; the ledger counts attempts alone.
        attempts=task_calls.attempts - tally.attempts + tally.calls,
        maybe_paid_twice=paid_calls >= 2,
        started_at=task_calls.started_at,
        finished_at=clock(),
    )


def uncalled_candidate(
    task: Task, model: RemoteModel | None, failure: Failure, now: datetime
) -> Candidate:
    """Return the candidate of a task for which no call was made, so that it costs nothing."""
    return Candidate(
        **_task_fields(task),
        provider=model.provider if model else "unknown",
        error=_call_failure(failure, retryable=True),
        cost_usd=0.0,
        attempts=0,
        started_at=now,
        finished_at=now,
    )


async def _cost(
    model: RemoteModel,
    task_calls: TaskCalls,
    usage: Usage | None,
    reply: ProviderReply | None,
    *,
    paid_calls: int,
) -> Price:
    if paid_calls == 0:
        return Price(0.0, 0.0)
    # What a provider reports covers the last call only.
    if reply is not None and reply.cost_usd is not None and paid_calls == 1:
        return Price(reply.cost_usd, None, "provider")
    if usage is None:
        return UNKNOWN
    return await price(usage, model, task_calls.started_at)


def _task_fields(task: Task) -> dict[str, Any]:
    """Return the fields that a candidate repeats of its task."""
    return {
        "task_id": task.task_id,
        "fusion_id": task.fusion_id,
        "round": task.round,
        "call": task.call,
        "member": task.member,
        "model": task.model,
        "tier": "remote",
    }


def _call_failure(failure: Failure, *, retryable: bool) -> CallFailure:
    """Return a failure as a candidate reports it.

    A call that may have been paid for is never worth another one later.
    """
    is_safe = retryable and failure.retryable and not failure.ambiguous
    return CallFailure(
        code=failure.code,
        message=failure.message,
        retryable=is_safe,
        status=failure.status,
        provider_code=failure.provider_code,
        param=failure.param,
        retry_after_s=failure.retry_after_s,
    )


def _usage_of(result: ProviderReply | Failure) -> Usage | None:
    """Return the tokens of a call; None if it may be paid for and nobody counted them."""
    if result.usage is not None:
        return result.usage
    is_free = isinstance(result, Failure) and not result.ambiguous and not result.billed
    return Usage() if is_free else None


def _sum(a: Usage | None, b: Usage | None) -> Usage | None:
    return None if a is None or b is None else a.plus(b)


def _shorten(thought_text: str | None) -> str | None:
    return thought_text and thought_text[:MOST_THOUGHT_CHARS]
