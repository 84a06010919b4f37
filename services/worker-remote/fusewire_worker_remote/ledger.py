"""The paid-call ledger: what is known of a task's calls, and what may therefore be done next.

    (none) ──▶ sent ──▶ settled          the candidate is kept; a redelivery republishes it
                │ ▲
                ▼ │  a call that cost nothing failed, another will follow
             reserved
                │ ▲
                ▼ │  a call's result is unknowable, one more will follow
             ambiguous

`sent` is written before the first byte leaves, and is the entry's first state: a `reserved` before
it would cost a third synced write for each call, and would tell only a crash within the
millisecond between the two writes from a crash during the call. A crash in `sent` therefore always counts
as a call whose result is unknowable. At most `MAX_UNKNOWN` such calls are ever made for a task.

Every state carries a lease in its value (the bucket's own expiry would be lost on update). The
lease keeps two workers from calling at once; the revision, checked on each write, keeps them
from both believing that they hold it.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, Literal, Protocol

from pydantic import AwareDatetime, Field, model_validator

from fusewire.contracts import Candidate
from fusewire.contracts.base import Wire
from fusewire.errors import Transient

MAX_UNKNOWN = 2
"""The call whose result is unknowable, and the one that is made instead of it."""

State = Literal["reserved", "sent", "ambiguous", "settled"]


class Busy(Transient):
    """Another claim holds this task's lease. Have it delivered again after `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("another delivery of the task is being worked on", retry_after_s)


class ConflictError(Exception):
    """The entry has another revision than the one expected."""


class LedgerUnavailable(Transient):
    """The ledger could not be read or written; whether a write took place is unknown."""


class Entry(Wire):
    """The ledger's value for one task."""

    contract: ClassVar[str] = "call"

    state: State
    owner: str
    """The claim that wrote it; no two claims share a name, not even of one worker."""
    until: AwareDatetime
    """When the lease ends."""
    started_at: AwareDatetime
    """When the first call of this task was made."""
    attempts: int = Field(ge=1)
    """Calls begun, over all workers."""
    unknown: int = Field(default=0, ge=0)
    """Of these, ended calls whose result is unknowable."""
    candidate: Candidate | None = None
    """Set if and only if settled."""

    @model_validator(mode="after")
    def _whole(self) -> "Entry":
        if (self.state == "settled") != (self.candidate is not None):
            raise ValueError("a candidate belongs to a settled entry, and to no other")
        return self

    def paused(self, *, ambiguous: bool, until: datetime) -> "Entry":
        """No call is in flight and another will follow; the last one was `ambiguous` or cost nothing."""
        unknown = self.unknown + ambiguous
        return self._with(state="ambiguous" if ambiguous else "reserved", unknown=unknown, until=until)

    def resent(self, until: datetime) -> "Entry":
        """One more call is in flight."""
        return self._with(state="sent", attempts=self.attempts + 1, until=until)

    def renewed(self, until: datetime) -> "Entry":
        """The same, held for longer."""
        return self._with(until=until)

    def settled(self, candidate: Candidate, now: datetime) -> "Entry":
        """The end: `candidate` is what this task's calls came to."""
        return self._with(state="settled", candidate=candidate, until=now)

    def _with(self, **changes: object) -> "Entry":
        return self.model_copy(update=changes)


@dataclass(frozen=True, slots=True)
class Call:
    """Make a call, once `entry` is written."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Republish:
    """Hand back the candidate that is there; pay nothing."""

    candidate: Candidate


@dataclass(frozen=True, slots=True)
class Wait:
    """Another claim is at it, for `seconds` more unless it renews."""

    seconds: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No call is left to make, and none of those made has a known result."""

    entry: Entry


Step = Call | Republish | Wait | GiveUp


def next_step(entry: Entry | None, now: datetime, me: str, *, lease: timedelta, max_attempts: int) -> Step:
    """Decide what `me`, a new claim on a task, may do by what the ledger says of it."""
    until = now + lease
    if entry is None:
        return Call(Entry(state="sent", owner=me, until=until, started_at=now, attempts=1))
    if entry.candidate is not None:
        return Republish(entry.candidate)
    if entry.until > now:
        return Wait((entry.until - now).total_seconds())
    entry = entry.model_copy(update={"owner": me})
    if entry.state == "sent":
        entry = entry.paused(ambiguous=True, until=until)
    if entry.unknown >= MAX_UNKNOWN or entry.attempts >= max_attempts:
        return GiveUp(entry)
    return Call(entry.resent(until))


class Ledger(Protocol):
    """Where entries are kept. Writes are compare-and-set on the revision."""

    async def get(self, task_id: str) -> tuple[Entry | None, int]:
        """The entry and its revision; (None, 0) if there is none."""
        ...

    async def put(self, task_id: str, entry: Entry, revision: int) -> int:
        """Write over `revision` (0: nothing is there) and return the new one.

        Raises:
            ConflictError: the entry has another revision.
            LedgerUnavailable: the write may or may not have taken place.
        """
        ...
