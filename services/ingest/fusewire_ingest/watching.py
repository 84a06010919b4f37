"""What a running fusion publishes on the bus, for clients that read a stream of it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from nats.aio.msg import Msg

from fusewire.bus import Bus
from fusewire.contracts import Candidate, ContractError, Plan, Token
from fusewire.topology import (
    candidate_subject,
    candidate_subjects,
    plan_subject,
    token_subject,
)


@dataclass(frozen=True)
class Progress:
    """How many members have answered, of how many that were asked (None until that is known)."""

    answered: int
    asked: int | None


class Ended:
    """The last event: the outcome exists, or nobody waits for it any longer."""


T = TypeVar("T")


@dataclass
class EventQueue(Generic[T]):
    """Events of one running fusion, in the order in which they came."""

    _events: asyncio.Queue[T | Ended] = field(default_factory=asyncio.Queue)

    async def next(self, within_s: float) -> T | Ended | None:
        """Wait for the next event; None if there is none within this time."""
        try:
            async with asyncio.timeout(within_s):
                return await self._events.get()
        except TimeoutError:
            return None

    def add(self, event: T) -> None:
        """Append an event."""
        self._events.put_nowait(event)

    def end(self) -> None:
        """Append Ended to the events so far."""
        self._events.put_nowait(Ended())


@dataclass
class Watch(EventQueue[Progress | str]):
    """The answer of one running fusion, in pieces, and how many members have answered."""

    _source: tuple[int, str, int] | None = None
    """The round, call and attempt whose text is streamed."""
    _offset: int = 0
    """How many characters of it were streamed."""
    _is_torn: bool = False
    """Whether a piece was missed, so that no more text is streamed."""
    _members: set[str] = field(default_factory=set)
    _n_asked: int | None = None
    _panel_round: int = 0
    """1 where the judge chooses whom to ask."""

    def on_token(self, token: Token) -> None:
        """Stream a piece of text that continues the pieces before it.

        After a piece that does not, no more text is streamed; the outcome has the rest
        (docs/decisions/0017).
        """
        source = (token.round, token.call, token.attempt)
        is_continued = token.offset == self._offset and self._source in (None, source)
        self._is_torn = self._is_torn or not is_continued
        if not self._is_torn:
            self._source = source
            self._offset += len(token.text)
            self.add(token.text)

    def on_plan(self, plan: Plan) -> None:
        """Learn how many members are asked at first."""
        if plan.is_routed:
            self._panel_round = 1
            return
        self._n_asked = sum(member.wave == 0 for member in plan.members)
        self._add_progress()

    def on_candidate(self, candidate: Candidate) -> None:
        """Count a member that has answered in the panel's first round."""
        member = candidate.member
        if candidate.round != self._panel_round or not candidate.ok:
            return
        if member is not None and member not in self._members:
            self._members.add(member)
            self._add_progress()

    def _add_progress(self) -> None:
        self.add(Progress(len(self._members), self._n_asked))


class Watcher:
    """Subscribes to what a fusion publishes, on core NATS, while a client streams it.

    Messages may be lost there; the outcome has everything.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    @contextlib.asynccontextmanager
    async def watch(self, fusion_id: str) -> AsyncIterator[Watch]:
        """Subscribe; enter before the prompt is submitted, so that nothing is missed."""
        watch = Watch()
        tokens, plan = token_subject(fusion_id), plan_subject(fusion_id)

        async def on_message(msg: Msg) -> None:
            with contextlib.suppress(ContractError):
                if msg.subject == tokens:
                    watch.on_token(Token.decode(msg.data))
                elif msg.subject == plan:
                    watch.on_plan(Plan.decode(msg.data))
                else:
                    watch.on_candidate(Candidate.decode(msg.data))

        # Those of the panel's first round; candidates of the judge's later ones are not counted.
        panels = (candidate_subject(fusion_id, number, "*") for number in (0, 1))
        subjects = (tokens, plan, *panels)
        # The prompt is published later on the same connection, so the server has these before it.
        async with self._subscriptions(subjects, on_message):
            yield watch

    @contextlib.asynccontextmanager
    async def follow(self, fusion_id: str) -> AsyncIterator[EventQueue[Plan | Candidate]]:
        """Subscribe to the plan and to the candidates of all rounds of an existing fusion.

        The broker has the subscriptions when the block begins, unless it is away.
        """
        messages: EventQueue[Plan | Candidate] = EventQueue()
        plan = plan_subject(fusion_id)

        async def on_message(msg: Msg) -> None:
            with contextlib.suppress(ContractError):
                contract = Plan if msg.subject == plan else Candidate
                messages.add(contract.decode(msg.data))

        async with self._subscriptions((plan, candidate_subjects(fusion_id)), on_message):
            await self._bus.confirm_subscriptions()
            yield messages

    @contextlib.asynccontextmanager
    async def _subscriptions(
        self, subjects: Sequence[str], on_message: Callable[[Msg], Awaitable[None]]
    ) -> AsyncIterator[None]:
        subscriptions = [
            await self._bus.client.subscribe(subject, cb=on_message) for subject in subjects
        ]
        try:
            yield
        finally:
            for subscription in subscriptions:
                with contextlib.suppress(Exception):
                    await subscription.unsubscribe()
