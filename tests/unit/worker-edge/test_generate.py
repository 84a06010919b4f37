import asyncio
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import String

from fusewire import metrics
from fusewire.contracts import Candidate, Message, Sampling, Task
from fusewire.settings import EDGE_DEVICES, EDGE_PROVIDERS, EdgeModel
from fusewire.store import tables
from fusewire.testing.factories import known_usage
from fusewire.worker import TokenPublisher
from fusewire_worker_edge.engine.api import (
    Completion,
    EngineDiedError,
    EngineError,
    EngineUnusableError,
    GenerateRequest,
    OnPiece,
    RequestCancelledError,
    RequestRefusedError,
)
from fusewire_worker_edge.engine.load import OnLoad
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.generate import EdgeGenerate
from fusewire_worker_edge.steps import STEPS_TOKENS

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DONE = Completion(
    text="Paris.",
    finish_reason="stop",
    prompt_tokens=11,
    completion_tokens=3,
    mean_logprob=math.log(0.8),
    min_logprob=-2.0,
    mean_margin=1.5,
    min_margin=-0.25,
    prefill_s=0.1,
    decode_s=0.2,
)


class FakeEngine:
    """Answers with its outcomes in turn: a completion, an error to raise, None to wait for ever.

    If the request is streamed, it passes on the pieces of `says` first.
    """

    def __init__(
        self, *outcomes: Completion | EngineError | None, says: tuple[str, ...] = ()
    ) -> None:
        self.outcomes = list(outcomes)
        self.says = says
        self.requests: list[GenerateRequest] = []
        self.waits: dict[str, asyncio.Future[None]] = {}
        self.has_request = asyncio.Event()
        self.given_up = 0
        self.is_closed = False
        self.provider: str | None = None

    async def generate(
        self, request: GenerateRequest, on_piece: OnPiece | None = None
    ) -> Completion:
        self.requests.append(request)
        self.has_request.set()
        assert request.is_streamed == (on_piece is not None)
        for piece in self.says if on_piece else ():
            assert on_piece
            on_piece(piece)
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, EngineError):
            raise outcome
        if outcome is None:
            self.waits[request.id] = asyncio.get_running_loop().create_future()
            try:
                await self.waits[request.id]
            finally:
                del self.waits[request.id]
                self.given_up += 1
        assert outcome
        return outcome

    def cancel(self, request_id: str) -> None:
        if request_id in self.waits and not self.waits[request_id].done():
            self.waits[request_id].set_exception(RequestCancelledError("cancelled"))

    async def aclose(self) -> None:
        self.is_closed = True


def ticking() -> Callable[[], datetime]:
    """A clock that is a second later each time."""
    times = (NOW + timedelta(seconds=i) for i in range(1000))
    return lambda: next(times)


def edge_model(path: str = "/models/a", **fields: Any) -> EdgeModel:
    return EdgeModel(kind="edge", path=Path(path), **fields)


def service(engine: FakeEngine, **models: EdgeModel) -> EdgeGenerate:
    return EdgeGenerate(
        models or {"small": edge_model()}, ticking(), lambda _folder, _options, _on_load: engine
    )


def make_task(sampling: Sampling | None = None, deadline_s: float = 60, **fields: Any) -> Task:
    task_fields: dict[str, Any] = {
        "task_id": "f1-0-a",
        "fusion_id": "f1",
        "round": 0,
        "call": "a",
        "kind": "answer",
        "member": "m",
        "model": "small",
        "tier": "edge",
        "tenant": "t",
        "messages": (Message(role="user", content="What is the capital of France?"),),
        "sampling": sampling or Sampling(),
        "residency": "edge-only",
        "priority": "normal",
        "deadline_at": NOW + timedelta(seconds=deadline_s),
        **fields,
    }
    return Task(**task_fields)


