"""The fetch loops on a real server: strict priority, batches that survive a bad message, an end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from nats.js import api
from structlog.testing import capture_logs

from fusewire import bus as bus_module
from fusewire import loops, pull
from fusewire.bus import Bus, Delivery
from fusewire.contracts import PRIORITIES
from fusewire.errors import Transient, UnacceptableMessage
from fusewire.loops import QUIET_S, BatchLoop, Loop, PriorityLoop, Release, ReleaseLoop
from fusewire.pull import PullConsumer
from fusewire.settings import Nats
from fusewire.testing.eventually import eventually
from fusewire.testing.link import Link
from fusewire.testing.nats_server import NatsServer
from fusewire.topology import MAX_DELIVERIES, PRIORITY, Durable

MakeBus = Callable[..., Awaitable[Bus]]
RANKED = tuple(Durable("WORK", name, f"work.{name}", ack_wait_s=2500) for name in PRIORITIES)
"""Nothing comes again by waiting: what is delivered twice was handed back."""
HIGH, NORMAL, LOW = RANKED


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come without delay."""
    monkeypatch.setattr(bus_module, "retry_delay_s", lambda _deliveries, _jitter: 0.001)


@pytest.fixture
async def bus(make_bus: MakeBus) -> Bus:
    made = await make_bus("tester", {})
    await made.js.add_stream(
        name="WORK", subjects=["work.*"], retention=api.RetentionPolicy.WORK_QUEUE
    )
    for durable in RANKED:
        await add_consumer(made, durable)
    return made


async def add_consumer(bus: Bus, durable: Durable) -> None:
    await bus.js.add_consumer(
        "WORK",
        durable_name=durable.name,
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=durable.ack_wait_s,
        max_deliver=-1,
        filter_subject=durable.subject,
    )


@pytest.fixture
async def begin() -> AsyncIterator[Callable[[Loop], Awaitable[Loop]]]:
    """Starts a loop that is stopped at the end of the test, whatever becomes of it."""
    begun: list[Loop] = []

    async def start(loop: Loop) -> Loop:
        await loop.start()
        begun.append(loop)
        return loop

    yield start
    for loop in begun:
        await loop.stop(2)


Begin = Callable[[Loop], Awaitable[Loop]]


async def send(bus: Bus, priority: str, *bodies: str, **headers: str) -> None:
    for body in bodies:
        await bus.publish(f"work.{priority}", body.encode(), headers=headers)


async def emptied(bus: Bus) -> None:
    async def is_empty() -> bool:
        return (await bus.js.stream_info("WORK")).state.messages == 0

    await eventually(is_empty)


async def in_hand(bus: Bus, durable: Durable) -> int:
    """Delivered and not acknowledged."""
    return (await bus.js.consumer_info("WORK", durable.name)).num_ack_pending or 0


# -- priority ---------------------------------------------------------------------------------


async def test_all_that_is_high_goes_before_what_is_normal_and_that_before_what_is_low(
    bus: Bus, begin: Begin
) -> None:
    handled: list[str] = []

    async def note(delivery: Delivery) -> None:
        handled.append(delivery.data.decode())

    for i in range(5):
        for priority in ("low", "normal", "high"):
            await send(bus, priority, f"{priority}-{i}")

    await begin(PriorityLoop(bus, RANKED, note, concurrency=1))
    await emptied(bus)

    assert handled == [f"{priority}-{i}" for priority in PRIORITIES for i in range(5)]


async def test_what_is_urgent_does_not_wait_for_the_end_of_what_is_low(
    bus: Bus, begin: Begin
) -> None:
    """An eighth of the concurrency is kept free of it, also while nothing else comes."""
    running: set[str] = set()
    end = asyncio.Event()

    async def run(delivery: Delivery) -> None:
        running.add(delivery.data.decode())
        await end.wait()

    await send(bus, "low", *(f"low-{i}" for i in range(20)))
    await begin(PriorityLoop(bus, RANKED, run, concurrency=16))
    await eventually(lambda: len(running) >= 14)
    await send(bus, "normal", "normal-0")
    await eventually(lambda: "normal-0" in running)
    await send(bus, "high", "high-0")
    await eventually(lambda: "high-0" in running)

    assert len(running) == 16
    end.set()
    await emptied(bus)
    assert len(running) == 22


