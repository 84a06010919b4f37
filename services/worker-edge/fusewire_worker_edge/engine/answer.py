"""An answer as it grows. Knows nothing of the model: logits in, the next token out."""

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
    masked,
)
from fusewire_worker_edge.engine.tokens import TextStream


class AnswerTokens:
    """The tokens chosen so far, and when there are enough of them."""

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
        self._log_probability = 0.0
        self._least = 0.0
        self._chosen = 0
        self._given = 0
        self.tokens = 0
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """What there is of it; empty where it calls tools."""
        return "" if self._calls_tools else self._stream.text

    @property
    def tool_calls(self) -> tuple[RequestedCall, ...]:
        """What it calls, once it is complete."""
        return (
            self._dialect and self._calls_tools and self._dialect.parse(self._stream.text)
        ) or ()

    @property
    def _calls_tools(self) -> bool:
        if self._dialect is None:
            return False
        text, marker = self._stream.text, self._dialect.marker
        return text.startswith(marker) or (
            self.finish_reason == "length" and marker.startswith(text)
        )

    @property
    def mean_logprob(self) -> float:
        """Mean of the log probabilities of the tokens chosen so far, the end token included."""
        return min(self._log_probability / self._chosen, 0.0) if self._chosen else -math.inf

    @property
    def min_logprob(self) -> float:
        """The least of them: where the model was least sure."""
        return self._least

    def piece(self) -> str:
        """The text since the last piece that stands for good: nothing that a stop string may yet take back."""
        if self._dialect and not self.finish_reason and self._dialect.marker.startswith(self.text):
            return ""
        stops = () if self.finish_reason else self._stops
        stands = len(self.text) - self._stream.begun(stops)
        piece = self.text[self._given : stands]
        self._given = stands
        return piece

    def take(self, logits: Floats) -> int:
        """Choose the next token, [vocabulary] -> id, and append it. Sets `finish_reason` when it was the last."""
        if self._constraint:
            logits = masked(logits, self._constraint.allowed())
        token = choose(logits, self._request.temperature, self._request.top_p, self._random)
        self._note(logits, token)
        if token in self._end_tokens:
            self._finish("stop")
            return token
        self.tokens += 1
        since = len(self._stream.text)
        self._stream.append(token)
        if self._complete(token, since):
            self._finish("stop")
        elif self.tokens == self._request.max_tokens:
            self._finish("length")
        return token

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        if self.tool_calls:
            self.finish_reason = "tool_calls"

    def _note(self, logits: Floats, token: int) -> None:
        wanted = self._request.top_logprobs
        chosen, likely = log_probabilities(logits, token, wanted or 0)
        self._log_probability += chosen
        self._least = min(self._least, chosen)
        self._chosen += 1
        if wanted is not None and token not in self._end_tokens:
            spell = self._stream.spell
            top = tuple((spell(other), logprob) for other, logprob in likely)
            self.logprobs.append(TokenLogprob(token=spell(token), logprob=chosen, top=top))

    def _complete(self, token: int, since: int) -> bool:
        if self._constraint:
            self._constraint.accept(token)
            if self._constraint.complete:
                return True
        return not self._calls_tools and self._stream.cut_at(self._stops, since)