async def test_an_answer_becomes_a_candidate() -> None:
    candidate = await service(FakeEngine(DONE)).generate(make_task())

    assert candidate.ok
    assert candidate.confidence == pytest.approx(0.8)
    assert candidate.logprob_mean == pytest.approx(math.log(0.8))
    assert candidate.logprob_min == -2.0
    assert (candidate.logprob_margin, candidate.logprob_margin_min) == (1.5, -0.25)
    assert (candidate.content, candidate.finish_reason) == ("Paris.", "stop")
    assert (known_usage(candidate).prompt_tokens, known_usage(candidate).completion_tokens) == (
        11,
        3,
    )
    assert (candidate.task_id, candidate.fusion_id, candidate.round, candidate.call) == (
        "f1-0-a",
        "f1",
        0,
        "a",
    )
    assert (candidate.member, candidate.model, candidate.tier) == ("m", "small", "edge")
    assert (candidate.provider, candidate.cost_usd, candidate.attempts) == ("onnxruntime", 0.0, 1)
    assert candidate.latency_ms == 1000


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        (None, "onnxruntime"),
        ("cpu", "onnxruntime"),
        ("openvino:NPU", "onnxruntime:openvino:NPU"),
    ],
)
async def test_a_candidate_names_the_execution_provider_unless_it_is_the_cpu(
    provider: str | None, expected: str
) -> None:
    engine = FakeEngine(DONE)
    engine.provider = provider
    candidate = await service(engine).generate(make_task())
    assert candidate.provider == expected


def providers_shown() -> dict[str, float]:
    (metric,) = metrics.EDGE_PROVIDER.collect()
    return {
        sample.labels["provider"]: sample.value
        for sample in metric.samples
        if sample.labels["model"] == "shown"
    }


async def test_the_metric_shows_the_present_provider_alone() -> None:
    engine = FakeEngine(DONE)
    edge = service(engine, shown=edge_model())
    shown = []
    for engine.provider in (None, "openvino:NPU", "openvino:NPU", "cpu"):
        await edge.generate(make_task(model="shown"))
        shown.append(providers_shown())
    assert shown == [{}, {"openvino:NPU": 1}, {"openvino:NPU": 1}, {"cpu": 1}]


def test_the_longest_name_of_a_provider_fits_its_column() -> None:
    longest = max(
        f"onnxruntime:{source}:{device}" for source in EDGE_PROVIDERS for device in EDGE_DEVICES
    )
    column = tables.answers.c.provider.type
    assert isinstance(column, String)
    assert len(longest) <= (column.length or 0)


async def test_what_the_task_leaves_open_is_the_models_default() -> None:
    engine = FakeEngine(DONE)
    edge = service(engine, small=edge_model(max_tokens=99))
    await edge.generate(make_task())
    await edge.generate(make_task())
    first, second = engine.requests
    assert (first.max_tokens, first.temperature, first.top_p, first.stop) == (99, 0.0, 1.0, ())
    assert first.response_schema is None
    assert first.seed == second.seed != 0
    assert first.id != second.id


async def test_what_the_task_says_is_asked_for() -> None:
    engine, schema = FakeEngine(DONE), {"type": "object"}
    sampling = Sampling(
        max_tokens=5, temperature=0.7, top_p=0.5, seed=0, stop=("x",), response_schema=schema
    )
    task = make_task(sampling)
    await service(engine).generate(task)
    (request,) = engine.requests
    assert (request.max_tokens, request.temperature, request.top_p, request.seed) == (
        5,
        0.7,
        0.5,
        0,
    )
    assert (request.stop, request.response_schema, request.messages) == (
        ("x",),
        schema,
        task.messages,
    )


FAILURES: dict[str, tuple[EngineError, str, bool]] = {
    "context": (
        RequestRefusedError("context_length_exceeded", "too long"),
        "context_length_exceeded",
        False,
    ),
    "request": (RequestRefusedError("bad_request", "no such schema"), "bad_request", False),
    "folder": (EngineUnusableError("/models/a: no manifest"), "engine_failed", False),
    "engine": (EngineError("the grammar is too large"), "engine_failed", True),
    "death": (EngineDiedError("ended with -9"), "engine_failed", True),
}


@pytest.mark.parametrize(("error", "code", "retryable"), FAILURES.values(), ids=FAILURES.keys())
async def test_a_failure_becomes_a_candidate(
    error: EngineError, code: str, retryable: bool
) -> None:
    candidate = await service(FakeEngine(error)).generate(make_task())
    assert not candidate.ok
    assert candidate.error
    assert (candidate.error.code, candidate.error.message, candidate.error.retryable) == (
        code,
        str(error),
        retryable,
    )
    assert (candidate.content, candidate.finish_reason, known_usage(candidate).prompt_tokens) == (
        None,
        None,
        0,
    )


async def test_a_death_is_tried_again_beside_others_and_then_alone() -> None:
    engine = FakeEngine(EngineDiedError("x"), DONE)
    candidate = await service(engine).generate(make_task())
    assert (candidate.ok, candidate.attempts) == (True, 2)
    assert engine.requests[0].id != engine.requests[1].id

    engine = FakeEngine(EngineDiedError("x"))
    candidate = await service(engine).generate(make_task())
    assert (candidate.ok, candidate.attempts) == (False, 4)
    assert [request.is_alone for request in engine.requests] == [False, False, True, True]


