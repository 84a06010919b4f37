"""Batches and their files in OpenAI's form; `x_fusewire` holds additional fields."""

from typing import Any, Generic, Literal, TypeVar

# Pydantic reads no other before Python 3.12.
from typing_extensions import TypedDict

from fusewire.replies.chat import CompletionDetails, PromptDetails

T = TypeVar("T")


class File(TypedDict):
    """An input or output file of a batch."""

    id: str
    object: Literal["file"]
    _shape: Literal["openai"]
    """OpenRouter's SDK recognises OpenAI's form by this field."""
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


class FileDeletion(TypedDict):
    """`DELETE /v1/files/{id}`."""

    id: str
    object: Literal["file"]
    _shape: Literal["openai"]
    deleted: bool


class RequestCounts(TypedDict):
    """Numbers of lines."""

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


class FusewireBatch(TypedDict):
    """Fields that OpenAI's batches do not have."""

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
    x_fusewire: FusewireBatch


class BatchList(Page[Batch]):
    """`GET /v1/batches`."""
