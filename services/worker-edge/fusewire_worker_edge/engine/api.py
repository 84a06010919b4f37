"""The interface of an engine: its requests, its completions and its errors."""

from collections.abc import Callable
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from fusewire.contracts import Message, Tool

FinishReason = Literal["stop", "length", "tool_calls"]


class _EngineModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GenerateRequest(_EngineModel):
    """One answer to generate."""

    id: str
    """Unique among the requests under way; `Engine.cancel` takes it."""
    messages: tuple[Message, ...] = Field(min_length=1)
    max_tokens: int = Field(ge=1)
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the most probable token each time."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Stop strings: the answer ends before the first of them. Ignored under a `response_schema`."""
    response_schema: dict[str, Any] | None = None
    """A JSON Schema. An answer that finishes with `stop` is a JSON document valid under it."""
    tools: tuple[Tool, ...] = ()
    """Tools that the answer may call instead of being text."""
    tool_choice: str = "auto"
    """`auto`, `none`, `required`, or the name of the one tool to call."""
    parallel_tool_calls: bool = True
    """Whether one answer may make several calls."""
    is_streamed: bool = False
    """Whether to pass on the text piece by piece while it is generated."""
    rank: int = Field(default=1, ge=0)
    """Priority: of the waiting requests, the lowest rank is admitted first."""
    is_alone: bool = False
    """Whether to begin it when no other request is under way, and others after it."""
    choices: tuple[str, ...] = ()
    """Texts to score instead of generating: how probable each of them is as the answer."""
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """How many alternatives to report with each token's log probability; None reports neither."""


class TokenLogprob(_EngineModel):
    """A token of an answer and its log probability."""

    token: str
    logprob: float
    """Natural logarithm, at temperature 1, among the tokens that were allowed."""
    top: tuple[tuple[str, float], ...] = ()
    """The most probable tokens at this position, each with its log probability."""


class RequestedCall(_EngineModel):
    """A tool call in an answer."""

    name: str
    arguments: str
    """JSON, valid under the schema of the tool's parameters."""


class Completion(_EngineModel):
    """A generated answer."""

    text: str
    """Empty if the answer calls tools; the most probable one if the request had choices."""
    tool_calls: tuple[RequestedCall, ...] = ()
    finish_reason: FinishReason
    """`length` with neither text nor calls means that `max_tokens` cut the answer within a call."""
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Tokens of the prompt whose keys and values were reused from another request."""
    drafted_tokens: int = 0
    """Tokens of the answer that were guessed before they were computed."""
    accepted_tokens: int = 0
    """Guessed tokens that were right."""
    mean_logprob: float = Field(le=0)
    """Mean log probability of the tokens at temperature 1; not calibrated."""
    min_logprob: float = Field(le=0)
    """Smallest log probability of a token."""
    mean_margin: float | None = None
    """Mean margin of the tokens: how far a token's log probability is above that of the best other
    one. None if there was never a choice, or if the request had choices."""
    min_margin: float | None = None
    """Smallest margin of a token; below 0 if a less probable one was sampled."""
    choice_logprobs: tuple[float, ...] = ()
    """By choice: mean natural log probability of its tokens and of the end after them."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One entry for each token but the end token, if the request set `top_logprobs`."""
    prefill_s: float
    """Seconds from submission to the first token."""
    decode_s: float
    """Seconds for the tokens after the first."""


class EngineError(Exception):
    """The base of all errors of an engine: a request was not answered."""


class EngineDiedError(EngineError):
    """The engine's process ended under a request. The next request starts another process."""


class EngineUnusableError(EngineError):
    """The engine cannot start because of its model folder. The message says how to mend it."""


class RequestCancelledError(EngineError):
    """The request was cancelled with `Engine.cancel`."""


class RequestRefusedError(EngineError):
    """The request cannot be answered by this model, now or later."""

    def __init__(
        self, code: Literal["context_length_exceeded", "bad_request"], message: str
    ) -> None:
        self.code = code
        super().__init__(message)


OnPiece = Callable[[str], None]
"""Callback for the pieces of a streamed answer.

No piece is ever taken back: joined, the pieces of a complete answer are its text.
"""


class Engine(Protocol):
    """A model that answers several requests at once."""

    @property
    def provider(self) -> str | None:
        """The execution provider in use, such as `cpu` or `openvino:NPU`; None before the start."""
        ...

    async def generate(
        self, request: GenerateRequest, on_piece: OnPiece | None = None
    ) -> Completion:
        """Answer one request. Cancelling the awaiting task cancels the request.

        Args:
            request: the request.
            on_piece: called with each piece if the request is streamed; all calls happen before
                this returns.

        Raises:
            EngineError: the request was not answered; its subclasses tell why.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """Stop a request within one step of the model. Unknown ids are ignored."""
        ...

    async def aclose(self) -> None:
        """End the process. Requests under way fail with `EngineDiedError`."""
        ...
