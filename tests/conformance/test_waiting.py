"""Clients that wait: how often they look at a real database, and what wakes them."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from nats.aio.msg import Msg

from fusewire.bus import Bus
from fusewire.errors import Transient
from fusewire.settings import Database
from fusewire.store.engine import Store
from fusewire.testing.eventually import eventually
from fusewire.testing.factories import make_prompt
from fusewire.testing.statements import statements
from fusewire_ingest import waiting
from fusewire_ingest.repository.submissions import Submissions
from fusewire_ingest.waiting import Outcomes

PROMPT = make_prompt()


class Looks:
    """A connection that can be lost, and a database whose reads of outcomes are counted."""

    def __init__(self, store: Store, said: list[str]) -> None:
        self.connection = SimpleNamespace(connection=0)
        self.outcomes = Outcomes(cast("Bus", self.connection), store)
        self._said = said

    @property
    def count(self) -> int:
        return sum("outcomes" in one for one in self._said)

    def wait(self, seconds: float) -> asyncio.Task[Any]:
        return asyncio.create_task(self.outcomes.get(PROMPT.tenant, PROMPT.fusion_id, seconds))

    async def announce(self) -> None:
        subject = f"fw.outcome.{PROMPT.tenant}.{PROMPT.fusion_id}"
        await self.outcomes._on_announcement(Msg(cast("Any", None), subject=subject))


@pytest.fixture
async def looks(sqlite_database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Looks]:
    monkeypatch.setattr(waiting, "CONNECTION_S", 0.01)
    monkeypatch.setattr(waiting, "POLL_S", 600.0)
    store = Store(sqlite_database)
    await Submissions(store).add([PROMPT], [None])
    with statements(store) as said:
        yield Looks(store, said)
    await store.close()


async def test_who_waits_looks_at_the_beginning_and_at_the_end(looks: Looks) -> None:
    found = await looks.wait(0.3)

    assert found.outcome is None
    # Two, or one where the first took longer than that.
    assert 1 <= looks.count <= 2


async def test_an_announcement_is_worth_a_look(looks: Looks) -> None:
    waits = looks.wait(60)
    await eventually(lambda: looks.count == 1)
    await looks.announce()
    await eventually(lambda: looks.count == 2)

    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)


async def test_who_comes_when_it_stops_does_not_wait(looks: Looks) -> None:
    looks.outcomes.close()
    async with asyncio.timeout(20):
        found = await looks.outcomes.get(PROMPT.tenant, PROMPT.fusion_id, 60, just_begun=True)

    assert found is not None
    assert (found.outcome, looks.count) == (None, 1)


@pytest.mark.parametrize("lost", [None, 1], ids=["down", "another"])
async def test_a_connection_that_was_lost_is_worth_a_look(looks: Looks, lost: int | None) -> None:
    waits = looks.wait(60)
    await eventually(lambda: looks.count == 1)
    looks.connection.connection = lost
    await eventually(lambda: looks.count >= 2)

    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)


async def test_who_asks_while_others_look_shares_their_next_look(looks: Looks) -> None:
    found = await asyncio.gather(*(looks.wait(0) for _ in range(20)))

    assert {one.fusion_id for one in found} == {PROMPT.fusion_id}
    assert looks.count <= 2


async def test_a_look_that_fails_is_told_to_all_who_wait_and_the_next_one_is_made(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(*_: Any) -> None:
        raise Transient("the database is not available")

    with monkeypatch.context() as patched:
        patched.setattr(waiting, "standings", down)
        ends = await asyncio.gather(*(looks.wait(0) for _ in range(3)), return_exceptions=True)
    assert [type(end) for end in ends] == [Transient] * 3

    assert await looks.wait(0) is not None


async def test_who_stops_waiting_takes_nothing_from_the_others(looks: Looks) -> None:
    first, second = looks.wait(0), looks.wait(0)
    await asyncio.sleep(0)
    first.cancel()

    assert await second is not None
