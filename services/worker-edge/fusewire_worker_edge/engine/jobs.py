"""The requests in the scheduler, and what it tells about them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fusewire_worker_edge.engine.answer import AnswerTokens
from fusewire_worker_edge.engine.api import Completion, EngineError
from fusewire_worker_edge.engine.comparison import Comparison
from fusewire_worker_edge.engine.speculation import PromptLookup


@dataclass(eq=False, kw_only=True)
class _Job(ABC):
    """A request in the scheduler: waiting, prefilling or decoding."""

    id: str
    prompt: Sequence[int]
    rank: int = 1
    """The lowest is admitted, and prefilled, first."""
    began_s: float = 0.0
    prefilled_s: float = 0.0
    length: int = 0
    """Positions of its slot that are filled."""
    cached_tokens: int = 0
    """Positions of the prompt that were copied and not computed."""

    @cached_property
    def prompt_array(self) -> NDArray[np.int64]:
        """The prompt, [tokens]; it is compared with others before every chunk."""
        return np.asarray(self.prompt, np.int64)

    @property
    @abstractmethod
    def max_tokens_after(self) -> int:
        """The most positions that it needs after its prompt."""

    @property
    @abstractmethod
    def unread_tokens(self) -> int:
        """How many tokens are still to be read before it decodes or is complete."""

    @property
    def reserved_positions(self) -> int:
        """The most positions that it needs."""
        return len(self.prompt) + self.max_tokens_after

    @property
    def is_prefilled(self) -> bool:
        """Whether the whole prompt is in its slot."""
        return self.length >= len(self.prompt)


@dataclass(eq=False, kw_only=True)
class AnswerJob(_Job):
    """A request that generates an answer."""

    answer: AnswerTokens
    max_tokens: int
    is_streamed: bool = False
    last_token: int = 0
    lookup: PromptLookup | None = None
    """Drafts the next tokens; None leaves them to be decoded one by one."""

    @property
    def max_tokens_after(self) -> int:
        """See `_Job`."""
        return self.max_tokens

    @property
    def unread_tokens(self) -> int:
        """See `_Job`."""
        return max(len(self.prompt) - self.length, 0)

    def completion(self, now_s: float) -> Completion:
        """Return the complete answer.

        Args:
            now_s: the time in seconds, by the clock of `began_s`.

        Raises:
            ValueError: the answer is not complete.
        """
        answer = self.answer
        if answer.finish_reason is None:
            raise ValueError("the answer is not complete")
        return Completion(
            text=answer.text,
            tool_calls=answer.tool_calls,
            finish_reason=answer.finish_reason,
            mean_logprob=answer.mean_logprob,
            min_logprob=answer.min_logprob,
            mean_margin=answer.mean_margin,
            min_margin=answer.min_margin,
            logprobs=tuple(answer.logprobs),
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens,
            completion_tokens=answer.tokens,
            drafted_tokens=self.lookup.drafted_tokens if self.lookup else 0,
            accepted_tokens=self.lookup.accepted_tokens if self.lookup else 0,
            prefill_s=self.prefilled_s - self.began_s,
            decode_s=now_s - self.prefilled_s,
        )


@dataclass(eq=False, kw_only=True)
class ComparisonJob(_Job):
    """A request that scores given texts as answers."""

    comparison: Comparison
    choices: Sequence[str]
    read_tokens: int = 0
    """Tokens of the texts that were read."""

    @property
    def max_tokens_after(self) -> int:
        """See `_Job`."""
        return self.comparison.longest

    @property
    def unread_tokens(self) -> int:
        """See `_Job`."""
        of_prompt = max(len(self.prompt) - self.length, 0)
        return of_prompt + self.comparison.tokens - self.read_tokens

    def completion(self, now_s: float) -> Completion:
        """Return the scores.

        Args:
            now_s: the time in seconds, by the clock of `began_s`.
        """
        comparison = self.comparison
        return Completion(
            text=self.choices[comparison.best],
            finish_reason="stop",
            mean_logprob=comparison.logprobs[comparison.best],
            min_logprob=comparison.min_logprob,
            choice_logprobs=comparison.logprobs,
            # The texts are read, not generated.
            prompt_tokens=len(self.prompt) + comparison.tokens,
            completion_tokens=0,
            cached_tokens=self.cached_tokens,
            prefill_s=self.prefilled_s - self.began_s,
            decode_s=now_s - self.prefilled_s,
        )


Job = AnswerJob | ComparisonJob


@dataclass(frozen=True)
class Event:
    """Progress of a request: a piece of its text, its completion, or its error."""

    id: str
    piece: str = ""
    completion: Completion | None = None
    error: EngineError | None = None
