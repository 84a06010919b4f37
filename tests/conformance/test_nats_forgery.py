"""Requests whose replies are to go to a subject on which their sender may not publish.

The server does not check the reply subject of a request, and answers there: inside one account it
would store its answer as a task, or hand it to another service. What a worker or tenant asks for
comes back into its own account. Two real servers, the hub and a leaf, with the files of
deploy/nats; the duties are in fusewire.testing.nats_duties.
"""

import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from fusewire import provision
from fusewire.bus import Bus
from fusewire.testing.eventually import PATIENCE_S, eventually
from fusewire.testing.nats_accounts import Keys, edge_site, hub
from fusewire.testing.nats_duties import (
    DUTIES,
    TENANTS,
    core_subjects,
    covers,
    in_fw,
    inboxes,
    system_subjects,
)
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.nats_wire import WireClient
from fusewire.topology import topology

DEPLOY = Path(__file__).parents[2] / "deploy" / "nats"
SITES = ("north", "south")
TOPOLOGY = topology({"m": "edge", "h": "remote"}, ["default"])
TASK = b"task"
SINGLE = b'{"seq": 1}'
FORGERY = b'{"forged": true}'
TARGETS = (
    *core_subjects(TOPOLOGY),
    *inboxes(),
    *("$KV.fw_calls.k", "$KV.fw_dialects.k", "$KV.fw_attempts.other", "$O.fw_blobs.M.x"),
    *("$JS.API.STREAM.DELETE.FW_IN", "$JS.API.STREAM.PURGE.FW_TASK_EDGE"),
    *("$JS.API.CONSUMER.DELETE.FW_CANDIDATE.judge", "$JS.ACK.FW_IN.ingest.1.1.1.1.1"),
    *("$JS.ACK.FW_TASK_EDGE.m-high.1.1.1.1.1", "$JS.ACK.FW_TASK_REMOTE.default-high.1.1.1.1.1"),
    *("$SYS.REQ.SERVER.PING", "_R_.x.y"),
)
REAL_NAMES = {
    "FW_TASK_EDGE.*": "FW_TASK_EDGE.m-high",
    "FW_TASK_REMOTE.*": "FW_TASK_REMOTE.default-high",
}
OUTSIDERS = sorted(name for name, duty in DUTIES.items() if duty.account != "FW")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("forgery") / "keys", SITES, TENANTS)


@pytest.fixture
async def server(tmp_path: Path, keys: Keys) -> AsyncIterator[NatsServer]:
    """The hub, provisioned."""
    async with hub(tmp_path / "hub", DEPLOY, keys) as running:
        bus = Bus("ops", keys.settings("ops", running.url), drain_s=2)
        await bus.connect(timeout_s=PATIENCE_S)
        await provision.apply(bus.js, TOPOLOGY)
        await bus.stop()
        yield running


@dataclass
class Listeners:
    """Connections that hear all that their users can."""

    clients: dict[str, WireClient]

    async def clear(self) -> None:
        for client in self.clients.values():
            await client.flush()
            client.messages.clear()

    async def heard(self, attacker: str) -> dict[str, list[str]]:
        """By user, the subjects of what it heard that the attacker may not send."""
        duty = DUTIES[attacker]
        heard: dict[str, list[str]] = {}
        for name, client in self.clients.items():
            await client.flush()
            for message in client.messages:
                # A task that is handed out keeps the subject under which it is stored.
                is_handed_out = name == "ops" and message.data == TASK
                is_target = message.subject in TARGETS and not duty.may_send(message.subject)
                if is_target and not is_handed_out:
                    heard.setdefault(name, []).append(message.subject)
        return heard


@contextlib.asynccontextmanager
async def listening(keys: Keys, server: NatsServer, attacker: str) -> AsyncIterator[Listeners]:
    """All users but the attacker; ops hears all that there is in FW."""
    names = {"ops", "edge-site-south", *DUTIES} - {attacker}
    async with contextlib.AsyncExitStack() as stack:
        clients = {}
        for name in sorted(names):
            client = await stack.enter_async_context(WireClient(server.url, keys.seed(name)))
            clients[name] = client
            duty = DUTIES.get(name)
            own = (*duty.hears, *duty.inbox) if duty else ("_INBOX_worker-edge-south.>", "_R_.>")
            for subject in (">",) if name == "ops" else own:
                client.subscribe(subject)
        listeners = Listeners(clients)
        await listeners.clear()
        yield listeners


