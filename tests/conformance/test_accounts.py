"""Least privilege on NATS: what each service may do works, and nothing else is let through.

One real nats-server with the files of deploy/nats. That the whole pipeline runs under these
permissions is seen in test_edge_site.py.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError

from fusewire import provision
from fusewire.accounts import WORKER_PREFIX, render, users
from fusewire.bus import Bus
from fusewire.contracts import Plan
from fusewire.errors import StartupError
from fusewire.settings import Nats
from fusewire.testing.eventually import eventually
from fusewire.testing.factories import make_candidate, make_plan
from fusewire.testing.nats_accounts import Keys, hub
from fusewire.testing.nats_server import NatsServer
from fusewire.topology import candidate_subject, plan_subject, topology
from fusewire_ingest.queues import STREAMS, QueueReader
from fusewire_ingest.watching import Watcher

DEPLOY = Path(__file__).parents[2] / "deploy" / "nats"
SERVICES = [user.name for user in users(["north"]) if user.name != "ops"]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys.make(tmp_path / "keys", ["north"])


@pytest.fixture
async def server(tmp_path: Path, keys: Keys) -> AsyncIterator[NatsServer]:
    """The hub, provisioned."""
    async with hub(tmp_path / "hub", DEPLOY, keys) as running:
        async with connection("ops", keys, running) as ops:
            await provision.apply(ops.js, topology({"m": "edge", "h": "remote"}, ["default"]))
        yield running


@contextlib.asynccontextmanager
async def connection(user: str, keys: Keys, server: NatsServer) -> AsyncIterator[Bus]:
    bus = Bus(user, keys.settings(user, server.url), drain_s=2)
    await bus.connect(timeout_s=120)
    try:
        yield bus
    finally:
        await bus.stop()


API = "$JS.API."
ALL_PULLS = {
    "ingest": ["FW_IN.ingest"],
    "dispatcher": ["FW_PROMPT.dispatcher-high", "FW_ROUND.dispatcher"],
    "judge": ["FW_CANDIDATE.judge", "FW_TIMER.judge-due"],
    "worker-edge": ["FW_TASK_EDGE.m-high"],
    "worker-remote": ["FW_TASK_REMOTE.default-high"],
}
PUBLISHERS = {
    "fw.prompt.normal.t": {"ingest"},
    "fw.round.f": {"judge"},
    "fw.task.edge.m.high": {"dispatcher"},
    "fw.task.remote.default.high": {"dispatcher"},
    "fw.plan.f": {"dispatcher"},
    "fw.candidate.f.1.a": {"worker-edge", "edge-site-north", "worker-remote"},
    "fw.outcome.t.f": {"judge"},
    "fw.sched.f": {"judge"},
    "fw.due.f": {"ingest"},
    "fw.in.t": set(),
    "fw.stored.f": {"worker-edge", "edge-site-north", "worker-remote"},
    "fw.cancel.f": {"ingest"},
    "$KV.fw_calls.k": {"worker-remote"},
    "$KV.fw_dialects.k": {"worker-remote"},
    "$O.fw_blobs.C.x": {"ingest"},
}


def api_requests(user: str) -> set[str]:
    """Requests of JetStream's API that a service must not make, by the names of its account."""
    requests = {
        f"STREAM.{verb}.{stream}"
        for verb in ("CREATE", "UPDATE", "DELETE", "PURGE", "MSG.GET", "MSG.DELETE", "SNAPSHOT")
        for stream in ("FW_PROMPT", "FW_TASK_EDGE", "FW_TASK_REMOTE", "FW_DEAD_EDGE", "KV_fw_calls")
    }
    requests |= {"STREAM.LIST", "STREAM.NAMES", "CONSUMER.CREATE.FW_TASK_EDGE"}
    # Ingest reads how much waits, of what every prompt passes.
    streams = ["FW_DEAD_EDGE", "FW_TIMER", *(() if user == "ingest" else STREAMS)]
    requests |= {f"CONSUMER.LIST.{stream}" for stream in streams}
    for other, durables in ALL_PULLS.items():
        if other != user and not (user == "edge-site-north" and other == "worker-edge"):
            requests |= {f"CONSUMER.MSG.NEXT.{durable}" for durable in durables}
            requests |= {f"CONSUMER.DELETE.{durable}" for durable in durables}
    prefixes = [API, f"{WORKER_PREFIX}."]
    return {prefix + request for prefix in prefixes for request in requests}


async def denied(bus: Bus, server: NatsServer, subjects: set[str]) -> set[str]:
    """Which of these subjects the server does not let a client publish to."""
    lines = server.log().count("\n")
    for subject in sorted(subjects):
        await bus.client.publish(subject, b"{}")
    with contextlib.suppress(NatsError):
        await bus.client.flush()

    def refused_subjects() -> set[str]:
        new_lines = server.log().splitlines()[lines:]
        return {
            line.partition('Subject "')[2].partition('"')[0]
            for line in new_lines
            if "Publish Violation" in line
        }

    with contextlib.suppress(AssertionError):
        await eventually(lambda: refused_subjects() >= subjects, timeout_s=3)
    return refused_subjects() & subjects


