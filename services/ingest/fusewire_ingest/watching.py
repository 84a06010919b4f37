"""Reading along while a fusion runs: who has answered, and the text as it is being written."""

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
    """So many members have answered, of those that were asked (None while that is not known)."""

    answered: int
    asked: int | None


class Ended:
    """The outcome is there, or nobody waits for it any longer."""


Event = Progress | str | Ended
"""A text is a piece of the answer."""


@dataclass
class Watch:
    """One fusion as it goes."""

    _events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    _source: tuple[int, str, int] | None = None
    """The round, call and attempt whose text is told."""
    _told: int = 0
    """Characters of it."""
    _is_torn: bool = False
    _members: set[str] = field(default_factory=set)
    _asked: int | None = None

    async def next(self, within_s: float) -> Event | None:
        """What happens next; None if nothing does within this time."""
        try:
            async with asyncio.timeout(within_s):
                return await self._events.get()
        except TimeoutError:
            return None

    def end(self) -> None:
        """What has happened so far is told, then Ended."""
        self._events.put_nowait(Ended())

    def on_token(self, token: Token) -> None:
        """Tell a piece that continues what was told; after any other nothing is told, and the outcome has the rest."""
        source = (token.round, token.call, token.attempt)
        fits = token.offset == self._told and self._source in (None, source)
        self._is_torn = self._is_torn or not fits
        if not self._is_torn:
            self._source = source
            self._told += len(token.text)
            self._events.put_nowait(token.text)

    def on_plan(self, plan: Plan) -> None:
        """Learn how many are asked."""
        self._asked = sum(member.wave == 0 for member in plan.members)
        self._tell()

    def on_candidate(self, candidate: Candidate) -> None:
        """Count a member that has answered."""
        member = candidate.member
        if (
            candidate.round == 0
            and candidate.ok
            and member is not None
            and member not in self._members
        ):
            self._members.add(member)
            self._tell()

    def _tell(self) -> None:
        self._events.put_nowait(Progress(len(self._members), self._asked))


class Watcher:
    """Listens on core NATS while somebody reads along. What is lost there is in the outcome."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    @contextlib.asynccontextmanager
    async def watch(self, fusion_id: str) -> AsyncIterator[Watch]:
        """Listen; enter before the prompt is submitted, so that nothing is missed."""
        watch = Watch()

        async def hear(msg: Msg) -> None:
            with contextlib.suppress(ContractError):
                if msg.subject == tokens:
                    watch.on_token(Token.decode(msg.data))
                elif msg.subject == plan:
                    watch.on_plan(Plan.decode(msg.data))
                else:
                    watch.on_candidate(Candidate.decode(msg.data))

        tokens, plan = token_subject(fusion_id), plan_subject(fusion_id)
        # Of the panel only: what the judge asks for later is not counted.
        subjects = (tokens, plan, candidate_subject(fusion_id, 0, "*"))
        # The prompt goes out on the same connection after these, so the server knows them before it.
        subscriptions = [await self._bus.client.subscribe(subject, cb=hear) for subject in subjects]
        try:
            yield watch
        finally:
            for subscription in subscriptions:
                with contextlib.suppress(Exception):
                    await subscription.unsubscribe()
