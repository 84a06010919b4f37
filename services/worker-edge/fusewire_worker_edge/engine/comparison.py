"""How probable given texts are as a model's answers. Knows nothing of the model: logits in, log probabilities out."""

from collections.abc import Iterator, Sequence

import numpy as np

from fusewire_worker_edge.engine.sampling import Floats

RUN = 3
"""A token that ends a run of so many that stood before is a repetition, and easy to foresee."""


class Comparison:
    """Texts that are read one after the other, each from the end of the same prompt.

    A text's score is the mean log probability of its tokens and of the end after them. Repetitions do not count, of the
    prompt or of the text itself: however wrong, they are probable, and would make a text the better the more it has.

    Args:
        prompt: the token ids before each text.
        texts: the token ids of each, without the end of an answer.
        end_tokens: those that end an answer; whichever comes, it is over.
    """

    def __init__(
        self, prompt: Sequence[int], texts: Sequence[Sequence[int]], end_tokens: Sequence[int]
    ) -> None:
        self._texts = [[*text, end_tokens[0]] for text in texts]
        known = frozenset(_runs(prompt))
        self._counts = [_new(text, known) for text in self._texts]
        self._end_tokens = list(end_tokens)
        self._by_token: list[list[float]] = [[] for _ in texts]
        self._at = 0
        self._after_prompt: Floats | None = None
        self._before: Floats | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest text, its end included."""
        return max(len(text) for text in self._texts)

    @property
    def tokens(self) -> int:
        """Tokens of all texts together, their ends included."""
        return sum(len(text) for text in self._texts)

    @property
    def is_complete(self) -> bool:
        """Whether all were read."""
        return self._at == len(self._texts)

    @property
    def done(self) -> int:
        """How many tokens of the present text were read."""
        return len(self._by_token[self._at])

    @property
    def left(self) -> Sequence[int]:
        """The present text's tokens that are to be read next."""
        return self._texts[self._at][self.done :]

    @property
    def logprobs(self) -> tuple[float, ...]:
        """By text: its score, a mean natural logarithm."""
        pairs = zip(self._by_token, self._counts, strict=True)
        return tuple(float(np.mean(np.array(each)[counts])) for each, counts in pairs)

    @property
    def best(self) -> int:
        """Which text has the greatest mean."""
        return int(np.argmax(self.logprobs))

    @property
    def least(self) -> float:
        """The log probability of that text's least probable token."""
        return min(self._by_token[self.best])

    def begin(self, after_prompt: Floats) -> None:
        """Take the logits after the prompt, [vocabulary]."""
        self._after_prompt = self._before = after_prompt

    def take(self, rows: Floats) -> None:
        """Take the logits after each of the next tokens of the present text, [tokens, vocabulary]."""
        if self._before is None:
            raise ValueError("the prompt comes first")
        ids = self.left[: len(rows)]
        predicted = np.concatenate([self._before[None], rows[:-1]])
        self._by_token[self._at] += self._log_probabilities(predicted, ids)
        self._before = rows[-1]
        if not self.left:
            self._at += 1
            self._before = self._after_prompt

    def _log_probabilities(self, rows: Floats, ids: Sequence[int]) -> list[float]:
        highest = rows.max(axis=-1)
        bases = highest + np.log(np.exp(rows - highest[:, None]).sum(axis=-1, dtype=np.float64))
        chosen = rows[np.arange(len(ids)), ids].astype(np.float64)
        if len(ids) == len(self.left):
            chosen[-1] = np.logaddexp.reduce(rows[-1, self._end_tokens].astype(np.float64))
        return [min(float(each), 0.0) for each in chosen - bases]


def _runs(ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return zip(*(ids[start:] for start in range(RUN)), strict=False)


def _new(text: Sequence[int], known: frozenset[tuple[int, ...]]) -> list[bool]:
    """Which tokens of a text are no repetition. Its end always counts."""
    seen = set(known)
    found = [True] * min(len(text), RUN - 1)
    for run in _runs(text):
        found.append(run not in seen)
        seen.add(run)
    found[-1] = True
    return found
