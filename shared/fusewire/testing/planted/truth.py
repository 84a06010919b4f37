"""What is true of planted outcomes: the models, the judges, the prompts."""

from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from fusewire.contracts import PlannedJudge, PlannedMember, Tier

MOST_MEMBERS = 26


@dataclass(frozen=True)
class MemberTruth:
    """A member of a pool, which has its name from its model."""

    model: str
    strength: float = 0.0
    """Log-odds with which a judge without biases prefers it to a model of strength 0 (Bradley and
    Terry, 1952)."""
    drift_per_day: float = 0.0
    """What is added to the strength for each day after the first."""
    accuracy: float = 0.7
    """The probability that its answer is right, whether the prompt has a label or not."""
    failure_rate: float = 0.0
    """The probability that it gives no answer (`timeout`)."""
    cost_usd: float | None = 0.001
    """What an answer costs; None if no price is known. A failure has no price and no tokens."""
    latency_ms: float = 800.0
    """The median of its answers, which are lognormal."""
    latency_spread: float = 0.4
    """The standard deviation of the logarithm of the latency."""
    chars: float = 400.0
    """The median length of its open answers, which are lognormal, from 100 to 4,200 characters."""
    chars_spread: float = 0.3
    """The standard deviation of the logarithm of the length."""
    tier: Tier = "remote"
    family: str | None = None
    """None: it is the only model of its family."""
    weight: float = 1.0
    """The weight of its vote, as configured."""
    is_useless: bool = False
    """Whether it is always wrong in a way of its own, and never wins: without it, each outcome
    would have the same answer. It has to be the last of its pool."""

    def as_planned(self) -> PlannedMember:
        """The member as a plan holds it."""
        family = self.family or self.model
        return PlannedMember(
            name=self.model, model=self.model, tier=self.tier, family=family, weight=self.weight
        )


@dataclass(frozen=True)
class JudgeTruth:
    """A judge that compares all answers in two opposite orders."""

    model: str = "judge"
    family: str = "judges"
    position_bias: float = 0.0
    """Log-odds that an answer gains by being shown first."""
    length_bias: float = 0.0
    """Log-odds that an answer gains by being twice as long."""
    family_bias: float = 0.0
    """Log-odds that an answer gains by being of the judge's family."""
    insight: float = 0.0
    """Log-odds that an answer gains by being right."""
    repeatability: float = 1.0
    """The probability that it thinks the same of each answer when it sees the second order. With 1
    it flips by its position bias only, and with a bias of 0 never. Below, pairs with the same
    winner in both orders overstate differences of strength."""
    cost_usd: float | None = 0.002
    """What a verdict costs; None if no price is known."""
    latency_ms: float = 500.0
    """The median of its verdicts, which are lognormal."""

    def as_planned(self) -> PlannedJudge:
        """The judge as a plan holds it."""
        return PlannedJudge(model=self.model, tier="remote", family=self.family)


@dataclass(frozen=True)
class PoolTruth:
    """A pool. Open prompts are judged, closed ones voted."""

    members: tuple[MemberTruth, ...]
    judge: JudgeTruth | None = None
    """None: a tie is won by the heaviest member, an open prompt by the answer most like the others.
    A judge decides ties too."""
    config_hash: str = "0123456789ab"

    @cached_property
    def body_fields(self) -> str:
        """The members and the judge as a plan's body holds them."""
        members = ",".join(
            member.as_planned().model_dump_json(exclude_defaults=True) for member in self.members
        )
        judge = self.judge.as_planned().model_dump_json() if self.judge else "null"
        return f'"members":[{members}],"judge":{judge}'

    def __post_init__(self) -> None:
        """Check what would make outcomes that no judge stores."""
        models = [member.model for member in self.members]
        if not 1 <= len(models) <= MOST_MEMBERS:
            raise ValueError(f"a planted pool has 1 to {MOST_MEMBERS} members")
        if len({*models}) < len(models) or (self.judge and self.judge.model in models):
            raise ValueError("each member has a model of its own, and the judge another")
        if any(member.is_useless for member in self.members[:-1]):
            raise ValueError("a useless member has to be the last: else it would win ties")


def _default_pools() -> dict[str, PoolTruth]:
    members = (
        MemberTruth("alpha", strength=0.6, accuracy=0.8, cost_usd=0.004),
        MemberTruth("beta", accuracy=0.7, failure_rate=0.02),
        MemberTruth("gamma", strength=-0.4, accuracy=0.6, cost_usd=0.0, tier="edge"),
    )
    return {"default": PoolTruth(members, JudgeTruth(position_bias=0.3, length_bias=0.1))}


@dataclass(frozen=True)
class Truth:
    """What is true of all outcomes. The same prompts are given to every pool."""

    now: datetime
    """The first prompt is submitted `days` before, the last ten minutes before."""
    pools: dict[str, PoolTruth] = field(default_factory=_default_pools)
    days: float = 30.0
    gold_share: float = 0.5
    """The share of prompts with a gold label."""
    open_share: float = 0.5
    """The share of prompts whose answers are open texts; those of the others are numbers."""
    correlation: float = 0.0
    """The share of prompts that are as difficult for one model as for another: a model that is
    right on one of them implies that all more accurate ones are."""
    shared_error_rate: float = 0.0
    """The probability that a wrong answer is the one that other wrong models give too; else it is
    no other's."""
    batch_share: float = 0.5
    """The share of prompts that are lines of batches."""
    batch_size: int = 1000
    """Prompts after which a new batch begins, lines of it or not."""
    tenants: tuple[str, ...] = ("default",)
    """Each prompt is of one of them, with equal probability."""
