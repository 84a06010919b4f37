"""Messages in, messages out; nothing of what is cancelled."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import pytest
import structlog
from nats.aio.msg import Msg
from structlog.testing import capture_logs

from fusewire.bus import Bus, Delivery
from fusewire.cancel import CancelledFusions
from fusewire.contracts import Plan, Prompt, Round, Sampling, Tasks
from fusewire.testing.factories import FakeClock, make_prompt, make_round
from fusewire.topology import REPEATED
from fusewire_dispatcher.handlers import Handlers
from fusewire_dispatcher.planning.catalogue import Catalogue, MemberSpec, ModelSpec, PoolSpec

MEMBERS = tuple(MemberSpec(name, f"m-{name}", 1.0, None, Sampling()) for name in "ab")
POOL = PoolSpec(MEMBERS, judge="m-judge", quorum=0.67, debate_rounds=1, config_hash="cafe")
CATALOGUE = Catalogue(
    {"default": POOL}, {name: ModelSpec("remote", name) for name in ("m-a", "m-b", "m-judge")}
)


@dataclass
class RecordedBus:
    """A bus that records what is published."""

    messages: dict[str, Plan | Tasks] = field(default_factory=dict)
    headers: dict[str, Mapping[str, str]] = field(default_factory=dict)

    async def store_id(self) -> str:
        return "now"

    async def publish(
        self,
        subject: str,
        message: Plan | Tasks,
        *,
        headers: Mapping[str, str] | None = None,
        msg_id: str | None = None,
        only_if_new: bool = False,
    ) -> bool:
        self.headers[subject] = headers or {}
        assert only_if_new == isinstance(message, Plan)
        assert msg_id == (message.key if isinstance(message, Tasks) else None)
        self.messages[subject] = message
        return True


def delivery(message: Prompt | Round) -> Delivery:
    return Delivery(message.encode(), "", {}, 1, "", 1, cast("Msg", None))


PROMPT, OTHER = make_prompt(), make_prompt(custom_id="two")
MESSAGES = [
    (PROMPT, {"fw.task.remote.default.normal", f"fw.plan.{PROMPT.fusion_id}"}),
    (make_round(), {"fw.task.remote.default.normal"}),
]


@pytest.mark.parametrize(("message", "subjects"), MESSAGES, ids=["prompt", "round"])
async def test_what_is_cancelled_is_dropped_and_all_else_published(
    message: Prompt | Round, subjects: set[str]
) -> None:
    cancelled = CancelledFusions()
    bus = RecordedBus()
    handlers = Handlers(cast("Bus", bus), CATALOGUE, FakeClock(), cancelled)
    handle = handlers.on_prompt if isinstance(message, Prompt) else handlers.on_round

    cancelled.add(OTHER.fusion_id)
    await handle(delivery(message))
    assert set(bus.messages) == subjects

    bus.messages.clear()
    cancelled.add(PROMPT.fusion_id)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    with capture_logs() as lines:
        await handle(delivery(message))
    assert bus.messages == {}
    assert [line["event"] for line in lines] == ["dispatcher.cancelled"]


STORES = [("", {}), ("now", {}), ("lost", {REPEATED: "1"})]


@pytest.mark.parametrize(("store_id", "headers"), STORES)
@pytest.mark.parametrize("message", [PROMPT, make_round()], ids=["prompt", "round"])
async def test_tasks_that_were_asked_for_in_another_store_say_that_they_may_be_repeated(
    message: Prompt | Round, store_id: str, headers: Mapping[str, str]
) -> None:
    bus = RecordedBus()
    handlers = Handlers(cast("Bus", bus), CATALOGUE, FakeClock(), CancelledFusions())
    handle = handlers.on_prompt if isinstance(message, Prompt) else handlers.on_round

    await handle(delivery(message.model_copy(update={"store_id": store_id})))

    assert bus.headers["fw.task.remote.default.normal"] == headers