@pytest.mark.parametrize("user", SERVICES)
async def test_a_service_can_do_nothing_that_is_not_its_own(
    keys: Keys, server: NatsServer, user: str
) -> None:
    forbidden = api_requests(user) | {
        subject for subject, users in PUBLISHERS.items() if user not in users
    }
    async with connection(user, keys, server) as bus:
        assert await denied(bus, server, forbidden) == forbidden


@pytest.mark.parametrize("user", SERVICES)
async def test_a_service_hears_only_what_it_needs(
    keys: Keys, server: NatsServer, user: str
) -> None:
    """Not what others are sent, either."""
    others = [f"_INBOX_{other}.>" for other in SERVICES if other != user]
    subjects = [">", "fw.>", "$JS.>", "fw.task.>", "fw.prompt.>", *others]
    async with connection(user, keys, server) as bus:
        for subject in subjects:
            await bus.client.subscribe(subject)
        await bus.client.flush()
        await eventually(lambda: server.log().count("Subscription Violation") >= len(subjects))


@pytest.mark.parametrize("user", ["worker-edge", "worker-remote"])
async def test_no_reply_of_the_server_becomes_a_task(
    keys: Keys, server: NatsServer, user: str
) -> None:
    """A request whose reply subject is that of a task: inside one account it would be stored."""
    durable = ALL_PULLS[user][0]
    request = f"{WORKER_PREFIX}.CONSUMER.INFO.{durable}"
    async with connection(user, keys, server) as bus, connection("ops", keys, server) as ops:
        for reply in ("fw.task.edge.m.high", "fw.task.remote.default.high"):
            await bus.client.publish(request, b"", reply=reply)
        await bus.client.flush()
        # Answered: the request after it has its reply.
        stream, _, consumer = durable.partition(".")
        await bus.js.consumer_info(stream, consumer)
        for stream in ("FW_TASK_EDGE", "FW_TASK_REMOTE"):
            assert (await ops.js.stream_info(stream)).state.last_seq == 0


async def test_ingest_hears_all_rounds_of_a_fusion(keys: Keys, server: NatsServer) -> None:
    """Of one that a client follows; and how much waits in the queues."""
    plan, candidate = make_plan(), make_candidate("judge", "~judge", round=2)
    fusion_id = plan.fusion_id
    async with (
        connection("ingest", keys, server) as ingest,
        connection("dispatcher", keys, server) as dispatcher,
        connection("worker-edge", keys, server) as edge,
        connection("worker-remote", keys, server) as remote,
    ):
        async with Watcher(ingest).follow(fusion_id) as messages:
            await dispatcher.publish(plan_subject(fusion_id), plan)
            for worker, round_ in ((edge, 0), (remote, 2)):
                subject = candidate_subject(fusion_id, round_, "a")
                await worker.publish(subject, candidate, only_if_new=True)
            received = [await messages.next(60) for _ in range(3)]
        lengths = {
            (queue["stream"], queue["durable"]): queue["waiting"]
            for queue in await QueueReader(ingest).read()
        }
    assert [type(message) for message in received].count(Plan) == 1
    assert [message for message in received if message != plan] == [candidate] * 2
    assert lengths["FW_CANDIDATE", "judge"] == 3
    assert lengths["FW_TASK_EDGE", "m-high"] == lengths["FW_IN", "ingest"] == 0
    assert "Subscription Violation" not in server.log()


async def test_one_without_a_key_is_not_let_in(server: NatsServer) -> None:
    client = Client()
    with pytest.raises(NatsError, match="Authorization Violation"):
        await client.connect(server.url, allow_reconnect=False)
    await client.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("UABC", "holds no seed of a user's nkey"),
        ("", "holds no seed of a user's nkey"),
    ],
)
def test_a_bad_key_says_how_to_mend_it(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "nkey.seed"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StartupError, match=message) as caught:
        Bus("ingest", Nats(url="nats://127.0.0.1:1", nkey=path))
    assert "[nats] nkey" in caught.value.mend


async def test_a_seed_may_end_with_a_line_break(keys: Keys, server: NatsServer) -> None:
    path = keys.folder / "judge.seed"
    path.write_text(path.read_text() + "\n")
    async with connection("judge", keys, server) as bus:
        assert bus.is_connected


def test_each_user_is_named_once_and_no_wildcard_is_a_service_s() -> None:
    names = [user.name for user in users(["north"])]
    assert len(set(names)) == len(names)
    for user in users(["north"]):
        if user.name != "ops":
            assert ">" not in user.publish
            assert ">" not in user.subscribe
            assert render(["north"]).count(user.variable) == 1


async def test_the_plan_of_the_ledger_is_not_for_the_edge(keys: Keys, server: NatsServer) -> None:
    async with connection("worker-edge", keys, server) as bus:
        with pytest.raises((NatsError, asyncio.TimeoutError)):
            await bus.client.request(
                f"{WORKER_PREFIX}.DIRECT.GET.KV_fw_calls.$KV.fw_calls.k",
                json.dumps({}).encode(),
                timeout=0.5,
            )
