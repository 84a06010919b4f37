"""The outcome: the fused answer and everything about how it came to be."""

from typing import Any, ClassVar, Literal

from pydantic import AwareDatetime

from fusewire.contracts.base import Mode, Part, Tier, Wire
from fusewire.contracts.candidate import FinishReason, Usage
from fusewire.contracts.plan import Route
from fusewire.contracts.prompt import ToolCall

Status = Literal["fused", "selected", "voted", "single", "failed", "expired", "cancelled"]
"""`fused`: an answer was written from several. `selected`: a judge chose one. `voted`: a vote did.
`single`: there was one."""
ANSWERED: tuple[Status, ...] = ("fused", "selected", "voted", "single")
"""Statuses of outcomes that have an answer."""
VOTES_BESIDE_MEMBERS = ("fused", "tie", "none")
"""What people may vote for beside the members: the outcome's own answer, several equally good ones,
no good one. No member may be called so."""

ParseStage = Literal["strict", "repaired", "reasked", "fallback"]
"""How the judge's output was read: as written, repaired, after a second request, or not at all."""

ClosedBy = Literal["complete", "certain", "likely", "gate", "quorum", "deadline"]
"""Why the panel closed: all members answered; the vote was decided; it was probably decided; the
gate's members agreed; quorum and grace; the panel's deadline."""

Guard = Literal["passed", "lost", "ungrounded", "unjudged"]
"""The check of a merge: it is no worse than the best single answer; it is worse; it states what no
candidate does; no judge could decide. Only `passed` merges are returned, and all merges of pools
whose guard is off."""

AnswerKind = Literal["tool_call", "json", "number", "choice", "label", "open"]

VerdictKind = Literal["listwise", "pair", "guard", "check"]
"""What a judge was asked: which of all answers is best, which of two, whether a merge is no worse
than the best answer, or whether one answer is right."""

CONTROL = "~control"
MERGED = "~merged"
"""In a verdict's `shown`, a control candidate and a merge, which have no member."""


class Verdict(Part):
    """The result of one call of a judge."""

    call: str
    kind: VerdictKind
    judge_model: str
    shown: tuple[str, ...]
    """Members in the order shown."""
    chars: tuple[int, ...] = ()
    """Lengths of the shown candidates, in characters."""
    control: str | None = None
    """The control candidate that was shown, if any."""
    winner: str | None = None
    """The member that the judge chose; None if that could not be read. Of a check, the member whose
    answer passed; None if it did not."""
    rung: ParseStage | None = None
    logprobs: tuple[float, ...] = ()
    """From a judge that decides by margin: for each shown candidate, the mean per token; of a
    check, those of "yes" and of "no"."""
    void: str | None = None
    """Why the verdict does not count; None if it counts."""
    is_consistent: bool | None = None
    """Whether this judge chose the same winner in the opposite order; None if one of the two
    verdicts is void."""


class Answer(Part):
    """One member's part in an outcome."""

    member: str
    model: str
    tier: Tier
    status: Literal["ok", "error", "missing", "unasked"]
    """`unasked`: this one was not called, because the gate's members agreed, or because the route
    has not chosen it (`Outcome.route`)."""
    round: int | None = None
    """The round this answer is from; None if it is missing."""
    call: str | None = None
    """The call this answer is from; None if it is missing."""
    content: str | None = None
    """Its text. Left out on the bus and in `outcomes.body` if `candidates` holds the same text."""
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
    """Its vote weight."""
    agreed: bool | None = None
    """Whether its first answer equals the majority of the others; None if they had no majority, and
    for open answers."""
    vote_group: int | None = None
    """The group of equal first answers, 0 being the heaviest; None for open answers and those
    without a vote."""
    is_right: bool | None = None
    """Whether its first answer is right by the prompt's gold label; None without one."""
    is_winner: bool = False
    shown_position: int | None = None
    """Its position before the judge, from 1; None if no judge saw it."""
    latency_ms: float | None = None
    usage: Usage | None = Usage()
    """The sum of all its calls; None if one of them was not counted."""
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
    """The winner's reasoning, if it came apart from the answer."""
    tenant: str
    batch_id: str | None = None
    custom_id: str
    pool: str
    mode: Mode
    winner: str | None = None
    """The member whose answer was chosen; None for a merge and for fused tool calls."""
    answer_kind: AnswerKind | None = None
    closed_by: ClosedBy | None = None
    missing_weight: float = 0.0
    """The share of the pool's weight whose members gave no usable answer, 0 to 1."""
    guard: Guard | None = None
    swap_consistent: bool | None = None
    """Whether every judge that judged in both orders chose the same winner in both."""
    verdicts: tuple[Verdict, ...] = ()
    hedges: int = 0
    """Second calls made for stragglers."""
    is_replay: bool = False
    """Whether its answers were recorded earlier."""
    accepted: bool | None = None
    """Whether it is right by the prompt's gold label; None without one."""
    judge_model: str | None = None
    judge_rung: ParseStage | None = None
    reason: str | None = None
    """The judge's own reason, or the rule that decided."""
    analysis: dict[str, Any] | None = None
    agreement: float | None = None
    """Share of the answering weight that gave the chosen answer (closed answers), or mean
    similarity of the answers to each other (open ones); 0 to 1."""
    rounds: int = 0
    answers: tuple[Answer, ...] = ()
    usage: Usage | None = Usage()
    """The sum over members and judge; None if a call was not counted."""
    cost_usd: float | None = None
    """The sum over members and judge; None if any part is unknown."""
    cost_prompt_usd: float | None = None
    """The prompts' part of `cost_usd`; None if it is unknown."""
    error: str | None = None
    submitted_at: AwareDatetime
    finished_at: AwareDatetime
    panel_ms: float | None = None
    judge_ms: float | None = None
    config_hash: str | None = None
    route: Route | None = None
    """Which members the pool's route has chosen, and why; None if it has none."""

    @property
    def latency_ms(self) -> float:
        """Milliseconds from acceptance to outcome."""
        return (self.finished_at - self.submitted_at).total_seconds() * 1000
