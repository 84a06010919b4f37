"""How probable texts are: which tokens count."""

from collections.abc import Sequence

import numpy as np
import pytest

from fusewire_worker_edge.engine.comparison import Comparison

VOCABULARY = 8
END = (0, 1)
PROMPT = (5, 6, 7, 5)


def read_texts(
    texts: Sequence[Sequence[int]], piece: int = 100, prompt: Sequence[int] = PROMPT
) -> Comparison:
    """Read with logits in which the token that comes next has its own number, all else 0."""
    comparison = Comparison(prompt, texts, END)
    comparison.begin(row(2))
    while not comparison.is_complete:
        ids = list(comparison.remaining[:piece])
        comparison.take(np.stack([row(token) for token in ids]))
    return comparison


def row(token: int) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    """After a token its successor is e times as probable as any other."""
    logits = np.zeros(VOCABULARY, np.float32)
    logits[(token + 1) % VOCABULARY] = 1.0
    return logits


LIKELY = 1 - np.log(np.e + VOCABULARY - 1)
OTHER = -np.log(np.e + VOCABULARY - 1)
# Either end will do: the sum of both.
END_AFTER_7 = np.log(np.e + 1) + OTHER
END_ELSE = np.log(2) + OTHER


@pytest.mark.parametrize("piece", [1, 2, 100])
def test_the_score_is_the_mean_over_the_tokens_and_the_end(piece: int) -> None:
    first, second, empty = read_texts([[3, 4, 2], [7], []], piece).logprobs

    assert first == pytest.approx(np.mean([LIKELY, LIKELY, OTHER, END_ELSE]))
    assert second == pytest.approx(np.mean([OTHER, END_AFTER_7]))
    assert empty == pytest.approx(END_ELSE)


@pytest.mark.parametrize(
    ("text", "counted_logprobs"),
    [
        # Of itself: the second 4 after 2, 3 and all that goes on from there.
        ([2, 3, 4, 2, 3, 4, 2, 3], [OTHER, LIKELY, LIKELY, OTHER, LIKELY, END_ELSE]),
        # Of the prompt.
        ([5, 6, 7, 5], [OTHER, LIKELY, END_ELSE]),
        ([3, 3, 3, 3, 3], [LIKELY, OTHER, OTHER, END_ELSE]),
    ],
)
def test_what_repeats_a_run_of_three_does_not_count(
    text: list[int], counted_logprobs: list[float]
) -> None:
    assert read_texts([text]).logprobs == pytest.approx([np.mean(counted_logprobs)])


def test_the_end_counts_after_the_same_words_as_an_earlier_answer_s() -> None:
    earlier = (5, 6, 2, END[0])

    assert read_texts([[6, 2]], prompt=earlier).logprobs == pytest.approx(
        [np.mean([OTHER, OTHER, END_ELSE])]
    )


def test_the_best_has_the_greatest_mean_and_its_least_token_is_known() -> None:
    comparison = read_texts([[7, 7], [3, 4], [2]])

    assert comparison.best == 1
    assert comparison.min_logprob == pytest.approx(END_ELSE)
    assert (comparison.longest, comparison.tokens) == (3, 8)


def test_a_token_that_cannot_come_has_a_number_all_the_same() -> None:
    comparison = Comparison(PROMPT, [[3]], END)
    logits = np.zeros(VOCABULARY, np.float32)
    logits[3] = -3000
    comparison.begin(logits)
    comparison.take(np.stack([row(3), row(0)]))

    assert -3000 < comparison.logprobs[0] < -1000
