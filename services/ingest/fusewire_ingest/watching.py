"""Live progress of a running fusion: how many members have answered, and the answer's tokens."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from nats.aio.msg import Msg

from fusewire.bus import Bus
from fusewire.contracts import Candidate, ContractError, Plan, Token
from fusewire.topology import candidate_subject, plan_subject, token_subject


@dataclass(frozen=True)
class Progress:
    """How many members have answered, of how many that were asked (None until that is known)."""

    answered: int
    asked: int | None


class Ended:
    """The last event: the outcome exists, or nobody waits for it any longer."""


Event = Progress | str | Ended
"""A string is a piece of the answer."""


@dataclass
class Watch:
    """The events of one running fusion."""

    _events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    _source: tuple[int, str, int] | None = None
    """The round, call and attempt whose text is streamed."""
    _offset: int = 0
    """How many characters of it were streamed."""
    _is_torn: bool = False
    """Whether a piece was missed, so that no more text is streamed."""
    _members: set[str] = field(default_factory=set)
    _n_asked: int | None = None

    async def next(self, within_s: float) -> Event | None:
        """Wait for the next event; None if there is none within this time."""
        try:
            async with asyncio.timeout(within_s):
                return await self._events.get()
        except TimeoutError:
            return None

    def end(self) -> None:
        """Append Ended to the events so far."""
        self._events.put_nowait(Ended())

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
            self._events.put_nowait(token.text)

    def on_plan(self, plan: Plan) -> None:
        """Learn how many members are asked at first."""
        self._n_asked = sum(member.wave == 0 for member in plan.members)
        self._add_progress()

    def on_candidate(self, candidate: Candidate) -> None:
        """Count a member that has answered in round 0."""
        member = candidate.member
        if candidate.round != 0 or not candidate.ok:
            return
        if member is not None and member not in self._members:
            self._members.add(member)
            self._add_progress()

    def _add_progress(self) -> None:
        self._events.put_nowait(Progress(len(self._members), self._n_asked))


class Watcher:
    """Subscribes to a fusion's progress on core NATS while a client streams it.

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

        # Candidates of round 0, the panel's; those of the judge's later rounds are not counted.
        subjects = (tokens, plan, candidate_subject(fusion_id, 0, "*"))
        # The prompt is published later on the same connection, so the server has these before it.
        subscriptions = [
            await self._bus.client.subscribe(subject, cb=on_message) for subject in subjects
        ]
        try:
            yield watch
        finally:
            for subscription in subscriptions:
                with contextlib.suppress(Exception):
                    await subscription.unsubscribe()
