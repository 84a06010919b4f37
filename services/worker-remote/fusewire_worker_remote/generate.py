"""One task on a hosted model: a slot, the ledger, one retry loop, a price, a candidate."""

import asyncio
import itertools
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import structlog

from fusewire import references, telemetry
from fusewire.contracts import CallFailure, Candidate, Task, Tasks, Usage
from fusewire.errors import Transient
from fusewire.pricing import UNKNOWN, Price, price
from fusewire.settings import RemoteModel
from fusewire.worker import KEPT_AFTER, Make, TokenPublisher
from fusewire_worker_remote.backoff import Backoff
from fusewire_worker_remote.dialect import Dialect, Refusal, refusal, without_fence
from fusewire_worker_remote.dialects import DialectStore, MemoryDialects
from fusewire_worker_remote.errors import Failure
from fusewire_worker_remote.large_body import BlobSource
from fusewire_worker_remote.lease import Came, LeaseTerms, LedgerLease
from fusewire_worker_remote.ledger import MAX_UNKNOWN, Ledger, TaskCalls
from fusewire_worker_remote.providers import PROVIDERS, HttpResponse, ProviderReply
from fusewire_worker_remote.stream_reader import StreamReader
from fusewire_worker_remote.transport import Transport

log = structlog.get_logger(__name__)

MAX_ANSWER_BYTES = 768 * 1024
"""Of an answer in JSON: the candidate around it has to fit a NATS message of 1 MiB."""

MOST_THOUGHT_CHARS = 10_000
"""What is kept of a thought, so that answer and thought fit the same message."""

MOST_REFUSALS = 8
"""Of parameters, for one call."""
REFUSAL_STATUS = (400, 422)

_LATE = Failure(
    "deadline_exceeded", "the deadline passed before a call could be made", retryable=False
)
_LOST = Failure("timeout", "calls were made and their results are unknowable", retryable=False)


Stored = Callable[[str, int, Collection[str]], Awaitable[Collection[str]]]
"""Tells of a fusion, a round and calls of it which have a candidate; all, where the fusion is over.

Raises:
    Transient: nobody can tell now.
"""


async def _none_stored(fusion_id: str, round_: int, calls: Collection[str]) -> Collection[str]:  # noqa: ARG001 - the signature is the protocol's
    return ()


@dataclass(slots=True)
class _FailedUsage:
    """What the calls for one task came to that gave no answer."""

    usage: Usage | None = Usage()  # noqa: RUF009 - frozen
    """None as soon as one that may have been paid for was not counted."""
    attempts: int = 0
    """Attempts of this process, which are what the ledger counts."""
    calls: int = 0
    """Calls in these attempts: none where it was too late, more than one where parameters were refused."""

    def add(self, failure: Failure) -> None:
        """One more that failed."""
        self.usage = _sum(self.usage, _used(failure))


