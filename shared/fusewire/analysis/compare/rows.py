"""What a comparison is made of: what each contestant did for the same prompt. Pure data."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Choice = Literal["a", "b", "tie"]
"""Which of the two is better."""


@dataclass(frozen=True)
class Side:
    """What a contestant did for one prompt: a model's answer, or a pool's outcome."""

    outcome_id: str
    is_answered: bool
    is_clean: bool
    """Whether it answered, and nothing had to be repaired, asked again or replaced by a rule."""
    is_right: bool | None
    """By the gold label; None without one."""
    is_alone_wrong: bool
    """Whether it is wrong where every other member is right."""
    cost_usd: float | None
    latency_ms: float | None


@dataclass(frozen=True)
class Judgement:
    """What the judge said of a pair, and of the outcome that `reason` is from."""

    outcome_id: str
    choice: Choice | None
    """None if the two were not compared in both orders or by margin."""
    is_flip: bool
    reason: str | None
    """The judge's sentence, or the rule that decided."""
    judge_model: str | None
    """None if no judge wrote the sentence."""
    agreement: float | None
    judges: tuple[str, ...] = ()
    """Whose verdicts `choice` is made of."""


@dataclass(frozen=True)
class Pair:
    """One time that both contestants had the same prompt."""

    prompt: str
    """Its prompt_hash."""
    at: datetime
    answer_kind: str | None
    a: Side
    b: Side
    judgement: Judgement

    @property
    def order(self) -> tuple[datetime, str]:
        """By what pairs are sorted: the newest is the last."""
        return self.at, self.b.outcome_id

    def side(self, name: Literal["a", "b"]) -> Side:
        """One of the two sides."""
        return self.a if name == "a" else self.b

    @property
    def by_label(self) -> int | None:
        """1 if only B is right, -1 if only A is, 0 if both or neither; None without labels."""
        if self.a.is_right is None or self.b.is_right is None:
            return None
        return int(self.b.is_right) - int(self.a.is_right)

    @property
    def by_judge(self) -> int | None:
        """1 if the judge holds B for the better one, -1 if A, 0 if neither; None if not judged."""
        choice = self.judgement.choice
        return None if choice is None else {"a": -1, "b": 1, "tie": 0}[choice]


def newest_by_prompt(pairs: Iterable[Pair]) -> list[Pair]:
    """Keep the newest pair of each prompt, in the order of time.

    A prompt that was given many times, as those of a suite that runs each night, tells nothing
    more about other prompts.
    """
    newest = {pair.prompt: pair for pair in sorted(pairs, key=lambda pair: pair.order)}
    return sorted(newest.values(), key=lambda pair: pair.order)


@dataclass(frozen=True)
class HumanVote:
    """A person's vote on an outcome that a pair is of."""

    outcome_id: str
    choice: Choice | Literal["other"]
    """`other` is another member's answer, or none."""


@dataclass(frozen=True)
class Names:
    """The two contestants, and what they are."""

    kind: Literal["models", "pools"]
    a: str
    b: str


@dataclass(frozen=True)
class Rules:
    """What is declared before the comparison is made."""

    margin_points: float = 3.0
    """How many of 100 prompts B (or A) may be worse on and still be shipped for its price."""
    budget_usd: float | None = None
    """The most that an accepted answer may cost."""
    budget_ms: float | None = None
    """The most that the 95th percentile of the latencies may be."""
