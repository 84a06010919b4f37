"""An edge site: a leaf node of the hub, over a link that is cut, slow or lossy.

Two real nats-servers with the files of deploy/nats, and the real services, each with its own key.
"""

import asyncio
import contextlib
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg

from fusewire import bus as bus_module
from fusewire import loops, provision, replies
from fusewire.bus import Bus
from fusewire.configuration import CONFIG_ENV
from fusewire.contracts import Task
from fusewire.crash_points import CRASH_FOLDER_ENV, CrashPoint
from fusewire.http_server import listen
from fusewire.service import Host, Service
from fusewire.settings import EdgeModel, Settings
from fusewire.testing.command_line import background, bare
from fusewire.testing.echo_worker import EchoEngine, echo
from fusewire.testing.eventually import eventually
from fusewire.testing.link import Link
from fusewire.testing.nats_accounts import Keys, edge_site, hub
from fusewire.testing.nats_server import NatsServer
from fusewire.topology import OUTBOX, PRIORITY, site_topology, topology
from fusewire_cli.client import Client
from fusewire_dispatcher.service import Dispatcher
from fusewire_ingest.service import Ingest
from fusewire_judge.service import Judge
from fusewire_worker_edge import service as worker_edge
from fusewire_worker_edge.service import WorkerEdge
from fusewire_worker_remote.service import WorkerRemote

MakeSettings = Callable[..., Settings]
DEPLOY = Path(__file__).parents[2] / "deploy" / "nats"
ACK_WAIT_S = 2.0
SECRET = "s3cr3t-0f-the-site"
POOL = {"members": ["tiny", "small", "a"], "judge": None}
EDGE = {name: {"kind": "edge", "path": "/nowhere"} for name in ("tiny", "small")}


@dataclass
class Site:
    """The hub and one edge site, running.

    Attributes:
        link: between the two.
        answer_gate: closed, the site's models do not finish their answers.
        calls: how often each task was answered at the site.
    """

    keys: Keys
    hub: NatsServer
    server: NatsServer
    link: Link
    settings: Settings
    client: Client
    answer_gate: asyncio.Event = field(default_factory=asyncio.Event)
    calls: Counter[str] = field(default_factory=Counter)
    worker: WorkerEdge | None = None

    async def answer(self, task: Task) -> str:
        self.calls[task.task_id] += 1
        await self.answer_gate.wait()
        return echo(task)

    async def start_worker(self) -> None:
        nats = self.keys.settings("worker-edge", self.server.url, "north")
        settings = self.settings.model_copy(update={"nats": nats})
        self.worker = WorkerEdge(settings)
        await self.worker.start()

    async def stop_worker(self) -> None:
        if self.worker:
            await self.worker.stop()
            self.worker = None

    async def in_outbox(self) -> int:
        """How many candidates wait at the site."""
        nats = self.keys.settings("ops", self.server.url, "north")
        async with _connection("ops", nats) as bus:
            return (await bus.js_of(OUTBOX.name).stream_info(OUTBOX.name)).state.messages

    async def all_acknowledged(self) -> None:
        """Wait until no task would be delivered again."""
        async with _connection("ops", self.keys.settings("ops", self.hub.url)) as ops:

            async def are_gone() -> bool:
                return (await ops.js.stream_info("FW_TASK_EDGE")).state.messages == 0

            await eventually(are_gone)

    async def begin(self, n: int, **fields: Any) -> list[str]:
        """Submit prompts, and return their ids once the site works on all of them."""
        replies = [
            await self.client.submit({"prompt": f"{SECRET} {number}", **fields})
            for number in range(n)
        ]
        await eventually(lambda: len(self.calls) >= 2 * n)
        return [reply["id"] for reply in replies]

    async def outcomes(self, ids: list[str]) -> list[replies.fusions.Fusion]:
        """The outcomes of fusions, waited for."""
        shown = []
        for fusion_id in ids:
            while (reply := await self.client.get(fusion_id, wait_s=30))["status"] == "running":
                pass
            shown.append(reply)
        return shown


@contextlib.asynccontextmanager
async def _connection(service: str, nats: Any) -> AsyncIterator[Bus]:
    bus = Bus(service, nats, drain_s=2)
    await bus.connect(timeout_s=120)
    try:
        yield bus
    finally:
        await bus.stop()


