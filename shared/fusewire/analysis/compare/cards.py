"""What a lens card holds, and how its evidence is chosen. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from fusewire.analysis.compare.rows import Pair
from fusewire.analysis.measures import Interval

Step = Literal["ship", "skip", "–"]
SideName = Literal["a", "b"]


@dataclass(frozen=True)
class Evidence:
    """A judge's sentence on an outcome that moved a card."""

    outcome_id: str
    sentence: str
    author: str
    """The judge model, or `rule` if no judge wrote the sentence."""
    speaks: Literal["for B", "against B"]


@dataclass(frozen=True)
class Card:
    """How the two look through one lens."""

    name: str
    question: str
    formula: str
    n: int
    a: float | None
    """A's score, 0 to 100; None if it cannot be told."""
    b: float | None
    difference: Interval | None
    """B less A, with its 95 % interval, in `unit`."""
    unit: str
    step: Step
    """`skip` if B is worse beyond the interval (Founder: or over a budget), else `ship`; `–` if it
    cannot be told."""
    details: tuple[str, ...] = ()
    missing: str | None = None
    """Why it cannot be told."""
    evidence: Evidence | None = None


@dataclass(frozen=True)
class Lens:
    """What a card says of itself before any prompt is looked at."""

    name: str
    question: str
    formula: str
    unit: str

    def unknown(self, n: int, missing: str, details: tuple[str, ...] = ()) -> Card:
        """The card where nothing can be told."""
        return Card(
            self.name,
            self.question,
            self.formula,
            n,
            None,
            None,
            None,
            self.unit,
            "–",
            details,
            missing,
        )

    def card(
        self,
        n: int,
        scores: tuple[float, float],
        difference: Interval | None,
        step: Step,
        details: tuple[str, ...] = (),
    ) -> Card:
        """The card with A's and B's score."""
        return Card(
            self.name,
            self.question,
            self.formula,
            n,
            *scores,
            difference,
            self.unit,
            step,
            details,
        )


def step_by(difference: Interval) -> Step:
    """`skip` if the whole interval of B less A is below 0: B is worse beyond doubt."""
    return "skip" if difference.high < 0 else "ship"


def choose_evidence(
    pairs: Iterable[Pair], speaks: Literal["for B", "against B"]
) -> Evidence | None:
    """Choose the outcome that the panel was surest of.

    Of pairs with a judge's sentence: the highest agreement, of equal ones the newest, of equally
    new ones the greatest outcome id. Only if no judge wrote a sentence, the rule that decided is
    quoted.

    Args:
        pairs: those that moved the card that way.
        speaks: which way that is.
    """
    with_sentence = [pair for pair in pairs if (pair.judgement.reason or "").strip()]
    if not with_sentence:
        return None
    judgement = max(
        with_sentence,
        key=lambda pair: (
            pair.judgement.judge_model is not None,
            -1.0 if pair.judgement.agreement is None else pair.judgement.agreement,
            pair.at,
            pair.judgement.outcome_id,
        ),
    ).judgement
    sentence = " ".join((judgement.reason or "").split())
    return Evidence(judgement.outcome_id, sentence, judgement.judge_model or "rule", speaks)


def choice_evidence(card: Card, choices: Iterable[tuple[Pair, int]]) -> Card:
    """Add the evidence to a card, from the pairs that moved it the way that it points.

    Args:
        card: a card with scores.
        choices: pairs with 1 if it is B's by this lens, -1 if A's, 0 if neither.
    """
    speaks = speaks_for(card.a, card.b)
    sign = 1 if speaks == "for B" else -1
    pairs = [pair for pair, choice in choices if choice == sign]
    return replace(card, evidence=choose_evidence(pairs, speaks))


def speaks_for(a: float | None, b: float | None) -> Literal["for B", "against B"]:
    """Which way a card points."""
    return "for B" if a is not None and b is not None and b > a else "against B"