async def test_a_refusal_is_not_tried_again() -> None:
    engine = FakeEngine(RequestRefusedError("bad_request", "x"))
    assert (await service(engine).generate(make_task())).attempts == 1
    assert len(engine.requests) == 1


@pytest.mark.parametrize("deadline_s", [-5, 0.05])
async def test_the_deadline_ends_the_wait(deadline_s: float) -> None:
    engine = FakeEngine(None)
    candidate = await service(engine).generate(make_task(deadline_s=deadline_s))
    assert candidate.error
    assert (candidate.error.code, candidate.error.retryable) == ("deadline_exceeded", False)
    assert engine.given_up == len(engine.requests)


async def test_the_wait_is_as_long_as_the_deadline_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    timeout, waits = asyncio.timeout, []

    def recorded(delay: float | None) -> asyncio.Timeout:
        waits.append(delay)
        return timeout(delay)

    monkeypatch.setattr(asyncio, "timeout", recorded)
    await service(FakeEngine(DONE)).generate(make_task(deadline_s=42))
    assert waits == [42]


async def test_the_deadline_also_ends_the_second_attempt() -> None:
    engine = FakeEngine(EngineDiedError("x"), None)
    candidate = await service(engine).generate(make_task(deadline_s=0.05))
    assert candidate.error
    assert (candidate.error.code, candidate.attempts) == ("deadline_exceeded", 2)


async def test_whoever_cancels_the_call_gets_no_candidate() -> None:
    engine = FakeEngine(None)
    call = asyncio.create_task(service(engine).generate(make_task()))
    await engine.has_request.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert engine.given_up == 1


async def test_a_model_that_is_not_here_is_a_failure() -> None:
    candidate = await service(FakeEngine(DONE)).generate(make_task(model="large"))
    assert candidate.error
    assert (candidate.error.code, candidate.error.retryable) == ("model_not_found", False)


async def test_a_candidate_names_the_library_that_answered() -> None:
    generate = service(FakeEngine(DONE), small=edge_model(engine="genai"))

    assert (await generate.generate(make_task())).provider == "onnxruntime-genai"
    assert (await generate.generate(make_task(model="unknown"))).provider == "onnxruntime"


async def test_two_libraries_on_one_folder_are_two_engines() -> None:
    opened: list[EngineOptions] = []

    def open_engine(_folder: Path, options: EngineOptions, _on_load: OnLoad) -> FakeEngine:
        opened.append(options)
        return FakeEngine(DONE)

    models = {"small": edge_model(), "other": edge_model(engine="genai")}
    EdgeGenerate(models, ticking(), open_engine)

    assert [(o.engine, o.slots) for o in opened] == [("onnxruntime", 4), ("genai", 1)]


def test_speculation_is_off_unless_it_is_configured() -> None:
    speculations = []

    def open_engine(_folder: Path, options: EngineOptions, _on_load: OnLoad) -> FakeEngine:
        speculations.append(options.speculate)
        return FakeEngine(DONE)

    models = {"a": edge_model("/a"), "b": edge_model("/b", speculate="prompt")}
    EdgeGenerate(models, ticking(), open_engine)

    assert speculations == ["off", "prompt"]


async def test_models_of_one_folder_share_an_engine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    engines_opened: list[tuple[Path, int | None, FakeEngine]] = []

    def open_engine(folder: Path, options: EngineOptions, _on_load: OnLoad) -> FakeEngine:
        engines_opened.append((folder, options.threads, FakeEngine(DONE)))
        return engines_opened[-1][2]

    models = {
        "a": edge_model(str(tmp_path / "real"), threads=3),
        "b": edge_model(str(tmp_path / "link")),
        "c": edge_model(str(tmp_path / "other")),
    }
    edge = EdgeGenerate(models, ticking(), open_engine)
    for name in models:
        assert (await edge.generate(make_task(model=name))).ok
    assert [
        (folder.name, threads, len(engine.requests)) for folder, threads, engine in engines_opened
    ] == [
        ("real", 3, 2),
        ("other", None, 1),
    ]
    await edge.aclose()
    assert all(engine.is_closed for _, _, engine in engines_opened)