@pytest.fixture
async def site(
    tmp_path: Path, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Site]:
    keys = Keys.make(tmp_path / "keys", ["north", "south"])
    settings = make_settings(pool=POOL, models=EDGE)
    async with contextlib.AsyncExitStack() as stack:
        center = await stack.enter_async_context(hub(tmp_path / "hub", DEPLOY, keys))
        link = await stack.enter_async_context(Link(center.leaf_port))
        server = await stack.enter_async_context(
            edge_site(tmp_path / "site", DEPLOY, keys, name="north", hub_port=link.port)
        )
        models = {name: model.kind for name, model in settings.models.items()}
        whole = topology(models, settings.pools)
        # What is not acknowledged comes again soon.
        monkeypatch.setattr(bus_module, "HEARTBEAT_S", ACK_WAIT_S / 4)
        durables = tuple(replace(durable, ack_wait_s=ACK_WAIT_S) for durable in whole.durables)
        async with _connection("ops", keys.settings("ops", center.url)) as ops:
            await provision.apply(ops.js, replace(whole, durables=durables))
        ops_there = keys.settings("ops", server.url, "north")
        async with _connection("ops", ops_there) as ops:
            await provision.apply(ops.js_of(OUTBOX.name), site_topology())

        def build(kind: Callable[[Settings], Service], name: str) -> Service:
            return kind(settings.model_copy(update={"nats": keys.settings(name, center.url)}))

        services = [
            build(Judge, "judge"),
            build(WorkerRemote, "worker-remote"),
            build(Dispatcher, "dispatcher"),
            build(Ingest, "ingest"),
        ]
        sock = listen(settings.http)
        url = "http://{}:{}".format(*sock.getsockname()[:2])
        host = Host(services, sock)
        await host.start()
        stack.push_async_callback(host.stop)
        client = await stack.enter_async_context(Client(url))
        running = Site(keys, center, server, link, settings, client)
        running.answer_gate.set()
        # No model: an engine in name, in the real worker.
        engine = EchoEngine(running.answer)
        monkeypatch.setattr(worker_edge, "EdgeGenerate", lambda models, clock: engine)
        monkeypatch.setattr(worker_edge, "verify", lambda folder: None)
        await running.start_worker()
        stack.push_async_callback(running.stop_worker)
        yield running


def assert_whole(site: Site, outcomes: list[replies.fusions.Fusion], *, n: int) -> None:
    """Each fusion has one outcome with all its members, and no task was answered twice."""
    assert [outcome["is_degraded"] for outcome in outcomes] == [False] * n
    assert all(
        {answer["status"] for answer in outcome["answers"]} == {"ok"} for outcome in outcomes
    )
    assert site.calls == dict.fromkeys(site.calls, 1)
    assert len(site.calls) == 2 * n


async def test_a_fusion_across_a_slow_link(site: Site) -> None:
    """500 ms each way."""
    site.link.delay_s = 0.5
    outcomes = await site.outcomes(await site.begin(3))
    assert_whole(site, outcomes, n=3)


