"""Prompts that come over NATS: the reply comes after the commit, and at an inbox of the tenant."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fusewire.bus import Bus, Delivery
from fusewire.errors import Transient, UnacceptableMessage
from fusewire_ingest.intake import Intake
from fusewire_ingest.subscribe import BusSubscriber


class RecordingBroker:
    """A fake of the intake and of the connection, which notes what is done in which order."""

    def __init__(self, *, is_down: bool = False) -> None:
        self.steps: list[tuple[str, Any]] = []
        self.is_down = is_down
        self.client = self

    def read(self, data: bytes, *, tenant: str, fallback_id: str) -> Any:
        return SimpleNamespace(fusion_id="f", custom_id=fallback_id, data=data, tenant=tenant)

    async def submit(self, prompt: Any, *, source: str) -> Any:
        if self.is_down:
            raise Transient("the database is away")
        self.steps.append(("committed", (prompt.tenant, source)))
        return SimpleNamespace(is_new=True)

    async def publish(self, subject: str, body: bytes) -> None:
        self.steps.append(("replied", (subject, json.loads(body)["id"])))


async def handle(broker: RecordingBroker, inbox: str | None, *, by_tenant: bool = True) -> None:
    subscriber = BusSubscriber(
        cast("Intake", broker), cast("Bus", cast("Any", broker)), by_tenant=by_tenant
    )
    headers = {"Nats-Msg-Id": "m1"} | ({"Fw-Reply-To": inbox} if inbox else {})
    delivery = SimpleNamespace(subject="fw.in.acme", headers=headers, data=b"{}")
    await subscriber.handle(cast("Delivery", delivery))


async def test_a_prompt_is_committed_before_its_producer_is_told() -> None:
    broker = RecordingBroker()
    await handle(broker, "_INBOX.acme.x")
    assert broker.steps == [
        ("committed", ("acme", "nats")),
        ("replied", ("_INBOX.acme.x", "f")),
    ]


async def test_nobody_is_told_of_what_was_not_committed() -> None:
    broker = RecordingBroker(is_down=True)
    with pytest.raises(Transient):
        await handle(broker, "_INBOX.acme.x")
    assert broker.steps == []


@pytest.mark.parametrize(
    ("inbox", "by_tenant", "is_taken"),
    [
        (None, True, True),
        ("_INBOX.acme.x", True, True),
        ("_INBOX.acme.x.y", True, True),
        ("_INBOX.acme", True, False),
        ("_INBOX.acmex.x", True, False),
        ("_INBOX.other.x", True, False),
        ("_INBOX.other.acme.x", True, False),
        ("_INBOX_acme.x", True, False),
        ("_INBOX.x", True, False),
        ("fw.task.edge.m.high", True, False),
        # Where users of NATS are not told apart, their inboxes have no tenant's name.
        ("_INBOX.x", False, True),
        ("_INBOX.other.x", False, True),
        ("fw.task.edge.m.high", False, False),
    ],
)
async def test_a_reply_goes_to_an_inbox_of_the_tenant_where_each_has_its_user(
    inbox: str | None, by_tenant: bool, is_taken: bool
) -> None:
    broker = RecordingBroker()
    if is_taken:
        await handle(broker, inbox, by_tenant=by_tenant)
        assert broker.steps[0] == ("committed", ("acme", "nats"))
        return
    with pytest.raises(UnacceptableMessage, match="Fw-Reply-To must be an inbox"):
        await handle(broker, inbox, by_tenant=by_tenant)
    assert broker.steps == []
