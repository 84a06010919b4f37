"""Answer tasks on local models."""

import asyncio
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog

from fusewire import metrics
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
from fusewire_worker_edge.engine.load import OnLoad
from fusewire_worker_edge.engine.options import CPU, EngineName, EngineOptions
from fusewire_worker_edge.engine.process import ProcessEngine
from fusewire_worker_edge.load_metrics import LoadMetrics

log = structlog.get_logger(__name__)

LIBRARIES: Mapping[EngineName, str] = {"onnxruntime": "onnxruntime", "genai": "onnxruntime-genai"}
"""What a candidate has as its provider, by `EdgeModel.engine`; the execution provider follows
unless it is the CPU."""
ATTEMPTS = 4
"""Most attempts at a task if the engine's process dies under it."""
SHARED_ATTEMPTS = 2
"""How many of them run beside other requests. A request that ends the process does so to all that
run beside it, so the later attempts run alone: then only that request fails."""

OpenEngine = Callable[[Path, EngineOptions, OnLoad], Engine]
_EngineKey = tuple[Path, EngineName]


@dataclass
class _Running:
    """A task that is being answered, and its request at the engine."""

    engine: Engine | None = None
    request_id: str = ""
    attempts: int = 0
    is_cancelled: bool = False


class EdgeGenerate(FreeCalls):
    """`fusewire.worker.Generate` with the model folders of this machine.

    Models with the same folder and library share one engine, with the options of the first.
    Its load is reported under the name of the first.

    Args:
        models: the models by the name that tasks use.
        clock: returns the time with its zone.
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
        self._engines: dict[_EngineKey, Engine] = {}
        self._providers: dict[str, str] = {}
        for name, model in models.items():
            metrics.EDGE_SLOTS.labels(name).set(model.slots)
            key = _engine_key(model)
            if key not in self._engines:
                self._engines[key] = open_engine(key[0], _options(model), LoadMetrics(name))

    async def generate(self, task: Task, tell: TokenPublisher | None = None) -> Candidate:
        """Answer a task with its model; see `fusewire.worker.Generate`."""
        running = _Running()
        self._running[task.fusion_id].append(running)
        try:
            with metrics.EDGE_RUNNING.labels(task.model).track_inprogress():
                return await self._generate(task, tell, running)
        finally:
            self._running[task.fusion_id].remove(running)
            if not self._running[task.fusion_id]:
                del self._running[task.fusion_id]

    def cancel(self, fusion_id: str) -> None:
        """End a fusion's tasks within one step; their candidates fail with `cancelled`."""
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
        outcome: Completion | CallFailure
        try:
            async with asyncio.timeout((task.deadline_at - started_at).total_seconds()):
                outcome = await self._try_attempts(task, tell, running)
        except TimeoutError:
            outcome = CallFailure(
                code="deadline_exceeded", message="the deadline came first", retryable=False
            )
        except EngineError as exc:
            outcome = _failure(RequestCancelledError() if running.is_cancelled else exc)
        provider = running.engine.provider if running.engine else None
        if provider:
            self._report_provider(task.model, provider)
        provider_name = self._provider(task.model, provider)
        return self._candidate(task, outcome, max(running.attempts, 1), started_at, provider_name)

    def _report_provider(self, model: str, provider: str) -> None:
        """Show the execution provider of a model as a metric, in place of an earlier one."""
        earlier = self._providers.get(model, provider)
        if earlier != provider:
            metrics.EDGE_PROVIDER.remove(model, earlier)
        self._providers[model] = provider
        metrics.EDGE_PROVIDER.labels(model, provider).set(1)

    async def _try_attempts(
        self, task: Task, tell: TokenPublisher | None, running: _Running
    ) -> Completion | CallFailure:
        """Answer a task, and try again if the engine's process dies under it."""
        while True:
            running.attempts += 1
            try:
                return await self._attempt(task, tell, running)
            except EngineDiedError:
                if running.attempts == ATTEMPTS or running.is_cancelled:
                    raise
                if tell:
                    tell.restart()

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
        # A task may be delivered again while its first delivery is still under way.
        request_id = f"{task.task_id}.{next(self._calls)}"
        is_streamed = tell is not None and tell.is_enabled and not _is_in_steps(task)
        request = _request(task, model, request_id, is_streamed=is_streamed)
        if running.attempts > SHARED_ATTEMPTS:
            request = request.model_copy(update={"is_alone": True})
        running.engine, running.request_id = self._engines[_engine_key(model)], request.id
        if tell is None or not request.is_streamed:
            return await running.engine.generate(request)
        return await _generate_streamed(running.engine, request, tell)

    def _provider(self, name: str, provider: str | None) -> str:
        """A candidate's provider: the library, and the execution provider unless it is the CPU."""
        model = self._models.get(name)
        library = LIBRARIES[model.engine if model else "onnxruntime"]
        return library if provider in (None, CPU) else f"{library}:{provider}"

    def _candidate(
        self,
        task: Task,
        outcome: Completion | CallFailure,
        attempts: int,
        started_at: datetime,
        provider: str,
    ) -> Candidate:
        completion = outcome if isinstance(outcome, Completion) else None
        error = outcome if isinstance(outcome, CallFailure) else None
        reasoning = None
        if completion and _is_in_steps(task):
            parts = steps.split_answer(
                completion.text, is_text=task.sampling.response_schema is None
            )
            if parts is None:
                error = _truncation("max_tokens ended it within its steps")
            else:
                text, reasoning = parts
                completion = completion.model_copy(update={"text": text})
        # Half a call is no answer, and never shown as text (docs/decisions/0030).
        if completion and completion.finish_reason == "length" and not completion.text:
            error = _truncation("max_tokens ended it within a tool call; raise it")
        return Candidate(
            task_id=task.task_id,
            fusion_id=task.fusion_id,
            round=task.round,
            call=task.call,
            member=task.member,
            model=task.model,
            tier="edge",
            provider=provider,
            content=None if error else _content(completion),
            tool_calls=_tool_calls(task, completion),
            error=error,
            finish_reason=completion.finish_reason if completion else None,
            reasoning=reasoning,
            usage=_usage(completion),
            confidence=math.exp(completion.mean_logprob) if completion else None,
            logprob_mean=completion.mean_logprob if completion else None,
            logprob_min=completion.min_logprob if completion else None,
            logprob_margin=completion.mean_margin if completion else None,
            logprob_margin_min=completion.min_margin if completion else None,
            choice_logprobs=completion.choice_logprobs if completion else (),
            cost_usd=0.0,
            attempts=attempts,
            started_at=started_at,
            finished_at=self._clock(),
        )


