"""Which answers are good: by labels, if enough prompts have them, else as judged. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fusewire.analysis.compare.rows import Pair
from fusewire.analysis.measures import LEAST_N

QualitySource = Literal["labels", "judge"]


@dataclass(frozen=True)
class Worth:
    """What the two answers to a prompt are worth: 1 if right or preferred, 0 if not; ties 0.5."""

    pair: Pair
    a: float
    b: float

    @property
    def choice(self) -> int:
        """1 if B's is worth more, -1 if A's is, 0 if neither is."""
        return (self.b > self.a) - (self.b < self.a)


def read_worths(pairs: Sequence[Pair]) -> tuple[QualitySource | None, list[Worth]]:
    """Return what pairs are worth that tell: by label if LEAST_N have one, else by the judge.

    Where neither labels nor verdicts reach LEAST_N, it is by label if there is any.
    """
    with_label = [
        Worth(pair, float(pair.a.is_right is True), float(pair.b.is_right is True))
        for pair in pairs
        if pair.by_label is not None
    ]
    with_verdict = [
        Worth(pair, (1 - pair.by_judge) / 2, (1 + pair.by_judge) / 2)
        for pair in pairs
        if pair.by_judge is not None
    ]
    if len(with_label) >= LEAST_N or (with_label and len(with_verdict) < LEAST_N):
        return "labels", with_label
    return ("judge", with_verdict) if with_verdict else (None, [])