class RemoteGenerate:
    """Implements `fusewire.worker.Generate` for hosted models.

    `hold` and what it gives raise `Busy` while another delivery of the tasks is being worked on, `LedgerUnavailable`
    when the ledger cannot be reached, and `Transient` when nobody can tell which candidates have come; all want the
    tasks delivered again later.

    Args:
        models: by their names in the configuration.
        ledger: where paid calls are noted.
        stored: tells which candidates have come; without it, none ever has.
        dialects: what is known of the models; None begins anew.
        clock: gives the current time, with a zone.
        sleep: waits for seconds between attempts.
        rng: draws from [0, 1), for jitter.
        images: where the large ones of prompts are read.
        worker_id: unlike that of any other worker that runs at the same time.
        lease_s: how long after this worker's death another may take its tasks.
    """

    def __init__(
        self,
        models: Mapping[str, RemoteModel],
        ledger: Ledger,
        dialects: DialectStore | None = None,
        *,
        stored: Stored = _none_stored,
        clock: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]],
        rng: Callable[[], float],
        images: BlobSource | None = None,
        worker_id: str,
        lease_s: float = 15.0,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
    ) -> None:
        self._models = dict(models)
        self._slots = {
            name: asyncio.Semaphore(model.max_concurrency) for name, model in models.items()
        }
        self._ledger = ledger
        self._stored = stored
        self._dialects = dialects or MemoryDialects()
        self._clock = clock
        self._sleep = sleep
        self._rng = rng
        # With the time of the start, so that a restarted worker is not taken for its former self.
        self._owner = f"{worker_id}@{clock():%Y%m%dT%H%M%S.%f}"
        self._holds = itertools.count(1)
        self._lease = timedelta(seconds=lease_s)
        self._backoff = backoff
        self._transport = Transport(images=images)
        self._is_stopping = False

    def stop(self) -> None:
        """See `Generate.stop`."""
        self._is_stopping = True

    @asynccontextmanager
    async def hold(
        self, tasks: Tasks, deliveries: int, begun: Callable[[], None], *, is_repeated: bool = False
    ) -> AsyncIterator[Make]:
        """See `Generate.hold`."""
        came = partial(self._stored, tasks.fusion_id, tasks.round)
        earlier = tuple(task.call for task in tasks.each()) if is_repeated else ()
        async with self._hold(
            tasks.key,
            tasks.deadline_at,
            came,
            is_first=deliveries == 1 and not is_repeated,
            earlier=earlier,
        ) as held:

            async def make(task: Task, tell: TokenPublisher | None) -> Candidate | None:
                return (
                    None
                    if held.has_ended(task.call)
                    else await self._generate(task, tell, held, begun)
                )

            yield make

    async def generate(self, task: Task, tell: TokenPublisher | None = None) -> Candidate:
        """One task by itself, noted under its own name; as `hold` otherwise."""
        came = partial(self._stored, task.fusion_id, task.round)
        async with self._hold(task.task_id, task.deadline_at, came, is_first=False) as held:
            return await self._generate(task, tell, held, _unheard)

    def _hold(
        self,
        key: str,
        deadline_at: datetime,
        came: Came,
        *,
        is_first: bool,
        earlier: Collection[str] = (),
    ) -> LedgerLease:
        me = f"{self._owner}#{next(self._holds)}"
        terms = LeaseTerms(me, self._lease, deadline_at + KEPT_AFTER, self._clock)
        return LedgerLease(self._ledger, key, terms, came, is_first=is_first, earlier=earlier)

    async def _generate(
        self, task: Task, tell: TokenPublisher | None, held: LedgerLease, begun: Callable[[], None]
    ) -> Candidate:
        if task.residency == "edge-only":
            log.error("remote.edge_only_refused", task_id=task.task_id, fusion_id=task.fusion_id)
            return self._uncalled(
                task,
                Failure("bad_request", "an edge-only task came to worker-remote", retryable=False),
            )
        model = self._models.get(task.model)
        if model is None:
            what = f"model '{task.model}' is not configured here"
            return self._uncalled(task, Failure("model_not_found", what, retryable=False))
        if model.api_key_env and model.api_key is None:
            log.error("remote.key_not_set", model=task.model, variable=model.api_key_env)
            what = f"the environment variable {model.api_key_env} is not set"
            return self._uncalled(
                task, Failure("unauthorized", what, retryable=False, param=model.api_key_env)
            )
        is_heard = tell is not None and task.is_streamed and tell.is_enabled
        return await self._in_slot(task, model, tell if is_heard else None, held, begun)

    async def aclose(self) -> None:
        """See `Generate.aclose`."""
        await self._transport.aclose()

    async def _in_slot(
        self,
        task: Task,
        model: RemoteModel,
        tell: TokenPublisher | None,
        held: LedgerLease,
        begun: Callable[[], None],
    ) -> Candidate:
        slot = _Slot(self._slots[task.model])
        try:
            async with asyncio.timeout(self._seconds_left(task)):
                await slot.take()
        except TimeoutError:
            return self._uncalled(task, _LATE)
        try:
            self._may_call()
            begun()
            return await self._called(task, model, held, tell, slot)
        finally:
            slot.leave()

    def _may_call(self) -> None:
        if self._is_stopping:
            raise Transient("this worker stops, and begins no call", retry_after_s=0)

    async def _called(
        self,
        task: Task,
        model: RemoteModel,
        held: LedgerLease,
        tell: TokenPublisher | None,
        slot: "_Slot",
    ) -> Candidate:
        """The retry loop, the only one there is."""
        earlier = held.calls(task.call)
        known = await held.begin(task.call, model.max_attempts)
        if known is None:
            assert earlier is not None
            return await self._ended(task, held, earlier, _LOST, _FailedUsage(usage=None))
        spent = _FailedUsage(usage=None if known.unknown else Usage())
        while True:
            spent.attempts += 1
            with telemetry.span(
                "model call", model=task.model, call=task.call, attempt=known.attempts
            ):
                result = await held.during(self._negotiated(task, model, tell, spent))
            if isinstance(result, ProviderReply):
                return await self._ended(task, held, known, result, spent)
            log.warning(
                "remote.call_failed",
                task_id=task.task_id,
                model=task.model,
                code=result.code,
                attempt=known.attempts,
                ambiguous=result.ambiguous,
            )
            wait_s = self._wait_s(task, model, known, result)
            if wait_s is None:
                return await self._ended(task, held, known, result, spent)
            spent.add(result)
            await held.pause(task.call, ambiguous=result.ambiguous)
            # Others may call meanwhile.
            slot.leave()
            await self._sleep(wait_s)
            await slot.take()
            self._may_call()
            known = await held.resend(task.call)
            if tell is not None:
                tell.restart()

    async def _negotiated(
        self, task: Task, model: RemoteModel, tell: TokenPublisher | None, spent: _FailedUsage
    ) -> ProviderReply | Failure:
        """One call, made again at once without a parameter that the server refuses: a refused call costs nothing."""
        for _ in range(MOST_REFUSALS):
            dialect = PROVIDERS[model.provider].known.merged(self._dialects.of(model))
            result = await self._call(task, model, dialect, tell, spent)
            if (
                isinstance(result, ProviderReply)
                and not dialect.is_thinking
                and _is_thought(result)
            ):
                await self._dialects.learn(model, dialect.model_copy(update={"is_thinking": True}))
            if not isinstance(result, Refusal):
                return result
            log.info("remote.parameter_refused", model=task.model, parameter=result.parameter)
            await self._dialects.learn(model, result.dialect)
        what = f"the server refused {MOST_REFUSALS} parameters, one after the other"
        return Failure("bad_request", what, retryable=False)

    async def _call(
        self,
        task: Task,
        model: RemoteModel,
        dialect: Dialect,
        tell: TokenPublisher | None,
        spent: _FailedUsage,
    ) -> ProviderReply | Failure | Refusal:
        """One call. With `tell` it is streamed, if the server does that."""
        left_s = self._seconds_left(task)
        if left_s <= 0:
            return _LATE
        provider = PROVIDERS[model.provider]
        is_streamed = tell is not None or model.always_stream
        marked, images = _marked(task)
        request = provider.request(marked, model, dialect, is_streamed=is_streamed)
        if isinstance(request, Failure):
            return request
        assembly = provider.assemble(self._clock())
        hearing = StreamReader(assembly, tell, max_chars=MAX_ANSWER_BYTES) if is_streamed else None
        spent.calls += 1
        result = await self._transport.post(request, min(model.timeout_s, left_s), hearing, images)
        if hearing and (
            hearing.is_complete or (isinstance(result, HttpResponse) and result.is_heard)
        ):
            # What breaks off when the answer is complete had nothing more to say.
            return _bounded(await hearing.result())
        if isinstance(result, Failure):
            cut = result.code == "timeout" and left_s <= model.timeout_s
            return replace(result, code="deadline_exceeded", retryable=False) if cut else result
        answer = provider.read(result, self._clock())
        if (
            isinstance(answer, Failure)
            and answer.code == "bad_request"
            and result.status in REFUSAL_STATUS
        ):
            return refusal(request.payload, result.body, dialect) or answer
        if tell and isinstance(answer, ProviderReply) and answer.content:
            await tell(answer.content)
        return _bounded(_unfenced(answer, task))

    def _wait_s(
        self, task: Task, model: RemoteModel, known: TaskCalls, failure: Failure
    ) -> float | None:
        """Seconds until the next attempt, or None when there is none."""
        if not failure.retryable or known.unknown + failure.ambiguous >= MAX_UNKNOWN:
            return None
        return self._backoff.wait_s(
            attempt=known.attempts,
            max_attempts=model.max_attempts,
            now=self._clock(),
            deadline=task.deadline_at,
            random=self._rng(),
            retry_after_s=failure.retry_after_s,
        )

    async def _ended(
        self,
        task: Task,
        held: LedgerLease,
        known: TaskCalls,
        result: ProviderReply | Failure,
        spent: _FailedUsage,
    ) -> Candidate:
        """Make the candidate. `spent` is what earlier calls came to that gave no answer."""
        model = self._models[task.model]
        failure = result if isinstance(result, Failure) else None
        maybe_paid = known.unknown + (failure is None or failure.ambiguous or failure.billed)
        usage = _sum(spent.usage, _used(result))
        if maybe_paid == 0:
            cost = Price(0.0, 0.0)
        elif isinstance(result, ProviderReply) and result.cost_usd is not None and maybe_paid == 1:
            cost = Price(result.cost_usd, None, "provider")
        elif usage is None:
            cost = UNKNOWN
        else:
            cost = await price(usage, model, known.started_at)
        candidate = Candidate(
            **_about(task),
            provider=model.provider,
            content=result.content if isinstance(result, ProviderReply) else None,
            tool_calls=result.tool_calls if isinstance(result, ProviderReply) else (),
            error=_error(failure, retryable=known.unknown == 0) if failure else None,
            finish_reason=result.finish_reason,
            provider_reason=result.provider_reason if isinstance(result, ProviderReply) else None,
            reasoning=_short(result.reasoning) if isinstance(result, ProviderReply) else None,
            usage=usage,
            cost_usd=cost.usd,
            cost_prompt_usd=cost.prompt_usd,
            price_version=cost.version,
            attempts=known.attempts - spent.attempts + spent.calls,
            maybe_paid_twice=maybe_paid >= 2,
            started_at=known.started_at,
            finished_at=self._clock(),
        )
        return await held.end(candidate)

    def _uncalled(self, task: Task, failure: Failure) -> Candidate:
        """The candidate of a task for which nothing was called, so that the ledger need not know of it."""
        now = self._clock()
        model = self._models.get(task.model)
        return Candidate(
            **_about(task),
            provider=model.provider if model else "unknown",
            error=_error(failure, retryable=True),
            cost_usd=0.0,
            attempts=0,
            started_at=now,
            finished_at=now,
        )

    def _seconds_left(self, task: Task) -> float:
        return (task.deadline_at - self._clock()).total_seconds()