async def test_what_is_high_overtakes_what_waits(bus: Bus, begin: Begin) -> None:
    handled: list[str] = []
    gate = asyncio.Event()

    async def note(delivery: Delivery) -> None:
        handled.append(delivery.data.decode())
        await gate.wait()

    await send(bus, "low", *(f"low-{i}" for i in range(6)))
    await begin(PriorityLoop(bus, RANKED, note, concurrency=1))
    await eventually(lambda: handled)
    await send(bus, "high", "high-0", "high-1")

    async def both_are_there() -> bool:
        # A consumer learns of a message shortly after the stream has acknowledged it.
        info = await bus.js.consumer_info("WORK", "high")
        return (info.num_pending or 0) + len(handled) - 1 == 2

    await eventually(both_are_there)
    gate.set()
    await emptied(bus)

    assert handled[0] == "low-0"
    assert handled[1:3] == ["high-0", "high-1"]
    assert sorted(handled[3:]) == [f"low-{i}" for i in range(1, 6)]


async def test_no_more_than_can_be_worked_on_is_taken(bus: Bus, begin: Begin) -> None:
    gate, handled = asyncio.Event(), 0

    async def wait(_delivery: Delivery) -> None:
        nonlocal handled
        handled += 1
        await gate.wait()

    await send(bus, "low", *(str(i) for i in range(20)))
    await begin(PriorityLoop(bus, RANKED, wait, concurrency=3))
    await eventually(lambda: handled == 3)

    assert await in_hand(bus, LOW) == 3
    gate.set()
    await emptied(bus)
    assert handled == 20


async def test_a_handler_that_does_not_end_is_ended_and_its_message_comes_again(
    bus: Bus, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "HANDLED_WITHIN_S", 0.2)
    deliveries: list[int] = []

    async def hang_at_first(delivery: Delivery) -> None:
        deliveries.append(delivery.deliveries)
        if len(deliveries) == 1:
            await asyncio.Event().wait()

    await begin(PriorityLoop(bus, RANKED, hang_at_first, concurrency=1))
    with capture_logs() as told:
        await bus.publish("work.low", b"{}")
        await eventually(lambda: len(deliveries) == 2)

    assert deliveries == [1, 2]
    (retried,) = [line for line in told if line["event"] == "bus.message_retried"]
    assert retried["fault"] == "its handler did not end within 0.2 s"


async def test_an_idle_loop_takes_what_comes_at_any_priority(bus: Bus, begin: Begin) -> None:
    handled: list[str] = []

    async def note(delivery: Delivery) -> None:
        handled.append(delivery.data.decode())

    await begin(PriorityLoop(bus, RANKED, note, concurrency=2))
    for i, priority in enumerate(("low", "high", "normal", "low")):
        await send(bus, priority, f"{priority}-{i}")
        await emptied(bus)

    assert handled == ["low-0", "high-1", "normal-2", "low-3"]


