"""The bus on a real server: what is published is stored, and nothing received is lost silently."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from nats.aio.client import Client
from nats.js import api
from nats.js.errors import KeyNotFoundError

from fusewire import bus as bus_module
from fusewire import loops as loops_module
from fusewire.bus import CRASHES, SUSPECT_DELIVERIES, Bus, Delivery, Handler
from fusewire.contracts import ContractError, Prompt
from fusewire.errors import StartupError, Transient, UnacceptableMessage
from fusewire.loops import BatchLoop, PriorityLoop
from fusewire.settings import Nats
from fusewire.testing.eventually import eventually
from fusewire.testing.factories import make_prompt
from fusewire.testing.nats_server import NatsServer
from fusewire.topology import ATTEMPT_BUCKET, JUDGE_DUE, MAX_DELIVERIES, Durable, dead_subject

MakeBus = Callable[..., Awaitable[Bus]]
Consume = Callable[..., Awaitable[None]]
PAST = "2020-01-01T00:00:00.000+00:00"
WORK = Durable("WORK", "worker", "work.*", ack_wait_s=2500)
"""Nothing comes again by waiting: what is delivered twice was handed back."""


@pytest.fixture
async def bus(make_bus: MakeBus) -> Bus:
    """A connection, with the topology and a work queue of the test's own."""
    made = await make_bus("tester", {})
    await add_work(made)
    return made


async def add_work(bus: Bus, durable: Durable = WORK, **stream: Any) -> None:
    given = {"retention": api.RetentionPolicy.WORK_QUEUE, **stream}
    await bus.js.add_stream(name=durable.stream, subjects=["work.*"], **given)
    await bus.js.add_consumer(
        durable.stream,
        durable_name=durable.name,
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=durable.ack_wait_s,
        max_deliver=-1,
        filter_subject=durable.subject,
    )


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come without delay."""
    monkeypatch.setattr(bus_module, "retry_delay_s", lambda _deliveries, _jitter: 0.001)


@pytest.fixture(params=["faststream", "loop"])
async def consume(request: pytest.FixtureRequest, bus: Bus) -> AsyncIterator[Consume]:
    """Begins to handle WORK, by FastStream as ingest and dispatcher do, or by a worker's loop."""
    loops: list[PriorityLoop] = []

    async def start(handler: Handler, concurrency: int = 4) -> None:
        if request.param == "faststream":
            bus.subscribe(WORK, handler, concurrency=concurrency)
            await bus.start()
            return
        loops.append(PriorityLoop(bus, [WORK], handler, concurrency=concurrency))
        await loops[0].start()

    yield start
    for loop in loops:
        await loop.stop(2)


async def pending(bus: Bus, stream: str = "WORK") -> int:
    return (await bus.js.stream_info(stream)).state.messages


async def emptied(bus: Bus, stream: str = "WORK") -> None:
    async def is_empty() -> bool:
        return await pending(bus, stream) == 0

    await eventually(is_empty)


async def buried(bus: Bus) -> list[api.RawStreamMsg]:
    """Everything in FW_DEAD."""
    state = (await bus.js.stream_info("FW_DEAD")).state
    if not state.messages:
        return []
    return [
        await bus.js.get_msg("FW_DEAD", seq, direct=False)
        for seq in range(state.first_seq, state.last_seq + 1)
    ]