def _unheard() -> None:
    """Nobody wants to know when the call begins."""


def _about(task: Task) -> dict[str, Any]:
    """What a candidate repeats of its task."""
    return {
        "task_id": task.task_id,
        "fusion_id": task.fusion_id,
        "round": task.round,
        "call": task.call,
        "member": task.member,
        "model": task.model,
        "tier": "remote",
    }


def _error(failure: Failure, *, retryable: bool) -> CallFailure:
    """A failure as the candidate tells it. What may have been paid for is never worth another call later."""
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


def _is_thought(reply: ProviderReply) -> bool:
    return bool(reply.reasoning or (reply.usage and reply.usage.reasoning_tokens))


def _used(result: ProviderReply | Failure) -> Usage | None:
    """The tokens of a call; None where it may be paid for and nobody counted."""
    if result.usage is not None:
        return result.usage
    is_free = isinstance(result, Failure) and not result.ambiguous and not result.billed
    return Usage() if is_free else None


def _sum(a: Usage | None, b: Usage | None) -> Usage | None:
    return None if a is None or b is None else a.plus(b)


class _Slot:
    """A place among the calls of a model that may run at once, taken and left again."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places = places
        self._is_taken = False

    async def take(self) -> None:
        await self._places.acquire()
        self._is_taken = True

    def leave(self) -> None:
        if self._is_taken:
            self._is_taken = False
            self._places.release()


def _short(thought: str | None) -> str | None:
    return thought and thought[:MOST_THOUGHT_CHARS]


def _marked(task: Task) -> tuple[Task, dict[str, str]]:
    """The task with a mark in place of each large image and text, and their names by mark."""
    names = references.names(task.messages)
    if not names:
        return task, {}
    # Not to be guessed: a text that holds it would be taken for what it stands for.
    call = secrets.token_hex(16)
    marks = {name: f"{call}{number:04d}" for number, name in enumerate(names)}
    with_texts = references.texts.with_texts_filled(task.messages, lambda text: marks[text.name])
    marked = task.model_copy(update={"messages": references.images.put_back(with_texts, marks)})
    return marked, {mark: name for name, mark in marks.items()}


def _unfenced(answer: ProviderReply | Failure, task: Task) -> ProviderReply | Failure:
    """JSON that was asked for, without the code fence that some models put around it."""
    if (
        isinstance(answer, Failure)
        or answer.content is None
        or task.sampling.response_schema is None
    ):
        return answer
    return replace(answer, content=without_fence(answer.content))


def _bounded(answer: ProviderReply | Failure) -> ProviderReply | Failure:
    """An answer that fits the message that carries it."""
    if isinstance(answer, Failure) or not _is_too_large(answer):
        return answer
    what = f"the answer exceeds {MAX_ANSWER_BYTES} bytes"
    return Failure("answer_too_large", what, retryable=False, billed=True, usage=answer.usage)


def _is_too_large(answer: ProviderReply) -> bool:
    # JSON takes at most six bytes for a character, so most answers need no counting.
    if not answer.tool_calls and len(answer.content or "") * 6 <= MAX_ANSWER_BYTES:
        return False
    said = [answer.content, [call.model_dump() for call in answer.tool_calls]]
    return len(json.dumps(said, ensure_ascii=False).encode()) > MAX_ANSWER_BYTES
