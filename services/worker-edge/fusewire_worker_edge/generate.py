"""Tasks to candidates on local models."""

import asyncio
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog

from fusewire.contracts import PRIORITIES, CallFailure, Candidate, Task, ToolCall, Usage
from fusewire.ids import digest, seed
from fusewire.settings import EdgeModel
from fusewire.worker import FreeCalls, TokenPublisher
from fusewire_worker_edge import steps
from fusewire_worker_edge.engine.api import (
    Completion,
    Engine,
    EngineDiedError,
    EngineError,
    EngineUnusableError,
    GenerateRequest,
    RequestCancelledError,
    RequestRefusedError,
)
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.engine.process import ProcessEngine

log = structlog.get_logger(__name__)

PROVIDER = "onnxruntime"
ATTEMPTS = 2
"""How often a task is tried when the engine's process dies under it."""

OpenEngine = Callable[[Path, EngineOptions], Engine]


@dataclass
class _Running:
    """A call under way."""

    engine: Engine | None = None
    request_id: str = ""
    is_cancelled: bool = False


class EdgeGenerate(FreeCalls):
    """`fusewire.worker.Generate` on model folders of this machine.

    Models whose paths are the same folder share one engine, with the options of the first.

    Args:
        models: by the name that tasks use.
        clock: the time now, with its zone.
        open_engine: makes the engine of a folder.
    """

    def __init__(
        self,
        models: Mapping[str, EdgeModel],
        clock: Callable[[], datetime],
        open_engine: OpenEngine = ProcessEngine,
    ) -> None:
        self._models = models
        self._clock = clock
        self._calls = itertools.count()
        self._running: defaultdict[str, list[_Running]] = defaultdict(list)
        self._engines: dict[Path, Engine] = {}
        for model in models.values():
            folder = model.path.resolve()
            if folder not in self._engines:
                self._engines[folder] = open_engine(folder, _options(model))

    async def generate(self, task: Task, tell: TokenPublisher | None = None) -> Candidate:
        """Answer the task on its model; see `fusewire.worker.Generate`."""
        running = _Running()
        self._running[task.fusion_id].append(running)
        try:
            return await self._generate(task, tell, running)
        finally:
            self._running[task.fusion_id].remove(running)
            if not self._running[task.fusion_id]:
                del self._running[task.fusion_id]

    def cancel(self, fusion_id: str) -> None:
        """End what runs for a fusion, within one step of the model; its candidates then say `cancelled`."""
        for running in self._running.get(fusion_id, ()):
            running.is_cancelled = True
            if running.engine:
                running.engine.cancel(running.request_id)

    async def aclose(self) -> None:
        """End the engines."""
        await asyncio.gather(*(engine.aclose() for engine in self._engines.values()))

    async def _generate(
        self, task: Task, tell: TokenPublisher | None, running: _Running
    ) -> Candidate:
        started_at = self._clock()
        attempts = 0
        outcome: Completion | CallFailure
        try:
            async with asyncio.timeout((task.deadline_at - started_at).total_seconds()):
                while True:
                    attempts += 1
                    try:
                        outcome = await self._attempt(task, tell, running)
                        break
                    except EngineDiedError:
                        if attempts == ATTEMPTS or running.is_cancelled:
                            raise
                        if tell:
                            tell.restart()
        except TimeoutError:
            outcome = CallFailure(
                code="deadline_exceeded", message="the deadline came first", retryable=False
            )
        except EngineError as exc:
            outcome = _failure(RequestCancelledError() if running.is_cancelled else exc)
        return self._candidate(task, outcome, max(attempts, 1), started_at)

    async def _attempt(
        self, task: Task, tell: TokenPublisher | None, running: _Running
    ) -> Completion | CallFailure:
        model = self._models.get(task.model)
        if model is None:
            return CallFailure(
                code="model_not_found",
                message=f"this worker has no model '{task.model}'",
                retryable=False,
            )
        sampling, in_steps = task.sampling, _is_in_steps(task)
        request = GenerateRequest(
            # A task may be delivered again while its first delivery is still under way.
            id=f"{task.task_id}.{next(self._calls)}",
            messages=steps.asked(task.messages) if in_steps else task.messages,
            max_tokens=(sampling.max_tokens or task.expected_tokens or model.max_tokens)
            + (steps.STEPS_TOKENS if in_steps else 0),
            temperature=sampling.temperature or 0.0,
            top_p=1.0 if sampling.top_p is None else sampling.top_p,
            seed=seed("edge", task.task_id) if sampling.seed is None else sampling.seed,
            stop=sampling.stop,
            response_schema=steps.schema_of(sampling.response_schema)
            if in_steps
            else sampling.response_schema,
            choices=task.choices,
            tools=task.tools,
            tool_choice=task.tool_choice,
            parallel_tool_calls=task.parallel_tool_calls,
            is_streamed=tell is not None and tell.is_enabled and not in_steps,
            rank=PRIORITIES.index(task.priority),
        )
        running.engine, running.request_id = self._engines[model.path.resolve()], request.id
        if tell is None or not request.is_streamed:
            return await running.engine.generate(request)
        return await _aloud(running.engine, request, tell)

    def _candidate(
        self, task: Task, outcome: Completion | CallFailure, attempts: int, started_at: datetime
    ) -> Candidate:
        completion, error = (outcome, None) if isinstance(outcome, Completion) else (None, outcome)
        thought = None
        if completion and _is_in_steps(task):
            parts = steps.parted(completion.text, is_text=task.sampling.response_schema is None)
            if parts is None:
                error = CallFailure(
                    code="truncated",
                    message="max_tokens ended it within its steps",
                    retryable=False,
                )
            else:
                completion, thought = completion.model_copy(update={"text": parts[0]}), parts[1]
        if completion and completion.finish_reason == "length" and not completion.text:
            error = CallFailure(
                code="truncated",
                message="max_tokens ended it within a tool call; raise it",
                retryable=False,
            )
        return Candidate(
            task_id=task.task_id,
            fusion_id=task.fusion_id,
            round=task.round,
            call=task.call,
            member=task.member,
            model=task.model,
            tier="edge",
            provider=PROVIDER,
            content=completion.text
            if completion and not error and not completion.tool_calls
            else None,
            tool_calls=_calls(task, completion),
            error=error,
            finish_reason=completion.finish_reason if completion else None,
            reasoning=thought,
            usage=_usage(completion),
            confidence=math.exp(completion.mean_logprob) if completion else None,
            logprob_mean=completion.mean_logprob if completion else None,
            logprob_min=completion.min_logprob if completion else None,
            choice_logprobs=completion.choice_logprobs if completion else (),
            cost_usd=0.0,
            attempts=attempts,
            started_at=started_at,
            finished_at=self._clock(),
        )


