"""The paid-call ledger: which calls were begun, and whether a further one may be made.

One entry for each message of tasks. In it, each call has a state:

    (none) ──▶ sent          its candidate is the end: nothing more is written
                │ ▲
                ▼ │  a call ended without an answer, and another will follow
              paused

`sent` is written before the first byte leaves. A call has ended once its candidate is stored: a
worker to which a message is delivered again asks the judge which candidates have come. When nobody
holds the entry any more, the result of a call that is `sent` and has no candidate is unknowable.
At most `MAX_UNKNOWN` such calls are ever made for a task (docs/decisions/0041).

The entry carries a lease in its value. The lease keeps two workers from calling at once; the
revision, checked on each write, keeps them from both believing that they hold the entry.
"""

from collections.abc import Mapping
from typing import ClassVar, Protocol

from pydantic import AwareDatetime, Field

from fusewire.contracts.base import Part, Wire
from fusewire.errors import Transient

MAX_UNKNOWN = 2
"""Unknowable results per task: the call that was lost, and the one made in its place."""


class EntryBusy(Transient):
    """Another worker holds the entry. Have the message delivered again after `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("another delivery of these tasks is being worked on", retry_after_s)


class ConflictError(Exception):
    """The entry has another revision than the one expected."""


class LedgerUnavailable(Transient):
    """The ledger could not be read or written; whether a write took place is unknown."""


class TaskCalls(Part):
    """The calls made for one task so far, over all workers. Immutable."""

    started_at: AwareDatetime
    """When the first call was made."""
    attempts: int = Field(default=1, ge=1)
    """Calls begun, over all workers."""
    unknown: int = Field(default=0, ge=0)
    """How many of these have ended with an unknowable result, and may be paid for."""
    is_sent: bool = True
    """Whether the last call may be under way, or may have ended unnoticed."""

    def pause(self, *, ambiguous: bool) -> "TaskCalls":
        """Return the state after the last call failed, where another will follow.

        Args:
            ambiguous: whether its result is unknowable; if not, it cost nothing.
        """
        return self.model_copy(update={"is_sent": False, "unknown": self.unknown + ambiguous})

    def resend(self) -> "TaskCalls":
        """Return the state with one more call under way."""
        return self.model_copy(update={"is_sent": True, "attempts": self.attempts + 1})

    def abandon(self) -> "TaskCalls":
        """Return the state that a worker which is gone leaves, where no candidate has come."""
        return self.pause(ambiguous=True) if self.is_sent else self

    def may_call_again(self, max_attempts: int) -> bool:
        """Whether one more call may be made."""
        return self.unknown < MAX_UNKNOWN and self.attempts < max_attempts


class LedgerEntry(Wire):
    """The ledger's value for one message of tasks."""

    contract: ClassVar[str] = "calls"

    owner: str
    """Name of the lease that wrote it; no two leases share one, not even those of one worker."""
    until: AwareDatetime
    """When the lease ends."""
    calls: Mapping[str, TaskCalls]
    """Calls that were begun, by the call's name."""


class Ledger(Protocol):
    """A store of entries. Writes are compare-and-set on the revision."""

    async def get(self, key: str) -> tuple[LedgerEntry | None, int]:
        """Return the entry and its revision; (None, 0) if there is none.

        Raises:
            LedgerUnavailable: the ledger does not answer.
        """
        ...

    async def put(self, key: str, entry: LedgerEntry, revision: int, keep_s: float) -> int:
        """Write over `revision` (0: nothing is there) and return the new revision.

        Args:
            key: key of the message.
            entry: what to write.
            revision: revision of the entry that is replaced.
            keep_s: seconds after which the entry may be forgotten.

        Raises:
            ConflictError: the entry has another revision.
            LedgerUnavailable: the write may or may not have taken place.
        """
        ...
