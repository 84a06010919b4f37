import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fusewire_worker_edge.engine.sampling import (
    choose,
    generator,
    margin,
    mask_logits,
    probabilities,
)

LOGITS = np.array([0.5, 2.0, -1.0, 1.0], np.float32)


def draws(
    logits: np.ndarray, temperature: float, top_p: float, seed: int, count: int
) -> np.ndarray:
    random = generator(seed)
    return np.array([choose(logits, temperature, top_p, random) for _ in range(count)])


def test_temperature_zero_takes_the_most_probable() -> None:
    assert set(draws(LOGITS, 0.0, 1.0, seed=3, count=20)) == {1}


def test_a_temperature_too_small_to_divide_by_is_greedy() -> None:
    assert choose(LOGITS, 1e-300, 1.0, generator(0)) == 1


def test_frequencies_follow_the_softmax() -> None:
    frequencies = np.bincount(draws(LOGITS, 0.7, 1.0, seed=11, count=20_000), minlength=4) / 20_000
    weights = np.exp(LOGITS.astype(np.float64) / 0.7)
    np.testing.assert_allclose(frequencies, weights / weights.sum(), atol=0.01)


@pytest.mark.parametrize("seed", [0, -1, 2**31, -(2**70)])
def test_the_same_seed_gives_the_same_draws(seed: int) -> None:
    np.testing.assert_array_equal(
        draws(LOGITS, 1.0, 0.9, seed, 50), draws(LOGITS, 1.0, 0.9, seed, 50)
    )


def test_another_seed_gives_other_draws() -> None:
    assert (draws(LOGITS, 1.0, 1.0, 1, 50) != draws(LOGITS, 1.0, 1.0, 2, 50)).any()


def test_what_is_masked_is_never_drawn() -> None:
    allowed_tokens = np.array([True, False, True, False])
    assert set(draws(mask_logits(LOGITS, allowed_tokens), 2.0, 1.0, seed=5, count=500)) == {0, 2}
    assert choose(mask_logits(LOGITS, allowed_tokens), 0.0, 1.0, generator(0)) == 0


@pytest.mark.parametrize(
    ("token", "expected"), [(0, -1.5), (1, 1.0), (2, -3.0), (3, -1.0)], ids=str
)
def test_a_margin_is_towards_the_best_other_token(token: int, expected: float) -> None:
    assert margin(LOGITS, token) == expected


@pytest.mark.parametrize("token", range(4))
def test_a_token_without_another_one_has_no_margin(token: int) -> None:
    assert margin(mask_logits(LOGITS, np.arange(4) == token), token) is None


def test_top_p_keeps_the_token_that_crosses_it() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    np.testing.assert_allclose(probabilities(logits, 1.0, 0.6), [0.625, 0.375, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(probabilities(logits, 1.0, 0.4), [1, 0, 0, 0], rtol=1e-5)


@given(
    arrays(np.float32, st.integers(1, 60), elements=st.floats(-30, 30, width=32), unique=True),
    st.floats(0.05, 0.999),
    st.floats(0.1, 2),
)
def test_top_p_is_the_smallest_set_that_reaches_it(
    logits: np.ndarray, top_p: float, temperature: float
) -> None:
    whole = probabilities(logits, temperature, 1.0)
    nucleus = probabilities(logits, temperature, top_p) > 0
    assert whole[nucleus].sum() >= top_p - 1e-9
    assert whole[nucleus].sum() - whole[nucleus].min() < top_p + 1e-9
    if not nucleus.all():
        assert whole[~nucleus].max() <= whole[nucleus].min()