async def states(keys: Keys, server: NatsServer, user: str) -> dict[str, tuple[int, int]]:
    """Messages and last sequence of each stream to which a user may not write."""
    duty = DUTIES[user]
    bus = Bus("ops", keys.settings("ops", server.url), drain_s=2)
    await bus.connect(timeout_s=PATIENCE_S)
    infos = await bus.js.streams_info()
    await bus.stop()
    sent = (*duty.sends, *(f"$KV.{bucket}.>" for bucket in duty.keeps))
    return {
        str(info.config.name): (info.state.messages, info.state.last_seq)
        for info in infos
        if not any(
            covers(subject, send) or covers(send, subject)
            for subject, send in itertools.product(info.config.subjects or (), sent)
        )
    }


def requests_of(user: str) -> Sequence[str]:
    """All that it sends and asks, and that a stream, JetStream or a service answers.

    What a bucket is to hold comes first: a read of it brings back bytes of the sender's choice.
    """
    duty = DUTIES[user]
    subjects = "\n".join((*duty.puts, *duty.sends, *duty.requests))
    for pattern, name in REAL_NAMES.items():
        subjects = subjects.replace(pattern, name)
    return subjects.replace("*", "k").splitlines()


async def forge(client: WireClient, user: str) -> int:
    """Ask for everything, with each target as the place for the reply. Returns how often.

    Then ask for it once more, and wait for the replies: they come after those before them.
    """
    inbox = DUTIES[user].inbox[0].removesuffix(".>")
    client.subscribe(f"{inbox}.>")
    targets = [target for target in TARGETS if not DUTIES[user].may_send(target)]
    requests = requests_of(user)
    for request in requests:
        is_api = request.startswith(("$JS.", "fwjs."))
        data = SINGLE if ".MSG.GET." in request else b"" if is_api else FORGERY
        for target in (*targets, f"{inbox}.{request}"):
            client.publish(request, data, target)
    # On core NATS nobody answers here; the next task comes under the subject that it has.
    silent = ("fw.token.", "fw.stored.", "fwjs.CONSUMER.MSG.NEXT.", "$JS.API.CONSUMER.MSG.NEXT.")
    answers = {f"{inbox}.{request}" for request in requests if not request.startswith(silent)}
    await client.flush()
    await eventually(lambda: answers <= {message.subject for message in client.messages})
    return len(requests) * len(targets)


@contextlib.asynccontextmanager
async def tasks(keys: Keys, server: NatsServer) -> AsyncIterator[None]:
    """Tasks that a request for the next would hand on."""
    async with WireClient(server.url, keys.seed("dispatcher")) as dispatcher:
        for _ in range(2 * len(TARGETS)):
            dispatcher.publish("fw.task.edge.m.high", TASK)
            dispatcher.publish("fw.task.remote.default.high", TASK)
        await dispatcher.flush()
        yield


@pytest.mark.parametrize("user", OUTSIDERS)
async def test_what_a_worker_or_tenant_asks_is_answered_nowhere_else(
    keys: Keys, server: NatsServer, user: str
) -> None:
    async with (
        tasks(keys, server),
        listening(keys, server, user) as listeners,
        WireClient(server.url, keys.seed(user)) as attacker,
    ):
        before = await states(keys, server, user)
        attempts = await forge(attacker, user)
        heard = await listeners.heard(user)
        after = await states(keys, server, user)
    assert heard == {}
    assert after == before
    assert attacker.refusals.total() == 0
    print(f"{user}: {attempts} replies sent elsewhere, none arrived")


async def test_within_the_account_of_the_streams_the_server_does_what_it_is_told(
    keys: Keys, server: NatsServer
) -> None:
    """Why workers are not in it; and that the test above would see it."""
    async with (
        listening(keys, server, "judge") as listeners,
        WireClient(server.url, keys.seed("judge")) as judge,
    ):
        before = await states(keys, server, "judge")
        await forge(judge, "judge")
        heard = await listeners.heard("judge")
        after = await states(keys, server, "judge")
    assert {"fw.task.remote.default.high", "fw.prompt.high.t"} <= set(heard["ops"])
    assert heard["ingest"]
    assert after["FW_TASK_REMOTE"] > before["FW_TASK_REMOTE"]


