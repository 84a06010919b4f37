"""The tokens of an answer while it is generated. Independent of the model: logits in, token out."""

import math

from fusewire_worker_edge.engine.api import (
    FinishReason,
    GenerateRequest,
    RequestedCall,
    TokenLogprob,
)
from fusewire_worker_edge.engine.constraint import Constraint
from fusewire_worker_edge.engine.dialects import Dialect
from fusewire_worker_edge.engine.sampling import (
    Floats,
    choose,
    generator,
    log_probabilities,
    margin,
    mask_logits,
)
from fusewire_worker_edge.engine.tokens import TextStream


class AnswerTokens:
    """The tokens sampled so far, and whether the answer is complete.

    Args:
        request: the request.
        stream: turns ids into text.
        constraint: the grammar of the answer, if it has one.
        end_tokens: the ids that end an answer.
        dialect: how the model writes tool calls, if the request has tools.
    """

    def __init__(
        self,
        request: GenerateRequest,
        stream: TextStream,
        constraint: Constraint | None,
        end_tokens: tuple[int, ...],
        dialect: Dialect | None = None,
    ) -> None:
        self._request = request
        self._stream = stream
        self._constraint = constraint
        self._end_tokens = end_tokens
        self._dialect = dialect
        is_text = constraint is None or (dialect is not None and request.response_schema is None)
        self._stops = request.stop if is_text else ()
        self._random = generator(request.seed)
        self._logprob_sum = 0.0
        self._min_logprob = 0.0
        self._sample_count = 0
        self._margins_sum = 0.0
        self._margins_count = 0
        self.min_margin: float | None = None
        """Smallest margin of a token sampled so far; see `mean_margin`."""
        self._piece_end = 0
        self.tokens = 0
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """The text so far; empty if the answer calls tools."""
        return "" if self._calls_tools else self._stream.text

    @property
    def tool_calls(self) -> tuple[RequestedCall, ...]:
        """The tool calls; empty unless the answer is complete and calls tools."""
        if self._dialect is None or not self._calls_tools:
            return ()
        return self._dialect.parse(self._stream.text) or ()

    @property
    def _calls_tools(self) -> bool:
        if self._dialect is None:
            return False
        text, marker = self._stream.text, self._dialect.marker
        if text.startswith(marker):
            return True
        # `max_tokens` may cut the answer within the marker itself.
        return self.finish_reason == "length" and marker.startswith(text)

    @property
    def mean_logprob(self) -> float:
        """Mean log probability of the tokens sampled so far, the end token included."""
        if not self._sample_count:
            return -math.inf
        return min(self._logprob_sum / self._sample_count, 0.0)

    @property
    def min_logprob(self) -> float:
        """Smallest log probability of a token sampled so far, the end token included."""
        return self._min_logprob

    @property
    def mean_margin(self) -> float | None:
        """Mean margin (`sampling.margin`) of the tokens sampled so far, the end token included.

        Tokens that the grammar left no choice about do not count; None if there are no others.
        """
        return self._margins_sum / self._margins_count if self._margins_count else None

    def piece(self) -> str:
        """Take the text since the last piece, without what a stop string may yet cut off.

        Empty while the text may still become the marker of tool calls.
        """
        if self._dialect and not self.finish_reason and self._dialect.marker.startswith(self.text):
            return ""
        stops = () if self.finish_reason else self._stops
        end = len(self.text) - self._stream.partial_stop(stops)
        piece = self.text[self._piece_end : end]
        self._piece_end = end
        return piece

    def take(self, logits: Floats) -> int:
        """Sample the next token and append it. Sets `finish_reason` if it was the last.

        Args:
            logits: [vocabulary].

        Returns:
            the id of the token.

        Raises:
            EngineError: the grammar grew beyond the limits of llguidance.
        """
        if self._constraint:
            logits = mask_logits(logits, self._constraint.allowed_tokens())
        token = choose(logits, self._request.temperature, self._request.top_p, self._random)
        self._record_logprob(logits, token)
        if token in self._end_tokens:
            self._finish("stop")
            return token
        self.tokens += 1
        since = len(self._stream.text)
        self._stream.append(token)
        if self._is_complete(token, since):
            self._finish("stop")
        elif self.tokens == self._request.max_tokens:
            self._finish("length")
        return token

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        if self.tool_calls:
            self.finish_reason = "tool_calls"

    def _record_logprob(self, logits: Floats, token: int) -> None:
        top_count = self._request.top_logprobs
        token_logprob, top_tokens = log_probabilities(logits, token, top_count or 0)
        self._logprob_sum += token_logprob
        self._min_logprob = min(self._min_logprob, token_logprob)
        self._sample_count += 1
        self._record_margin(logits, token)
        if top_count is not None and token not in self._end_tokens:
            spell = self._stream.spell
            top = tuple((spell(candidate), logprob) for candidate, logprob in top_tokens)
            self.logprobs.append(TokenLogprob(token=spell(token), logprob=token_logprob, top=top))

    def _record_margin(self, logits: Floats, token: int) -> None:
        token_margin = margin(logits, token)
        if token_margin is None:
            return
        self._margins_sum += token_margin
        self._margins_count += 1
        if self.min_margin is None or token_margin < self.min_margin:
            self.min_margin = token_margin

    def _is_complete(self, token: int, since: int) -> bool:
        """Advance the grammar by a token. Return whether it or a stop string ends the answer.

        Args:
            token: the last token; its text is in the stream already.
            since: length of the text before that token.
        """
        if self._constraint:
            self._constraint.accept(token)
            if self._constraint.is_complete:
                return True
        return not self._calls_tools and self._stream.cut_at(self._stops, since)
