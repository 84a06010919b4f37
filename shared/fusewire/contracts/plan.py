"""The plan: how the dispatcher has decided to answer a prompt, sent to the judge."""

from typing import ClassVar, Literal

from pydantic import AliasChoices, AwareDatetime, ConfigDict, Field

from fusewire.contracts.base import Mode, Part, Priority, Residency, Tier, Wire
from fusewire.contracts.call_names import sample_names


class PlannedMember(Part):
    """A member that was given a task in round 0."""

    name: str
    model: str
    tier: Tier
    family: str
    weight: float = Field(gt=0)
    """As configured."""
    learned: dict[str, float] = Field(default_factory=dict)
    """Factors of `weight` by kind of answer.

    The judge sets them from stored outcomes when it stores the plan, so that one fusion uses the
    same weights from its beginning to its end.
    """
    is_required: bool = False
    """Whether the panel waits for it, quorum or not."""
    samples: int = Field(default=1, ge=1)
    """The number of its calls: `<name>`, `<name>=2`, …"""
    wave: int = Field(default=0, ge=0, le=1)
    """0: called at once; 1: called by the judge, if the gate's members disagree or if the route
    has chosen it."""
    is_replay_only: bool = Field(
        default=False, validation_alias=AliasChoices("is_replay_only", "is_mute")
    )
    """Whether its answer was recorded and there is no model to call again.

    Stored plans of earlier versions name the field `is_mute`.
    """
    hedge_after_s: float | None = Field(default=None, ge=0)
    """Seconds until a second call is made; None: never. Set by the judge, as `learned` is."""

    @property
    def calls(self) -> tuple[str, ...]:
        """The names of its calls in round 0."""
        return sample_names(self.name, self.samples)

    def weight_for(self, kind: str) -> float:
        """Its vote weight for answers of a kind.

        For a kind without a learned factor the mean of the other kinds is used.
        """
        factor = self.learned.get(kind)
        if factor is None:
            factor = sum(self.learned.values()) / len(self.learned) if self.learned else 1.0
        return self.weight * factor


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
    """Whether it decides by the probability of each answer as its own reply, and writes nothing."""
    sees_own: bool = False
    """Whether it judges answers of its own model too."""
    pass_edge: float | None = Field(default=None, ge=0)
    """The log odds of being right that an answer gains by passing its check; None: those of an
    ordinary judge. Set by the judge from stored outcomes, as `learned` of a member is."""
    fail_edge: float | None = Field(default=None, le=0)
    """Those that it gains by failing."""
    verdict_edge: float | None = Field(default=None, gt=0)
    """The log odds by which its verdict speaks for the answer that it names; None: those of an
    ordinary judge."""


Gate = Literal["none", "edge-first"]

RouteReason = Literal["predicted", "explored", "unlearned", "too_risky"]
"""Why these members are asked: they are predicted to be good enough; all are asked, so that there
is something to learn from; too little is known; no smaller choice is predicted to be good
enough."""


class Route(Part):
    """Which members of a pool with `route = "learned"` are asked about a prompt, and why.

    The judge sets it when it stores the plan (docs/decisions/0067).
    """

    members: tuple[str, ...]
    reason: RouteReason
    loss_points: float | None = None
    """How much more often asking all would be right, as predicted, in percentage points; None if
    all are asked."""

    @property
    def text(self) -> str:
        """Why the other members are not asked.

        >>> Route(members=("a",), reason="predicted", loss_points=0.4).text
        'not asked: the route predicts 0.4 points lost by asking a alone'
        """
        names = " and ".join(self.members)
        alone = " alone" if len(self.members) == 1 else ""
        loss = max(self.loss_points or 0.0, 0.0)
        return f"not asked: the route predicts {loss:.1f} points lost by asking {names}{alone}"


class Policy(Part):
    """The rules of a pool that its strategies follow; keys of `[pools.<name>]` too."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    grace_most_s: float = Field(default=10.0, ge=0)
    """The longest wait for stragglers after quorum; it is 0.35 of the time to quorum, at least 0.5
    s."""
    early_stop: float = Field(default=0.93, gt=0.5, le=1)
    """A vote ends when its leader wins with this probability, whoever is still out: 0.93 is three
    of three, 0.87 two of two. One that cannot be caught ends it too. 1 waits for everybody."""
    hedge: float = Field(default=0.0, ge=0, le=0.5)
    """The share of extra calls that may be made to ask stragglers a second time; 0 is none."""
    gate: Gate = "none"
    """`edge-first`: the edge members are asked alone, and the hosted ones only where those
    disagree."""
    gate_confidence: float | None = Field(default=None, gt=0, le=1)
    """Confidence from which one edge answer alone opens the gate. It is not calibrated: measure
    first."""
    guard: bool = True
    """Whether a merge is returned only if it holds its own against the best single answer."""
    debate_families: int = Field(default=2, ge=1, le=8)
    """Debate takes members of at least this many families; 1 lets one model debate with itself."""
    checks: int = Field(default=1, ge=1, le=5)
    """How often each judge checks an answer in mode verify; judges by margin do so once."""
    control_share: float = Field(default=0.02, ge=0, le=1)
    """The share of a judge's line-ups that hold a control, an answer that only a broken judge
    picks."""
    max_cost_usd: float | None = Field(default=None, gt=0)
    """No further call is made for a prompt once its calls have cost this much; an unknown price
    counts as nothing."""
    max_total_tokens: int | None = Field(default=None, ge=1)
    """The most tokens that the calls for a prompt may take, by estimate before each; members that
    do not fit are left out, last first."""
    route: Literal["all", "learned"] = "all"
    """`learned`: of each prompt only the cheapest members are asked that are predicted to be right
    as often as all together, by what outcomes have shown. See docs/fusion.md."""
    route_loss_points: float = Field(default=1.0, ge=0, le=100)
    """What a learned route may lose against asking all members, in percentage points of right
    answers."""
    route_explore: float = Field(default=0.05, ge=0, le=1)
    """The share of prompts that a learned route asks all members about all the same, and waits for
    them: what it goes on learning from."""
    criteria: str | None = Field(default=None, max_length=4000)
    """What the judge shall value, in place of: correct first, complete second, clear third."""


class Plan(Wire):
    """`fw.plan.<fusion>`: dispatcher to judge. Holds no prompt text; the judge has that in SQL."""

    contract: ClassVar[str] = "plan"

    fusion_id: str
    tenant: str
    pool: str
    mode: Mode
    members: tuple[PlannedMember, ...]
    judge: PlannedJudge | None
    """The model that analyses and writes merges, and judges if there is no jury."""
    jury: tuple[PlannedJudge, ...] = ()
    """The models that judge together; empty: `judge` alone."""
    policy: Policy = Policy()
    route: Route | None = None
    """None: all members are asked, or those of a gate."""
    excluded: tuple[ExcludedMember, ...] = ()
    quorum: float = Field(gt=0, le=1)
    debate_rounds: int = Field(ge=1, le=2)
    residency: Residency
    priority: Priority
    seed: int
    submitted_at: AwareDatetime
    planned_at: AwareDatetime
    panel_deadline_at: AwareDatetime
    """When the panel closes, so that there is time left to judge."""
    deadline_at: AwareDatetime
    config_hash: str

    @property
    def is_routed(self) -> bool:
        """Whether no member has been called, because the judge chooses which are."""
        has_second_wave = bool(self.members) and all(member.wave for member in self.members)
        return self.policy.route == "learned" and has_second_wave

    @property
    def jurors(self) -> tuple[PlannedJudge, ...]:
        """The models that vote on answers."""
        return self.jury or ((self.judge,) if self.judge else ())
