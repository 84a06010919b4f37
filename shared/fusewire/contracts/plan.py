"""The plan: what dispatcher decided to do with a prompt, told to the judge."""

from typing import ClassVar

from pydantic import AwareDatetime, Field

from fusewire.contracts.base import Mode, Part, Priority, Residency, Tier, Wire


class PlannedMember(Part):
    """A member that was given a task in round 0."""

    name: str
    model: str
    tier: Tier
    family: str
    weight: float = Field(gt=0)


class Excluded(Part):
    """A member (or the judge) that the plan leaves out, and why."""

    name: str
    reason: str


class PlannedJudge(Part):
    """The model that judges, merges and writes."""

    model: str
    tier: Tier
    family: str


class Plan(Wire):
    """`fw.plan.<fusion>`: dispatcher to judge. Holds no prompt text; the judge has that in SQL."""

    contract: ClassVar[str] = "plan"

    fusion_id: str
    tenant: str
    pool: str
    mode: Mode
    members: tuple[PlannedMember, ...]
    judge: PlannedJudge | None
    excluded: tuple[Excluded, ...] = ()
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