def _request(
    task: Task, model: EdgeModel, request_id: str, *, is_streamed: bool
) -> GenerateRequest:
    """The engine's request for a task. The model's defaults fill in what the task leaves open."""
    sampling = task.sampling
    messages, response_schema = task.messages, sampling.response_schema
    max_tokens = sampling.max_tokens or task.expected_tokens or model.max_tokens
    if _is_in_steps(task):
        messages = steps.ask_for_steps(messages)
        response_schema = steps.steps_schema(response_schema)
        max_tokens += steps.STEPS_TOKENS
    return GenerateRequest(
        id=request_id,
        messages=messages,
        max_tokens=max_tokens,
        temperature=sampling.temperature or 0.0,
        top_p=1.0 if sampling.top_p is None else sampling.top_p,
        seed=seed("edge", task.task_id) if sampling.seed is None else sampling.seed,
        stop=sampling.stop,
        response_schema=response_schema,
        choices=task.choices,
        tools=task.tools,
        tool_choice=task.tool_choice,
        parallel_tool_calls=task.parallel_tool_calls,
        is_streamed=is_streamed,
        rank=PRIORITIES.index(task.priority),
    )


def _is_in_steps(task: Task) -> bool:
    """Whether the answer has steps: not with tools, whose calls have a form of their own."""
    return task.is_in_steps and not task.tools and not task.choices


def _engine_key(model: EdgeModel) -> _EngineKey:
    return model.path.resolve(), model.engine


def _options(model: EdgeModel) -> EngineOptions:
    return EngineOptions(
        engine=model.engine,
        threads=model.threads,
        slots=model.slots,
        kv_cache_mb=model.kv_cache_mb,
        prepacked_dir=str(model.prepacked_dir) if model.prepacked_dir else None,
        providers=model.providers,
        speculate=model.speculate,
    )


async def _generate_streamed(
    engine: Engine, request: GenerateRequest, tell: TokenPublisher
) -> Completion:
    """Generate, and publish the pieces as they come: all of them before it returns or raises."""
    pieces: asyncio.Queue[str | None] = asyncio.Queue()

    async def publish_pieces() -> None:
        while (piece := await pieces.get()) is not None:
            await tell(piece)

    publishing = asyncio.create_task(publish_pieces())
    try:
        return await engine.generate(request, pieces.put_nowait)
    finally:
        pieces.put_nowait(None)
        await publishing


def _tool_calls(task: Task, completion: Completion | None) -> tuple[ToolCall, ...]:
    """The tool calls of an answer. A second delivery of the task makes the same ids."""
    if completion is None:
        return ()
    calls = []
    for index, call in enumerate(completion.tool_calls):
        call_id = f"call_{digest('call', task.task_id, str(index)).hex()[:24]}"
        calls.append(ToolCall(id=call_id, name=call.name, arguments=call.arguments))
    return tuple(calls)


def _truncation(message: str) -> CallFailure:
    return CallFailure(code="truncated", message=message, retryable=False)


def _content(completion: Completion | None) -> str | None:
    """The text of an answer; None if it calls tools."""
    if completion is None or completion.tool_calls:
        return None
    return completion.text


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
    # A folder that cannot be used stays unusable until somebody mends it.
    return CallFailure(
        code="engine_failed",
        message=str(error),
        retryable=not isinstance(error, EngineUnusableError),
    )
