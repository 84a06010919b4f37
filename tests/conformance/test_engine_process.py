import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from fusewire.contracts import Message
from fusewire.testing.eventually import eventually
from fusewire_worker_edge.engine import process
from fusewire_worker_edge.engine.api import (
    Completion,
    EngineDiedError,
    EngineUnusableError,
    GenerateRequest,
    RequestCancelledError,
    RequestRefusedError,
)
from fusewire_worker_edge.engine.load import Load
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.engine.process import ProcessEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")

ONE_THREAD = EngineOptions(threads=1)
LONG = 4000
"""Tokens that take seconds, so that such a request is still under way when the test acts."""


def request(request_id: str, content: str = "hello", **fields: Any) -> GenerateRequest:
    return GenerateRequest(
        id=request_id,
        messages=(Message(role="user", content=content),),
        **{"max_tokens": 5, **fields},
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tiny_folder: Path) -> AsyncIterator[ProcessEngine]:
    """For tests that leave the process alive."""
    started = ProcessEngine(tiny_folder, ONE_THREAD)
    yield started
    await started.aclose()


@pytest_asyncio.fixture(loop_scope="module")
async def engine(tiny_folder: Path) -> AsyncIterator[ProcessEngine]:
    started = ProcessEngine(tiny_folder, ONE_THREAD)
    yield started
    await started.aclose()


async def begin(engine: ProcessEngine, request_id: str = "long") -> asyncio.Task[Completion]:
    """Begin a request that takes long, and return when the child has it."""
    task = asyncio.create_task(engine.generate(request(request_id, max_tokens=LONG)))
    while not (engine._child and request_id in engine._child._replies):  # noqa: ASYNC110 - it announces nothing
        await asyncio.sleep(0.01)
    return task


async def test_it_answers_each_request_with_its_own_answer(shared: ProcessEngine) -> None:
    requests = [request(str(i), content="x" * i, max_tokens=i) for i in range(1, 6)]
    answers = await asyncio.gather(*(shared.generate(r) for r in requests))
    assert [a.completion_tokens for a in answers] == [1, 2, 3, 4, 5]
    assert [a.prompt_tokens for a in answers] == [answers[0].prompt_tokens + i for i in range(5)]
    assert (await shared.generate(requests[2])).text == answers[2].text


async def test_requests_are_answered_in_the_order_in_which_they_came(shared: ProcessEngine) -> None:
    done: list[str] = []

    async def one(name: str) -> None:
        await shared.generate(request(name))
        done.append(name)

    await asyncio.gather(*(one(name) for name in "abcdef"))
    assert done == list("abcdef")


async def test_a_streamed_request_is_heard_piece_by_piece(shared: ProcessEngine) -> None:
    first: list[str] = []
    second: list[str] = []
    fields: dict[str, Any] = {"max_tokens": 12, "is_streamed": True}
    one, other = await asyncio.gather(
        shared.generate(request("a", **fields), first.append),
        shared.generate(request("b", content="something else", **fields), second.append),
    )

    assert ("".join(first), "".join(second)) == (one.text, other.text)
    assert min(len(first), len(second)) > 1
    assert one.text != other.text


async def test_pieces_that_nobody_hears_harm_nobody(shared: ProcessEngine) -> None:
    assert (await shared.generate(request("a", is_streamed=True))).completion_tokens == 5
    assert shared._child
    assert shared._child._callbacks == {}


async def test_a_refusal_is_told_and_harms_nobody(shared: ProcessEngine) -> None:
    with pytest.raises(RequestRefusedError) as refused:
        await shared.generate(request("a", max_tokens=100_000))
    assert refused.value.code == "context_length_exceeded"
    assert (await shared.generate(request("b"))).completion_tokens == 5


async def test_cancel_stops_a_request_under_way(shared: ProcessEngine) -> None:
    task = await begin(shared)
    shared.cancel("long")
    with pytest.raises(RequestCancelledError):
        await task
    pid = shared.pid
    assert (await shared.generate(request("next"))).completion_tokens == 5
    assert shared.pid == pid