async def test_answers_of_a_site_whose_link_is_cut_wait_in_its_outbox(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However long: elsewhere a durable that is missing ends the process.
    monkeypatch.setattr(loops, "MISSING_S", 0.0)
    site.answer_gate.clear()
    ids = await site.begin(4)
    await site.link.cut()
    site.answer_gate.set()

    async def all_stored() -> bool:
        return await site.in_outbox() == 8

    await eventually(all_stored)
    worker = site.worker
    assert worker is not None
    await eventually(worker.unready)
    assert worker.faults() == []
    site.link.restore()

    outcomes = await site.outcomes(ids)
    await site.all_acknowledged()
    assert_whole(site, outcomes, n=4)
    assert await site.in_outbox() == 0


async def test_a_worker_that_is_started_again_while_the_link_is_cut_answers_nothing_twice(
    site: Site,
) -> None:
    """The next one is delivered the same tasks, whose acknowledgements were lost."""
    site.answer_gate.clear()
    ids = await site.begin(2)
    await site.link.cut()
    site.answer_gate.set()

    async def all_stored() -> bool:
        return await site.in_outbox() == 4

    await eventually(all_stored)
    await site.stop_worker()
    await site.server.kill()
    await site.server.start()
    await site.start_worker()
    assert site.worker is not None
    await eventually(site.worker.unready)
    site.link.restore()

    outcomes = await site.outcomes(ids)
    await site.all_acknowledged()
    assert_whole(site, outcomes, n=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    [CrashPoint.WORKER_PUBLISHED, CrashPoint.WORKER_DONE, CrashPoint.FORWARDER_FORWARDED],
)
async def test_a_worker_that_dies_on_the_way_to_the_hub_loses_nothing_and_doubles_nothing(
    site: Site, tiny_folder: Path, tmp_path: Path, point: CrashPoint
) -> None:
    """A process of its own, with a model, killed at a crash point (docs/decisions/0059)."""
    await site.stop_worker()
    nats = site.keys.settings("worker-edge", site.server.url, "north")
    edge = EdgeModel(kind="edge", path=tiny_folder, max_tokens=4, threads=1)
    settings = site.settings.model_copy(
        update={"nats": nats, "models": {**site.settings.models, "tiny": edge, "small": edge}}
    )
    (tmp_path / "site.json").write_text(settings.model_dump_json())
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / point).touch()
    env = {
        **bare(tmp_path).env,
        CRASH_FOLDER_ENV: str(tmp_path / "points"),
        CONFIG_ENV: str(tmp_path / "site.json"),
        "PYTHONPATH": "",  # else it would have imported the points before it has the folder
    }
    command = [sys.executable, "-m", "fusewire_worker_edge"]

    ids = [(await site.client.submit({"prompt": f"{SECRET} {n}"}))["id"] for n in range(3)]
    with background(command, cwd=tmp_path, env=env) as worker:
        await eventually(lambda: worker.returncode is not None)
        assert worker.returncode == -signal.SIGKILL, worker.stderr
    with background(command, cwd=tmp_path, env=env):
        outcomes = await site.outcomes(ids)
        await site.all_acknowledged()

        async def is_empty() -> bool:
            return await site.in_outbox() == 0

        await eventually(is_empty)
    # The model says whatever it says, up to its limit of tokens.
    reasons = {reason for outcome in outcomes for reason in outcome["degraded_reasons"]}
    assert {reason.partition(":")[0] for reason in reasons} <= {"winner_cut"}
    async with _connection("ops", site.keys.settings("ops", site.hub.url)) as ops:
        # Each plan, and each answer of three members, once.
        assert (await ops.js.stream_info("FW_CANDIDATE")).state.last_seq == 3 * (1 + 3)


async def test_a_lossy_link_loses_nothing_and_doubles_nothing(site: Site) -> None:
    site.link.loss = 0.03
    outcomes = await site.outcomes(await site.begin(12))
    await site.all_acknowledged()
    assert site.link.losses > 0
    assert_whole(site, outcomes, n=12)


async def test_the_hub_learns_the_priority_of_what_an_outbox_held(site: Site) -> None:
    """By it the judge takes the urgent ones of all that waits first."""
    async with _heard_by("ops", site.keys, site.hub) as heard:
        await site.outcomes(await site.begin(1, priority="high"))

    candidates = [msg for msg in heard if msg.subject.startswith("fw.candidate.")]
    priorities = {
        msg.subject.rpartition(".")[2]: (msg.headers or {}).get(PRIORITY) for msg in candidates
    }
    assert priorities == dict.fromkeys(["tiny", "small", "a"], "high")


async def test_no_content_of_the_edge_gets_to_the_other_side(site: Site, tmp_path: Path) -> None:
    """Neither to hosted models nor to another site, whose operator listens to all there is."""
    south = edge_site(
        tmp_path / "south", DEPLOY, site.keys, name="south", hub_port=site.hub.leaf_port
    )
    async with (
        south,
        _heard_by("ops", site.keys, site.server) as heard_north,
        _heard_by("ops", site.keys, south) as heard_south,
    ):
        outcomes = await site.outcomes(await site.begin(2, residency="edge-only"))

    assert {outcome["status"] for outcome in outcomes} == {"voted"}
    assert any(SECRET.encode() in msg.data for msg in heard_north)
    assert [msg for msg in heard_south if SECRET.encode() in msg.data] == []
    async with _connection("ops", site.keys.settings("ops", site.hub.url)) as ops:
        assert (await ops.js.stream_info("FW_TASK_REMOTE")).state.last_seq == 0


@contextlib.asynccontextmanager
async def _heard_by(user: str, keys: Keys, server: NatsServer) -> AsyncIterator[list[Msg]]:
    """All that a user of a server can hear."""
    heard: list[Msg] = []

    async def note(msg: Msg) -> None:
        heard.append(msg)

    async with _connection(user, keys.settings(user, server.url)) as bus:
        await bus.client.subscribe(">", cb=note)
        await bus.confirm_subscriptions()
        yield heard
