"""Loops that fetch messages from durables and run handlers on them."""

import abc
import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from fusewire import metrics
from fusewire.bus import (
    HANDLED_WITHIN_S,
    PULL_TIMEOUT_S,
    SUSPECT_DELIVERIES,
    Bus,
    Delivery,
    Handler,
    within,
)
from fusewire.contracts import PRIORITIES
from fusewire.crash_points import CrashPoint, reach
from fusewire.errors import Transient
from fusewire.pull import PullConsumer
from fusewire.tasks import cancel
from fusewire.topology import PRIORITY, Durable

log = structlog.get_logger(__name__)

QUIET_S = 0.005
"""After so long without a message the next one is expected to come alone. To ask for more would
cost a request, and a reply that there are none."""
LINGER_S = 0.001
"""How long a batch waits for more messages after the first: members of one pool tend to answer
together, and a transaction for three of them costs little more than for one."""
AGAIN_LEAST_S, AGAIN_MOST_S = 0.05, 2.0
"""Pause before a batch is handled again, doubled each time."""
MISSING_S = 30.0
"""A durable that is missing for longer will not come back by itself; during a change of its leader
it does."""
RANKS: dict[str, int] = {priority: rank for rank, priority in enumerate(PRIORITIES)}
STALLED_S = 60.0
"""A loop without a turn for this long is reported as stalled."""
MOST_IN_HAND = 512
"""The most messages that a `ReleaseLoop` handles at once, counted or released
(docs/decisions/0041)."""


