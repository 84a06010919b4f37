"""Open fusions as they stood after this process's last transaction on them, so that they need not be read again.

It is a copy of what is stored and never more. Rows of a fusion are only ever added, so their numbers tell whether the
copy is whole: another judge's transaction changes them.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from fusewire.contracts import Candidate, Plan, Prompt, Round
from fusewire_judge.model import ReceivedCandidate

MOST_CHARS = 16 * 1024 * 1024
"""What is kept together, as the length of its JSON. A fusion of three short answers takes some ten thousand."""


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
    """When the strategy's first round was asked."""
    received: Mapping[tuple[int, str], ReceivedCandidate] = field(default_factory=dict)
    due_at: datetime | None = None
    timer_at: datetime | None = None
    is_cancelled: bool = False
    """Whether nobody wants it any more. Like the two before it read anew for each transaction."""

    def planned(self, plan: Plan, chars: int) -> "FusionRecord":
        """With its plan."""
        return replace(self, plan=plan, chars=self.chars + chars)

    def told(self, candidate: Candidate, chars: int, now: datetime) -> "FusionRecord":
        """With one candidate more."""
        heard = {
            **self.received,
            (candidate.round, candidate.call): ReceivedCandidate(candidate, now, len(self.rounds)),
        }
        return replace(self, received=heard, chars=self.chars + chars)

    def asked(self, round_: Round, chars: int, now: datetime) -> "FusionRecord":
        """With one round more."""
        since = self.asked_at or (None if round_.is_panel else now)
        return replace(
            self, rounds=(*self.rounds, round_), asked_at=since, chars=self.chars + chars
        )


class RecentFusions:
    """The copies, those not looked at for the longest time leaving first."""

    def __init__(self, most_chars: int = MOST_CHARS) -> None:
        self._records: OrderedDict[str, FusionRecord] = OrderedDict()
        self._most_chars = most_chars
        self._chars = 0

    def get(
        self, fusion_id: str, *, is_planned: bool, rounds: int, candidates: int
    ) -> FusionRecord | None:
        """The copy, if it has just what is stored."""
        record = self._records.get(fusion_id)
        if record is None:
            return None
        held = record.plan is not None, len(record.rounds), len(record.received)
        return record if held == (is_planned, rounds, candidates) else None

    def keep(self, records: Mapping[str, FusionRecord]) -> None:
        """Keep what a transaction has left of open fusions, once it is committed."""
        for key, record in records.items():
            self.drop([key])
            self._records[key] = record
            self._chars += record.chars
        while self._chars > self._most_chars:
            _, oldest = self._records.popitem(last=False)
            self._chars -= oldest.chars

    def drop(self, fusion_ids: Iterable[str]) -> None:
        """Forget fusions that are done."""
        for key in fusion_ids:
            if (known := self._records.pop(key, None)) is not None:
                self._chars -= known.chars
