"""The events of `GET /v1/fusions/{id}/events`; the last one, `outcome`, is a `fusions.Fusion`."""

# Pydantic reads no other before Python 3.12.
from typing_extensions import TypedDict

from fusewire.contracts.base import Mode, Tier
from fusewire.contracts.candidate import ErrorCode
from fusewire.contracts.round import CallKind


class PlanMember(TypedDict):
    """A member of the panel."""

    name: str
    model: str
    tier: Tier
    samples: int
    """The number of its calls."""
    wave: int
    """1 for a member that is called only if the gate's members disagree, or if the pool's route
    chooses it; else 0."""


class PlanJudge(TypedDict):
    """A model that judges."""

    model: str
    tier: Tier


class ExcludedMember(TypedDict):
    """A member that is not called, and why."""

    name: str
    reason: str


class PlanEvent(TypedDict):
    """`plan`: how the prompt will be answered."""

    id: str
    pool: str
    mode: Mode
    members: list[PlanMember]
    judge: PlanJudge | None
    jury: list[PlanJudge]
    """The models that judge together; empty where `judge` judges alone."""
    excluded: list[ExcludedMember]
    planned_at: str
    panel_deadline_at: str
    """When the panel closes."""
    deadline_at: str


class RoundCall(TypedDict):
    """A call that the judge asks for."""

    call: str
    kind: CallKind
    model: str
    member: str | None


class RoundEvent(TypedDict):
    """`round`: the calls that the judge asks for. It comes with the first result of them."""

    id: str
    round: int
    """From 1."""
    calls: list[RoundCall]
    deadline_at: str


class CandidateEvent(TypedDict):
    """`candidate`: the result of a call."""

    id: str
    round: int
    """0 for the calls of the plan."""
    call: str
    """Unique in its round."""
    kind: CallKind
    member: str | None
    """Null for a call of the judge."""
    model: str
    tier: Tier
    ok: bool
    error_code: ErrorCode | None
    latency_ms: float
    cost_usd: float | None
    """Null if it is unknown."""
    content: str | None
    """The text, cut at 4,000 characters; null if there is none."""
    is_cut: bool
    tool_calls: list[str]
    """Names of the functions that it calls."""


class ErrorEvent(TypedDict):
    """`error`: the stream ends without the outcome; the fusion goes on. Open it again."""

    code: str
    """`draining`, `unavailable`, `texts_deleted` or `not_found`."""
    message: str
