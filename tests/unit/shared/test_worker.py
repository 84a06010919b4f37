"""The part that both workers share: each task ends in exactly one candidate."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import pytest
from nats.aio.msg import Msg
from nats.errors import ConnectionClosedError

from fusewire.bus import Bus, Delivery
from fusewire.contracts import Candidate, ContractError, Task, Tasks, Tier, Token, ToolCall
from fusewire.errors import Transient
from fusewire.testing.factories import T0, FakeClock, make_candidate, make_prompt, make_task
from fusewire.topology import MAX_DELIVERIES, PRIORITY
from fusewire.worker import (
    MAX_CANDIDATE_BYTES,
    FreeCalls,
    Make,
    TokenPublisher,
    Worker,
    failure_candidate,
)

TASK = make_task()


@dataclass
class FakeBus:
    """A bus that keeps what is published."""

    stored: dict[str, Candidate] = field(default_factory=dict)
    msg_ids: list[str | None] = field(default_factory=list)
    refusals: int = 0
    """How many further publications fail."""
    service: str = "worker-test"

    async def publish(
        self,
        subject: str,
        message: Candidate | bytes,
        *,
        msg_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        only_if_new: bool = False,
    ) -> bool:
        assert only_if_new
        assert headers is None or headers == {PRIORITY: "normal"}
        if self.refusals:
            self.refusals -= 1
            raise Transient("the broker is away")
        if subject in self.stored:
            return False
        self.stored[subject] = (
            message if isinstance(message, Candidate) else Candidate.decode(message)
        )
        self.msg_ids.append(msg_id)
        return True


@dataclass
class FakeGenerate(FreeCalls):
    """A model that gives what it was told to, or raises it."""

    gives: Candidate | Exception
    calls: int = 0

    async def generate(self, task: Task, tell: object = None) -> Candidate:
        self.calls += 1
        if isinstance(self.gives, Exception):
            raise self.gives
        return self.gives

    async def aclose(self) -> None:
        pass


class Panel(FakeGenerate):
    """Models that give by name; while the gate is shut they are at it."""

    def __init__(self, **by_call: Candidate | Exception | None) -> None:
        super().__init__(make_candidate())
        self.by_call = by_call
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun_calls: list[str] = []

    @asynccontextmanager
    async def hold(
        self,
        tasks: Tasks,
        deliveries: int,
        on_begin: Callable[[], None],
        *,
        is_repeated: bool = False,
    ) -> AsyncIterator[Make]:
        async def make(task: Task, _tell: object) -> Candidate | None:
            self.begun_calls.append(task.call)
            on_begin()
            await self.gate.wait()
            result = self.by_call[task.call]
            if isinstance(result, Exception):
                raise result
            return result

        yield make


def delivery(*tasks: Task, deliveries: int = 1) -> Delivery:
    message = Tasks.from_tasks("default", tasks or (TASK,))
    return Delivery(
        message.encode(),
        "fw.task.remote.default.normal",
        {},
        deliveries,
        "FW_TASK_REMOTE",
        1,
        cast("Msg", None),
    )


async def handle(
    stub: FakeGenerate, message: Delivery, bus: FakeBus | None = None, **options: Any
) -> Candidate:
    bus = bus or FakeBus()
    tier: Tier = options.pop("tier", "remote")
    worker = Worker(cast("Bus", bus), stub, {}, tier=tier, clock=options.pop("clock", FakeClock()))
    await worker.handle(message)
    (candidate,) = bus.stored.values()
    return candidate


async def test_a_task_becomes_a_candidate_on_its_own_subject() -> None:
    bus = FakeBus()

    candidate = await handle(FakeGenerate(make_candidate("Paris.")), delivery(), bus)

    assert candidate == make_candidate("Paris.")
    assert list(bus.stored) == [f"fw.candidate.{TASK.fusion_id}.0.a"]
    assert bus.msg_ids == [TASK.task_id]


async def test_a_task_delivered_again_leaves_the_first_candidate() -> None:
    bus = FakeBus()
    await handle(FakeGenerate(make_candidate("first")), delivery(), bus)

    assert (
        await handle(FakeGenerate(make_candidate("second")), delivery(deliveries=2), bus)
    ).content == "first"


@pytest.mark.parametrize("late", [0, 1])
async def test_a_task_whose_deadline_has_passed_is_not_tried(late: float) -> None:
    stub = FakeGenerate(make_candidate())

    candidate = await handle(
        stub, delivery(), clock=FakeClock(TASK.deadline_at + timedelta(seconds=late))
    )

    assert stub.calls == 0
    assert candidate.error is not None
    assert (candidate.error.code, candidate.attempts, candidate.content) == (
        "deadline_exceeded",
        0,
        None,
    )


async def test_a_task_of_another_tier_is_not_tried() -> None:
    stub = FakeGenerate(make_candidate())

    candidate = await handle(stub, delivery(make_task(tier="edge")), tier="remote")

    assert stub.calls == 0
    assert candidate.error is not None
    assert candidate.error.code == "bad_request"


async def test_an_edge_only_task_is_not_shown_to_a_hosted_model_though_it_says_so() -> None:
    stub = FakeGenerate(make_candidate())

    candidate = await handle(
        stub, delivery(make_task(make_prompt(residency="edge-only"), tier="remote"))
    )

    assert stub.calls == 0
    assert candidate.error is not None
    assert candidate.error.code == "bad_request"


async def test_an_answer_larger_than_a_message_becomes_an_error() -> None:
    candidate = await handle(FakeGenerate(make_candidate("é" * MAX_CANDIDATE_BYTES)), delivery())

    assert candidate.error is not None
    assert (candidate.error.code, candidate.content) == ("answer_too_large", None)
    assert str(MAX_CANDIDATE_BYTES) in candidate.error.message
    assert candidate.cost_usd == 0.001  # it was paid for


async def test_an_answer_of_just_a_message_is_kept() -> None:
    room = MAX_CANDIDATE_BYTES - len(make_candidate("").encode())

    assert (
        await handle(FakeGenerate(make_candidate("x" * room)), delivery())
    ).content == "x" * room


async def test_what_no_text_column_holds_is_replaced_wherever_it_stands() -> None:
    call = ToolCall(id="c\x00", name="f", arguments='{"place": "a\x00b"}')
    answer = make_candidate("a\x00b", tool_calls=[call], provider_reason="stop\x00")

    candidate = await handle(FakeGenerate(answer), delivery())

    assert candidate.content == "a\ufffdb"
    assert candidate.tool_calls == (
        ToolCall(id="c\ufffd", name="f", arguments='{"place": "a\ufffdb"}'),
    )
    assert candidate.provider_reason == "stop\ufffd"


async def test_what_only_spells_a_nul_stays_as_it_is() -> None:
    call = ToolCall(id="c", name="f", arguments='{"place": "a\\u0000b"}')

    candidate = await handle(FakeGenerate(make_candidate(r"\u0000", tool_calls=[call])), delivery())

    assert (candidate.content, candidate.tool_calls) == (r"\u0000", (call,))


@pytest.mark.parametrize("deliveries", range(1, MAX_DELIVERIES))
async def test_a_fault_of_ours_is_raised_so_that_the_task_comes_again(deliveries: int) -> None:
    bus = FakeBus()

    with pytest.raises(RuntimeError):
        await handle(FakeGenerate(RuntimeError("s3cr3t")), delivery(deliveries=deliveries), bus)

    assert bus.stored == {}


async def test_the_last_fault_leaves_a_candidate_and_is_buried() -> None:
    bus = FakeBus()

    with pytest.raises(RuntimeError):
        await handle(FakeGenerate(RuntimeError("s3cr3t")), delivery(deliveries=MAX_DELIVERIES), bus)

    (candidate,) = bus.stored.values()
    assert candidate.error is not None
    assert candidate.error.code == "poison"
    assert "RuntimeError" in candidate.error.message
    assert "s3cr3t" not in candidate.error.message


async def test_what_is_down_is_waited_for_and_poisons_nothing() -> None:
    bus = FakeBus()

    with pytest.raises(Transient):
        await handle(
            FakeGenerate(Transient("the ledger is down")),
            delivery(deliveries=MAX_DELIVERIES + 3),
            bus,
        )

    assert bus.stored == {}


async def test_what_is_no_task_is_refused() -> None:
    message = Delivery(
        b"{}", "fw.task.remote.default.normal", {}, 1, "FW_TASK_REMOTE", 1, cast("Msg", None)
    )

    with pytest.raises(ContractError):
        await handle(FakeGenerate(make_candidate()), message)


def test_a_failed_candidate_names_its_task() -> None:
    failure = make_candidate(fails="timeout").error
    assert failure is not None

    candidate = failure_candidate(TASK, failure, provider="openai", at=T0)

    assert (candidate.task_id, candidate.call, candidate.member) == (TASK.task_id, "a", "a")
    assert (candidate.attempts, candidate.cost_usd, candidate.latency_ms) == (0, None, 0)


# -- several in one message -------------------------------------------------------------------

TWO = [make_task(member=name) for name in "ab"]


def worker(bus: FakeBus, generate: FakeGenerate) -> Worker:
    return Worker(cast("Bus", bus), generate, {}, tier="remote", clock=FakeClock())


async def test_each_task_of_a_message_ends_in_its_own_candidate() -> None:
    bus = FakeBus()

    await worker(bus, Panel(a=make_candidate("A"), b=make_candidate("B", "b"))).handle(
        delivery(*TWO)
    )

    assert {c.call: c.content for c in bus.stored.values()} == {"a": "A", "b": "B"}


async def test_a_fault_in_one_takes_nothing_from_the_others() -> None:
    bus = FakeBus()

    with pytest.raises(RuntimeError):
        await worker(bus, Panel(a=RuntimeError(), b=make_candidate("B", "b"))).handle(
            delivery(*TWO)
        )

    assert [c.call for c in bus.stored.values()] == ["b"]


async def test_what_has_its_candidate_already_gets_no_second_one() -> None:
    bus = FakeBus()

    await worker(bus, Panel(a=None, b=make_candidate("B", "b"))).handle(
        delivery(*TWO, deliveries=2)
    )

    assert [c.call for c in bus.stored.values()] == ["b"]


async def test_a_redelivery_beside_running_calls_waits_for_them_and_makes_none() -> None:
    bus, panel = FakeBus(), Panel(a=make_candidate("A"), b=make_candidate("B", "b"))
    panel.gate.clear()
    shared_worker = worker(bus, panel)
    first, second = (
        asyncio.create_task(shared_worker.handle(delivery(*TWO, deliveries=n))) for n in (1, 2)
    )
    await asyncio.sleep(0.01)
    assert not second.done()

    panel.gate.set()
    await asyncio.gather(first, second)

    assert sorted(panel.begun_calls) == ["a", "b"]
    assert len(bus.stored) == 2
    await shared_worker.handle(delivery(*TWO, deliveries=3))
    assert len(panel.begun_calls) == 4, "what has ended is not attached to"


async def test_a_message_counts_no_more_once_a_call_has_begun() -> None:
    releases: list[str] = []
    panel = Panel(a=make_candidate("A"), b=make_candidate("B", "b"))
    panel.gate.clear()
    handling = asyncio.create_task(
        worker(FakeBus(), panel).handle(delivery(*TWO), lambda: releases.append("yes"))
    )
    await asyncio.sleep(0.01)

    assert releases
    panel.gate.set()
    await handling


async def test_a_candidate_is_published_however_long_the_broker_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fusewire.worker.retry_delay_s", lambda *_: 0.0)
    bus = FakeBus(refusals=7)

    assert (
        await handle(FakeGenerate(make_candidate("Paris.")), delivery(), bus)
    ).content == "Paris."


async def test_a_candidate_that_is_never_taken_is_given_up_long_after_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()

    def later(*_: object) -> float:
        clock.now += timedelta(minutes=5)
        return 0.0

    monkeypatch.setattr("fusewire.worker.retry_delay_s", later)
    with pytest.raises(Transient):
        await handle(FakeGenerate(make_candidate()), delivery(), FakeBus(refusals=99), clock=clock)


async def test_what_was_delivered_before_may_have_cost_something() -> None:
    late = FakeClock(TASK.deadline_at)

    assert (await handle(FakeGenerate(make_candidate()), delivery(), clock=late)).cost_usd == 0.0
    assert (
        await handle(FakeGenerate(make_candidate()), delivery(deliveries=2), clock=late)
    ).cost_usd is None


# -- cancelled --------------------------------------------------------------------------------


async def test_a_task_of_a_cancelled_fusion_is_not_tried() -> None:
    stub, bus = FakeGenerate(make_candidate()), FakeBus()
    worker = Worker(cast("Bus", bus), stub, {}, tier="remote", clock=FakeClock())
    other = make_task(make_prompt(custom_id="two"))
    worker._cancelled.add(TASK.fusion_id)

    await worker.handle(delivery())
    await worker.handle(delivery(other))

    cancelled, other_candidate = bus.stored.values()
    assert stub.calls == 1
    assert other_candidate.ok
    assert cancelled.error is not None
    assert (cancelled.error.code, cancelled.error.retryable) == ("cancelled", False)
    assert (cancelled.attempts, cancelled.cost_usd, cancelled.content) == (0, 0.0, None)
    assert (cancelled.task_id, cancelled.call) == (TASK.task_id, "a")


async def test_whoever_generates_is_told_what_is_cancelled() -> None:
    cancelled_ids: list[str] = []
    worker = Worker(
        cast("Bus", FakeBus()),
        FakeGenerate(make_candidate()),
        {},
        tier="edge",
        clock=FakeClock(),
        on_cancel=cancelled_ids.append,
    )

    worker._cancelled.add("f1")

    assert cancelled_ids == ["f1"]


# -- what is told while it is written ---------------------------------------------------------


@dataclass
class FakeClient:
    """The core of a bus: what was published is kept, unless the server is gone."""

    tokens: list[Token] = field(default_factory=list)
    is_down: bool = False

    @property
    def client(self) -> "FakeClient":
        return self

    async def publish(self, subject: str, body: bytes) -> None:
        if self.is_down:
            raise ConnectionClosedError
        assert subject == f"fw.token.{TASK.fusion_id}"
        self.tokens.append(Token.decode(body))


def publisher(**task: Any) -> tuple[TokenPublisher, FakeClient]:
    bus = FakeClient()
    return TokenPublisher(cast("Bus", bus), make_task(**{"is_streamed": True, **task})), bus


async def test_pieces_say_where_they_stand() -> None:
    tell, bus = publisher(round=2, call="write")

    for text in ("Par", "", "is\x00", "."):
        await tell(text)

    assert [(t.offset, t.text, t.attempt) for t in bus.tokens] == [
        (0, "Par", 1),
        (3, "is\ufffd", 1),
        (6, ".", 1),
    ]
    assert {(t.fusion_id, t.round, t.call) for t in bus.tokens} == {(TASK.fusion_id, 2, "write")}


async def test_a_call_that_is_made_again_begins_at_its_beginning() -> None:
    tell, bus = publisher()

    tell.restart()  # nothing was told: it is the first attempt yet
    await tell("Par")
    tell.restart()
    await tell("Rome")

    assert [(t.offset, t.text, t.attempt) for t in bus.tokens] == [(0, "Par", 1), (0, "Rome", 2)]


async def test_nothing_is_told_where_nobody_reads_along() -> None:
    tell, bus = publisher(is_streamed=False)

    await tell("Paris.")

    assert not tell.is_enabled
    assert publisher()[0].is_enabled
    assert bus.tokens == []


async def test_a_piece_that_cannot_be_told_harms_nobody() -> None:
    tell, bus = publisher()
    bus.is_down = True
    await tell("Par")
    bus.is_down = False
    await tell("is")

    assert [(t.offset, t.text) for t in bus.tokens] == [(3, "is")]


async def test_of_a_merge_nothing_is_told_that_judge_takes_out() -> None:
    fence = f"[[{'0a' * 16} BC]]"
    tell, bus = publisher(kind="write")

    for piece in (" ", "Par", "is. ", f"{fence}\n", "Rome."):
        await tell(piece)
    tell.restart()
    await tell("Rome.\n")

    assert [(t.offset, t.text, t.attempt) for t in bus.tokens] == [
        (0, "Par", 1),
        (3, "is.", 1),
        (0, "Rome.", 2),
    ]


async def test_a_member_s_answer_is_told_to_the_last_blank() -> None:
    tell, bus = publisher()

    for piece in (" ", f"[[{'0a' * 16} BC]]", "\n"):
        await tell(piece)

    assert "".join(t.text for t in bus.tokens) == f" [[{'0a' * 16} BC]]\n"
