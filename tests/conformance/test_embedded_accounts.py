"""The embedded broker runs under the accounts of deploy/nats, with keys of its own."""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError

from fusewire import provision
from fusewire.accounts import render
from fusewire.bus import Bus
from fusewire.errors import StartupError
from fusewire.settings import Nats, Settings
from fusewire.testing.nats_accounts import connect, embedded_broker
from fusewire.testing.nats_server import NatsServer
from fusewire.topology import Topology, topology
from fusewire_cli import nkey_files
from fusewire_cli.local.nats import EmbeddedNats
from fusewire_cli.local.runner import Stack

MakeSettings = Callable[..., Settings]
WHOLE = topology({"m": "edge", "h": "remote"}, ["default"])


@contextlib.asynccontextmanager
async def running(data_dir: Path) -> AsyncIterator[EmbeddedNats]:
    broker = EmbeddedNats(data_dir)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


@contextlib.asynccontextmanager
async def user(name: str, broker: EmbeddedNats | NatsServer) -> AsyncIterator[Bus]:
    plain = Nats(url=broker.url)
    bus = Bus(name, broker.connection(plain) if isinstance(broker, EmbeddedNats) else plain)
    await bus.connect(timeout_s=100)
    try:
        yield bus
    finally:
        await bus.stop()


async def provisioned(broker: EmbeddedNats | NatsServer, target: Topology = WHOLE) -> str:
    """Provision a broker. Returns the id of its store."""
    async with user("ops", broker) as ops:
        await provision.apply(ops.js, target)
        return await ops.store_id()


async def test_a_stack_s_broker_lets_nobody_in_without_a_key(make_settings: MakeSettings) -> None:
    settings = make_settings()
    stack = Stack(settings)
    await stack.start()
    try:
        broker = embedded_broker(settings.data_dir)
        client = Client()
        with pytest.raises(NatsError, match="Authorization Violation"):
            await client.connect(broker.url, allow_reconnect=False)
        await client.close()
        operator = await connect(settings.data_dir)
        assert (await operator.jetstream().stream_info("FW_PROMPT")).config.name == "FW_PROMPT"
        await operator.close()
    finally:
        await stack.stop()
    folder = settings.data_dir / "nats"
    assert (folder / "accounts.conf").read_text() == render(tenants=["default"])
    assert "Violation" not in (folder / "nats.log").read_text().replace("Authorization Viol", "")


async def test_what_an_earlier_release_has_stored_is_there(tmp_path: Path) -> None:
    """One without keys: its ledger too, so that no call is paid for twice."""
    async with NatsServer(tmp_path / "nats") as plain:
        store_id = await provisioned(plain)
        async with user("ops", plain) as ops:
            await (await ops.key_value("fw_calls")).put("key", b"sent")
            await ops.publish("fw.task.remote.default.high", b"task")

    async with running(tmp_path) as broker:
        assert await provisioned(broker) == store_id
        async with user("worker-remote", broker) as worker:
            assert (await (await worker.key_value("fw_calls")).get("key")).value == b"sent"
            tasks = await worker.js.pull_subscribe_bind("default-high", "FW_TASK_REMOTE")
            assert [message.data for message in await tasks.fetch(1, timeout=100)] == [b"task"]


async def test_after_a_rollback_what_the_older_release_has_stored_last_is_there(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as broker:
        newer_id = await provisioned(broker)
    async with NatsServer(tmp_path / "nats") as plain:
        older_id = await provisioned(plain)
    async with running(tmp_path) as broker:
        assert await provisioned(broker) == older_id != newer_id


async def test_other_models_and_pools_need_no_other_keys(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        await provisioned(broker)
    other = topology({"n": "edge", "h": "remote"}, ["large"])
    async with running(tmp_path) as broker:
        await provisioned(broker, other)
        for name, subject, stream, durable in (
            ("worker-edge", "fw.task.edge.n.low", "FW_TASK_EDGE", "n-low"),
            ("worker-remote", "fw.task.remote.large.low", "FW_TASK_REMOTE", "large-low"),
        ):
            async with user("dispatcher", broker) as dispatcher, user(name, broker) as worker:
                await dispatcher.publish(subject, b"task")
                tasks = await worker.js.pull_subscribe_bind(durable, stream)
                (task,) = await tasks.fetch(1, timeout=100)
                await task.ack_sync()


async def test_a_tenant_submits_with_the_key_that_was_added_for_it(tmp_path: Path) -> None:
    async with running(tmp_path) as broker:
        await provisioned(broker)
    keys = tmp_path / "nats" / "keys"
    nkey_files.write(keys, [], ["acme"], adds=True)
    async with running(tmp_path) as broker:
        client = Client()
        await client.connect(
            broker.url,
            nkeys_seed=str(keys / "tenant-acme.seed"),
            inbox_prefix=b"_INBOX.acme",
        )
        stored = await client.jetstream().publish("fw.in.acme", b"{}", timeout=100)
        assert (stored.stream, stored.seq) == ("FW_IN", 1)
        await client.close()


async def test_a_broker_does_not_start_without_a_key_that_it_had(tmp_path: Path) -> None:
    async with running(tmp_path):
        pass
    (tmp_path / "nats" / "keys" / "judge.seed").unlink()
    broker = EmbeddedNats(tmp_path)
    with pytest.raises(StartupError, match=r"judge\.seed is lost"):
        await broker.start()
    assert not broker.is_running


async def test_a_running_broker_starts_again_though_a_key_is_lost(tmp_path: Path) -> None:
    """Its services have theirs already."""
    async with running(tmp_path) as broker:
        url = broker.url
        await provisioned(broker)
        (tmp_path / "nats" / "keys" / "judge.seed").unlink()
        await broker.stop()
        await broker.start()
        assert (broker.url, await broker.stores()) == (url, True)
