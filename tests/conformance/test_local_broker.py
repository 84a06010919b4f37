"""The embedded broker, watched by the runner."""

import asyncio
import contextlib
import os
import resource
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from structlog.testing import capture_logs

from fusewire.settings import Nats, Settings
from fusewire.testing.eventually import PATIENCE_S, eventually
from fusewire.testing.nats_accounts import connect_to
from fusewire.topology import DISPATCHER_ROUND, round_subject
from fusewire_cli.local import nats, runner
from fusewire_cli.local.guard import Guard
from fusewire_cli.local.nats import EmbeddedNats
from fusewire_cli.local.runner import Stack, apply_topology

MakeSettings = Callable[..., Settings]


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[EmbeddedNats]:
    broker = EmbeddedNats(tmp_path)
    await broker.start()
    settings = Settings(data_dir=tmp_path)
    await apply_topology(settings, broker.connection(settings.nats))
    yield broker
    await broker.stop()


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PROBE_EVERY_S", 0.05)
    monkeypatch.setattr(runner, "PROBES", 2)
    monkeypatch.setattr(nats, "PROBE_S", 1)


@pytest.mark.usefixtures("_impatient")
async def test_a_broker_that_stores_nothing_any_more_is_ended_where_there_is_room(
    broker: EmbeddedNats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = Stack(Settings(data_dir=tmp_path))
    assert await broker.stores()
    os.kill(broker.pid, signal.SIGSTOP)
    monkeypatch.setattr(runner, "has_room", lambda _: False)
    watch = asyncio.create_task(stack._watch_broker(broker))
    await asyncio.sleep(3)
    assert broker.is_running, "a restart is of no use while the disk is full"

    with capture_logs() as told:
        monkeypatch.setattr(runner, "has_room", lambda _: True)
        await eventually(lambda: not broker.is_running)

    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    assert "up.broker_stuck" in [line["event"] for line in told]
    await broker.start()
    assert await broker.stores()


@pytest.mark.usefixtures("_impatient")
async def test_a_broker_of_which_one_stream_was_full_is_ended_where_there_is_room(
    broker: EmbeddedNats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of its files is a full disk to the one stream that is written to."""
    monkeypatch.setattr(runner, "has_room", lambda _: True)
    connection = broker.connection(Nats())
    full, unlimited = (30_000, resource.RLIM_INFINITY), (resource.RLIM_INFINITY,) * 2
    ingest = await connect_to(connection, "ingest")
    js = ingest.jetstream(timeout=1)
    try:
        resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, full)
        with pytest.raises(NatsError):
            await js.publish("fw.prompt.batch.acme", bytes(40_000))
        resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, unlimited)
        with pytest.raises(NatsError):
            await js.publish("fw.prompt.batch.acme", b"after it")
        assert await broker._answers(), "other streams store"
    finally:
        await ingest.close()

    watch = asyncio.create_task(Stack(Settings(data_dir=tmp_path))._watch_broker(broker))
    await eventually(lambda: not broker.is_running)

    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    await broker.start()
    assert await broker.stores()
    ingest = await connect_to(connection, "ingest")
    assert (await ingest.jetstream().publish("fw.prompt.batch.acme", b"again")).seq
    await ingest.close()


async def test_what_was_acknowledged_while_the_disk_was_full_is_removed_afterwards(
    broker: EmbeddedNats, tmp_path: Path
) -> None:
    """nats-server notes the acknowledgement, and cannot write that the message is gone."""
    settings = Settings(data_dir=tmp_path)
    connection = broker.connection(Nats())
    for number in range(3):
        await publish_round(connection, number)
    async with operator(connection) as js:
        rounds = await js.pull_subscribe_bind(DISPATCHER_ROUND.name, DISPATCHER_ROUND.stream)
        messages = await rounds.fetch(2)
        full = (1, resource.RLIM_INFINITY)
        resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, full)
        for message in messages:
            await message.ack()
        await until_handled(js, 2)
    resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    await broker.stop()

    await broker.start()
    async with operator(connection) as js:
        assert (await js.stream_info("FW_ROUND")).state.messages == 3
    await apply_topology(settings, connection)

    async with operator(connection) as js:
        assert (await js.stream_info("FW_ROUND")).state.messages == 1
        rounds = await js.pull_subscribe_bind(DISPATCHER_ROUND.name, DISPATCHER_ROUND.stream)
        (message,) = await rounds.fetch(1)
        assert message.data == b"round 2"


@contextlib.asynccontextmanager
async def operator(connection: Nats) -> AsyncIterator[JetStreamContext]:
    client = await connect_to(connection, "ops")
    try:
        yield client.jetstream(timeout=5)
    finally:
        await client.close()


async def publish_round(connection: Nats, number: int) -> None:
    async with operator(connection) as js:
        await js.publish(round_subject(f"f{number}"), f"round {number}".encode())


async def until_handled(js: JetStreamContext, sequence: int) -> None:
    async def is_handled() -> bool:
        info = await js.consumer_info(DISPATCHER_ROUND.stream, DISPATCHER_ROUND.name)
        assert info.ack_floor is not None
        return bool(info.ack_floor.stream_seq == sequence)

    await eventually(is_handled)


async def test_a_stack_watches_its_broker_and_says_when_it_does_not_any_more(
    make_settings: MakeSettings,
) -> None:
    stack = Stack(make_settings())
    await stack.start()
    try:
        assert stack._broker_watch
        stack._broker_watch.cancel()
        assert await stack.faulty() == ["nobody watches the services any more"]
    finally:
        await stack.stop()


@pytest.mark.usefixtures("_impatient")
async def test_the_watch_ends_though_a_look_keeps_the_cancellation_to_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = asyncio.Event()

    async def stores(_: EmbeddedNats) -> bool:
        looking.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return True

    monkeypatch.setattr(EmbeddedNats, "stores", stores)
    watch = asyncio.create_task(
        Stack(Settings(data_dir=tmp_path))._watch_broker(EmbeddedNats(tmp_path))
    )
    await looking.wait()

    watch.cancel()

    await asyncio.wait_for(asyncio.gather(watch, return_exceptions=True), PATIENCE_S)


@pytest.mark.usefixtures("_impatient")
async def test_a_broker_that_stores_is_left_alone(broker: EmbeddedNats, tmp_path: Path) -> None:
    stack = Stack(Settings(data_dir=tmp_path))
    pid = broker.pid
    watch = asyncio.create_task(stack._watch_broker(broker))

    await asyncio.sleep(1)

    assert (broker.is_running, broker.pid, watch.done()) == (True, pid, False)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


async def test_what_is_started_names_itself_to_the_guard() -> None:
    """Its starter may be killed before it could."""
    guard = Guard()
    await guard.start()
    command = guard.wrap(shutil.which("sleep") or "", "600")
    sleeper = await asyncio.create_subprocess_exec(*command, pass_fds=(guard.keep_open_fd,))

    await guard.stop(PATIENCE_S)

    assert await asyncio.wait_for(sleeper.wait(), PATIENCE_S) == -signal.SIGTERM
