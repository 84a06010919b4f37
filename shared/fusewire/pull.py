"""Thin fetch loops over nats-py, where FastStream's price or its semantics do not fit.

Measured: FastStream costs about six times a raw fetch loop per message, its batch mode
stalls, and it cannot take from several durables in order of priority.
"""

import abc
import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from fusewire import telemetry
from fusewire.bus import (
    HANDLED_WITHIN_S,
    PULL_TIMEOUT_S,
    SUSPECT_DELIVERIES,
    Bus,
    Delivery,
    Handler,
    within,
)
from fusewire.errors import Transient
from fusewire.topology import Durable

log = structlog.get_logger(__name__)

LINGER_S = 0.001
"""How long a batch waits for company: members of one pool tend to answer together, and a transaction
for three of them costs little more than for one."""
ANSWER_S = 5.0
"""How much longer than its own limit a pull may stay unanswered. A server that is only slow must not be given up:
what it sends later is handed back and sent again, and a loop that gives up each time gets nowhere."""
LOOK_S = 0.5
"""How soon a pull is given up whose connection is gone."""
AGAIN_LEAST_S, AGAIN_MOST_S = 0.05, 2.0
"""How soon a batch that is kept is handed over again: twice as late each time."""
MISSING_PAUSE_S = 1.0
"""How long a pull waits where the last one found no durable: the server answers that at once."""
MISSING_S = 30.0
"""A durable that is missing for longer will not come back by itself, as one whose leader changes does."""
STALLED_S = 60.0
"""A loop that has not turned for so long stands still."""


NO_RESPONDERS = "503"
"""What the server says where nothing listens on a subject: there is no such durable, or nobody leads it just now."""


@dataclass
class _Request:
    """A pull request that the server may still answer.

    Attributes:
        inbox: where the server says that it is over.
        connection: the one that it was made on.
        left: how many more messages it may bring.
        end: when it is given up (`time.monotonic`).
    """

    inbox: str
    connection: int
    left: int
    end: float


class PullConsumer:
    """Pull requests on one durable, one at a time, answered on one inbox.

    A message that arrives when no request is open (its request was given up) is handed back to
    the server at once, so it never waits out its ack_wait in nobody's hands.
    """

    def __init__(self, bus: Bus, durable: Durable) -> None:
        self.name = f"{durable.stream}/{durable.name}"
        self._missing_since: float | None = None
        self._bus = bus
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{durable.stream}.{durable.name}"
        self._arrived: asyncio.Queue[Msg | None] = asyncio.Queue()
        """Messages, and None where a request is over."""
        self._counter = itertools.count()
        self._open: _Request | None = None
        self._inbox = ""
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Bind to the durable."""
        self._inbox = self._bus.client.new_inbox()
        self._subscription = await self._bus.client.subscribe(f"{self._inbox}.*", cb=self._arrive)

    async def stop(self) -> None:
        """Stop listening, and hand back what nobody has taken."""
        self._open = None
        with contextlib.suppress(NatsError, OSError):
            if self._subscription:
                await self._subscription.unsubscribe()
                self._subscription = None
            for msg in self._waiting():
                await msg.nak()

    def missing_s(self) -> float:
        """For how long the server has said that there is no such durable; 0 where there is."""
        return time.monotonic() - self._missing_since if self._missing_since is not None else 0.0

    async def fetch(self, batch: int, wait_s: float = 0) -> list[Msg]:
        """Take up to `batch` messages.

        Args:
            batch: at most this many, at least 1.
            wait_s: 0 takes what is there now; otherwise waits this long for the first one.

        Returns:
            What came; empty when nothing did, or when there is no server.
        """
        request = await self._ask(batch, wait_s)
        taken: list[Msg] = []
        try:
            while request and len(taken) < batch and (msg := await self._next(request)):
                taken.append(msg)
        finally:
            self._open = None
        return taken

    async def collect(self, batch: int, wait_s: float, linger_s: float) -> list[Msg]:
        """Wait for a first message, and for its company.

        The request stays open between two calls, so that what comes meanwhile waits here and not at the server.

        Args:
            batch: at most this many, and the most that may wait here.
            wait_s: how long to wait for the first one.
            linger_s: how long to wait for more, once it is there.

        Returns:
            What came; empty when nothing did, or when there is no server.
        """
        request = self._open
        if request is None or request.left <= 0 or request.connection != self._bus.connection:
            request = await self._ask(batch, wait_s)
        if request is None:
            return []
        first = await self._next(request)
        if first is None:
            self._open = None
            return []
        if batch > 1:
            await asyncio.sleep(linger_s)
        more = list(itertools.islice(self._waiting(), batch - 1))
        request.left -= len(more)
        return [first, *more]

    async def _ask(self, batch: int, wait_s: float) -> _Request | None:
        """Open a request; None when there is no server."""
        if self._missing_since is not None:
            await asyncio.sleep(MISSING_PAUSE_S)
        connection = self._bus.connection
        if connection is not None:
            inbox = f"{self._inbox}.{next(self._counter)}"
            wanted = {
                "batch": batch,
                **({"expires": int(wait_s * 1e9)} if wait_s else {"no_wait": True}),
            }
            self._open = _Request(inbox, connection, batch, time.monotonic() + wait_s + ANSWER_S)
            with contextlib.suppress(NatsError, OSError):
                await self._bus.client.publish(self._subject, json.dumps(wanted).encode(), inbox)
                return self._open
        # The client would keep the request, and send it when the server is back: to nobody, by then.
        self._open = None
        await asyncio.sleep(LOOK_S)
        return None

    async def _arrive(self, msg: Msg) -> None:
        # Only the word that a request is over comes with the request's own inbox as its subject.
        if _is_status(msg):
            self._note(msg)
            if self._open and msg.subject == self._open.inbox:
                self._open.left = 0
                self._arrived.put_nowait(None)
        elif self._open:
            self._missing_since = None
            self._arrived.put_nowait(msg)
        else:
            await msg.nak()

    def _note(self, status: Msg) -> None:
        """What the end of a request says of the durable."""
        if (status.headers or {}).get("Status") != NO_RESPONDERS:
            self._missing_since = None
        elif self._missing_since is None:
            self._missing_since = time.monotonic()
            log.warning("pull.durable_missing", durable=self.name)

    async def _next(self, request: _Request) -> Msg | None:
        """What a request brings next; None when it is over or given up."""
        while self._bus.connection == request.connection and time.monotonic() < request.end:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    msg = await self._arrived.get()
                if msg is not None:
                    request.left -= 1
                    return msg
                if request.left <= 0:
                    return None
        return None

    def _waiting(self) -> Iterator[Msg]:
        """Messages that are here already."""
        while not self._arrived.empty():
            if (msg := self._arrived.get_nowait()) is not None:
                yield msg


def _is_status(msg: Msg) -> bool:
    return not msg.data and bool(msg.headers) and "Status" in (msg.headers or {})


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
        """Fetch no more, let what is running end within `drain_s`, and hand back the rest."""
        self._stopping.set()
        if self._task:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._task), drain_s)
            unfinished = [self._task, *self.running()]
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    def running(self) -> list[asyncio.Task[None]]:
        """Handlers that run apart from the loop."""
        return []

    def pullers(self) -> Sequence[PullConsumer]:
        """What it fetches from."""
        return ()

    def faults(self) -> list[str]:
        """Why it does no work any more, though nobody told it to stop; empty while it does."""
        if self._stopping.is_set():
            return []
        if self._task is None or self._task.done() or time.monotonic() - self.last_turn > STALLED_S:
            return [f"{self.name} no longer fetches"]
        missing = [puller.name for puller in self.pullers() if puller.missing_s() > MISSING_S]
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
                # A fault here would otherwise end all work in silence.
                log.exception("pull.turn_failed", loop=self.name)
                await asyncio.sleep(1)
        await self.finish()

    async def turn(self) -> None:
        """Fetch once and handle what came."""

    async def finish(self) -> None:
        """Wait for what is still running."""


Release = Callable[[], None]
"""Called by a handler whose message no longer counts against the loop's concurrency, though it has not ended."""


