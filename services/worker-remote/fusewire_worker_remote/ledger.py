"""The paid-call ledger: what is known of calls that were begun, and what may therefore be done next.

One entry for each message of tasks. In it, of each call:

    (none) ──▶ sent          the candidate is the end: nothing more is written
                │ ▲
                ▼ │  a call ended without an answer, and another will follow
              paused

`sent` is written before the first byte leaves. Whether such a call came to an end is told by its candidate: whoever
has a message delivered again asks the judge which candidates have come. Of a call that is `sent` and has none, when
nobody holds the entry any more, the result is unknowable. At most `MAX_UNKNOWN` such calls are ever made for a task.

The entry carries a lease in its value. It keeps two workers from calling at once; the revision, checked on each write,
keeps them from both believing that they hold it.
"""

from collections.abc import Mapping
from typing import ClassVar, Protocol

from pydantic import AwareDatetime, Field

from fusewire.contracts.base import Part, Wire
from fusewire.errors import Transient

MAX_UNKNOWN = 2
"""The call whose result is unknowable, and the one that is made instead of it."""


class EntryBusy(Transient):
    """Another worker holds the entry. Have the message delivered again after `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("another delivery of these tasks is being worked on", retry_after_s)


class ConflictError(Exception):
    """The entry has another revision than the one expected."""


class LedgerUnavailable(Transient):
    """The ledger could not be read or written; whether a write took place is unknown."""


class TaskCalls(Part):
    """What is known of the calls for one task."""

    started_at: AwareDatetime
    """When the first was made."""
    attempts: int = Field(default=1, ge=1)
    """Calls begun, over all workers."""
    unknown: int = Field(default=0, ge=0)
    """Of these, ended calls whose result is unknowable."""
    is_sent: bool = True
    """Whether the last one may be under way, or may have ended unnoticed."""

    def paused(self, *, ambiguous: bool) -> "TaskCalls":
        """The last one has ended and another will follow; its result is unknowable, or it cost nothing."""
        return self.model_copy(update={"is_sent": False, "unknown": self.unknown + ambiguous})

    def resent(self) -> "TaskCalls":
        """One more is under way."""
        return self.model_copy(update={"is_sent": True, "attempts": self.attempts + 1})

    def left(self) -> "TaskCalls":
        """What a worker that is gone leaves to the next one, no candidate having come."""
        return self.paused(ambiguous=True) if self.is_sent else self

    def may_go_on(self, max_attempts: int) -> bool:
        """Whether one more may be made."""
        return self.unknown < MAX_UNKNOWN and self.attempts < max_attempts


class LedgerEntry(Wire):
    """The ledger's value for one message of tasks."""

    contract: ClassVar[str] = "calls"

    owner: str
    """Who wrote it; no two who hold an entry share a name, not even of one worker."""
    until: AwareDatetime
    """When the lease ends."""
    calls: Mapping[str, TaskCalls]
    """By the call's name; none that was not begun."""


class Ledger(Protocol):
    """Where entries are kept. Writes are compare-and-set on the revision."""

    async def get(self, key: str) -> tuple[LedgerEntry | None, int]:
        """The entry and its revision; (None, 0) if there is none.

        Raises:
            LedgerUnavailable: it does not answer.
        """
        ...

    async def put(self, key: str, entry: LedgerEntry, revision: int, keep_s: float) -> int:
        """Write over `revision` (0: nothing is there) and return the new one.

        Args:
            key: of the message.
            entry: what to write.
            revision: of what is there.
            keep_s: seconds after which it may be forgotten.

        Raises:
            ConflictError: the entry has another revision.
            LedgerUnavailable: the write may or may not have taken place.
        """
        ...
