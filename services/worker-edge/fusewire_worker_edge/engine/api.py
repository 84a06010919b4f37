"""The interface of an engine: what is asked of it, what it answers, and how it fails."""

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
    """Unique among the requests under way; `cancel` names it."""
    messages: tuple[Message, ...] = Field(min_length=1)
    max_tokens: int = Field(ge=1)
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the most probable token each time."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these; not looked at where a schema rules the answer."""
    response_schema: dict[str, Any] | None = None
    """A JSON Schema: an answer that finishes with `stop` is a JSON document that it accepts."""
    tools: tuple[Tool, ...] = ()
    """What the answer may call instead of being text."""
    tool_choice: str = "auto"
    """`auto`, `none`, `required`, or the name of the one tool to call."""
    parallel_tool_calls: bool = True
    """Whether several calls may be made at once."""
    is_streamed: bool = False
    """Whether its text is wanted while it is being generated."""
    rank: int = Field(default=1, ge=0)
    """Of those that wait, the lowest is begun first."""
    choices: tuple[str, ...] = ()
    """With any, nothing is generated: how probable each of these texts is as the answer is told."""
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """With a number, the log probability of each token and of so many alternatives is told."""


class TokenLogprob(_EngineModel):
    """A token of an answer, and how probable it was."""

    token: str
    logprob: float
    """Natural logarithm, at temperature 1, among the tokens that were allowed."""
    top: tuple[tuple[str, float], ...] = ()
    """The most probable tokens at its place."""


class RequestedCall(_EngineModel):
    """A call that an answer asks for."""

    name: str
    arguments: str
    """JSON that the tool's schema accepts."""


class Completion(_EngineModel):
    """A generated answer."""

    text: str
    """Empty where it calls tools; of choices, the most probable."""
    tool_calls: tuple[RequestedCall, ...] = ()
    finish_reason: FinishReason
    """`length` with neither text nor calls: it was cut in the middle of a call."""
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Of the prompt's tokens, those that were computed for another request."""
    mean_logprob: float = Field(le=0)
    """Mean of the log probabilities of its tokens at temperature 1; not calibrated."""
    min_logprob: float = Field(le=0)
    """The least of them."""
    choice_logprobs: tuple[float, ...] = ()
    """By choice: the mean natural logarithm of the probabilities of its tokens and of the end after them."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of each token but the end token, if the request asks for them."""
    prefill_s: float
    """Seconds from taking the request to knowing the first token."""
    decode_s: float
    """Seconds for the tokens after it."""


class EngineError(Exception):
    """A request that was not answered."""


class EngineDiedError(EngineError):
    """The process of the engine ended while it was needed. The next request starts another."""


class EngineUnusableError(EngineError):
    """The engine cannot be started: its model folder is at fault. The message says how to mend it."""


class RequestCancelledError(EngineError):
    """The request was cancelled with `Engine.cancel`."""


class RequestRefusedError(EngineError):
    """The request cannot be answered by this model, now or later."""

    def __init__(
        self, code: Literal["context_length_exceeded", "bad_request"], message: str
    ) -> None:
        self.code = code
        super().__init__(message)


Hear = Callable[[str], None]
"""Is given the answer's text piece by piece. Nothing is taken back: together the pieces of an answer that comes to
its end are its text."""


class Engine(Protocol):
    """A model that answers several requests at once."""

    async def generate(self, request: GenerateRequest, hear: Hear | None = None) -> Completion:
        """Answer one request. Cancelling the awaiting task cancels the request.

        Args:
            request: what to answer.
            hear: given the pieces, all of them before this returns, if the request is streamed.

        Raises:
            EngineError: one of its kinds, above.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """Stop a request within one step of the model; does nothing when it is not under way."""
        ...

    async def aclose(self) -> None:
        """End the process. Requests under way fail with `EngineDiedError`."""
        ...
