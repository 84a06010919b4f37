"""A response of OpenAI's Responses API."""

from typing import Any, Literal, NotRequired

# Pydantic reads no other before Python 3.12.
from typing_extensions import TypedDict

from fusewire.replies.chat import CompletionDetails, CostDetails, FusionReport


class OutputText(TypedDict):
    """The text of a message."""

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
    """One tool call for the client to make."""

    type: Literal["function_call"]
    id: str
    call_id: str
    status: Literal["in_progress", "completed"]
    name: str
    arguments: str


class InputDetails(TypedDict):
    """Details of the input's tokens."""

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
    """Why the answer is incomplete."""

    reason: Literal["max_output_tokens", "content_filter"]


class ResponseError(TypedDict):
    """Why the response has failed."""

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
