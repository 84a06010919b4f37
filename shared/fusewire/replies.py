"""Replies of the HTTP API: ingest writes them, its OpenAPI document describes them, the command line reads them. Pure.

Names and fields are OpenAI's ("API reference") and OpenRouter's; what only Fusewire has stands in `fusion` and
`x_fusewire`. What is not known is null.
"""

from typing import Any, Generic, Literal, NotRequired, TypeVar

# Pydantic reads no other before Python 3.12.
from typing_extensions import TypedDict

from fusewire.contracts.base import Mode, Tier
from fusewire.contracts.candidate import FinishReason
from fusewire.contracts.outcome import AnswerKind, ClosedBy, Guard, Rung, Status, VerdictKind

T = TypeVar("T")

# -- errors -------------------------------------------------------------------------------------


class ErrorDetail(TypedDict):
    """What went wrong, and how to mend it."""

    message: str
    type: str
    param: str | None
    code: str | int
    """A word; at OpenRouter's addresses the status, with the word in `metadata`."""
    metadata: NotRequired[dict[str, Any]]
    fusion: NotRequired[dict[str, Any]]


class Error(TypedDict):
    """Every answer with a status of 400 and more."""

    error: ErrorDetail


# -- chat ---------------------------------------------------------------------------------------


class FunctionCall(TypedDict):
    """A function, and its arguments as JSON."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """One call that the client shall make."""

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
    tool_calls: NotRequired[list[ToolCall]]


class ChatChoice(TypedDict):
    """There is one."""

    index: int
    message: ChatMessage
    logprobs: None
    finish_reason: str
    native_finish_reason: str


class PromptDetails(TypedDict):
    """Of the prompts' tokens."""

    cached_tokens: int


class CompletionDetails(TypedDict):
    """Of the answers' tokens."""

    reasoning_tokens: int


class CostDetails(TypedDict):
    """USD."""

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
    cost: float | None
    """USD."""
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
    """What a member said; null where it was told apart."""

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
    """How an answer came to be, with OpenRouter's names; what is degraded stands first."""

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
    """Not there where a call was not counted."""
    fusion: FusionReport


class FunctionDelta(TypedDict):
    """A piece of a call; the first one names it."""

    name: NotRequired[str]
    arguments: str


class ToolCallDelta(TypedDict):
    """A piece of a call."""

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
    """A piece of what a member said."""

    index: int
    model: str
    content: str


class FusionPiece(TypedDict):
    """Of a report that would make too long a line."""

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


# -- responses ----------------------------------------------------------------------------------


class OutputText(TypedDict):
    """What a message says."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class OutputMessage(TypedDict):
    """The answer."""

    type: Literal["message"]
    id: str
    status: Literal["in_progress", "completed"]
    role: Literal["assistant"]
    content: list[OutputText]


class OutputCall(TypedDict):
    """One call that the client shall make."""

    type: Literal["function_call"]
    id: str
    call_id: str
    status: Literal["in_progress", "completed"]
    name: str
    arguments: str


class InputDetails(TypedDict):
    """Of the input's tokens."""

    cached_tokens: int
    cache_write_tokens: int


class ResponseUsage(TypedDict):
    """Tokens and cost of all members and the judge."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: CompletionDetails
    total_tokens: int
    cost: float | None
    cost_details: CostDetails | None


class IncompleteDetails(TypedDict):
    """Why it was cut."""

    reason: Literal["max_output_tokens", "content_filter"]


class ResponseError(TypedDict):
    """Why it has failed."""

    code: str
    message: str


class Response(TypedDict):
    """`POST /v1/responses`."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage | OutputCall]
    parallel_tool_calls: bool
    temperature: float | None
    tool_choice: str
    tools: list[Any]
    top_p: float | None
    usage: ResponseUsage | None
    fusion: NotRequired[FusionReport]


# -- models -------------------------------------------------------------------------------------


class Architecture(TypedDict):
    """What goes in and out."""

    input_modalities: list[str]
    output_modalities: list[str]
    modality: None