async def test_what_comes_alone_costs_one_request(
    bus: Bus, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled = asyncio.Queue[bytes]()

    async def note(delivery: Delivery) -> None:
        handled.put_nowait(delivery.data)

    await begin(PriorityLoop(bus, RANKED, note, concurrency=8))
    await send(bus, "high", "first")
    await asyncio.wait_for(handled.get(), 5)
    await asyncio.sleep(4 * QUIET_S)
    looks = 0
    publish = bus.client.publish

    async def count(subject: str, payload: bytes = b"", *args: Any, **kwargs: Any) -> None:
        nonlocal looks
        looks += b"no_wait" in payload
        await publish(subject, payload, *args, **kwargs)

    monkeypatch.setattr(bus.client, "publish", count)
    for number in range(10):
        await send(bus, "normal", str(number))
        await asyncio.wait_for(handled.get(), 5)
        await asyncio.sleep(4 * QUIET_S)

    # One for each if it looked whether there is more; a busy machine may make it look.
    assert looks < 8


async def test_what_comes_at_once_to_an_idle_loop_is_handed_back_for_another_that_is_free(
    bus: Bus, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle loop waits on each durable, and all three may have a message at the same time."""
    monkeypatch.setattr(loops, "PULL_TIMEOUT_S", 30)
    full, free = Line(), Line()
    await begin(ReleaseLoop(bus, RANKED, full, concurrency=1, hands_back=True))

    async def waits_on_each() -> bool:
        infos = [await bus.js.consumer_info("WORK", durable.name) for durable in RANKED]
        return all(info.num_waiting == 1 for info in infos)

    await eventually(waits_on_each)
    for priority in PRIORITIES:
        await send(bus, priority, priority)
    await eventually(lambda: full.waiting)
    await begin(ReleaseLoop(bus, RANKED, free, concurrency=2, hands_back=True))
    await eventually(lambda: len(free.waiting) == 2, timeout_s=60)

    assert len(full.waiting) == 1
    full.gate.set()
    free.gate.set()
    await emptied(bus)


# -- messages that count no more --------------------------------------------------------------


class Line:
    """A handler whose messages stand in line until let through, then run until the gate opens."""

    def __init__(self) -> None:
        self.waiting: list[Release] = []
        self.gate = asyncio.Event()
        self.done = 0

    async def __call__(self, _: Delivery, release: Release) -> None:
        self.waiting.append(release)
        await self.gate.wait()
        self.done += 1

    def let_through(self, count: int) -> None:
        """As often as is said; a second word for one message changes nothing."""
        for release in self.waiting[:count]:
            release()
            release()


async def two_let_through(bus: Bus, begin: Begin) -> Line:
    """Of six messages two may stand in line; they did, and run."""
    line = Line()
    await send(bus, "low", *(f"low-{i}" for i in range(6)))
    await begin(ReleaseLoop(bus, [LOW], line, concurrency=2))
    await eventually(lambda: len(line.waiting) == 2)
    line.let_through(2)
    return line


async def test_what_no_longer_stands_in_line_makes_room_though_it_has_not_ended(
    bus: Bus, begin: Begin
) -> None:
    line = await two_let_through(bus, begin)
    await eventually(lambda: len(line.waiting) == 4)
    await asyncio.sleep(0.1)
    assert (len(line.waiting), await in_hand(bus, LOW)) == (4, 4)

    line.gate.set()
    await emptied(bus)
    assert line.done == 6


async def test_not_everything_is_taken_whatever_stands_in_no_line(
    bus: Bus, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "MOST_IN_HAND", 3)
    line = await two_let_through(bus, begin)
    await eventually(lambda: len(line.waiting) == 3)
    line.let_through(3)
    await asyncio.sleep(0.1)
    assert len(line.waiting) == 3

    line.gate.set()
    await emptied(bus)
    assert line.done == 6


# -- the end ----------------------------------------------------------------------------------


async def test_what_runs_is_finished_and_nothing_else_is_begun(bus: Bus) -> None:
    gate, handled = asyncio.Event(), 0

    async def wait(_delivery: Delivery) -> None:
        nonlocal handled
        handled += 1
        await gate.wait()

    await send(bus, "low", *(str(i) for i in range(5)))
    loop = PriorityLoop(bus, RANKED, wait, concurrency=2)
    await loop.start()
    await eventually(lambda: handled == 2)

    stopping = asyncio.create_task(loop.stop(60))
    await asyncio.sleep(0)
    gate.set()
    await stopping

    assert handled == 2

    async def is_left() -> bool:
        held = (await bus.js.stream_info("WORK")).state.messages
        return held == 3 and await in_hand(bus, LOW) == 0

    await eventually(is_left)  # an acknowledgement is not waited for


async def test_what_is_not_finished_in_time_is_handed_back_at_once(bus: Bus, begin: Begin) -> None:
    begun, again = asyncio.Event(), asyncio.Event()

    async def never(_delivery: Delivery) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def note(_delivery: Delivery) -> None:
        again.set()

    await send(bus, "low", "body")
    loop = PriorityLoop(bus, RANKED, never, concurrency=1)
    await loop.start()
    await begun.wait()
    await loop.stop(0.01)

    await begin(PriorityLoop(bus, RANKED, note, concurrency=1))
    async with asyncio.timeout(60):  # a tenth of what the server would wait
        await again.wait()
    await emptied(bus)


async def test_what_had_only_arrived_is_handed_back(bus: Bus) -> None:
    """As when a request was given up just before its answer came."""
    puller = PullConsumer(bus, LOW)
    await puller.start()
    await send(bus, "low", "one", "two")
    request = f"{puller._inbox}.late"
    await bus.client.publish(puller._subject, b'{"batch":2,"no_wait":true}', request)

    other = PullConsumer(bus, LOW)
    await other.start()
    taken: list[bytes] = []

    async def both() -> bool:
        for msg in await other.fetch(2, 0.2):
            taken.append(msg.data)
            await msg.ack()
        return len(taken) == 2

    await eventually(both)
    assert sorted(taken) == [b"one", b"two"]
    await other.stop()
    await puller.stop()


async def test_a_stopped_loop_lets_others_have_everything(bus: Bus, begin: Begin) -> None:
    """Whatever it had asked for and not begun."""
    seen: list[bytes] = []

    async def note(delivery: Delivery) -> None:
        seen.append(delivery.data)

    for i in range(5):
        loop = PriorityLoop(bus, RANKED, note, concurrency=3)
        await loop.start()
        sending = asyncio.gather(*(send(bus, p, f"{p}-{i}") for p in PRIORITIES))
        await asyncio.sleep(0.01 * i)
        await loop.stop(60)
        await sending

    await begin(PriorityLoop(bus, RANKED, note, concurrency=3))
    await emptied(bus)

    assert {b.decode() for b in seen} == {f"{p}-{i}" for p in PRIORITIES for i in range(5)}


async def test_a_loop_that_turns_has_no_faults_and_one_that_ended_has(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(_delivery: Delivery) -> None:
        pass

    loop = PriorityLoop(bus, RANKED, nothing, concurrency=1)
    assert loop.faults()
    await loop.start()
    assert not loop.faults()
    with monkeypatch.context() as impatient:
        impatient.setattr(loops, "STALLED_S", -1)
        assert loop.faults() == [f"{loop.name} no longer fetches"]
    assert loop._task is not None
    loop._task.cancel()
    await asyncio.gather(loop._task, return_exceptions=True)

    assert loop.faults()
    loop._task = None
    await loop.stop(1)
    assert not loop.faults()


@pytest.mark.parametrize("kind", ["batches", "priorities"])
async def test_a_durable_that_is_missing_is_told_and_does_not_make_a_loop_spin(
    bus: Bus, begin: Begin, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    handled: list[bytes] = []

    async def note(delivery: Delivery) -> None:
        handled.append(delivery.data)

    async def note_all(batch: Sequence[Delivery]) -> None:
        handled.extend(d.data for d in batch)

    monkeypatch.setattr(loops, "MISSING_S", 0.2)
    monkeypatch.setattr(pull, "MISSING_PAUSE_S", 0.1)
    loop: Loop = (
        BatchLoop(bus, LOW, note_all, batch=10)
        if kind == "batches"
        else PriorityLoop(bus, [LOW], note, concurrency=1)
    )
    await begin(loop)
    with capture_logs() as told:
        await bus.js.delete_consumer(LOW.stream, LOW.name)
        asked = bus.client.stats["out_msgs"]
        await eventually(loop.faults)
        asked = bus.client.stats["out_msgs"] - asked
    assert loop.faults() == [
        f"the durable {LOW.stream}/{LOW.name} is not on the server: run `fusewire topology apply`"
    ]
    assert [line["event"] for line in told].count("pull.durable_missing") == 1
    assert asked < 100

    await add_consumer(bus, LOW)
    await send(bus, "low", "body")
    await eventually(lambda: handled)
    assert loop.faults() == []


async def test_a_fault_in_the_loop_itself_does_not_end_it(
    bus: Bus, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled: list[bytes] = []

    async def note(delivery: Delivery) -> None:
        handled.append(delivery.data)

    fetch, broken = PullConsumer.fetch, [True]

    async def once_broken(self: PullConsumer, batch: int, wait_s: float = 0) -> list[object]:
        if broken:
            broken.pop()
            raise RuntimeError("a fault of ours")
        return list(await fetch(self, batch, wait_s))

    monkeypatch.setattr(PullConsumer, "fetch", once_broken)
    await send(bus, "low", "body")
    await begin(PriorityLoop(bus, RANKED, note, concurrency=1))
    await emptied(bus)

    assert handled == [b"body"]


# -- batches ----------------------------------------------------------------------------------


class Batches:
    """A handler of batches that notes them; a body in `bad` makes it raise."""

    def __init__(self, bad: dict[bytes, Exception] | None = None) -> None:
        self.taken: list[list[bytes]] = []
        self.done: list[bytes] = []
        self.bad = bad or {}

    async def __call__(self, batch: Sequence[Delivery]) -> None:
        bodies = [d.data for d in batch]
        self.taken.append(bodies)
        for body in bodies:
            if exc := self.bad.get(body):
                raise exc
        self.done += bodies


async def test_what_is_there_is_taken_as_one_batch_up_to_a_limit(bus: Bus, begin: Begin) -> None:
    await send(bus, "low", *(str(i) for i in range(25)))
    handler = Batches()

    await begin(BatchLoop(bus, LOW, handler, batch=10))
    await emptied(bus)

    assert [len(batch) for batch in handler.taken] == [10, 10, 5]
    assert handler.done == [b"%d" % i for i in range(25)]


class Gate(Batches):
    """A handler of batches that begins none after its first until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.is_open = asyncio.Event()

    async def __call__(self, batch: Sequence[Delivery]) -> None:
        if self.taken:
            await self.is_open.wait()
        await super().__call__(batch)


async def test_what_is_urgent_goes_before_what_waits(bus: Bus, begin: Begin) -> None:
    """By its header, within one durable; what has none is of normal priority."""
    handler = Gate()
    await send(bus, "low", *(f"low-{i}" for i in range(20)), **{PRIORITY: "low"})
    await send(bus, "low", "plain")
    await send(bus, "low", "odd", **{PRIORITY: "odd"})
    await send(bus, "low", "high", **{PRIORITY: "high"})

    loop = await begin(BatchLoop(bus, LOW, handler, batch=2, ahead=50))
    assert isinstance(loop, BatchLoop)
    await eventually(lambda: loop.count_waiting() + len(handler.done) + 2 >= 23)
    handler.is_open.set()
    await emptied(bus)

    # Two batches may have been taken before the others had arrived.
    rest = [body.decode() for body in handler.done[4:]]
    low = [body for body in rest if body.startswith("low")]
    assert rest == [b for b in ("high", "plain", "odd") if b in rest] + low
    assert len(low) >= 16
    assert sorted(handler.done) == sorted(
        [b"plain", b"odd", b"high", *(b"low-%d" % i for i in range(20))]
    )


@pytest.mark.parametrize("drain_s", [30, 0.01])
async def test_what_waits_is_handed_back_at_the_end(bus: Bus, begin: Begin, drain_s: float) -> None:
    handler = Gate()
    await send(bus, "low", *(str(i) for i in range(20)))
    loop = BatchLoop(bus, LOW, handler, batch=2, ahead=50)
    await loop.start()
    await eventually(lambda: loop.count_waiting() + len(handler.done) + 2 >= 20)
    stopping = asyncio.create_task(loop.stop(drain_s))
    if drain_s > 1:
        handler.is_open.set()
    await stopping

    # RANKED's ack_wait is longer than any test.
    rest = Batches()
    await begin(BatchLoop(bus, LOW, rest, batch=20))
    await emptied(bus)
    assert len(rest.done) >= 14


async def test_a_slow_server_is_waited_for(bus: Bus, nats: NatsServer, begin: Begin) -> None:
    """Given up, each pull would get one message at most, and all others would be sent again."""
    await send(bus, "low", *(str(i) for i in range(25)))
    deliveries: list[int] = []

    async def note(batch: Sequence[Delivery]) -> None:
        deliveries.extend(d.deliveries for d in batch)

    async with Link(int(nats.url.rpartition(":")[2]), delay_s=0.3) as link:
        far = Bus("far", Nats(url=f"nats://127.0.0.1:{link.port}"), drain_s=2)
        await far.connect()
        loop = await begin(BatchLoop(far, LOW, note, batch=10))
        await emptied(bus)
        await loop.stop(5)
        await far.stop()

    assert deliveries == [1] * 25


async def test_a_pull_ends_with_its_connection(bus: Bus, nats: NatsServer) -> None:
    """Well before a server that is there would be given up."""
    puller = PullConsumer(bus, LOW)
    await puller.start()
    pull = asyncio.create_task(puller.fetch(1, wait_s=3600))
    await asyncio.sleep(0.1)
    await nats.kill()
    assert await pull == []
    assert await puller.fetch(1) == []

    await nats.start()
    await eventually(lambda: bus.is_connected)
    await send(bus, "low", "body")
    (msg,) = await puller.fetch(1, wait_s=60)
    assert msg.data == b"body"
    await msg.ack()
    await puller.stop()


async def test_a_single_message_does_not_wait_for_more(bus: Bus, begin: Begin) -> None:
    handler = Batches()
    await begin(BatchLoop(bus, LOW, handler, batch=10))

    await send(bus, "low", "alone")
    await emptied(bus)

    assert handler.taken == [[b"alone"]]


@pytest.mark.parametrize(
    ("exc", "tries"),
    [(ValueError(), MAX_DELIVERIES), (UnacceptableMessage("never"), 1)],
    ids=["poison", "unacceptable"],
)
async def test_one_bad_message_of_a_batch_is_isolated_and_buried(
    bus: Bus, begin: Begin, exc: Exception, tries: int
) -> None:
    await send(bus, "low", *(str(i) for i in range(9)))
    handler = Batches({b"4": exc})

    await begin(BatchLoop(bus, LOW, handler, batch=20))
    await emptied(bus)

    assert sorted(handler.done) == [b"%d" % i for i in range(9) if i != 4]
    assert len(handler.taken[0]) == 9
    assert handler.taken.count([b"4"]) == tries
    state = (await bus.js.stream_info("FW_DEAD")).state
    assert state.messages == 1


async def test_a_batch_is_kept_while_something_is_down(bus: Bus, begin: Begin) -> None:
    await send(bus, "low", "1", "2", "3")
    handler = Batches({b"2": Transient("the database is down", retry_after_s=0.001)})

    await begin(BatchLoop(bus, LOW, handler, batch=20))
    await eventually(lambda: len(handler.taken) > MAX_DELIVERIES + 1)
    handler.bad.clear()
    await emptied(bus)

    assert sorted(set(handler.done)) == [b"1", b"2", b"3"]
    # Not handed back, to wait until they are delivered again.
    assert handler.taken[:MAX_DELIVERIES] == [handler.taken[0]] * MAX_DELIVERIES
    assert await in_hand(bus, LOW) == 0
    assert (await bus.js.stream_info("FW_DEAD")).state.messages == 0


async def test_a_batch_that_is_kept_is_handed_back_at_the_end(bus: Bus, begin: Begin) -> None:
    """RANKED's ack_wait is longer than any test: what is not handed back never comes again."""
    down = Transient("the database is down", retry_after_s=0.001)
    await send(bus, "low", "1", "2")
    handler = Batches({b"1": down, b"2": down})
    loop = BatchLoop(bus, LOW, handler, batch=20)
    await loop.start()
    await eventually(lambda: len(handler.taken) > 2)
    await loop.stop(30)

    await begin(BatchLoop(bus, LOW, Batches(), batch=20))

    await emptied(bus)


async def test_a_batch_in_hand_is_handed_back_when_it_is_not_finished_in_time(
    bus: Bus, begin: Begin
) -> None:
    begun = asyncio.Event()

    async def never(_batch: Sequence[Delivery]) -> None:
        begun.set()
        await asyncio.Event().wait()

    await send(bus, "low", "1", "2", "3")
    loop = BatchLoop(bus, LOW, never, batch=20)
    await loop.start()
    await begun.wait()
    await loop.stop(0.01)

    handler = Batches()
    await begin(BatchLoop(bus, LOW, handler, batch=20))
    await eventually(lambda: sorted(handler.done) == [b"1", b"2", b"3"])
