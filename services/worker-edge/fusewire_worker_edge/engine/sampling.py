"""Choose the next token from its logits. Pure: the generator of random numbers is an argument."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def generator(seed: int) -> np.random.Generator:
    """The random numbers of one request: any integer will do, and the same one gives the same numbers."""
    return np.random.Generator(np.random.PCG64(seed & 0xFFFF_FFFF_FFFF_FFFF))


def masked(logits: Floats, allowed: NDArray[np.bool_]) -> Floats:
    """The logits with everything that is not allowed made impossible. Both [vocabulary]."""
    return np.where(allowed, logits, np.float32(-np.inf))


def probabilities(logits: Floats, temperature: float, top_p: float) -> NDArray[np.float64]:
    """The distribution to draw from, [vocabulary].

    top_p keeps the smallest set of most probable tokens that together reach it, nucleus sampling
    (Holtzman et al., arXiv:1904.09751).

    Args:
        logits: [vocabulary]; -inf is impossible.
        temperature: above 0.
        top_p: above 0, at most 1.
    """
    scaled = logits.astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    if top_p >= 1:
        return np.asarray(p)
    # All tokens below this bound weigh less than 1 - top_p together: none of them is in the nucleus.
    likely = np.flatnonzero(p >= (1 - top_p) / len(p))
    order = likely[np.argsort(-p[likely], kind="stable")]
    size = int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1
    kept = np.zeros_like(p)
    kept[order[:size]] = p[order[:size]]
    return np.asarray(kept / kept.sum())


def log_probabilities(
    logits: Floats, token: int, top: int = 0
) -> tuple[float, list[tuple[int, float]]]:
    """The natural logarithm of a token's probability at temperature 1, and those of the `top` most probable tokens.

    Logits: [vocabulary]. A masked token is never among the most probable ones.
    """
    highest = logits.max()
    base = float(highest + np.log(np.exp(logits - highest).sum(dtype=np.float64)))
    pairs: list[tuple[int, float]] = []
    if top:
        likely = np.argsort(-logits, kind="stable")[:top]
        pairs = [(int(i), float(logits[i]) - base) for i in likely if np.isfinite(logits[i])]
    return min(float(logits[token]) - base, 0.0), pairs


def choose(logits: Floats, temperature: float, top_p: float, random: np.random.Generator) -> int:
    """The next token. A temperature of 0, or as good as 0, takes the most probable one."""
    if temperature < 1e-5:
        return int(logits.argmax())
    cumulative = np.cumsum(probabilities(logits, temperature, top_p))
    return int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))
