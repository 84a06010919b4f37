"""The outcome: the fused answer and everything about how it came to be."""

from typing import Any, ClassVar, Literal

from pydantic import AwareDatetime

from fusewire.contracts.base import Mode, Part, Tier, Wire
from fusewire.contracts.candidate import FinishReason, Usage
from fusewire.contracts.prompt import ToolCall

Status = Literal["fused", "voted", "single", "failed", "expired", "cancelled"]

ParseStage = Literal["strict", "repaired", "reasked", "fallback"]
"""How the judge's output was read: as it stood, repaired, after asking once more, or not at all."""

ClosedBy = Literal["complete", "certain", "likely", "gate", "quorum", "deadline"]
"""Why the panel was over: everybody was heard; the leader could not be caught; it probably could not be; the gate
opened; quorum and grace; the panel's deadline."""

Guard = Literal["passed", "lost", "ungrounded", "unjudged"]
"""What became of a merge: it held its own; the best single answer beat it; it states what no candidate does;
no judge could tell. Only `passed` merges are returned, and merges of pools whose guard is off."""

AnswerKind = Literal["tool_call", "json", "number", "choice", "label", "open"]

VerdictKind = Literal["listwise", "pair", "guard"]

CONTROL = "~control"
MERGED = "~merged"
"""Stand in a verdict's `shown` where no member does."""


class Verdict(Part):
    """What one judge said in one call."""

    call: str
    kind: VerdictKind
    judge_model: str
    shown: tuple[str, ...]
    """Members in the order shown."""
    chars: tuple[int, ...] = ()
    """Lengths of what was shown."""
    control: str | None = None
    """The control that was among them, if one was."""
    winner: str | None = None
    """Whom it named; None if that could not be read."""
    rung: ParseStage | None = None
    logprobs: tuple[float, ...] = ()
    """From a judge that decides by margin: of each that was shown, the mean per token."""
    void: str | None = None
    """Why it does not count."""
    is_consistent: bool | None = None
    """Whether this judge named the same winner in the opposite order; None where one of the two is void."""


class Answer(Part):
    """One member's part in an outcome."""

    member: str
    model: str
    tier: Tier
    status: Literal["ok", "error", "missing", "unasked"]
    """`unasked`: the gate let the prompt pass without it."""
    round: int | None = None
    """The round this answer is from; None if it is missing."""
    call: str | None = None
    """The call this answer is from; None if it is missing."""
    content: str | None = None
    """Its text. Left out of the bus and of `outcomes.body` where it stands in `candidates` word for word."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Like `content`."""
    error_code: str | None = None
    error_status: int | None = None
    """See `CallFailure.status`, and so on."""
    provider_code: str | None = None
    provider_param: str | None = None
    retry_after_s: float | None = None
    finish_reason: FinishReason | None = None
    """Why its last answer ended."""
    weight: float | None = None
    """What its voice counted."""
    agreed: bool | None = None
    """Whether its first answer was what most of the others said; None where they had no majority, or for open
    answers."""
    vote_group: int | None = None
    """Equal for first answers that say the same, 0 for the heaviest; None for open ones and those without a vote."""
    is_right: bool | None = None
    """Whether its first answer is right by the prompt's gold label; None without one."""
    is_winner: bool = False
    shown_position: int | None = None
    """Where the judge saw it, from 1; None if no judge did."""
    latency_ms: float | None = None
    usage: Usage | None = Usage()
    """Of all its calls; None where one of them was not counted."""
    cost_usd: float | None = None


class Outcome(Wire):
    """`fw.outcome.<tenant>.<fusion>`, and a row of `outcomes`. Never changes once written."""

    contract: ClassVar[str] = "outcome"

    fusion_id: str
    status: Status
    is_degraded: bool
    degraded_reasons: tuple[str, ...] = ()
    content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None
    """What the winner thought before its answer, as far as that came apart from it."""
    tenant: str
    batch_id: str | None = None
    custom_id: str
    pool: str
    mode: Mode
    winner: str | None = None
    """The member whose answer was chosen; None for a merge and for fused tool calls, which have none."""
    answer_kind: AnswerKind | None = None
    closed_by: ClosedBy | None = None
    missing_weight: float = 0.0
    """The share of the pool's weight that was asked, or should have been, and had no part; 0 to 1."""
    guard: Guard | None = None
    swap_consistent: bool | None = None
    """Whether every judge that judged in both orders named the same winner in both."""
    verdicts: tuple[Verdict, ...] = ()
    hedges: int = 0
    """Second calls made for stragglers."""
    is_replay: bool = False
    """Its answers were recorded earlier."""
    accepted: bool | None = None
    """Whether it is right by the prompt's gold label; None without one."""
    judge_model: str | None = None
    judge_rung: ParseStage | None = None
    reason: str | None = None
    """Why: the judge's own sentence, or the rule that decided."""
    analysis: dict[str, Any] | None = None
    agreement: float | None = None
    """Share of the answering weight that stands behind the chosen answer (closed answers), or
    mean similarity of the answers to each other (open ones); 0 to 1."""
    rounds: int = 0
    answers: tuple[Answer, ...] = ()
    usage: Usage | None = Usage()
    """Summed over members and judge; None where a call was not counted."""
    cost_usd: float | None = None
    """Summed over members and judge; None when any of it is unknown."""
    cost_prompt_usd: float | None = None
    """How much of that prompts cost; None where it is not known apart."""
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
