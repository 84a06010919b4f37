"""A thin pull consumer over nats-py, where FastStream is too slow or lacks what is needed.

Measured: FastStream costs about six times a raw fetch loop per message, its batch mode
stalls, and it cannot take from several durables in order of priority (docs/decisions/0004).
"""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from fusewire.bus import Bus
from fusewire.topology import OUTBOX, Durable

log = structlog.get_logger(__name__)

ANSWER_S = 5.0
"""How much longer than its own limit a pull may stay unanswered.

Giving up on a server that is only slow makes no progress: what it sends later is handed back and
sent again (docs/decisions/0005)."""
LOOK_S = 0.5
"""How soon a pull is given up after its connection is lost."""
MISSING_PAUSE_S = 1.0
"""Pause of a pull after one that found no durable, which the server reports at once."""


NO_RESPONDERS = "503"
"""Status when nothing listens on a subject: no such durable, or it has no leader at the moment."""


@dataclass
class _Request:
    """A pull request that the server may still answer.

    Attributes:
        inbox: where the server reports its end.
        connection: the number of the connection on which it was sent.
        remaining: how many more messages it may bring.
        end: when it is given up (`time.monotonic`).
    """

    inbox: str
    connection: int
    remaining: int
    end: float


class PullConsumer:
    """Pull requests on one durable, one at a time, answered on one inbox.

    A message that arrives when no request is open (its request was given up) is handed back to
    the server at once, so that another consumer need not wait for its ack_wait
    (docs/decisions/0005).
    """

    def __init__(self, bus: Bus, durable: Durable) -> None:
        self.name = f"{durable.stream}/{durable.name}"
        self._missing_since: float | None = None
        self._bus = bus
        api = bus.api_prefix(durable.stream)
        self._subject = f"{api}.CONSUMER.MSG.NEXT.{durable.stream}.{durable.name}"
        self.is_across_link = bus.site is not None and durable.stream != OUTBOX.name
        """Whether it may be missing only because an edge site has lost its link to the hub."""
        self._inbox_queue: asyncio.Queue[Msg | None] = asyncio.Queue()
        """Messages, and None at the end of a request."""
        self._counter = itertools.count()
        self._open: _Request | None = None
        self._inbox = ""
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Bind to the durable."""
        self._inbox = self._bus.client.new_inbox()
        self._subscription = await self._bus.client.subscribe(f"{self._inbox}.*", cb=self._arrive)

    async def stop(self) -> None:
        """Stop listening, and hand back messages that were not fetched."""
        self._open = None
        with contextlib.suppress(NatsError, OSError):
            if self._subscription:
                await self._subscription.unsubscribe()
                self._subscription = None
            for msg in self._take_buffered():
                await msg.nak()

    def missing_s(self) -> float:
        """For how many seconds the server has reported the durable as missing; 0 if it is there."""
        if self._missing_since is None:
            return 0.0
        return time.monotonic() - self._missing_since

    async def fetch(self, batch: int, wait_s: float = 0) -> list[Msg]:
        """Take up to `batch` messages.

        Args:
            batch: at most this many, at least 1.
            wait_s: 0 takes what is there now; otherwise waits this long for the first one.

        Returns:
            The messages; empty when none came, or when there is no server.
        """
        request = await self._ask(batch, wait_s)
        messages: list[Msg] = []
        try:
            while request and len(messages) < batch and (msg := await self._next(request)):
                messages.append(msg)
        finally:
            # What still comes from now on is handed back by `_arrive`.
            self._open = None
        return messages

    async def collect(self, batch: int, wait_s: float, linger_s: float) -> list[Msg]:
        """Wait for a first message, then a moment for more.

        The request stays open between two calls, so that messages which come in the meantime wait
        here and not at the server (docs/decisions/0005).

        Args:
            batch: the most messages to return, and the most that may wait here.
            wait_s: how long to wait for the first one.
            linger_s: how long to wait for more after the first one.

        Returns:
            The messages; empty when none came, or when there is no server.
        """
        request = self._open
        if request is None or request.remaining <= 0 or request.connection != self._bus.connection:
            request = await self._ask(batch, wait_s)
        if request is None:
            return []
        first = await self._next(request)
        if first is None:
            self._open = None
            return []
        if batch > 1:
            await asyncio.sleep(linger_s)
        more = list(itertools.islice(self._take_buffered(), batch - 1))
        request.remaining -= len(more)
        return [first, *more]

    async def take_arrivals(self, batch: int, wait_s: float) -> list[Msg]:
        """Take what has arrived, without waiting for anything.

        Args:
            batch: as for `collect`.
            wait_s: how long the server may wait for the first message, if nothing was asked of it.
        """
        request = self._open
        if request is None or request.remaining <= 0 or request.connection != self._bus.connection:
            request = await self._ask(batch, wait_s)
        messages = list(itertools.islice(self._take_buffered(), batch))
        if request:
            request.remaining -= len(messages)
        return messages

    async def _ask(self, batch: int, wait_s: float) -> _Request | None:
        """Open a request; None when there is no server."""
        if self._missing_since is not None:
            await asyncio.sleep(MISSING_PAUSE_S)
        connection = self._bus.connection
        if connection is not None:
            inbox = f"{self._inbox}.{next(self._counter)}"
            limit = {"expires": int(wait_s * 1e9)} if wait_s else {"no_wait": True}
            body = json.dumps({"batch": batch, **limit}).encode()
            self._open = _Request(inbox, connection, batch, time.monotonic() + wait_s + ANSWER_S)
            with contextlib.suppress(NatsError, OSError):
                await self._bus.client.publish(self._subject, body, inbox)
                return self._open
        # Not published while disconnected: the client would buffer the request and send it on the
        # next connection, when nobody waits for its answer any more.
        self._open = None
        await asyncio.sleep(LOOK_S)
        return None

    async def _arrive(self, msg: Msg) -> None:
        # The subject of a status is the inbox of its request; that of a message is its stream's.
        if _is_status(msg):
            self._note_status(msg)
            if self._open and msg.subject == self._open.inbox:
                self._open.remaining = 0
                self._inbox_queue.put_nowait(None)
        elif self._open:
            self._missing_since = None
            self._inbox_queue.put_nowait(msg)
        else:
            await msg.nak()

    def _note_status(self, status: Msg) -> None:
        """Note whether the durable is missing, by the status that ended a request."""
        if (status.headers or {}).get("Status") != NO_RESPONDERS:
            self._missing_since = None
        elif self._missing_since is None:
            self._missing_since = time.monotonic()
            log.warning("pull.durable_missing", durable=self.name)

    async def _next(self, request: _Request) -> Msg | None:
        """The next message of a request; None when the request is over or given up."""
        while self._bus.connection == request.connection and time.monotonic() < request.end:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    msg = await self._inbox_queue.get()
                if msg is not None:
                    request.remaining -= 1
                    return msg
                if request.remaining <= 0:
                    return None
        return None

    def _take_buffered(self) -> Iterator[Msg]:
        """Take the messages that have arrived already."""
        while not self._inbox_queue.empty():
            if (msg := self._inbox_queue.get_nowait()) is not None:
                yield msg


def _is_status(msg: Msg) -> bool:
    return not msg.data and bool(msg.headers) and "Status" in (msg.headers or {})
