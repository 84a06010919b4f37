"""Fusions in Fusewire's own form, with the fields of `contracts.Outcome`."""

from typing import Any, Literal, NotRequired

# Pydantic reads no other before Python 3.12.
from typing_extensions import TypedDict

from fusewire.contracts.base import Mode, Tier
from fusewire.contracts.candidate import FinishReason
from fusewire.contracts.outcome import AnswerKind, ClosedBy, Guard, ParseStage, Status, VerdictKind
from fusewire.contracts.plan import RouteReason


class PlainCall(TypedDict):
    """A tool call as Fusewire stores it."""

    id: str
    name: str
    arguments: str


class PlainUsage(TypedDict):
    """Tokens as Fusewire stores them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int


class FusionVerdict(TypedDict):
    """See `contracts.Verdict`."""

    call: str
    kind: VerdictKind
    judge_model: str
    shown: list[str]
    chars: list[int]
    control: str | None
    winner: str | None
    rung: ParseStage | None
    logprobs: list[float]
    void: str | None
    is_consistent: bool | None


class FusionAnswer(TypedDict):
    """See `contracts.Answer`."""

    member: str
    model: str
    tier: Tier
    status: Literal["ok", "error", "missing", "unasked"]
    round: int | None
    call: str | None
    content: str | None
    tool_calls: list[PlainCall]
    error_code: str | None
    error_status: int | None
    provider_code: str | None
    provider_param: str | None
    retry_after_s: float | None
    finish_reason: FinishReason | None
    weight: float | None
    agreed: bool | None
    vote_group: int | None
    is_right: bool | None
    is_winner: bool
    shown_position: int | None
    latency_ms: float | None
    usage: PlainUsage | None
    cost_usd: float | None


class FusionRoute(TypedDict):
    """See `contracts.Route`."""

    members: list[str]
    reason: RouteReason
    loss_points: float | None


class Fusion(TypedDict):
    """A fusion; see `contracts.Outcome`.

    A running one has only its status, its ids and `submitted_at`.
    """

    is_degraded: NotRequired[bool]
    degraded_reasons: NotRequired[list[str]]
    status: Status | Literal["running", "texts_deleted"]
    id: str
    custom_id: str
    batch_id: str | None
    content: NotRequired[str | None]
    tool_calls: NotRequired[list[PlainCall]]
    reasoning: NotRequired[str | None]
    tenant: NotRequired[str]
    pool: NotRequired[str]
    mode: NotRequired[Mode]
    winner: NotRequired[str | None]
    answer_kind: NotRequired[AnswerKind | None]
    closed_by: NotRequired[ClosedBy | None]
    missing_weight: NotRequired[float]
    guard: NotRequired[Guard | None]
    swap_consistent: NotRequired[bool | None]
    verdicts: NotRequired[list[FusionVerdict]]
    hedges: NotRequired[int]
    is_replay: NotRequired[bool]
    accepted: NotRequired[bool | None]
    judge_model: NotRequired[str | None]
    judge_rung: NotRequired[ParseStage | None]
    reason: NotRequired[str | None]
    analysis: NotRequired[dict[str, Any] | None]
    agreement: NotRequired[float | None]
    rounds: NotRequired[int]
    answers: NotRequired[list[FusionAnswer]]
    usage: NotRequired[PlainUsage | None]
    cost_usd: NotRequired[float | None]
    cost_prompt_usd: NotRequired[float | None]
    error: NotRequired[str | None]
    submitted_at: str
    finished_at: NotRequired[str]
    panel_ms: NotRequired[float | None]
    judge_ms: NotRequired[float | None]
    config_hash: NotRequired[str | None]
    route: NotRequired[FusionRoute | None]
    latency_ms: NotRequired[float]
    is_repetition: NotRequired[bool]
    """In the reply to a submission: whether the fusion existed before."""
    is_cancelled: NotRequired[bool]
    """In the reply to a cancellation: whether the fusion was still running."""


class FusionList(TypedDict):
    """`GET /v1/fusions`."""

    data: list[Fusion]


class SubmittedLine(TypedDict):
    """The result of one line: an id, or an error."""

    line: int
    id: NotRequired[str]
    custom_id: NotRequired[str]
    is_repetition: NotRequired[bool]
    error: NotRequired[dict[str, Any]]


class SubmittedLines(TypedDict):
    """`POST /v1/fusions` with JSONL."""

    batch_id: str
    accepted: int
    refused: int
    lines: list[SubmittedLine]


class ImageDeletion(TypedDict):
    """`DELETE /v1/fusions/{id}/images`."""

    id: str
    erased: int
