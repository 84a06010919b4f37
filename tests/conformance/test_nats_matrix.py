"""Every verb on every subject as every user: what is not its duty is refused, and does nothing.

One real nats-server with the files of deploy/nats. The duties are in fusewire.testing.nats_duties.
"""

import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fusewire import provision
from fusewire.accounts import users
from fusewire.bus import Bus
from fusewire.testing.eventually import PATIENCE_S
from fusewire.testing.nats_accounts import Keys, hub
from fusewire.testing.nats_duties import (
    DUTIES,
    TENANTS,
    core_subjects,
    in_fw,
    inboxes,
    system_subjects,
    wildcards,
)
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.nats_wire import WireClient
from fusewire.topology import topology

DEPLOY = Path(__file__).parents[2] / "deploy" / "nats"
TOPOLOGY = topology({"m": "edge", "n": "edge", "h": "remote"}, ["default", "large"])
SUBJECTS = list(dict.fromkeys((*core_subjects(TOPOLOGY), *inboxes(), *system_subjects(TOPOLOGY))))
SUBSCRIPTIONS = list(dict.fromkeys((*SUBJECTS, *wildcards())))
USERS = sorted(DUTIES)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("matrix") / "keys", ["north"], TENANTS)


@pytest.fixture
async def server(tmp_path: Path, keys: Keys) -> AsyncIterator[NatsServer]:
    """The hub, provisioned."""
    async with hub(tmp_path / "hub", DEPLOY, keys) as running:
        bus = Bus("ops", keys.settings("ops", running.url), drain_s=2)
        await bus.connect(timeout_s=PATIENCE_S)
        await provision.apply(bus.js, TOPOLOGY)
        await bus.stop()
        yield running


def client(user: str, keys: Keys, server: NatsServer) -> WireClient:
    return WireClient(server.url, keys.seed(user))


def without_domain(subject: str) -> str:
    """The server maps JetStream's API by the name of its own domain before it looks at rights."""
    name = subject.replace("$JS.hub.API.", "$JS.API.")
    return re.sub(r"^\$JS\.API\.(?=\$KV\.|\$O\.)", "", name) if name != subject else subject


def test_each_user_has_a_duty() -> None:
    assert {user.name for user in users(["north"], TENANTS)} - DUTIES.keys() == {"ops"}


@pytest.mark.parametrize("user", USERS)
async def test_what_is_not_its_duty_is_refused_and_what_is_arrives(
    keys: Keys, server: NatsServer, user: str
) -> None:
    duty = DUTIES[user]
    marker = json.dumps({"matrix": user}).encode()
    reply = duty.inbox[0].replace(">", "reply")
    async with client("ops", keys, server) as ops, client(user, keys, server) as tried:
        ops.subscribe(">")
        await ops.flush()
        for subject in SUBJECTS:
            tried.publish(subject, marker)
            tried.publish(subject, marker, reply)
        for subject in SUBSCRIPTIONS:
            tried.subscribe(subject)
            tried.subscribe(subject, "queue")
        await tried.flush()
        await ops.flush()

    sent = [without_domain(subject) for subject in SUBJECTS]
    wanted = Counter(("Publish", subject) for subject in sent * 2 if not duty.may_send(subject))
    wanted.update(("Subscription", name) for name in SUBSCRIPTIONS * 2 if not duty.may_hear(name))
    assert differences(tried.refusals, wanted) == {}
    arrived = {message.subject for message in ops.messages if message.data == marker}
    assert arrived == {in_fw(subject) for subject in sent if duty.may_send(subject)}
    print(f"{user}: {2 * (len(SUBJECTS) + len(SUBSCRIPTIONS))} attempts, {wanted.total()} refused")


def differences(
    have: Counter[tuple[str, str]], want: Counter[tuple[str, str]]
) -> dict[tuple[str, str], tuple[int, int]]:
    """How often each was refused, and ought to be, where that differs."""
    return {
        attempt: (have[attempt], want[attempt])
        for attempt in sorted({*have, *want})
        if have[attempt] != want[attempt]
    }
