"""The candidate: the result of a task, an answer or a failure."""

from typing import ClassVar, Literal

from pydantic import AwareDatetime, Field

from fusewire.contracts.base import Part, Tier, Wire
from fusewire.contracts.prompt import ToolCall

FinishReason = Literal["stop", "length", "content_filter", "tool_calls"]

ErrorCode = Literal[
    "rate_limited",
    "insufficient_quota",
    "server_error",
    "connect_error",
    "timeout",
    "truncated",
    "refused",
    "context_length_exceeded",
    "model_not_found",
    "unauthorized",
    "bad_request",
    "deadline_exceeded",
    "engine_failed",
    "answer_too_large",
    "poison",
    "cancelled",
]


MOST_TOKENS = 2_000_000_000
"""The most tokens of one task: fits an integer column in both databases."""
MOST_USD = 1_000_000.0


class CallFailure(Part):
    """Why a call gave no answer."""

    code: ErrorCode
    message: str
    """For people. Never holds prompt text, an answer or a secret."""
    retryable: bool
    """Whether the same task might succeed later."""
    status: int | None = Field(default=None, ge=100, le=599)
    """The HTTP status that the provider answered with, or put into its answer."""
    provider_code: str | None = Field(default=None, max_length=64)
    """The provider's own code of the error."""
    param: str | None = Field(default=None, max_length=64)
    """The parameter that the provider names; or the environment variable without a key."""
    retry_after_s: float | None = Field(default=None, ge=0)
    """How long the provider asks to wait before the next call."""


class Usage(Part):
    """Tokens, as the provider or the engine counted them."""

    prompt_tokens: int = Field(default=0, ge=0, le=MOST_TOKENS)
    completion_tokens: int = Field(default=0, ge=0, le=MOST_TOKENS)
    cached_tokens: int = Field(default=0, ge=0, le=MOST_TOKENS)
    """The part of `prompt_tokens` that came from a cache."""
    reasoning_tokens: int = Field(default=0, ge=0, le=MOST_TOKENS)
    """The part of `completion_tokens` that was reasoning."""

    def plus(self, other: "Usage") -> "Usage":
        """The sum of both."""
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
        )


class Candidate(Wire):
    """`fw.candidate.<fusion>.<round>.<call>`: a worker to the judge.

    Each task ends in exactly one.
    """

    contract: ClassVar[str] = "candidate"

    task_id: str
    fusion_id: str
    round: int = Field(ge=0)
    call: str
    member: str | None = None
    model: str
    tier: Tier
    provider: str
    content: str | None = None
    """The answer; None if `error` is set, or if it only calls tools."""
    tool_calls: tuple[ToolCall, ...] = ()
    error: CallFailure | None = None
    finish_reason: FinishReason | None = None
    """None also if the provider's reason has no counterpart here."""
    provider_reason: str | None = Field(default=None, max_length=64)
    """The provider's own reason why the answer ended."""
    reasoning: str | None = Field(default=None, max_length=10_000)
    """The model's reasoning, if it came apart from the answer; no judge sees it."""
    usage: Usage | None = Usage()
    """None if calls were made that may cost something and whose tokens nobody counted."""
    cost_usd: float | None = Field(default=None, ge=0, le=MOST_USD)
    """What the call cost; None when no price is known. Edge calls cost 0."""
    cost_prompt_usd: float | None = Field(default=None, ge=0, le=MOST_USD)
    """The prompt's part of `cost_usd`; None if it is unknown."""
    price_version: str | None = None
    attempts: int = Field(default=1, ge=0)
    """The number of calls that were made for it."""
    confidence: float | None = Field(default=None, ge=0, le=1)
    """Geometric mean of the chosen tokens' probabilities, if the engine reports them.

    It is not calibrated.
    """
    logprob_mean: float | None = Field(default=None, le=0)
    """Mean natural logarithm of those probabilities; confidence is its exponential."""
    logprob_min: float | None = Field(default=None, le=0)
    """The least of these logarithms: that of the least certain token."""
    logprob_margin: float | None = None
    """Mean margin of the tokens: how far the log probability of the chosen token is above that of
    the best other one."""
    logprob_margin_min: float | None = None
    """The least of these margins; below 0 where a less probable token was sampled."""
    choice_logprobs: tuple[float, ...] = ()
    """By choice of the call: the mean natural logarithm of the probabilities of its tokens and of
    the end after them."""
    maybe_paid_twice: bool = False
    """The result of an earlier attempt is unknowable, so the call may have been billed twice."""
    started_at: AwareDatetime
    finished_at: AwareDatetime

    @property
    def ok(self) -> bool:
        """Whether it holds an answer."""
        return self.error is None and (self.content is not None or bool(self.tool_calls))

    @property
    def latency_ms(self) -> float:
        """Milliseconds from the first attempt to the end."""
        return (self.finished_at - self.started_at).total_seconds() * 1000