async def test_a_task_is_answered_by_a_real_model(tiny_folder: Path) -> None:
    edge = EdgeGenerate(
        {"small": edge_model(str(tiny_folder), threads=1, max_tokens=4)}, lambda: datetime.now(UTC)
    )
    task = make_task().model_copy(update={"deadline_at": datetime.now(UTC) + timedelta(minutes=5)})
    try:
        candidates = [await edge.generate(task), await edge.generate(task)]
    finally:
        await edge.aclose()
    assert [known_usage(c).completion_tokens for c in candidates] == [4, 4]
    assert candidates[0].content == candidates[1].content
    assert candidates[0].finish_reason == "length"


# -- cancelled --------------------------------------------------------------------------------


async def start_call(
    edge: EdgeGenerate, engine: FakeEngine, **task: Any
) -> asyncio.Task[Candidate]:
    """A call that waits for the engine."""
    number = len(engine.waits)
    call = asyncio.create_task(edge.generate(make_task(**task)))
    while len(engine.waits) == number and not call.done():  # noqa: ASYNC110 - it announces nothing
        await asyncio.sleep(0)
    return call


async def test_what_runs_for_a_cancelled_fusion_ends_and_says_so() -> None:
    engine = FakeEngine(None)
    edge = service(engine)
    calls = [
        await start_call(edge, engine, **task)
        for task in ({}, {"call": "a=2"}, {"fusion_id": "f2"})
    ]

    edge.cancel("f1")
    edge.cancel("never heard of")
    first, second = await asyncio.gather(*calls[:2])
    await asyncio.sleep(0)

    for candidate in (first, second):
        assert candidate.error
        assert (candidate.error.code, candidate.error.retryable) == ("cancelled", False)
        assert (candidate.content, candidate.cost_usd, candidate.attempts) == (None, 0.0, 1)
    assert (first.call, second.call) == ("a", "a=2")
    assert not calls[2].done()
    edge.cancel("f2")
    assert (await calls[2]).error
    assert edge._running == {}


async def test_a_cancelled_call_is_not_tried_again_when_its_engine_dies() -> None:
    engine = FakeEngine(None, DONE)
    edge = service(engine)
    call = await start_call(edge, engine)
    (waiting,) = engine.waits.values()
    waiting.set_exception(EngineDiedError("ended with -9"))

    edge.cancel("f1")  # the call does not know yet
    candidate = await call

    assert candidate.error
    assert (candidate.error.code, candidate.attempts, len(engine.requests)) == ("cancelled", 1, 1)


async def test_the_second_attempt_is_cancelled_too() -> None:
    engine = FakeEngine(EngineDiedError("ended with -9"), None)
    edge = service(engine)
    call = asyncio.create_task(edge.generate(make_task()))
    while not engine.waits and not call.done():  # noqa: ASYNC110 - it announces nothing
        await asyncio.sleep(0)

    edge.cancel("f1")
    candidate = await call

    assert candidate.error
    assert (candidate.error.code, candidate.attempts) == ("cancelled", 2)


async def test_a_real_model_stops_when_it_is_cancelled(tiny_folder: Path) -> None:
    edge = EdgeGenerate(
        {"small": edge_model(str(tiny_folder), threads=1)}, lambda: datetime.now(UTC)
    )
    deadline = {"deadline_at": datetime.now(UTC) + timedelta(minutes=5)}
    tell = FakePublisher()
    long = make_task(Sampling(max_tokens=4000)).model_copy(update=deadline)
    try:
        call = asyncio.create_task(edge.generate(long, cast("TokenPublisher", tell)))
        await tell.first.wait()
        edge.cancel("f1")
        candidate = await call
        after = await edge.generate(make_task(Sampling(max_tokens=4)).model_copy(update=deadline))
    finally:
        await edge.aclose()

    assert candidate.error
    assert (candidate.error.code, candidate.content) == ("cancelled", None)
    assert 0 < len(tell.pieces) < 4000
    assert after.ok


# -- told while it is written -----------------------------------------------------------------


class FakePublisher:
    """Keeps what it is told; a restart is a bar."""

    def __init__(self, *, is_enabled: bool = True) -> None:
        self.is_enabled = is_enabled
        self.pieces: list[str] = []
        self.first = asyncio.Event()

    async def __call__(self, text: str) -> None:
        await asyncio.sleep(0)
        self.pieces.append(text)
        self.first.set()

    def restart(self) -> None:
        self.pieces.append("|")


