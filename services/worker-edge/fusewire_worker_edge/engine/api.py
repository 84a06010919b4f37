"""The interface of an engine: what is asked of it, what it answers, and how it fails."""

from collections.abc import Callable
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from fusewire.contracts import Message


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GenerateRequest(_Part):
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
    is_streamed: bool = False
    """Whether its text is wanted while it is being generated."""


class Completion(_Part):
    """A generated answer."""

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    confidence: float = Field(ge=0, le=1)
    """Geometric mean of the probabilities of its tokens at temperature 1; not calibrated."""
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

    def __init__(self, code: Literal["context_length_exceeded", "bad_request"], message: str) -> None:
        self.code = code
        super().__init__(message)


Hear = Callable[[str], None]
"""Is given the answer's text piece by piece. Nothing is taken back: together the pieces of an answer that comes to
its end are its text."""


class Engine(Protocol):
    """A model that answers requests in the order in which they come."""

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