class Pricing(TypedDict):
    """USD per token, as text; -1 where it depends."""

    prompt: str
    completion: str


class Model(TypedDict):
    """What may be asked: a fusion, a pool or a model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    name: str
    canonical_slug: str
    context_length: int | None
    architecture: Architecture
    pricing: Pricing
    supported_parameters: list[str]
    default_parameters: None
    per_request_limits: None
    supported_voices: None
    top_provider: dict[str, Any]
    links: dict[str, str]


class ModelList(TypedDict):
    """`GET /v1/models`."""

    object: Literal["list"]
    data: list[Model]
    total_count: int
    links: dict[str, Any]


# -- files and batches --------------------------------------------------------------------------


class File(TypedDict):
    """The input of a batch, or what it has written."""

    id: str
    object: Literal["file"]
    _shape: Literal["openai"]
    """By this OpenRouter's SDK knows that it reads OpenAI's shape."""
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"]
    status_details: None


class Page(TypedDict, Generic[T]):
    """A part of a list, the newest first. The next one begins after `last_id`."""

    object: Literal["list"]
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileList(Page[File]):
    """`GET /v1/files`."""

    _shape: Literal["openai"]


class Deleted(TypedDict):
    """`DELETE /v1/files/{id}`."""

    id: str
    object: Literal["file"]
    _shape: Literal["openai"]
    deleted: bool


class RequestCounts(TypedDict):
    """Lines."""

    total: int
    completed: int
    failed: int


class BatchErrors(TypedDict):
    """Why a batch failed, by line."""

    object: Literal["list"]
    data: list[dict[str, Any]]


class BatchFault(TypedDict):
    """The first of its errors."""

    message: str


class BatchUsage(TypedDict):
    """Tokens and cost so far, by OpenAI's names and by OpenRouter's."""

    prompt_tokens: int
    completion_tokens: int
    input_tokens: int
    input_tokens_details: PromptDetails
    output_tokens: int
    output_tokens_details: CompletionDetails
    total_tokens: int
    cost: float | None


class OwnBatch(TypedDict):
    """What OpenAI's batches have not."""

    stop_reason: str | None
    waiting_for: str | None
    degraded: int
    held: int | None
    in_flight: int | None
    rate_per_s: float | None
    eta_at: int | None
    cost_usd: float
    n_unpriced: int
    max_cost_usd: float | None
    priority: str


class Batch(TypedDict):
    """A batch. Times are seconds since 1970."""

    id: str
    object: Literal["batch"]
    endpoint: str
    model: str
    provider: None
    error: BatchFault | None
    results: list[dict[str, Any]] | None
    status: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    finalized_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None
    x_fusewire: OwnBatch


class BatchList(Page[Batch]):
    """`GET /v1/batches`."""


# -- fusions ------------------------------------------------------------------------------------


class PlainCall(TypedDict):
    """A tool call as Fusewire keeps it."""

    id: str
    name: str
    arguments: str


class PlainUsage(TypedDict):
    """Tokens as Fusewire keeps them."""

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
    rung: Rung | None
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


class Fusion(TypedDict):
    """A fusion; see `contracts.Outcome`. One that runs has its status, its ids and `submitted_at` alone."""

    is_degraded: NotRequired[bool]
    degraded_reasons: NotRequired[list[str]]
    status: Status | Literal["running"]
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
    judge_rung: NotRequired[Rung | None]
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
    latency_ms: NotRequired[float]
    is_repetition: NotRequired[bool]
    """Of a submission: whether it was there before."""
    is_cancelled: NotRequired[bool]
    """Of a request to cancel it: whether it still ran."""


class FusionList(TypedDict):
    """`GET /v1/fusions`."""

    data: list[Fusion]


class SubmittedLine(TypedDict):
    """What became of one line: an id, or an error."""

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


class Erased(TypedDict):
    """`DELETE /v1/fusions/{id}/images`."""

    id: str
    erased: int
