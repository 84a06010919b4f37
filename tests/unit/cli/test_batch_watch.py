"""Following a batch, against a small service that breaks off in the middle of its answers."""

import asyncio
import io
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from fusewire_cli import fusing
from fusewire_cli.batch.ending import conclude
from fusewire_cli.batch.output import Output
from fusewire_cli.batch.watch import (
    InterruptedRunError,
    Progress,
    Stop,
    figures,
    follow,
    read_settled,
)
from fusewire_cli.client import MOST_PAUSE_S, PAUSE_S, ApiError, Client, Form, Order, pause_s
from fusewire_cli.screen import ProgressStyle

TOTAL = 7


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        (None, PAUSE_S),
        ("", PAUSE_S),
        ("0", 0.0),
        ("7", 7.0),
        # A proxy's, and nonsense.
        ("Mon, 23 Nov 2026 12:00:30 GMT", PAUSE_S),
        ("-1", PAUSE_S),
        ("nan", PAUSE_S),
        ("inf", MOST_PAUSE_S),
        ("9" * 5000, MOST_PAUSE_S),
    ],
)
def test_whatever_a_server_asks_to_wait_the_pause_is_sensible(
    retry_after: str | None, seconds: float
) -> None:
    assert pause_s(retry_after) == seconds


def batch(status: str = "in_progress", *, completed: int = 0, failed: int = 0, **ours: Any) -> Any:
    extensions = {
        "stop_reason": None,
        "degraded": 1,
        "cost_usd": 0.5,
        "rate_per_s": 2.0,
        "eta_at": 1030,
        "waiting_for": None,
    }
    counts = {"total": TOTAL, "completed": completed, "failed": failed}
    return {
        "id": "batch_b",
        "status": status,
        "request_counts": counts,
        "x_fusewire": {**extensions, **ours},
    }


def line(index: int, **more: Any) -> dict[str, Any]:
    response = {"status_code": 200, "request_id": "r", "body": {"text": "ü" * 50}}
    return {
        "custom_id": f"q{index}",
        "response": response,
        "error": None,
        "index": index,
        "seq": index,
        **more,
    }