@contextlib.asynccontextmanager
async def site_operator(folder: Path, keys: Keys, server: NatsServer) -> AsyncIterator[WireClient]:
    """Somebody who may do all at an edge site, whose server is connected to the hub."""
    north = edge_site(folder, DEPLOY, keys, name="north", hub_port=server.leaf_port)
    async with north, WireClient(north.url, keys.seed("ops")) as operator:
        await eventually(lambda: "Leafnode connection created" in north.log())
        yield operator


async def test_a_site_s_operator_can_do_at_the_hub_what_its_worker_can(
    keys: Keys, server: NatsServer, tmp_path: Path
) -> None:
    user, duty = "edge-site-north", DUTIES["edge-site-north"]
    subjects = [*core_subjects(TOPOLOGY), *inboxes(), *system_subjects(TOPOLOGY)]
    marker, fence = b'{"site": "north"}', "fw.candidate.fence.0.a"
    allowed = list(filter(duty.may_send, subjects))
    async with (
        tasks(keys, server),
        listening(keys, server, user) as listeners,
        site_operator(tmp_path / "site", keys, server) as operator,
    ):
        ops = listeners.clients["ops"]
        before = await states(keys, server, user)

        def arrived() -> set[str]:
            return {message.subject for message in ops.messages if message.data == marker}

        def all_arrived() -> bool:
            for subject in allowed:
                operator.publish(subject, marker)
            return arrived() >= {in_fw(subject) for subject in allowed}

        # Until the site knows what the hub takes.
        await eventually(all_arrived)
        for subject in (*subjects, fence):
            operator.publish(subject, marker)
        await operator.flush()
        await eventually(lambda: fence in arrived())
        await forge(operator, user)
        heard = await listeners.heard(user)
        after = await states(keys, server, user)
    assert arrived() == {fence, *map(in_fw, allowed)}
    assert heard == {}
    assert after == before


async def test_a_site_s_operator_hears_of_the_hub_what_its_worker_does(
    keys: Keys, server: NatsServer, tmp_path: Path
) -> None:
    marker, fence = b"of the hub", "fw.cancel.fence"
    subjects = (*core_subjects(TOPOLOGY), *inboxes())
    async with (
        site_operator(tmp_path / "site", keys, server) as operator,
        WireClient(server.url, keys.seed("ops")) as ops,
        WireClient(server.url, keys.seed("worker-edge")) as worker,
    ):
        operator.subscribe(">")
        await operator.flush()

        def fenced() -> bool:
            ops.publish(fence, marker)
            return any(message.subject == fence for message in operator.messages)

        # Until the hub knows of the subscription.
        await eventually(fenced)
        for subject in subjects:
            ops.publish(subject, marker)
            # Refused, or sent within the account of the hub's own worker.
            worker.publish(subject, marker)
        await worker.flush()
        await ops.flush()
        ops.publish("fw.cancel.end", marker)
        await ops.flush()
        await eventually(lambda: operator.messages[-1].subject == "fw.cancel.end")
    heard = {message.subject for message in operator.messages if message.data == marker}
    assert heard == {fence, "fw.cancel.f", "fw.cancel.end"}


async def test_a_site_s_worker_counts_attempts_that_do_not_end(
    keys: Keys, server: NatsServer, tmp_path: Path
) -> None:
    """At the hub, by a name that the site's server lets through: `$KV` it keeps to itself."""
    north = edge_site(tmp_path / "site", DEPLOY, keys, name="north", hub_port=server.leaf_port)
    async with north:
        bus = Bus("worker-edge", keys.settings("worker-edge", north.url, "north"), drain_s=2)
        await bus.connect(timeout_s=PATIENCE_S)

        async def is_counted() -> bool:
            return await bus._count_attempt("first") > 0

        # Until the link is up.
        await eventually(is_counted)
        assert [await bus._count_attempt("key") for _ in range(3)] == [1, 2, 3]
        await bus._put_attempt("key", b"", {"KV-Operation": "DEL"})
        assert await bus._count_attempt("key") == 1
        await bus.stop()
