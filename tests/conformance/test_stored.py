"""What a worker is told whose tasks are delivered again: which candidates have come."""

from collections.abc import Iterable
from typing import Any, cast

import pytest
from nats.aio.msg import Msg

from fusewire.bus import Bus, Delivery
from fusewire.candidate_lookup import JudgeLookup
from fusewire.contracts import Candidate, Plan
from fusewire.errors import Transient
from fusewire.store.engine import Store
from fusewire.testing.factories import FakeClock, make_candidate, make_plan, make_prompt
from fusewire.topology import candidate_subject, plan_subject, stored_subject
from fusewire_ingest.repository.submissions import Submissions
from fusewire_judge.candidate_lookup import StoredCandidates
from fusewire_judge.handlers import Handlers

PROMPT = make_prompt()
CALLS = ("a", "b", "c")


class Judge:
    """A judge that is handed its messages, on a broker that holds others."""

    def __init__(self, bus: Bus, store: Store) -> None:
        self._bus = bus
        self._handlers = Handlers(bus, store, FakeClock())

    async def publish(self, candidate: Candidate) -> None:
        """Published, and not taken by anybody yet."""
        await self._bus.publish(
            candidate_subject(candidate.fusion_id, candidate.round, candidate.call), candidate
        )

    async def commit(self, *messages: Plan | Candidate) -> None:
        await self._handlers.on_batch(
            [Delivery(m.encode(), subject(m), {}, 1, "", 1, cast("Msg", None)) for m in messages]
        )


def subject(message: Plan | Candidate) -> str:
    if isinstance(message, Plan):
        return plan_subject(message.fusion_id)
    return candidate_subject(message.fusion_id, message.round, message.call)


def answer(call: str) -> Candidate:
    return make_candidate("42", call, prompt=PROMPT)


@pytest.fixture
async def judge(bus: Bus, store: Store) -> Judge:
    await StoredCandidates(bus, store).start()
    await Submissions(store).add([PROMPT], [None])
    return Judge(bus, store)


async def asked(
    bus: Bus, fusion_id: str = PROMPT.fusion_id, round_: int = 0, calls: Iterable[str] = CALLS
) -> set[str]:
    return set(await JudgeLookup(bus)(fusion_id, round_, tuple(calls)))


async def test_what_is_committed_and_what_waits_to_be_has_come_and_nothing_else(
    bus: Bus, judge: Judge
) -> None:
    await judge.commit(make_plan(PROMPT), answer("a"))
    await judge.publish(answer("b"))

    assert await asked(bus) == {"a", "b"}
    assert await asked(bus, round_=1) == set()


async def test_of_a_fusion_that_is_over_no_call_need_be_made(bus: Bus, judge: Judge) -> None:
    await judge.commit(make_plan(PROMPT), answer("a"), answer("b"), answer("c"))

    assert await asked(bus) == set(CALLS)
    assert await asked(bus, round_=1, calls=("judge",)) == {"judge"}


async def test_of_a_fusion_that_was_erased_no_call_need_be_made(bus: Bus, judge: Judge) -> None:
    assert await asked(bus, fusion_id="f" + "0" * 26) == set(CALLS)


async def test_what_was_refused_counts_as_come(bus: Bus, judge: Judge) -> None:
    await judge.commit(
        make_plan(PROMPT), make_candidate(fails="cancelled", member="a", prompt=PROMPT)
    )

    assert await asked(bus) == {"a"}


async def test_without_a_judge_nobody_can_tell(bus: Bus) -> None:
    with pytest.raises(Transient, match="no judge tells"):
        await asked(bus)


async def test_a_judge_without_its_database_tells_nothing(
    bus: Bus, judge: Judge, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusewire.candidate_lookup.ASK_S", 0.3)
    monkeypatch.setattr(store, "run", _down)

    with pytest.raises(Transient, match="TimeoutError"):
        await asked(bus)


async def _down(*_: Any, **__: Any) -> None:
    raise Transient("the database is not available")


async def test_what_is_no_question_gets_no_answer(bus: Bus, judge: Judge) -> None:
    with pytest.raises(TimeoutError):
        await bus.client.request(stored_subject("x"), b"{}", timeout=0.3)
