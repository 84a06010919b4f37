"""Cache of open fusions, so that a turn need not read again what this process has just stored.

A record is a copy of what is stored and never more. Rows of a fusion are only ever added, so
their numbers tell whether the copy is complete: another judge's transaction changes them
(docs/decisions/0042).
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from fusewire.contracts import Candidate, Plan, Prompt, Round
from fusewire_judge.model import ReceivedCandidate

MOST_CHARS = 16 * 1024 * 1024
"""Size of the cache, as the length of the records' JSON. A fusion of three short answers takes
some ten thousand characters."""


@dataclass(frozen=True)
class FusionRecord:
    """Everything stored of one fusion that is not done."""

    prompt: Prompt
    prompt_hash: str
    plan: Plan | None
    chars: int
    """The length of its JSON."""
    rounds: tuple[Round, ...] = ()
    asked_at: datetime | None = None
    """When the strategy's first round was asked for."""
    received: Mapping[tuple[int, str], ReceivedCandidate] = field(default_factory=dict)
    """By round and call."""
    due_at: datetime | None = None
    """When the sweep looks at it. Like the two below, it is read again in each transaction."""
    timer_at: datetime | None = None
    """When the timer that is set for it fires."""
    is_cancelled: bool = False

    def with_plan(self, plan: Plan, chars: int) -> "FusionRecord":
        """Return a copy with its plan, whose JSON has this length."""
        return replace(self, plan=plan, chars=self.chars + chars)

    def with_candidate(self, candidate: Candidate, chars: int, now: datetime) -> "FusionRecord":
        """Return a copy with one candidate more, whose JSON has this length."""
        key = candidate.round, candidate.call
        received_candidate = ReceivedCandidate(candidate, now, len(self.rounds))
        return replace(
            self,
            received={**self.received, key: received_candidate},
            chars=self.chars + chars,
        )

    def with_round(self, round_: Round, chars: int, now: datetime) -> "FusionRecord":
        """Return a copy with one round more, whose JSON has this length."""
        asked_at = self.asked_at or (None if round_.is_panel else now)
        return replace(
            self, rounds=(*self.rounds, round_), asked_at=asked_at, chars=self.chars + chars
        )


class RecentFusions:
    """Least recently used cache of the records of open fusions, by fusion id."""

    def __init__(self, most_chars: int = MOST_CHARS) -> None:
        self._records: OrderedDict[str, FusionRecord] = OrderedDict()
        self._most_chars = most_chars
        self._chars = 0

    def get(
        self, fusion_id: str, *, is_planned: bool, rounds: int, candidates: int
    ) -> FusionRecord | None:
        """Return the record if it has a plan, and as many rounds and candidates, as are stored."""
        record = self._records.get(fusion_id)
        if record is None:
            return None
        content = record.plan is not None, len(record.rounds), len(record.received)
        return record if content == (is_planned, rounds, candidates) else None

    def keep(self, records: Mapping[str, FusionRecord]) -> None:
        """Keep open fusions as a transaction left them, once it is committed."""
        for fusion_id, record in records.items():
            self.drop([fusion_id])
            self._records[fusion_id] = record
            self._chars += record.chars
        while self._chars > self._most_chars:
            _, oldest = self._records.popitem(last=False)
            self._chars -= oldest.chars

    def drop(self, fusion_ids: Iterable[str]) -> None:
        """Forget fusions that are done."""
        for fusion_id in fusion_ids:
            record = self._records.pop(fusion_id, None)
            if record is not None:
                self._chars -= record.chars