class Service:
    """The API of batches; each page of results breaks off in the middle of its third line."""

    def __init__(self) -> None:
        self.lines = [line(index) for index in range(1, TOTAL + 1)]
        self.ready = TOTAL
        self.status = "completed"
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.faults: list[tuple[int, str]] = []
        self.breaks = True
        self.hangs = False

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.read())
        if self.faults:
            status, code = self.faults.pop(0)
            return web.json_response({"error": {"code": code, "message": "said"}}, status=status)
        if request.path.endswith("/results"):
            return await self._results(request)
        if request.path.endswith("/cancel"):
            self.status = "cancelling" if self.hangs else "cancelled"
        if request.path == "/v1/files":
            return web.json_response({"id": "file-1"})
        return web.json_response(batch(self.status, completed=self.ready))

    async def _results(self, request: web.Request) -> web.StreamResponse:
        after, limit = int(request.query["after"]), int(request.query["limit"])
        page = self.lines[after : self.ready][:limit]
        data = b"".join(json.dumps(line).encode() + b"\n" for line in page)
        response = web.StreamResponse()
        await response.prepare(request)
        if self.breaks and len(page) > 2:
            end = sum(len(json.dumps(line)) + 1 for line in page[:2])
            await response.write(data[: end + 40])
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write(data)
        return response


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def api(service: Service, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    monkeypatch.setattr("fusewire_cli.client.PAUSE_S", 0.01)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", service.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    async with Client(f"http://{host}:{port}", "fw-key") as client:
        yield client
    await runner.cleanup()


def never() -> None:
    raise AssertionError("ended at once")


def stopper(at_once: Callable[[], None] = never, drain_s: float = 60) -> Stop:
    return Stop(at_once=at_once, at_last=lambda: None, notice="stopping", drain_s=drain_s)


async def indexes(
    api: Client, order: Order = "line", form: Form = "openai", after: int = 0
) -> list[int]:
    return [
        line["index"]
        async for _, line in read_settled(api, "batch_b", order=order, form=form, after=after)
    ]


async def test_results_are_read_through_breaks_each_once(api: Client, service: Service) -> None:
    assert await indexes(api) == list(range(1, TOTAL + 1))
    assert await indexes(api, after=5) == [6, 7]
    assert {request.headers["authorization"] for request in service.requests} == {"Bearer fw-key"}


async def test_results_end_before_the_first_line_that_was_not_come_to(
    api: Client, service: Service
) -> None:
    service.lines[3] = line(4, response=None, error={"code": "batch_cancelled", "message": "m"})
    assert await indexes(api) == [1, 2, 3]


async def test_a_batch_is_followed_to_its_end_and_written_whole(
    api: Client, service: Service
) -> None:
    service.status, service.ready = "in_progress", 3
    out = io.BytesIO()
    output = Output(out, "out", order="line", form="openai")
    stop = stopper()

    def finish() -> None:
        service.status, service.ready = "completed", TOTAL

    asyncio.get_running_loop().call_later(0.3, finish)
    last_state = await follow(
        api, "batch_b", output, Progress(ProgressStyle.none), stop, cancels=True
    )
    assert last_state["status"] == "completed"
    assert [json.loads(raw) for raw in out.getvalue().splitlines()] == service.lines


async def test_the_first_signal_stops_the_batch_and_what_settled_is_written(
    api: Client, service: Service
) -> None:
    service.status, service.ready = "in_progress", 3
    out = io.BytesIO()
    output = Output(out, "out", order="line", form="openai")
    stop = stopper().listen()
    asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGTERM)
    last_state = await follow(
        api, "batch_b", output, Progress(ProgressStyle.none), stop, cancels=True
    )
    assert last_state["status"] == "cancelled"
    assert len(out.getvalue().splitlines()) == 3
    cancels = [request for request in service.requests if request.path.endswith("/cancel")]
    assert [dict(request.query) for request in cancels] == [
        {"drain": "true", "reason": "interrupted"}
    ]


async def test_what_hangs_in_flight_is_waited_for_no_longer_than_a_drain(
    api: Client, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    service.status, service.ready, service.hangs = "in_progress", 3, True
    stop = stopper(drain_s=0.2).listen()
    os.kill(os.getpid(), signal.SIGTERM)
    last_state = await follow(
        api, "batch_b", None, Progress(ProgressStyle.none), stop, cancels=True
    )
    assert (last_state["status"], conclude(last_state, None, is_interrupted=True)) == (
        "cancelling",
        130,
    )
    assert "fusewire batch resume batch_b" in capsys.readouterr().err


async def test_to_stop_watching_stops_nothing(api: Client, service: Service) -> None:
    service.status = "in_progress"
    stop = stopper().listen()
    asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGINT)
    last_state = await follow(
        api, "batch_b", None, Progress(ProgressStyle.none), stop, cancels=False
    )
    assert last_state["status"] == "in_progress"
    assert not [request for request in service.requests if request.path.endswith("/cancel")]


async def test_the_second_signal_ends_at_once() -> None:
    calls: list[str] = []
    stop = stopper(lambda: calls.append("at once")).listen()
    for count in (1, 2):
        os.kill(os.getpid(), signal.SIGINT)
        await stop.sleep(0.05)
        assert stop.is_asked
        assert len(calls) == count - 1


async def test_work_is_given_up_when_somebody_asks_to_stop() -> None:
    stop = stopper().listen()
    assert await stop.guard(asyncio.sleep(0, "done")) == "done"
    asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGINT)
    with pytest.raises(InterruptedRunError):
        await stop.guard(asyncio.sleep(60))


async def test_what_shall_be_tried_later_is_tried_again(api: Client, service: Service) -> None:
    service.faults = [(503, "unavailable"), (429, "rate_limited")]
    assert (await api.batch("batch_b"))["id"] == "batch_b"
    assert len(service.requests) == 3
    service.faults = [(402, "budget_exceeded")]
    with pytest.raises(ApiError, match="budget_exceeded"):
        await api.batch("batch_b")
    service.faults = [(503, "unavailable")]
    assert len(await indexes(api)) == TOTAL