class Seen:
    """A handler that notes what it got, then does what it was told to."""

    def __init__(self, then: Callable[[Delivery], Awaitable[None] | None] | None = None) -> None:
        self.deliveries: list[Delivery] = []
        self._then = then

    async def __call__(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        if self._then and (doing := self._then(delivery)):
            await doing

    @property
    def bodies(self) -> list[bytes]:
        return [d.data for d in self.deliveries]


def failing(exc: Exception, times: int = 10**9) -> Callable[[Delivery], None]:
    def fail(delivery: Delivery) -> None:
        if delivery.deliveries <= times:
            raise exc

    return fail


# -- publishing -------------------------------------------------------------------------------


async def test_what_is_published_is_stored(bus: Bus) -> None:
    assert await bus.publish("work.a", b"body", headers={"Fw-Note": "x"}) is True

    stored = await bus.js.get_msg("WORK", subject="work.a", direct=False)
    assert stored.data == b"body"
    assert stored.headers is not None
    assert stored.headers["Fw-Note"] == "x"


async def test_a_message_travels_as_its_json(bus: Bus) -> None:
    await bus.publish("work.a", make_prompt())

    stored = await bus.js.get_msg("WORK", subject="work.a", direct=False)
    assert Prompt.decode(stored.data or b"") == make_prompt()


async def test_a_subject_that_no_stream_holds_is_transient_and_says_what_to_do(bus: Bus) -> None:
    with pytest.raises(Transient, match="run `fusewire topology apply`"):
        await bus.publish("nowhere.at.all", b"lost")


async def test_a_server_that_is_down_is_transient(
    bus: Bus, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "PUBLISH_TIMEOUT_S", 0.3)
    await nats.kill()

    with pytest.raises(Transient, match=r"publishing to work\.a failed"):
        await bus.publish("work.a", b"lost")
    assert bus.unready() == [] or bus.unready() == ["NATS does not answer"]


async def test_a_refusal_of_the_server_is_transient(make_bus: MakeBus) -> None:
    bus = await make_bus()
    await add_work(bus, max_msgs=1, discard=api.DiscardPolicy.NEW)
    await bus.publish("work.a", b"fits")

    with pytest.raises(Transient, match="refused work"):
        await bus.publish("work.b", b"does not")


async def test_one_message_id_is_stored_once(bus: Bus) -> None:
    assert await bus.publish("work.a", b"first", msg_id="one") is True
    assert await bus.publish("work.a", b"again", msg_id="one") is False
    assert await bus.publish("work.a", b"other", msg_id="two") is True

    assert await pending(bus) == 2


async def test_only_if_new_stores_the_first_alone(bus: Bus) -> None:
    assert await bus.publish("fw.candidate.f1.0.a", b"first", only_if_new=True) is True
    assert await bus.publish("fw.candidate.f1.0.a", b"second", only_if_new=True) is False
    assert await bus.publish("fw.candidate.f1.0.b", b"other", only_if_new=True) is True

    assert (
        await bus.js.get_msg("FW_CANDIDATE", subject="fw.candidate.f1.0.a", direct=False)
    ).data == b"first"


async def test_of_many_at_once_one_is_new(bus: Bus) -> None:
    results = await asyncio.gather(
        *(bus.publish("fw.candidate.f1.0.a", str(i).encode(), only_if_new=True) for i in range(20))
    )

    assert Counter(results) == {True: 1, False: 19}


async def test_a_full_stream_is_never_taken_for_already_there(make_bus: MakeBus) -> None:
    """The code for "full" is also that for "one per subject": to ack on it would lose an answer."""
    bus = await make_bus()
    await add_work(
        bus,
        retention=api.RetentionPolicy.LIMITS,
        max_bytes=2_000,
        max_msgs_per_subject=1,
        discard=api.DiscardPolicy.NEW,
        discard_new_per_subject=True,
    )
    await bus.publish("work.there", b"x" * 900, only_if_new=True)
    await bus.publish("work.fill", b"x" * 600, only_if_new=True)

    assert await bus.publish("work.there", b"x" * 900, only_if_new=True) is False
    with pytest.raises(Transient):
        await bus.publish("work.new", b"x" * 900, only_if_new=True)


# -- receiving --------------------------------------------------------------------------------


async def test_what_is_handled_is_taken_off_the_stream(bus: Bus, consume: Consume) -> None:
    seen = Seen()
    await consume(seen)
    for i in range(50):
        await bus.publish(f"work.{i}", b"%d" % i, headers={"Fw-Note": "x"})

    await emptied(bus)

    assert sorted(seen.bodies, key=int) == [b"%d" % i for i in range(50)]
    first = seen.deliveries[0]
    assert (first.deliveries, first.stream, first.headers["Fw-Note"]) == (1, "WORK", "x")


async def test_no_more_run_at_once_than_there_are_hands(bus: Bus, consume: Consume) -> None:
    gate, running, most = asyncio.Event(), 0, 0

    async def count(_delivery: Delivery) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    seen = Seen(count)
    for i in range(12):
        await bus.publish(f"work.{i}", b"x")
    await consume(seen, concurrency=3)
    await eventually(lambda: running == 3)
    gate.set()
    await emptied(bus)

    assert most == 3
    assert len(seen.deliveries) == 12


async def test_a_handler_that_fails_gets_its_message_again(
    bus: Bus, consume: Consume, at_once: None
) -> None:
    seen = Seen(failing(ValueError("s3cr3t"), times=3))
    await consume(seen)
    await bus.publish("work.a", b"body")

    await emptied(bus)

    assert [d.deliveries for d in seen.deliveries] == [1, 2, 3, 4]
    assert await buried(bus) == []


async def test_a_handler_that_does_not_end_is_ended_and_gets_its_message_again(
    bus: Bus, consume: Consume, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (bus_module, loops_module):
        monkeypatch.setattr(module, "HANDLED_WITHIN_S", 0.2)

    async def hang_at_first(delivery: Delivery) -> None:
        if delivery.deliveries == 1:
            await asyncio.Event().wait()

    seen = Seen(hang_at_first)
    await consume(seen)
    await bus.publish("work.a", b"body")

    await emptied(bus)

    assert [d.deliveries for d in seen.deliveries] == [1, 2]
    assert await buried(bus) == []


async def test_a_time_that_is_up_within_a_handler_is_its_own_fault(
    bus: Bus, consume: Consume, at_once: None
) -> None:
    seen = Seen(failing(TimeoutError("a question of its own"), times=100))
    await consume(seen)
    await bus.publish("work.a", b"body")

    await emptied(bus)

    assert len(await buried(bus)) == 1


@pytest.mark.parametrize(
    "exc",
    [ValueError("s3cr3t"), ContractError("task", "$.v", "missing")],
    ids=lambda e: type(e).__name__,
)
async def test_poison_is_buried_after_five_deliveries_with_the_reason(
    bus: Bus, consume: Consume, at_once: None, exc: Exception
) -> None:
    seen = Seen(failing(exc))
    await consume(seen)
    await bus.publish("work.a", b'{"residency":"any"}')

    await emptied(bus)

    assert len(seen.deliveries) == MAX_DELIVERIES
    (dead,) = await buried(bus)
    assert dead.subject == dead_subject("tester", "WORK")
    assert dead.headers is not None
    assert dead.headers["Fw-Reason"].startswith(("ValueError at fail:", "task: $.v: missing"))
    assert "s3cr3t" not in dead.headers["Fw-Reason"]
    assert (dead.headers["Fw-Subject"], dead.headers["Fw-Deliveries"]) == ("work.a", "5")
    assert dead.headers["Fw-Stream-Sequence"] == "1"


async def test_what_can_never_be_right_is_buried_at_once(bus: Bus, consume: Consume) -> None:
    seen = Seen(failing(UnacceptableMessage("no pool 'x'\nand a second line")))
    await consume(seen)
    await bus.publish("work.a", b"{}")

    await emptied(bus)

    assert len(seen.deliveries) == 1
    (dead,) = await buried(bus)
    assert dead.headers is not None
    assert dead.headers["Fw-Reason"] == "no pool 'x' and a second line"


async def test_what_is_down_is_waited_for_and_not_buried(bus: Bus, consume: Consume) -> None:
    often = 2 * SUSPECT_DELIVERIES
    seen = Seen(failing(Transient("the database is down", retry_after_s=0.001), times=often))
    await consume(seen)
    await bus.publish("work.a", b"body")

    await emptied(bus)

    assert await buried(bus) == []
    assert len(seen.deliveries) == often + 1


async def test_what_processes_die_of_is_buried(bus: Bus, consume: Consume) -> None:
    """It was begun, and then nothing more was heard of whoever had begun it."""
    attempts = await bus.key_value(ATTEMPT_BUCKET)
    await attempts.put("WORK-1", str(CRASHES).encode())
    seen = Seen(failing(Transient("the database is down", retry_after_s=0.001)))
    await consume(seen)
    await bus.publish("work.a", b"body")

    await emptied(bus)

    (dead,) = await buried(bus)
    assert dead.headers is not None
    assert dead.headers["Fw-Reason"].startswith("crash_loop")
    assert len(seen.deliveries) == SUSPECT_DELIVERIES


async def test_an_attempt_counts_until_it_ends(bus: Bus, consume: Consume) -> None:
    attempts = await bus.key_value(ATTEMPT_BUCKET)
    begun = []

    async def note(delivery: Delivery) -> None:
        if delivery.deliveries <= SUSPECT_DELIVERIES + 2:
            if delivery.deliveries > SUSPECT_DELIVERIES:
                begun.append((await attempts.get("WORK-1")).value)
            raise Transient("the database is down", retry_after_s=0.001)

    await consume(Seen(note))
    await bus.publish("work.a", b"body")

    await emptied(bus)

    assert begun == [b"1", b"1"]
    assert await buried(bus) == []
    with pytest.raises(KeyNotFoundError):
        await attempts.get("WORK-1")


EDGE = make_prompt("s3cr3t", residency="edge-only")
WITHHELD = [
    ("an edge-only prompt", EDGE.encode()),
    (
        "an edge-only prompt that holds the words",
        EDGE.model_copy(
            update={
                "sampling": EDGE.sampling.model_copy(
                    update={"response_schema": {"residency": "any", "s3cr3t": 1}}
                )
            }
        ).encode(),
    ),
    (
        "an edge-only prompt that says the words",
        make_prompt('s3cr3t "residency":"any"', residency="edge-only").encode(),
    ),
    ("what names no residency", b'{"prompt":"s3cr3t"}'),
    ("what names it inside", b'{"prompt":"s3cr3t","response_schema":{"residency":"any"}}'),
    ("what is no JSON", b's3cr3t "residency":"any"'),
    ("a list", b'["s3cr3t",{"residency":"any"}]'),
]


@pytest.mark.parametrize("body", [row[1] for row in WITHHELD], ids=[row[0] for row in WITHHELD])
async def test_the_body_of_what_may_be_edge_only_is_withheld(bus: Bus, body: bytes) -> None:
    await bus.publish("work.a", body)
    loop = PriorityLoop(bus, [WORK], Seen(failing(UnacceptableMessage("never"))), concurrency=1)
    await loop.start()

    await emptied(bus)

    (dead,) = await buried(bus)
    assert dead.headers is not None
    assert dead.headers["Fw-Body"] == "sealed"
    assert not dead.data
    await loop.stop(2)


async def test_the_body_of_what_may_go_anywhere_is_kept_for_operators(
    bus: Bus, consume: Consume
) -> None:
    await consume(Seen(failing(UnacceptableMessage("never"))))
    await bus.publish("work.a", make_prompt("open", residency="any"))

    await emptied(bus)

    (dead,) = await buried(bus)
    assert dead.headers is not None
    assert dead.headers["Fw-Body"] == "whole"
    assert Prompt.decode(dead.data or b"") == make_prompt("open", residency="any")


async def test_a_message_that_cannot_be_buried_stays(bus: Bus, at_once: None) -> None:
    """Without FW_DEAD there is nowhere to lay it; it must not be lost for that."""
    await bus.js.delete_stream("FW_DEAD")
    seen = Seen(failing(UnacceptableMessage("never")))
    await bus.publish("work.a", b"body")
    loop = PriorityLoop(bus, [WORK], seen, concurrency=1)
    await loop.start()

    await eventually(lambda: len(seen.deliveries) > 2)
    assert await pending(bus) == 1
    await bus.js.add_stream(name="FW_DEAD", subjects=["fw.dead.>"])
    await emptied(bus)

    assert len(await buried(bus)) == 1
    await loop.stop(2)


async def test_one_bad_message_harms_no_other(bus: Bus, consume: Consume, at_once: None) -> None:
    def fail(delivery: Delivery) -> None:
        if delivery.data == b"13":
            raise ValueError

    await consume(Seen(fail))
    for i in range(30):
        await bus.publish(f"work.{i}", b"%d" % i)

    await emptied(bus)

    assert [m.headers["Fw-Subject"] for m in await buried(bus) if m.headers] == ["work.13"]


async def test_long_work_keeps_its_message(
    make_bus: MakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "HEARTBEAT_S", 0.1)
    bus = await make_bus("tester", {})
    short = Durable("WORK", "worker", "work.*", ack_wait_s=1.5)
    await add_work(bus, short)
    done = asyncio.Event()

    async def work(_delivery: Delivery) -> None:
        await done.wait()

    seen = Seen(work)
    loop = PriorityLoop(bus, [short], seen, concurrency=4)
    await loop.start()
    await bus.publish("work.a", b"body")
    await eventually(lambda: seen.deliveries)

    # Three times as long as the server would wait for a dead one.
    await asyncio.sleep(4.5)
    done.set()
    await emptied(bus)

    assert [d.deliveries for d in seen.deliveries] == [1]
    await loop.stop(2)


async def test_dead_work_does_not_keep_its_message(bus: Bus) -> None:
    await bus.js.delete_stream("WORK")
    short = Durable("WORK", "worker", "work.*", ack_wait_s=0.2)
    await add_work(bus, short)
    await bus.publish("work.a", b"body")
    subscription = await bus.js.pull_subscribe_bind("worker", stream="WORK")
    await subscription.fetch(1)  # and die

    seen = Seen()
    loop = PriorityLoop(bus, [short], seen, concurrency=1)
    await loop.start()
    await emptied(bus)

    assert [d.deliveries for d in seen.deliveries] == [2]
    await loop.stop(2)


async def test_the_trace_goes_on_in_the_receiver(bus: Bus) -> None:
    await bus.publish(
        "work.a", b"body", headers={"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}
    )
    seen = Seen()
    loop = PriorityLoop(bus, [WORK], seen, concurrency=1)
    await loop.start()
    await emptied(bus)

    assert seen.deliveries[0].headers["traceparent"].startswith("00-aaaa")
    await loop.stop(2)


# -- the server goes away ---------------------------------------------------------------------


async def test_the_loops_outlive_a_server_that_is_killed(
    bus: Bus, nats: NatsServer, consume: Consume
) -> None:
    seen = Seen()
    await consume(seen)
    sent = []

    async def send(i: int) -> None:
        async def stored() -> bool:
            with contextlib.suppress(Transient):
                await bus.publish(f"work.{i}", b"%d" % i)
                return True
            return False

        await eventually(stored)
        sent.append(b"%d" % i)

    for i in range(10):
        await send(i)
    await nats.kill()
    await nats.start()
    for i in range(10, 20):
        await send(i)
    await emptied(bus)

    # At least once: what was handled just before the kill may come again.
    assert set(seen.bodies) == set(sent)
    assert bus.faults() == []
    assert bus.unready() == []


async def test_nothing_acknowledged_by_the_server_is_lost_by_its_death(
    nats: NatsServer, bus: Bus
) -> None:
    for i in range(100):
        await bus.publish(f"work.{i}", b"x")
    await nats.kill()
    await nats.start()

    async def count() -> bool:
        with contextlib.suppress(Exception):
            return await pending(bus) == 100
        return False

    await eventually(count)


@contextlib.asynccontextmanager
async def overheard(port: int) -> AsyncIterator[tuple[int, bytearray]]:
    """A way to the server, and the bytes that its clients have sent on it."""
    sent = bytearray()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        answers = asyncio.create_task(pump(server_reader, writer))
        while data := await reader.read(65536):
            sent.extend(data)
            server_writer.write(data)
        server_writer.close()
        await answers

    async with await asyncio.start_server(on_client, "127.0.0.1", 0) as proxy:
        yield proxy.sockets[0].getsockname()[1], sent


async def test_the_server_answers_for_confirmed_subscriptions(nats: NatsServer) -> None:
    async with overheard(urlsplit(nats.url).port or 0) as (port, sent):
        bus = Bus("ops", Nats(url=f"nats://127.0.0.1:{port}"), drain_s=1)
        await bus.connect(timeout_s=60)
        await bus.client.subscribe("some.subject")

        await bus.confirm_subscriptions()

        assert b"SUB some.subject" in sent
        assert sent.index(b"SUB some.subject") < sent.rindex(b"PING")
        await bus.stop()


async def test_a_connection_closed_for_good_is_a_fault(make_bus: MakeBus) -> None:
    bus = await make_bus()
    assert bus.faults() == []

    await bus.client.close()

    assert bus.faults() == ["the connection to NATS is closed for good"]


async def test_a_server_that_takes_only_small_messages_is_refused(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is too large for it would be published again and again."""
    monkeypatch.setattr(Client, "max_payload", 65_536)
    bus = Bus("tester", Nats(url=nats.url), drain_s=2)

    with pytest.raises(StartupError, match="65536 bytes at most") as caught:
        await bus.connect(timeout_s=60)

    assert "max_payload" in caught.value.mend
    await bus.stop()


async def test_a_heartbeat_that_has_ended_is_a_fault(bus: Bus) -> None:
    """What is in hand would be delivered to others meanwhile."""
    assert bus.faults() == []

    assert bus._heartbeat_task is not None
    bus._heartbeat_task.cancel()
    await asyncio.gather(bus._heartbeat_task, return_exceptions=True)

    assert bus.faults() == ["messages in hand are no longer kept"]


# -- timers -----------------------------------------------------------------------------------


async def test_a_timer_fires_once_and_setting_it_again_moves_it(bus: Bus) -> None:
    fired: list[str] = []

    async def note(batch: Sequence[Delivery]) -> None:
        fired.extend(d.subject for d in batch)

    async def schedule(fusion: str, at: str) -> None:
        headers = {"Nats-Schedule": f"@at {at}", "Nats-Schedule-Target": f"fw.due.{fusion}"}
        await bus.publish(f"fw.sched.{fusion}", b"{}", headers=headers)

    loop = BatchLoop(bus, JUDGE_DUE, note, batch=10)
    await loop.start()
    await schedule("far", "2100-01-01T00:00:00.000+00:00")
    await schedule("past", PAST)
    await eventually(lambda: fired)
    assert fired == ["fw.due.past"]

    await schedule("far", PAST)
    await eventually(lambda: len(fired) == 2)

    assert fired == ["fw.due.past", "fw.due.far"]
    await emptied(bus, "FW_TIMER")
    await loop.stop(2)


async def test_a_timer_outlives_the_server(bus: Bus, nats: NatsServer) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat(timespec="milliseconds")
    headers = {"Nats-Schedule": f"@at {soon}", "Nats-Schedule-Target": "fw.due.x"}
    await bus.publish("fw.sched.x", b"{}", headers=headers)
    await nats.kill()
    await nats.start()

    async def is_due() -> bool:
        with contextlib.suppress(Exception):
            return (
                await bus.js.get_msg("FW_TIMER", subject="fw.due.x", direct=False)
            ).data == b"{}"
        return False

    await eventually(is_due)


async def test_an_attempt_to_reconnect_that_drops_its_cancellation_ends_with_the_bus(
    make_bus: MakeBus, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `asyncio.wait_for` drops one until Python 3.12 (python/cpython#86296)."""
    bus = await make_bus()
    client = bus.client
    attempts: list[bool] = []

    async def connect(_client: Client, _server: object) -> None:
        attempts.append(True)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if len(attempts) > 1:
                raise
            raise ConnectionRefusedError from None

    monkeypatch.setattr(Client, "_connect_to_server", connect)
    await nats.kill()
    await eventually(lambda: attempts)
    await bus.stop()

    assert len(attempts) == 2
    assert client._reconnection_task is not None
    assert client._reconnection_task.done()
