"""A task's place at an endpoint: what gives it a call, lets it wait, and tells it to go."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from fusewire import metrics
from fusewire.contracts import ErrorCode
from fusewire.errors import Transient
from fusewire.settings import RemoteModel
from fusewire_worker_remote.endpoint import Endpoints, TimeSource
from fusewire_worker_remote.errors import Failure
from fusewire_worker_remote.place import CHECK_S, Place

NOW = datetime(2026, 11, 30, tzinfo=UTC)
PATIENCE_S = 60.0
REFUSED_KEY = Failure("unauthorized", "", retryable=False, status=401)
TOO_MANY = Failure("rate_limited", "", retryable=True, status=429)
OUTAGE = Failure("server_error", "", retryable=True, status=500)


class Desk:
    """Models at one address with one key, and a clock that a sleep puts forward."""

    def __init__(self, most: int, *names: str) -> None:
        self.now_s = 0.0
        self.sleeps: list[float] = []
        self.is_stopping = False
        self._times = TimeSource(
            timer=lambda: self.now_s,
            clock=lambda: NOW + timedelta(seconds=self.now_s),
            rng=lambda: 0.0,
        )
        fields = {"kind": "remote", "base_url": "http://127.0.0.1:1/v1", "max_concurrency": most}
        models = {
            name: RemoteModel.model_validate({**fields, "model": name}) for name in names or "a"
        }
        self._endpoints = Endpoints(models, self._times)

    async def _sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)

    def _raise_if_stopping(self) -> None:
        if self.is_stopping:
            raise Transient("the worker stops")

    def place(self, name: str = "a", deadline_s: float = 500) -> Place:
        return Place(
            self._endpoints.of(name),
            0,
            NOW + timedelta(seconds=self.now_s + deadline_s),
            times=self._times,
            sleep=self._sleep,
            raise_if_stopping=self._raise_if_stopping,
        )

    async def call(self, result: Failure, name: str = "a") -> None:
        """A call that is made and fails."""
        place = self.place(name)
        assert await place.take() is None
        place.leave(result)


async def let_run() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


Waiting = tuple[Place, "asyncio.Task[Failure | None]"]


async def wait_for_slot(desk: Desk) -> Waiting:
    """A task that waits for a slot."""
    place = desk.place()
    task = asyncio.create_task(place.take())
    await let_run()
    assert not task.done()
    return place, task


async def test_who_waits_for_a_slot_is_told_at_once_that_the_key_is_refused() -> None:
    """Though the calls that have the slots may go on for long."""
    desk = Desk(1, "a", "b")
    hanging = desk.place()
    assert await hanging.take() is None
    _, task = await wait_for_slot(desk)

    await desk.call(REFUSED_KEY, "b")

    refusal = await asyncio.wait_for(task, PATIENCE_S)
    assert refusal is not None
    assert (refusal.code, refusal.status) == ("unauthorized", 401)


async def test_a_limit_that_fell_holds_and_one_that_rose_lets_in_who_waits() -> None:
    desk = Desk(4)
    await desk.call(TOO_MANY)
    places = [desk.place() for _ in range(2)]
    assert [await place.take() for place in places] == [None, None]
    _, task = await wait_for_slot(desk)

    places[0].leave(None)

    assert await asyncio.wait_for(task, PATIENCE_S) is None


async def test_who_gets_a_slot_while_the_worker_stops_makes_no_call() -> None:
    desk = Desk(1)
    holder = desk.place()
    assert await holder.take() is None
    place, task = await wait_for_slot(desk)

    desk.is_stopping = True
    holder.leave(None)
    with pytest.raises(Transient):
        await asyncio.wait_for(task, PATIENCE_S)
    place.leave()

    desk.is_stopping = False
    assert await asyncio.wait_for(desk.place().take(), PATIENCE_S) is None, "the slot is free"


def test_the_limit_is_shown_before_the_first_call() -> None:
    Desk(7, "limited")
    labels = {"model": "limited"}
    assert metrics.REGISTRY.get_sample_value("fusewire_concurrency_limit", labels) == 7


@pytest.fixture
async def broken() -> Desk:
    """A model whose breaker is open."""
    desk = Desk(4)
    for _ in range(5):
        await desk.call(OUTAGE)
    return desk


@pytest.mark.parametrize(("deadline_s", "is_refused"), [(500, True), (5_000, False)])
async def test_a_patient_task_waits_for_the_breaker_and_another_is_refused(
    broken: Desk, deadline_s: float, is_refused: bool
) -> None:
    refusal = await asyncio.wait_for(broken.place(deadline_s=deadline_s).take(), PATIENCE_S)

    assert (refusal is not None, bool(broken.sleeps)) == (is_refused, not is_refused)


async def test_who_waits_for_the_breaker_looks_often_whether_the_worker_stops() -> None:
    desk = Desk(4)
    await desk.call(Failure("rate_limited", "", retryable=True, status=429, retry_after_s=300.0))
    task = asyncio.create_task(desk.place(deadline_s=5_000).take())
    await let_run()
    desk.is_stopping = True

    with pytest.raises(Transient):
        await asyncio.wait_for(task, PATIENCE_S)
    assert desk.now_s < 300
    assert max(desk.sleeps) == CHECK_S


async def test_after_an_outage_few_calls_are_made_at_once(broken: Desk) -> None:
    broken.now_s += 60
    await broken.call(Failure("bad_request", "", retryable=False, status=400))
    assert await broken.place().take() is None, "the probe was answered"

    await wait_for_slot(broken)


@pytest.mark.parametrize("code", ["refused", "context_length_exceeded", "bad_request"])
async def test_what_a_model_refuses_is_its_answer_and_no_failure_of_it(code: ErrorCode) -> None:
    desk = Desk(4)
    for _ in range(30):
        await desk.call(Failure(code, "", retryable=False, status=400))
