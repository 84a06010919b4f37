"""The outcome: the fused answer and everything about how it came to be."""

from typing import Any, ClassVar, Literal

from pydantic import AwareDatetime

from fusewire.contracts.base import Mode, Part, Tier, Wire
from fusewire.contracts.candidate import Usage

Status = Literal["fused", "voted", "single", "failed", "expired", "cancelled"]

Rung = Literal["strict", "repaired", "reasked", "fallback"]
"""How the judge's output was read: as it stood, repaired, after asking once more, or not at all."""


class Answer(Part):
    """One member's part in an outcome."""

    member: str
    model: str
    tier: Tier
    status: Literal["ok", "error", "missing"]
    round: int | None = None
    """The round this answer is from; None if it is missing."""
    content: str | None = None
    """Its text. Not on the bus and not in `outcomes.body`: it stands in `candidates`, once."""
    error_code: str | None = None
    is_winner: bool = False
    shown_position: int | None = None
    """Where the judge saw it, from 1; None if no judge did."""
    latency_ms: float | None = None
    usage: Usage = Usage()
    cost_usd: float | None = None


class Outcome(Wire):
    """`fw.outcome.<tenant>.<fusion>`, and a row of `outcomes`. Never changes once written."""

    contract: ClassVar[str] = "outcome"

    fusion_id: str
    status: Status
    is_degraded: bool
    degraded_reasons: tuple[str, ...] = ()
    content: str | None = None
    tenant: str
    batch_id: str | None = None
    custom_id: str
    pool: str
    mode: Mode
    winner: str | None = None
    """The member whose answer was chosen; None for a merge, which has none."""
    judge_model: str | None = None
    judge_rung: Rung | None = None
    reason: str | None = None
    """Why: the judge's own sentence, or the rule that decided."""
    analysis: dict[str, Any] | None = None
    agreement: float | None = None
    """Share of the answering weight that stands behind the chosen answer (closed answers), or
    mean similarity of the answers to each other (open ones); 0 to 1."""
    rounds: int = 0
    answers: tuple[Answer, ...] = ()
    usage: Usage = Usage()
    """Summed over members and judge."""
    cost_usd: float | None = None
    """Summed over members and judge; None when any of it is unknown."""
    error: str | None = None
    submitted_at: AwareDatetime
    finished_at: AwareDatetime
    panel_ms: float | None = None
    judge_ms: float | None = None
    config_hash: str | None = None

    @property
    def latency_ms(self) -> float:
        """Milliseconds from acceptance to outcome."""
        return (self.finished_at - self.submitted_at).total_seconds() * 1000