class _Priorities(Loop, abc.ABC):
    """Takes from several durables in strict order.

    When all of them are empty it waits on each for one message, so for a moment it may hold
    up to `len(durables) - 1` more than it has hands for; they are worked on, not parked.
    """

    def __init__(self, bus: Bus, durables: Sequence[Durable], concurrency: int) -> None:
        super().__init__(f"{bus.service}-{durables[0].name}")
        self._bus = bus
        self._pullers = [PullConsumer(bus, d) for d in durables]
        self._concurrency = concurrency
        self._counting = 0
        """Messages in hand that count against the concurrency."""
        self._released = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._waits: dict[int, asyncio.Task[list[Msg]]] = {}

    def pullers(self) -> Sequence[PullConsumer]:
        """One for each durable."""
        return self._pullers

    async def start(self) -> None:
        """Bind to the durables and begin."""
        for puller in self._pullers:
            await puller.start()
        await super().start()

    async def turn(self) -> None:
        """Take as many as may be taken, highest priority first; wait where there is nothing to do."""
        free = self._free()
        self._released.clear()
        if free > 0:
            if taken := await self._take(free):
                self._begin(taken)
                return
            for rank, puller in enumerate(self._pullers):
                if rank not in self._waits:
                    self._waits[rank] = asyncio.create_task(puller.fetch(1, PULL_TIMEOUT_S))
        await self._change()
        for rank in sorted(self._waits):
            if self._waits[rank].done():
                self._begin(self._waits.pop(rank).result())

    async def _change(self) -> None:
        """Wait until a message comes or one no longer counts."""
        released = asyncio.ensure_future(self._released.wait())
        await asyncio.wait(
            {*self._waits.values(), released},
            timeout=PULL_TIMEOUT_S,
            return_when=asyncio.FIRST_COMPLETED,
        )
        released.cancel()

    async def _take(self, free: int) -> list[Msg]:
        for rank, puller in enumerate(self._pullers):
            # A durable with a wait still open is empty.
            if rank not in self._waits and (taken := await puller.fetch(free)):
                return taken
        return []

    def _begin(self, messages: Sequence[Msg]) -> None:
        for msg in messages:
            self._counting += 1
            task = asyncio.create_task(self._handle(msg))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _handle(self, msg: Msg) -> None:
        counts = True

        def release() -> None:
            nonlocal counts
            if counts:
                counts = False
                self._counting -= 1
                self._released.set()

        try:
            await self._bus.settle(msg, self._handler(release))
        finally:
            release()
            self._released.set()

    @abc.abstractmethod
    def _handler(self, release: Release) -> Handler:
        """What handles a message."""

    def _free(self) -> int:
        """How many more may be taken."""
        return self._concurrency - self._counting

    def running(self) -> list[asyncio.Task[None]]:
        """The handlers in hand."""
        return list(self._running)

    async def finish(self) -> None:
        """Hand back what only waited, wait for the running handlers, let go of the durables."""
        for wait in self._waits.values():
            for msg in await wait:
                await msg.nak()
        for puller in self._pullers:
            await puller.stop()
        await asyncio.gather(*self._running, return_exceptions=True)