async def test_cancelling_the_caller_stops_the_request(shared: ProcessEngine) -> None:
    task = await begin(shared)
    child = shared._child
    assert child
    reply = child._replies["long"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await shared.generate(request("next"))
    assert isinstance(reply.exception(), RequestCancelledError)


async def test_a_deadline_stops_the_request(shared: ProcessEngine) -> None:
    await shared.generate(request("warm"))
    child = shared._child
    assert child
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await shared.generate(request("late", max_tokens=LONG))
    assert (await shared.generate(request("next"))).completion_tokens == 5
    assert shared._child is child


async def test_a_request_that_waits_can_be_cancelled(shared: ProcessEngine) -> None:
    first = await begin(shared)
    second = asyncio.create_task(shared.generate(request("second")))
    third = asyncio.create_task(shared.generate(request("third")))
    await asyncio.sleep(0)
    shared.cancel("second")
    with pytest.raises(RequestCancelledError):
        await second
    assert not first.done()
    shared.cancel("long")
    assert (await third).completion_tokens == 5
    shared.cancel("never heard of")
    with pytest.raises(RequestCancelledError):
        await first


async def test_when_the_process_is_killed_requests_fail_and_the_next_starts_another(
    engine: ProcessEngine,
) -> None:
    task = await begin(engine)
    killed = engine.pid
    assert killed
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(EngineDiedError, match="-9"):
        await task
    assert (await engine.generate(request("next"))).completion_tokens == 5
    assert engine.pid not in (None, killed)


async def test_a_process_that_keeps_dying_is_started_ever_less_often(
    engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def recorded(delay: float) -> None:
        waits.append(delay)
        await sleep(0)

    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr("fusewire_worker_edge.engine.process.asyncio.sleep", recorded)
    for i in range(8):
        with pytest.raises(EngineDiedError, match="while it loaded"):
            await engine.generate(request(str(i)))
    assert waits == [0, 0.5, 1, 2, 5, 10, 10, 10]


async def test_an_answer_forgives_earlier_deaths(engine: ProcessEngine) -> None:
    engine._deaths = 1
    await engine.generate(request("a"))
    assert engine.pid
    os.kill(engine.pid, signal.SIGKILL)
    assert engine._listener
    await engine._listener
    assert engine._deaths == 0


async def test_a_process_that_ignores_a_cancel_is_killed(
    engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusewire_worker_edge.engine.process._STUCK_S", 0.05)
    task = await begin(engine)
    assert engine.pid
    os.kill(engine.pid, signal.SIGSTOP)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(EngineDiedError, match="-9"):
        await engine.generate(request("beside it"))
    assert (await engine.generate(request("next"))).completion_tokens == 5


async def test_each_start_tells_which_providers_are_passed_over(tiny_folder: Path) -> None:
    engine = ProcessEngine(tiny_folder, EngineOptions(threads=1, providers=("cuda", "cpu")))
    assert engine.provider is None
    with capture_logs() as logs:
        await engine.generate(request("a"))
        await engine.generate(request("b"))
    await engine.aclose()

    assert engine.provider == "cpu"
    (fallback,) = [entry for entry in logs if entry["event"] == "edge.provider_fallback"]
    assert (fallback["model"], fallback["wanted"]) == ("tiny", "cuda")
    assert "is installed without it" in fallback["reason"]


async def test_a_provider_that_ends_the_process_is_passed_over_at_the_next_start(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "onnxruntime_ep_openvino.py"
    module.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    engine = ProcessEngine(tiny_folder, EngineOptions(threads=1, providers=("openvino", "cpu")))
    with pytest.raises(EngineDiedError, match="while it loaded"):
        await engine.generate(request("a"))
    with capture_logs() as logs:
        assert (await engine.generate(request("b"))).completion_tokens == 5
    await engine.aclose()

    (fallback,) = [entry for entry in logs if entry["event"] == "edge.provider_fallback"]
    assert (fallback["wanted"], fallback["reason"]) == ("openvino", process._DIED)


async def test_a_folder_that_cannot_be_used_is_reported_until_it_is_mended(
    tiny_folder: Path, tmp_path: Path
) -> None:
    engine = ProcessEngine(tmp_path / "link", ONE_THREAD)
    with pytest.raises(EngineUnusableError, match="no such folder; pull or import"):
        await engine.generate(request("a"))
    (tmp_path / "link").symlink_to(tiny_folder)
    assert (await engine.generate(request("b"))).completion_tokens == 5
    await engine.aclose()


async def test_closing_fails_what_is_under_way_and_what_waits(engine: ProcessEngine) -> None:
    first = await begin(engine)
    second = asyncio.create_task(engine.generate(request("second")))
    await asyncio.sleep(0)
    await engine.aclose()
    for task in (first, second):
        with pytest.raises(EngineDiedError):
            await task
    assert engine.pid is None


async def test_closing_while_the_model_loads_leaves_no_process(engine: ProcessEngine) -> None:
    task = asyncio.create_task(engine.generate(request("a")))
    await asyncio.sleep(0.1)
    assert engine._start
    assert not engine._start.done()
    await engine.aclose()
    with pytest.raises(EngineDiedError, match="closed"):
        await task


async def test_the_process_reports_its_load_and_its_death_ends_it(tiny_folder: Path) -> None:
    loads: list[Load | None] = []
    engine = ProcessEngine(tiny_folder, ONE_THREAD, loads.append)
    answer = await engine.generate(request("a", max_tokens=6))

    async def is_idle() -> bool:
        last = loads[-1]
        return last is not None and last.decoded_tokens == 5 and last.kv_running == 0

    await eventually(is_idle)
    assert loads[0] is not None
    assert loads[0].kv_limit > 0
    assert loads[-1] is not None
    assert loads[-1].prefilled_tokens == answer.prompt_tokens
    assert engine.pid
    os.kill(engine.pid, signal.SIGKILL)
    await eventually(lambda: loads[-1] is None)
    await engine.generate(request("b", max_tokens=3))
    await eventually(lambda: loads[-1] is not None and loads[-1].decoded_tokens == 2)
    await engine.aclose()
    assert loads[-1] is None
