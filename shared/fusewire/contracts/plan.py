"""The plan: what dispatcher decided to do with a prompt, told to the judge."""

from typing import ClassVar, Literal

from pydantic import AwareDatetime, Field

from fusewire.contracts.base import Mode, Part, Priority, Residency, Tier, Wire


class PlannedMember(Part):
    """A member that was given a task in round 0."""

    name: str
    model: str
    tier: Tier
    family: str
    weight: float = Field(gt=0)
    """As configured."""
    learned: dict[str, float] = Field(default_factory=dict)
    """By kind of answer: what `weight` is multiplied by. Set by the judge from stored outcomes when it takes
    the plan, so that one fusion is weighed in one way from its beginning to its end."""
    is_required: bool = False
    """Whether the panel waits for it, quorum or not."""
    samples: int = Field(default=1, ge=1)
    """How often it was asked: calls `<name>`, `<name>=2`, …"""
    wave: int = Field(default=0, ge=0, le=1)
    """0: asked at once; 1: asked when the gate does not open."""
    is_mute: bool = False
    """Its answer was recorded, and there is no model to ask again."""
    hedge_after_s: float | None = Field(default=None, ge=0)
    """Seconds after which it is asked a second time; None: never. Set by the judge, as `learned` is."""

    @property
    def calls(self) -> tuple[str, ...]:
        """The names of its calls when it is first asked."""
        return (self.name, *(f"{self.name}={number}" for number in range(2, self.samples + 1)))

    def weight_for(self, kind: str) -> float:
        """What its voice counts for an answer of this kind; of one that nothing is known of, as in the others."""
        known = self.learned.get(kind)
        if known is None:
            known = sum(self.learned.values()) / len(self.learned) if self.learned else 1.0
        return self.weight * known


class ExcludedMember(Part):
    """A member (or the judge) that the plan leaves out, and why."""

    name: str
    reason: str
    weight: float = 0.0
    """Its weight in the pool; 0 for a judge."""


class PlannedJudge(Part):
    """The model that judges, merges and writes."""

    model: str
    tier: Tier
    family: str
    by_margin: bool = False
    """Whether it decides by how probable it finds each answer as its own reply, and writes nothing."""
    sees_own: bool = False
    """Whether it has a voice on answers of its own model too."""


Gate = Literal["none", "edge-first"]


class Policy(Part):
    """What a pool wants of its strategies."""

    early_stop: float = Field(default=0.93, gt=0.5, le=1)
    """Posterior probability at which the leader of a vote wins without waiting for the others; 1 waits for all."""
    grace_most_s: float = Field(default=10.0, ge=0)
    """The longest wait for stragglers after quorum, seconds."""
    gate: Gate = "none"
    gate_confidence: float | None = Field(default=None, gt=0, le=1)
    """`confidence` from which one answer alone opens the gate."""
    hedge: float = Field(default=0.0, ge=0, le=0.5)
    """The share of extra calls allowed for stragglers."""
    guard: bool = True
    """Whether a merge must hold its own against the best single answer."""
    debate_families: int = Field(default=2, ge=1)
    """Families it takes for a debate."""
    control_share: float = Field(default=0.02, ge=0, le=1)
    """The share of a judge's line-ups that hold a control."""
    max_cost_usd: float | None = Field(default=None, gt=0)
    max_total_tokens: int | None = Field(default=None, ge=1)
    criteria: str | None = None
    """What the judge shall value."""


class Plan(Wire):
    """`fw.plan.<fusion>`: dispatcher to judge. Holds no prompt text; the judge has that in SQL."""

    contract: ClassVar[str] = "plan"

    fusion_id: str
    tenant: str
    pool: str
    mode: Mode
    members: tuple[PlannedMember, ...]
    judge: PlannedJudge | None
    """Who analyses and writes merges, and judges where there is no jury."""
    jury: tuple[PlannedJudge, ...] = ()
    """Who judges together; empty: `judge` alone."""
    policy: Policy = Policy()
    excluded: tuple[ExcludedMember, ...] = ()
    quorum: float = Field(gt=0, le=1)
    debate_rounds: int = Field(ge=1, le=2)
    residency: Residency
    priority: Priority
    seed: int
    submitted_at: AwareDatetime
    planned_at: AwareDatetime
    panel_deadline_at: AwareDatetime
    """When the judge takes what has come, so that there is time left to judge it."""
    deadline_at: AwareDatetime
    config_hash: str

    @property
    def jurors(self) -> tuple[PlannedJudge, ...]:
        """Who votes on answers."""
        return self.jury or ((self.judge,) if self.judge else ())