class Loop:
    """A fetch loop as a task, with the time of its last turn for the liveness probe."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.last_turn = time.monotonic()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self, drain_s: float) -> None:
        """Fetch no more, let running handlers end within `drain_s`, and hand back the rest."""
        self._stopping.set()
        if self._task:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._task), drain_s)
            await cancel([self._task, *self.running()])

    def running(self) -> list[asyncio.Task[None]]:
        """Handlers that run apart from the loop."""
        return []

    def pullers(self) -> Sequence[PullConsumer]:
        """The consumers that it fetches from."""
        return ()

    def faults(self) -> list[str]:
        """Why it does no work any more, though it was not stopped; empty while it does."""
        if self._stopping.is_set():
            return []
        if self._task is None or self._task.done() or time.monotonic() - self.last_turn > STALLED_S:
            return [f"{self.name} no longer fetches"]
        missing = [
            puller.name
            for puller in self.pullers()
            if puller.missing_s() > MISSING_S and not puller.is_across_link
        ]
        return [
            f"the durable {name} is not on the server: run `fusewire topology apply`"
            for name in missing
        ]

    async def _run(self) -> None:
        while not self._stopping.is_set():
            self.last_turn = time.monotonic()
            try:
                await self.turn()
            except Exception:
                # An error here would otherwise end the loop, and all its work, unnoticed.
                log.exception("pull.turn_failed", loop=self.name)
                await asyncio.sleep(1)
        await self.finish()

    async def turn(self) -> None:
        """Fetch once and handle the messages."""

    async def finish(self) -> None:
        """Wait for what is still running."""


def reserve_size(concurrency: int) -> int:
    """How much of a concurrency is kept free of work of low priority: an eighth (decision 57)."""
    return concurrency // 8


Release = Callable[[], None]
"""A handler calls it when its message no longer counts against the loop's concurrency, though the
handler has not ended."""


class _Priorities(Loop, abc.ABC):
    """Takes from several durables in strict order.

    A part of its concurrency (`reserve_size`) is kept free of messages of the last one: what is
    urgent need not wait for the end of what is not.

    When all of them are empty it waits on each for one message, so that up to `len(durables) - 1`
    messages more than `concurrency` may come. They are handled too, or handed back to the server
    for another replica.
    """

    def __init__(
        self,
        bus: Bus,
        durables: Sequence[Durable],
        concurrency: int,
        *,
        hands_back: bool = False,
    ) -> None:
        super().__init__(f"{bus.service}-{durables[0].name}")
        self._bus = bus
        self._pullers = [PullConsumer(bus, durable) for durable in durables]
        self._concurrency = concurrency
        self._hands_back = hands_back
        self._reserve = reserve_size(concurrency) if len(durables) > 1 else 0
        self._counted_messages = 0
        """Messages in hand that count against the concurrency."""
        self._capacity_change = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._waits: dict[int, asyncio.Task[list[Msg]]] = {}
        self._is_quiet = False
        """Whether all durables were empty for a while, so that the next message comes alone."""

    def pullers(self) -> Sequence[PullConsumer]:
        """One for each durable."""
        return self._pullers

    async def start(self) -> None:
        """Bind to the durables and begin."""
        for puller in self._pullers:
            await puller.start()
        await super().start()

    async def turn(self) -> None:
        """Take as many messages as allowed, highest priority first; wait if there are none."""
        free = self._free()
        self._capacity_change.clear()
        if free > 0:
            if not self._is_quiet and (messages := await self._take(free)):
                self._begin(messages)
                return
            self._open_waits(free)
        were_empty = len(self._waits) == len(self._pullers)
        waiting_since = time.monotonic()
        await self._wait_for_change()
        self._is_quiet = were_empty and time.monotonic() - waiting_since > QUIET_S
        for rank in sorted(self._waits):
            if self._waits[rank].done():
                await self._begin_or_hand_back(self._waits.pop(rank).result())

    async def _begin_or_hand_back(self, messages: Sequence[Msg]) -> None:
        """Begin what came to an idle loop, unless more urgent messages have taken its place."""
        if self._free() > 0 or not self._hands_back:
            self._begin(messages)
            return
        for msg in messages:
            with contextlib.suppress(NatsError, OSError):
                await msg.nak()

    def _room(self, rank: int, free: int) -> int:
        """How many messages of a durable may be taken, of as many as may be taken at all."""
        return free - self._reserve if rank == len(self._pullers) - 1 else free

    def _open_waits(self, free: int) -> None:
        """Wait for one message on each durable of which one may be taken."""
        for rank, puller in enumerate(self._pullers):
            if rank not in self._waits and self._room(rank, free) > 0:
                self._waits[rank] = asyncio.create_task(puller.fetch(1, PULL_TIMEOUT_S))

    async def _wait_for_change(self) -> None:
        """Wait until a message comes or one no longer counts."""
        capacity_change = asyncio.ensure_future(self._capacity_change.wait())
        await asyncio.wait(
            {*self._waits.values(), capacity_change},
            timeout=PULL_TIMEOUT_S,
            return_when=asyncio.FIRST_COMPLETED,
        )
        capacity_change.cancel()

    async def _take(self, free: int) -> list[Msg]:
        for rank, puller in enumerate(self._pullers):
            room = self._room(rank, free)
            # A durable with a wait still open is empty.
            if rank not in self._waits and room > 0 and (messages := await puller.fetch(room)):
                return messages
        return []

    def _begin(self, messages: Sequence[Msg]) -> None:
        for msg in messages:
            self._counted_messages += 1
            task = asyncio.create_task(self._handle(msg))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _handle(self, msg: Msg) -> None:
        counts = True

        def release() -> None:
            nonlocal counts
            if counts:
                counts = False
                self._counted_messages -= 1
                self._capacity_change.set()

        try:
            await self._bus.process(msg, self._handler(release))
        finally:
            release()
            # Also where it was released before: `MOST_IN_HAND` counts it until its end.
            self._capacity_change.set()

    @abc.abstractmethod
    def _handler(self, release: Release) -> Handler:
        """The handler of the next message."""

    def _free(self) -> int:
        """How many more messages may be taken."""
        return self._concurrency - self._counted_messages

    def running(self) -> list[asyncio.Task[None]]:
        """The running handlers."""
        return list(self._running)

    async def finish(self) -> None:
        """Hand back messages that were not begun, and wait for the running handlers."""
        for wait in self._waits.values():
            for msg in await wait:
                await msg.nak()
        for puller in self._pullers:
            await puller.stop()
        await asyncio.gather(*self._running, return_exceptions=True)


class PriorityLoop(_Priorities):
    """Takes from several durables in strict order, up to `concurrency` messages at once.

    A handler that takes longer than `HANDLED_WITHIN_S` is cancelled, and its message retried.
    """

    def __init__(
        self, bus: Bus, durables: Sequence[Durable], handler: Handler, *, concurrency: int
    ) -> None:
        super().__init__(bus, durables, concurrency)
        self._limited_handler = within(HANDLED_WITHIN_S, handler)

    def _handler(self, release: Release) -> Handler:  # noqa: ARG002 - each counts until its end
        return self._limited_handler


class ReleaseLoop(_Priorities):
    """Like `PriorityLoop`, but a handler may release its message from the count before it ends.

    With `hands_back` it never takes more messages than it may handle at once.
    """

    def __init__(
        self,
        bus: Bus,
        durables: Sequence[Durable],
        handler: Callable[[Delivery, Release], Awaitable[None]],
        *,
        concurrency: int,
        hands_back: bool = False,
    ) -> None:
        super().__init__(bus, durables, concurrency, hands_back=hands_back)
        self._handle_with_release = handler

    def _handler(self, release: Release) -> Handler:
        return lambda delivery: self._handle_with_release(delivery, release)

    def _free(self) -> int:
        return min(super()._free(), MOST_IN_HAND - len(self._running))


def _rank(delivery: Delivery) -> int:
    """0 for the highest priority. A message without one is of normal priority."""
    priority = delivery.headers.get(PRIORITY)
    return RANKS.get(priority or "", RANKS["normal"])


BatchHandler = Callable[[Sequence[Delivery]], Awaitable[None]]


class BatchLoop(Loop):
    """Takes the messages that are there, up to a limit, and handles them as one batch.

    Messages of higher priority, by their header, go first among those that wait here: `ahead` more
    than a batch (docs/decisions/0057).

    While the handler raises `Transient`, the batch is kept and handled again, so work goes on as
    soon as the database is back. When it raises anything else, each message of the batch is
    handled alone, so that one bad message does not affect the others.
    """

    def __init__(
        self, bus: Bus, durable: Durable, handler: BatchHandler, *, batch: int, ahead: int = 0
    ) -> None:
        super().__init__(f"{bus.service}-{durable.stream}")
        self._bus = bus
        self._handler = handler
        self._puller = PullConsumer(bus, durable)
        self._batch = batch
        self._most_waiting = batch + ahead
        self._waiting: list[Delivery] = []
        """Messages that are not handled yet."""

    def pullers(self) -> Sequence[PullConsumer]:
        """Its only consumer."""
        return (self._puller,)

    def count_waiting(self) -> int:
        """How many messages wait here."""
        return len(self._waiting)

    async def start(self) -> None:
        """Bind to the durable and begin."""
        await self._puller.start()
        await super().start()

    async def turn(self) -> None:
        """Wait for a first message, take those that are there, and handle the most urgent."""
        await self._fetch()
        if batch := self._next_batch():
            # One by one, so that a crash is counted for no other message.
            for suspect in [d for d in batch if d.deliveries > SUSPECT_DELIVERIES]:
                await self._bus.run_guarded(suspect, partial(self._process_one, suspect))
            if rest := [d for d in batch if d.deliveries <= SUSPECT_DELIVERIES]:
                await self._process(rest)

    async def _fetch(self) -> None:
        """Take what is there; wait for it only if nothing waits here already."""
        room = self._most_waiting - len(self._waiting)
        if not self._waiting:
            messages = await self._puller.collect(room, PULL_TIMEOUT_S, LINGER_S)
        elif room:
            messages = await self._puller.take_arrivals(room, PULL_TIMEOUT_S)
        else:
            return
        for msg in messages:
            delivery = Delivery.from_message(msg)
            self._bus.hold(delivery)
            self._waiting.append(delivery)

    def _next_batch(self) -> list[Delivery]:
        """The most urgent messages, in the order in which they came where they are equal."""
        self._waiting.sort(key=_rank)
        batch = self._waiting[: self._batch]
        del self._waiting[: self._batch]
        return batch

    async def _process_one(self, delivery: Delivery) -> str:
        await self._process([delivery])
        return "ended"

    async def _process(self, batch: list[Delivery]) -> None:
        """Run the handler on a batch; then ack, nak or dead-letter its messages."""
        with self._bus.holding(*batch):
            try:
                with metrics.handle_seconds(self._bus.service, batch[0].stream).time():
                    await self._handle_with_retries(batch)
            except asyncio.CancelledError:
                await self._hand_back(batch)
                raise
            except Exception as exc:  # noqa: BLE001 - whatever a handler raises decides the messages' fate
                await self._handle_failure(batch, exc)
            else:
                await self._ack(batch)

    async def _hand_back(self, batch: list[Delivery]) -> None:
        # The consumer stops first: it would receive again what is handed back.
        await self._puller.stop()
        for delivery in [*batch, *self._waiting]:
            self._bus.let_go(delivery)
            with contextlib.suppress(NatsError, OSError):
                await delivery.raw.nak()
        self._waiting.clear()

    async def _handle_failure(self, batch: list[Delivery], exc: Exception) -> None:
        if len(batch) == 1:
            result = await self._bus.handle_failure(batch[0], exc)
            metrics.count_handled(self._bus.service, batch[0].stream, result)
            return
        log.warning("pull.batch_split", loop=self.name, size=len(batch))
        for delivery in batch:
            await self._process([delivery])

    async def _ack(self, batch: list[Delivery]) -> None:
        for delivery in batch:
            # The server's confirmation is not awaited: SQL makes a redelivery harmless, and this
            # is the hottest path there is.
            with contextlib.suppress(NatsError, OSError):
                await delivery.raw.ack()
            reach(CrashPoint.LOOP_ACKNOWLEDGED)
        metrics.count_handled(self._bus.service, batch[0].stream, "ok", len(batch))

    async def _handle_with_retries(self, batch: list[Delivery]) -> None:
        """Run the handler until it raises no Transient, or the loop stops."""
        for tries in itertools.count(1):
            self.last_turn = time.monotonic()
            try:
                await self._handler(batch)
            except Transient as exc:
                if self._stopping.is_set():
                    raise
                delay = min(AGAIN_MOST_S, AGAIN_LEAST_S * 2 ** min(tries, 10))
                log.warning(
                    "pull.batch_kept",
                    loop=self.name,
                    size=len(batch),
                    fault=str(exc),
                    delay_s=delay,
                )
                await asyncio.sleep(delay)
            else:
                return

    async def finish(self) -> None:
        """Let go of the durable, and of what waits here."""
        await self._hand_back([])