class PriorityLoop(_Priorities):
    """Takes from several durables in strict order, as many at once as `concurrency` says.

    A handler that takes longer than `HANDLED_WITHIN_S` is ended, and its message delivered again.
    """

    def __init__(
        self, bus: Bus, durables: Sequence[Durable], handler: Handler, *, concurrency: int
    ) -> None:
        super().__init__(bus, durables, concurrency)
        self._handle_whole = within(HANDLED_WITHIN_S, handler)

    def _handler(self, release: Release) -> Handler:  # noqa: ARG002 - each counts until its end
        return self._handle_whole


MOST_IN_HAND = 512
"""Messages that a `ReleaseLoop` holds at most, those included that no longer count."""


class ReleaseLoop(_Priorities):
    """The same, where a handler tells when its message counts no more."""

    def __init__(
        self,
        bus: Bus,
        durables: Sequence[Durable],
        handler: Callable[[Delivery, Release], Awaitable[None]],
        *,
        concurrency: int,
    ) -> None:
        super().__init__(bus, durables, concurrency)
        self._handle_with_release = handler

    def _handler(self, release: Release) -> Handler:
        return lambda delivery: self._handle_with_release(delivery, release)

    def _free(self) -> int:
        return min(super()._free(), MOST_IN_HAND - len(self._running))


BatchHandler = Callable[[Sequence[Delivery]], Awaitable[None]]


class BatchLoop(Loop):
    """Takes what there is, up to a limit, and hands it over as one batch.

    The handler answers for the whole batch. While something around it is down (`Transient`), the batch is kept and
    handed over again: it goes on at once when that is back. When it raises anything else, each message of a batch of
    more than one is handed over alone, so that one bad message harms no other.
    """

    def __init__(self, bus: Bus, durable: Durable, handler: BatchHandler, *, batch: int) -> None:
        super().__init__(f"{bus.service}-{durable.stream}")
        self._bus = bus
        self._handler = handler
        self._puller = PullConsumer(bus, durable)
        self._batch = batch

    def pullers(self) -> Sequence[PullConsumer]:
        """The one."""
        return (self._puller,)

    async def start(self) -> None:
        """Bind to the durable and begin."""
        await self._puller.start()
        await super().start()

    async def turn(self) -> None:
        """Wait for a first message, take the rest of what is there, handle it."""
        if messages := await self._puller.collect(self._batch, PULL_TIMEOUT_S, LINGER_S):
            batch = [Delivery.from_message(m) for m in messages]
            for suspect in [d for d in batch if d.deliveries > SUSPECT_DELIVERIES]:
                await self._bus.run_guarded(suspect, partial(self._settle_one, suspect))
            if rest := [d for d in batch if d.deliveries <= SUSPECT_DELIVERIES]:
                await self._settle(rest)

    async def _settle_one(self, delivery: Delivery) -> str:
        await self._settle([delivery])
        return "ended"

    async def _settle(self, batch: list[Delivery]) -> None:
        with self._bus.holding(*batch):
            try:
                await self._until_up(batch)
            except asyncio.CancelledError:
                # First: what is handed back would come here again.
                await self._puller.stop()
                for delivery in batch:
                    with contextlib.suppress(NatsError, OSError):
                        await delivery.raw.nak()
                raise
            except Exception as exc:  # noqa: BLE001 - whatever a handler raises decides the messages' fate
                if len(batch) == 1:
                    await self._bus.handle_failure(batch[0], exc)
                else:
                    log.warning("pull.batch_split", loop=self.name, size=len(batch))
                    for delivery in batch:
                        await self._settle([delivery])
                return
            for delivery in batch:
                # Not waited for: SQL makes a redelivery harmless, and this is the hottest path there is.
                with contextlib.suppress(NatsError, OSError):
                    await delivery.raw.ack()
            telemetry.HANDLED.labels(self._bus.service, batch[0].stream, "ok").inc(len(batch))

    async def _until_up(self, batch: list[Delivery]) -> None:
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
        """Let go of the durable."""
        await self._puller.stop()