def _is_in_steps(task: Task) -> bool:
    """Whether the steps are wanted; calls of tools have a form of their own."""
    return task.is_in_steps and not task.tools and not task.choices


def _options(model: EdgeModel) -> EngineOptions:
    return EngineOptions(threads=model.threads, slots=model.slots, kv_cache_mb=model.kv_cache_mb)


async def _aloud(engine: Engine, request: GenerateRequest, tell: TokenPublisher) -> Completion:
    """Generate, and tell the pieces as they come; all of them are told when it returns or raises."""
    pieces: asyncio.Queue[str | None] = asyncio.Queue()

    async def tell_all() -> None:
        while (piece := await pieces.get()) is not None:
            await tell(piece)

    teller = asyncio.create_task(tell_all())
    try:
        return await engine.generate(request, pieces.put_nowait)
    finally:
        pieces.put_nowait(None)
        await teller


def _calls(task: Task, completion: Completion | None) -> tuple[ToolCall, ...]:
    """What an answer calls, with ids that a second delivery of the task makes again."""
    return tuple(
        ToolCall(
            id=f"call_{digest('call', task.task_id, str(i)).hex()[:24]}",
            name=call.name,
            arguments=call.arguments,
        )
        for i, call in enumerate(completion.tool_calls if completion else ())
    )


def _usage(completion: Completion | None) -> Usage:
    if completion is None:
        return Usage()
    return Usage(
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        cached_tokens=completion.cached_tokens,
    )


def _failure(error: EngineError) -> CallFailure:
    if isinstance(error, RequestCancelledError):
        return CallFailure(code="cancelled", message="it was cancelled", retryable=False)
    if isinstance(error, RequestRefusedError):
        return CallFailure(code=error.code, message=str(error), retryable=False)
    # A folder that cannot be used stays so until somebody mends it.
    return CallFailure(
        code="engine_failed",
        message=str(error),
        retryable=not isinstance(error, EngineUnusableError),
    )
