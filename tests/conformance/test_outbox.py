"""The outbox on real parts: what is published is marked soon, and never as younger than it is."""

from datetime import datetime
from typing import Any, cast

import pytest
from sqlalchemy import select

from fusewire import provision
from fusewire.bus import Bus
from fusewire.contracts import Prompt
from fusewire.errors import Transient
from fusewire.store.engine import Store
from fusewire.store.tables import prompts
from fusewire.testing.eventually import eventually
from fusewire.testing.factories import T0, FakeClock, make_prompt
from fusewire.topology import topology
from fusewire_ingest import outbox as outbox_module
from fusewire_ingest.outbox import Outbox
from fusewire_ingest.repository.submissions import Submissions

PROMPTS = [make_prompt(custom_id=name) for name in ("one", "two", "three")]


class NoLargeParts:
    """Prompts that refer to nothing."""

    async def publish(self, prompt: Any) -> None:
        """Nothing to see to."""

    async def tidy(self) -> None:
        """Nothing to take back."""


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def outbox(bus: Bus, store: Store, clock: FakeClock) -> Outbox:
    submissions = Submissions(store)
    await submissions.add(PROMPTS, [None] * len(PROMPTS))
    outbox = Outbox(bus, submissions, cast("Any", NoLargeParts()), clock)
    # Nothing is old enough to be published, but it gets to know the broker's store.
    await outbox.sweep()
    return outbox


async def marks(store: Store) -> dict[str, datetime | None]:
    async with store.read() as connection:
        rows = await connection.execute(select(prompts.c.custom_id, prompts.c.published_at))
        return dict(tuple(row) for row in rows)


async def test_a_mark_is_no_younger_than_the_first_message_that_it_stands_for(
    outbox: Outbox, store: Store, clock: FakeClock
) -> None:
    """A broker whose store was lost in between must not seem to have them."""
    await outbox.publish([(PROMPTS[0], None)])
    clock.advance(3)
    await outbox.publish([(PROMPTS[1], None)])
    clock.advance(3)
    assert set((await marks(store)).values()) == {None}

    await outbox.mark()

    assert await marks(store) == {"one": T0, "two": T0, "three": None}


async def test_what_is_published_is_marked_soon_and_when_it_stops(
    outbox: Outbox, store: Store
) -> None:
    outbox.start()
    outbox.offer(PROMPTS[0])

    async def is_marked() -> bool:
        return (await marks(store))["one"] is not None

    await eventually(is_marked)
    await outbox.publish([(PROMPTS[1], None)])
    await outbox.stop()

    assert (await marks(store))["two"] is not None


async def test_an_urgent_prompt_is_published_before_those_that_wait(
    outbox: Outbox, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "IN_FLIGHT", 1)
    for number in range(20):
        outbox.offer(make_prompt(custom_id=f"line-{number}", priority="low"))
    outbox.offer(make_prompt(custom_id="normal", priority="normal"))
    outbox.offer(make_prompt(custom_id="high", priority="high"))
    outbox.start()

    async def are_published() -> bool:
        return (await bus.js.stream_info("FW_PROMPT")).state.messages == 22

    await eventually(are_published)
    await outbox.stop()
    published = [await bus.js.get_msg("FW_PROMPT", number) for number in range(1, 23)]
    names = [Prompt.decode(message.data or b"").custom_id for message in published]
    assert names == ["high", "normal", *(f"line-{number}" for number in range(20))]


async def test_what_went_to_a_store_that_is_lost_meanwhile_is_not_marked(
    outbox: Outbox, bus: Bus, store: Store
) -> None:
    await outbox.publish([(PROMPTS[0], None)])
    await bus.js.delete_stream("FW_PROMPT")
    await provision.apply(bus.js, topology({}, ["default"]))

    await outbox.sweep()
    await outbox.mark()

    assert (await marks(store))["one"] is None
    await outbox.publish([(PROMPTS[0], None)])
    await outbox.mark()
    assert (await marks(store))["one"] is not None


async def test_what_cannot_be_marked_is_found_again(
    outbox: Outbox, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(*_: Any) -> None:
        raise Transient("the database is not available")

    with monkeypatch.context() as patched:
        patched.setattr(Submissions, "mark_published", down)
        await outbox.publish([(PROMPTS[0], None)])
        await outbox.mark()

    assert (await marks(store))["one"] is None
    assert len(await Submissions(store).find_unpublished(T0.replace(year=2100), 10)) == 3