@pytest.mark.parametrize(
    ("status", "code", "exit_code", "mend"),
    [
        (503, "unavailable", 1, "run the same command again later"),
        (429, "rate_limited", 1, "run the same command again later"),
        (402, "budget_exceeded", 2, ""),
        (401, "unauthorized", 2, "set FUSEWIRE_API_KEY"),
        (404, "unknown_pool", 2, ""),
    ],
)
def test_a_refusal_says_whether_the_command_or_the_service_is_at_fault(
    capsys: pytest.CaptureFixture[str], status: int, code: str, exit_code: int, mend: str
) -> None:
    async def refuse() -> None:
        raise ApiError(status, code, "the reason")

    with pytest.raises(SystemExit) as exit_info:
        fusing.run(refuse())
    assert exit_info.value.code == exit_code
    message = capsys.readouterr().err
    assert "the reason" in message
    assert mend in message


async def test_an_upload_that_is_tried_again_is_sent_whole(
    api: Client, service: Service, tmp_path: Path
) -> None:
    path = tmp_path / "in.jsonl"
    data = b'{"prompt": "one"}\n' * 10_000
    path.write_bytes(data)
    service.faults = [(503, "unavailable")]
    assert await api.upload(path) == "file-1"
    assert [body.count(data) for body in service.bodies] == [1, 1]


def test_progress_tells_figures(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    with Progress(ProgressStyle.json, clock=lambda: now[0]) as progress:
        for now[0] in (1.0, 9.0, 10.0, 19.0):
            progress.update(batch(completed=4, failed=1))
        progress.update(batch(completed=5, failed=1, waiting_for="budget"))
    *earlier_lines, last_line = capsys.readouterr().err.splitlines()
    assert earlier_lines[1:] == ["waiting: budget"]
    assert set(json.loads(earlier_lines[0])) == {
        "done",
        "total",
        "failed",
        "degraded",
        "rate_per_s",
        "eta_s",
        "cost_usd",
    }
    assert json.loads(last_line)["done"] == 6


def test_figures_are_those_of_the_batch() -> None:
    assert figures(batch(completed=4, failed=1), now_s=1000.4) == {
        "done": 5,
        "total": TOTAL,
        "failed": 1,
        "degraded": 1,
        "rate_per_s": 2.0,
        "eta_s": 30,
        "cost_usd": 0.5,
    }
    assert figures(batch(eta_at=None), now_s=0)["eta_s"] is None


@pytest.mark.parametrize(
    ("last_state", "is_interrupted", "code"),
    [
        (batch("completed", completed=7), False, 0),
        (batch("completed", completed=6, failed=1), False, 3),
        (batch("expired", completed=6), False, 3),
        (batch("cancelled", stop_reason="budget"), False, 4),
        (batch("cancelled", stop_reason="request"), False, 3),
        (batch("cancelled", stop_reason="interrupted"), True, 130),
        (batch("completed", completed=7), True, 130),
        (batch("failed"), False, 2),
    ],
)
def test_exit_codes(last_state: Any, is_interrupted: bool, code: int) -> None:
    assert conclude(last_state, None, is_interrupted=is_interrupted) == code


def test_a_stopped_batch_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(io.BytesIO(), "an out.jsonl", order="line", form="openai")
    conclude(batch("cancelled", stop_reason="budget"), output)
    message = capsys.readouterr().err
    assert "fusewire batch resume batch_b -o 'an out.jsonl' --max-cost USD" in message
    assert "fusewire batch results batch_b" in message


def test_a_bar_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(ProgressStyle.bar) as progress:
        progress.update(batch(completed=4, failed=1))
    message = capsys.readouterr().err
    assert "5/7" in message
    assert "1 failed · 1 degraded · 0.5 USD" in message