async def generate_and_collect(
    engine: FakeEngine, *, is_enabled: bool = True
) -> tuple[list[str], Candidate]:
    tell = FakePublisher(is_enabled=is_enabled)
    candidate = await service(engine).generate(make_task(), cast("TokenPublisher", tell))
    return tell.pieces, candidate


async def test_an_answer_is_told_while_it_is_written() -> None:
    pieces, candidate = await generate_and_collect(FakeEngine(DONE, says=("Par", "is", ".")))

    assert pieces == ["Par", "is", "."]
    assert candidate.content == "Paris."


async def test_nothing_is_streamed_where_nobody_listens() -> None:
    engine = FakeEngine(DONE, says=("Par", "is."))

    assert (await generate_and_collect(engine, is_enabled=False))[0] == []
    assert (await service(engine).generate(make_task())).ok
    assert [r.is_streamed for r in engine.requests] == [False, False]


async def test_what_is_tried_again_is_told_anew() -> None:
    pieces, candidate = await generate_and_collect(
        FakeEngine(EngineDiedError("ended with -9"), DONE, says=("Par", "is."))
    )

    # All of the first attempt before the bar, or it would count as the second's.
    assert pieces == ["Par", "is.", "|", "Par", "is."]
    assert candidate.attempts == 2


async def test_what_is_not_tried_again_is_not_begun_anew() -> None:
    pieces, candidate = await generate_and_collect(FakeEngine(EngineError("no"), says=("Par",)))

    assert pieces == ["Par"]
    assert not candidate.ok


async def test_the_deadline_ends_the_telling() -> None:
    tell = FakePublisher()
    edge = service(FakeEngine(None, says=("Par",)))

    candidate = await edge.generate(make_task(deadline_s=0.05), cast("TokenPublisher", tell))

    assert candidate.error
    assert candidate.error.code == "deadline_exceeded"
    assert tell.pieces == ["Par"]


async def test_a_real_model_s_pieces_are_its_answer(tiny_folder: Path) -> None:
    edge = EdgeGenerate(
        {"small": edge_model(str(tiny_folder), threads=1)}, lambda: datetime.now(UTC)
    )
    task = make_task(Sampling(max_tokens=30)).model_copy(
        update={"deadline_at": datetime.now(UTC) + timedelta(minutes=5)}
    )
    tell = FakePublisher()
    try:
        candidate = await edge.generate(task, cast("TokenPublisher", tell))
    finally:
        await edge.aclose()

    assert "".join(tell.pieces) == candidate.content
    assert len(tell.pieces) > 10


async def test_in_steps_the_answer_is_parted_from_the_steps_that_are_asked_for_first() -> None:
    engine = FakeEngine(
        DONE.model_copy(update={"text": '{"reason": "France.", "answer": "Paris"}'})
    )
    candidate = await service(engine).generate(make_task(Sampling(max_tokens=20), is_in_steps=True))

    assert (candidate.content, candidate.reasoning) == ("Paris", "France.")
    (request,) = engine.requests
    assert request.max_tokens == 20 + STEPS_TOKENS
    assert list((request.response_schema or {})["properties"]) == ["reason", "answer"]
    assert [m.role for m in request.messages] == ["system", "user"]


async def test_what_was_cut_within_its_steps_is_no_answer() -> None:
    cut = DONE.model_copy(update={"text": '{"reason": "It is', "finish_reason": "length"})
    candidate = await service(FakeEngine(cut)).generate(make_task(is_in_steps=True))

    assert candidate.error is not None
    assert (candidate.content, candidate.error.code) == (None, "truncated")


async def test_how_probable_each_choice_was_is_passed_on() -> None:
    engine = FakeEngine(DONE.model_copy(update={"text": "K", "choice_logprobs": (-0.5, -1.0)}))
    candidate = await service(engine).generate(make_task(choices=("K", "B")))

    assert engine.requests[0].choices == ("K", "B")
    assert (candidate.content, candidate.choice_logprobs) == ("K", (-0.5, -1.0))


async def test_slots_and_running_tasks_are_shown() -> None:
    def value(name: str) -> float | None:
        return metrics.REGISTRY.get_sample_value(name, {"model": "small"})

    engine = FakeEngine(None)
    generate = service(engine, small=edge_model(slots=3))
    assert value("fusewire_edge_slots") == 3
    tasks = [asyncio.create_task(generate.generate(make_task())) for _ in range(2)]
    await engine.has_request.wait()
    assert value("fusewire_edge_tasks_running") == 2
    generate.cancel("f1")
    await asyncio.gather(*tasks)
    assert value("fusewire_edge_tasks_running") == 0
