"""A chat completion, whole and streamed: OpenAI's fields, and OpenRouter's for cost and fusion."""

from typing import Any, Literal, NotRequired

# Pydantic reads no other before Python 3.12.
from typing_extensions import TypedDict

from fusewire.contracts.base import Mode
from fusewire.contracts.outcome import AnswerKind, ClosedBy, Status


class FunctionCall(TypedDict):
    """A function, and its arguments as JSON."""

    name: str
    arguments: str


class ChatToolCall(TypedDict):
    """One tool call for the client to make."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatMessage(TypedDict):
    """The answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning: NotRequired[str]
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ChatToolCall]]


class ChatChoice(TypedDict):
    """The only choice of a completion."""

    index: int
    message: ChatMessage
    logprobs: None
    finish_reason: str
    native_finish_reason: str


class PromptDetails(TypedDict):
    """Details of the prompts' tokens."""

    cached_tokens: int


class CompletionDetails(TypedDict):
    """Details of the answers' tokens."""

    reasoning_tokens: int


class CostDetails(TypedDict):
    """Costs in USD."""

    upstream_inference_cost: float
    upstream_inference_prompt_cost: float
    upstream_inference_completions_cost: float


class Usage(TypedDict):
    """Tokens and cost of all members and the judge."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails
    cost: NotRequired[float | None]
    """USD; null if it is unknown, or absent for clients that cannot read null."""
    cost_details: CostDetails | None


class FusionMember(TypedDict):
    """One member's part."""

    member: str
    model: str
    status: str
    error_code: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    latency_ms: float | None


class MemberText(TypedDict):
    """A member's answer; null if it was sent in pieces."""

    model: str
    content: str | None


class FailedModel(TypedDict):
    """A member that gave no answer."""

    model: str
    error: str
    status_code: int | None
    provider_code: str | None
    param: str | None


class FusionReport(TypedDict):
    """How an answer came about, with OpenRouter's names; degradation comes first."""

    is_degraded: bool
    degraded_reasons: list[str]
    type: Literal["openrouter:fusion"]
    status: Literal["completed", "incomplete"]
    outcome_id: str
    outcome_status: Status
    strategy: Mode
    pool: str
    winner: str | None
    reason: str | None
    judge_model: str | None
    answer_kind: AnswerKind | None
    closed_by: ClosedBy | None
    agreement: float | None
    cost_usd: float | None
    members: list[FusionMember]
    warnings: list[str]
    responses: list[MemberText]
    failed_models: list[FailedModel]
    failure_reason: str | None
    analysis: NotRequired[dict[str, Any] | None]
    error: NotRequired[str]


class ChatCompletion(TypedDict):
    """`POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: NotRequired[Usage]
    """Absent if a call was not counted."""
    fusion: FusionReport


class FunctionDelta(TypedDict):
    """A piece of a function call; the first one holds the name."""

    name: NotRequired[str]
    arguments: str


class ToolCallDelta(TypedDict):
    """A piece of a tool call."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


class Delta(TypedDict, total=False):
    """A piece of the answer."""

    role: Literal["assistant"]
    content: str
    reasoning: str
    reasoning_content: str
    refusal: str
    tool_calls: list[ToolCallDelta]


class ChunkChoice(TypedDict):
    """A piece of the one choice."""

    index: int
    delta: Delta
    logprobs: None
    finish_reason: str | None


class TextPiece(TypedDict):
    """A piece of a member's answer."""

    index: int
    model: str
    content: str


class FusionPiece(TypedDict):
    """A piece of a report that is too long for one line."""

    outcome_id: str
    response: TextPiece


class ChatChunk(TypedDict):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: NotRequired[Usage | None]
    fusion: NotRequired[FusionReport | FusionPiece]
