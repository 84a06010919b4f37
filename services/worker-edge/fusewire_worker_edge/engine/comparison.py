"""Score texts as a model's answers. Independent of the model: logits in, log probabilities out."""

from collections.abc import Iterator, Sequence

import numpy as np

from fusewire_worker_edge.engine.sampling import Floats

NGRAM = 3
"""A token that completes an n-gram of this length that occurred before is a repetition."""


class Comparison:
    """Texts that are read one after the other, each after the same prompt.

    A text's score is the mean log probability of its tokens and of the end after them. Tokens that
    repeat an n-gram of the prompt or of the text itself do not count: a model predicts repetitions
    with high probability even in a wrong text, so that repetitive texts would win
    (docs/decisions/0038).

    Args:
        prompt: the token ids before each text.
        texts: the token ids of each text, without an end token.
        end_tokens: the ids that end an answer. The end's probability is the sum of theirs.
    """

    def __init__(
        self, prompt: Sequence[int], texts: Sequence[Sequence[int]], end_tokens: Sequence[int]
    ) -> None:
        self._texts = [[*text, end_tokens[0]] for text in texts]
        prompt_ngrams = frozenset(_ngrams(prompt))
        self._count_masks = [_novel_tokens(text, prompt_ngrams) for text in self._texts]
        self._end_tokens = list(end_tokens)
        self._token_logprobs: list[list[float]] = [[] for _ in texts]
        self._index = 0
        self._prompt_logits: Floats | None = None
        self._last_logits: Floats | None = None

    @property
    def longest(self) -> int:
        """Number of tokens of the longest text, with its end."""
        return max(len(text) for text in self._texts)

    @property
    def tokens(self) -> int:
        """Number of tokens of all texts together, with their ends."""
        return sum(len(text) for text in self._texts)

    @property
    def is_complete(self) -> bool:
        """Whether all texts were read."""
        return self._index == len(self._texts)

    @property
    def position(self) -> int:
        """How many tokens of the current text were read."""
        return len(self._token_logprobs[self._index])

    @property
    def remaining(self) -> Sequence[int]:
        """The tokens of the current text that are still to be read."""
        return self._texts[self._index][self.position :]

    @property
    def logprobs(self) -> tuple[float, ...]:
        """The score of each text: a mean of natural log probabilities."""
        pairs = zip(self._token_logprobs, self._count_masks, strict=True)
        return tuple(float(np.mean(np.array(logprobs)[mask])) for logprobs, mask in pairs)

    @property
    def best(self) -> int:
        """The index of the text with the highest score."""
        return int(np.argmax(self.logprobs))

    @property
    def min_logprob(self) -> float:
        """The log probability of the least probable token of the best text."""
        return min(self._token_logprobs[self.best])

    def begin(self, logits: Floats) -> None:
        """Take the logits after the prompt, [vocabulary]."""
        self._prompt_logits = self._last_logits = logits

    def take(self, rows: Floats) -> None:
        """Take the logits after the next tokens of the current text. Then go to the next text.

        Args:
            rows: [tokens, vocabulary], the logits after each token.

        Raises:
            ValueError: `begin` was not called.
        """
        if self._last_logits is None:
            raise ValueError("the prompt comes first")
        ids = self.remaining[: len(rows)]
        # A token is predicted by the logits after the token before it.
        predictions = np.concatenate([self._last_logits[None], rows[:-1]])
        self._token_logprobs[self._index] += self._log_probabilities(predictions, ids)
        self._last_logits = rows[-1]
        if not self.remaining:
            self._index += 1
            self._last_logits = self._prompt_logits

    def _log_probabilities(self, rows: Floats, ids: Sequence[int]) -> list[float]:
        """The log probability of each id by the logits [ids, vocabulary] that predict it."""
        highest = rows.max(axis=-1)
        log_sums = highest + np.log(np.exp(rows - highest[:, None]).sum(axis=-1, dtype=np.float64))
        logits = rows[np.arange(len(ids)), ids].astype(np.float64)
        if len(ids) == len(self.remaining):
            # The last token is the end: any end token will do.
            logits[-1] = np.logaddexp.reduce(rows[-1, self._end_tokens].astype(np.float64))
        return [min(float(logprob), 0.0) for logprob in logits - log_sums]


def _ngrams(ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All n-grams of a sequence, in order.

    >>> list(_ngrams([1, 2, 3, 4]))
    [(1, 2, 3), (2, 3, 4)]
    """
    return zip(*(ids[start:] for start in range(NGRAM)), strict=False)


def _novel_tokens(text: Sequence[int], prompt_ngrams: frozenset[tuple[int, ...]]) -> list[bool]:
    """Mark the tokens of a text that are not a repetition. Its last token, the end, always counts.

    >>> _novel_tokens([1, 2, 3, 1, 2, 3, 0], frozenset())
    [True, True, True, True, True, False, True]
    """
    earlier_ngrams = set(prompt_ngrams)
    is_novel = [True] * min(len(text), NGRAM - 1)
    for ngram in _ngrams(text):
        is_novel.append(ngram not in earlier_ngrams)
        earlier_ngrams.add(ngram)
    is_novel[-1] = True
    return is_novel
