"""Sampling: choose the next token from its logits. Pure: the random generator is an argument."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def generator(seed: int) -> np.random.Generator:
    """Return the random generator of one request. Any integer is valid, also a negative one."""
    return np.random.Generator(np.random.PCG64(seed & 0xFFFF_FFFF_FFFF_FFFF))


def mask_logits(logits: Floats, allowed_tokens: NDArray[np.bool_]) -> Floats:
    """Set the logits of all tokens that are not allowed to -inf. All arrays are [vocabulary]."""
    return np.where(allowed_tokens, logits, np.float32(-np.inf))


def probabilities(logits: Floats, temperature: float, top_p: float) -> NDArray[np.float64]:
    """Return the distribution to sample from, [vocabulary].

    `top_p` below 1 is nucleus sampling (Holtzman et al., arXiv:1904.09751): only the smallest set
    of most probable tokens whose probabilities sum to at least `top_p` is kept.

    Args:
        logits: [vocabulary]; a token with -inf is never sampled.
        temperature: above 0.
        top_p: above 0, at most 1.
    """
    scaled_logits = logits.astype(np.float64) / temperature
    p = np.exp(scaled_logits - scaled_logits.max())
    p /= p.sum()
    if top_p >= 1:
        return np.asarray(p)
    # Sorting the whole vocabulary is slow. All tokens below this bound have less than 1 - top_p
    # together, so none of them is in the nucleus.
    likely = np.flatnonzero(p >= (1 - top_p) / len(p))
    order = likely[np.argsort(-p[likely], kind="stable")]
    size = int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1
    nucleus = np.zeros_like(p)
    nucleus[order[:size]] = p[order[:size]]
    return np.asarray(nucleus / nucleus.sum())


def log_probabilities(
    logits: Floats, token: int, top: int = 0
) -> tuple[float, list[tuple[int, float]]]:
    """Return a token's log probability, and the `top` most probable tokens with theirs.

    Natural logarithms at temperature 1. A masked token is never among the most probable ones.

    Args:
        logits: [vocabulary].
        token: the id of the token.
        top: how many of the most probable tokens to return.
    """
    highest = logits.max()
    log_sum = float(highest + np.log(np.exp(logits - highest).sum(dtype=np.float64)))
    top_tokens: list[tuple[int, float]] = []
    if top:
        ids = np.argsort(-logits, kind="stable")[:top]
        top_tokens = [(int(i), float(logits[i]) - log_sum) for i in ids if np.isfinite(logits[i])]
    # Rounding may give a tiny positive number.
    return min(float(logits[token]) - log_sum, 0.0), top_tokens


def margin(logits: Floats, token: int) -> float | None:
    """Return how far the log probability of a token is above that of the best other token.

    Natural logarithms at temperature 1; below 0 if another token was more probable. None if a
    grammar left no other token.

    >>> margin(np.array([1.0, 4.0, 3.0], np.float32), 1)
    1.0

    Args:
        logits: [vocabulary].
        token: the id of the token.
    """
    # One pass over each side of it: a partition of the whole vocabulary takes ten times as long.
    sides = logits[:token], logits[token + 1 :]
    best_other = max(float(side.max(initial=-np.inf)) for side in sides)
    return float(logits[token]) - best_other if np.isfinite(best_other) else None


def choose(logits: Floats, temperature: float, top_p: float, random: np.random.Generator) -> int:
    """Sample the next token. A temperature below 1e-5 is greedy: dividing by it would overflow."""
    if temperature < 1e-5:
        return int(logits.argmax())
    cumulative = np.cumsum(probabilities(logits, temperature, top_p))
    return int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))
