"""Lenses on the answers: Builder, Skeptic and Creator. Each formula is on its `Lens`. Pure."""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev

from fusewire.analysis.compare.cards import (
    Card,
    Lens,
    SideName,
    choice_evidence,
    choose_evidence,
    step_by,
)
from fusewire.analysis.compare.intervals import Z95, points, tail_mean
from fusewire.analysis.compare.rows import Names, Pair
from fusewire.analysis.measures import LEAST_N, Interval, wilson

WORST_SHARE = 0.05
LEAST_TAIL = 5
"""With fewer prompts among the worst 5 % nothing is said of them."""

BUILDER = Lens(
    "Builder",
    "Does it give an answer that can be used as it is?",
    "100 × prompts answered at the first try, nothing repaired or decided by a rule / prompts",
    "points",
)
SKEPTIC = Lens(
    "Skeptic",
    "How bad is it when it is bad?",
    "100 × (1 − mean harm of the worst 5 % of prompts); harm: no answer 1, wrong where all others"
    " are right 0.75, lost to the other 0.5, judged both ways 0.25",
    "points",
)
CREATOR = Lens(
    "Creator",
    "Which answers to open prompts does the judge prefer?",
    "100 × (won + half of the ties) / open prompts that were judged in both orders or by margin",
    "points",
)


def builder(pairs: Sequence[Pair]) -> Card:
    """Validity and failures."""
    n = len(pairs)
    details = tuple(f"{name.upper()} gave no answer: {_failures(pairs, name)}" for name in _SIDES)
    if n < LEAST_N:
        return BUILDER.unknown(n, _too_few(n), details)
    choices = [int(pair.b.is_clean) - int(pair.a.is_clean) for pair in pairs]
    score_a = 100 * fmean(pair.a.is_clean for pair in pairs)
    score_b = 100 * fmean(pair.b.is_clean for pair in pairs)
    difference = points(choices)
    card = BUILDER.card(n, (score_a, score_b), difference, step_by(difference), details)
    return choice_evidence(card, zip(pairs, choices, strict=True))


def skeptic(pairs: Sequence[Pair]) -> Card:
    """The worst 5 % of prompts, and flips."""
    n = len(pairs)
    n_flips = sum(pair.judgement.is_flip for pair in pairs)
    n_judged = sum(pair.judgement.choice is not None for pair in pairs)
    details: tuple[str, ...] = ()
    if n_judged:
        details = (f"the judge contradicted itself on {_share_text(n_flips, n_judged)}",)
    n_tail = math.floor(n * WORST_SHARE)
    if n_tail < LEAST_TAIL:
        return SKEPTIC.unknown(
            n, f"the worst 5 % are {n_tail} prompts; {LEAST_TAIL} are the least", details
        )
    harms_b = [harm(pair, "b") for pair in pairs]
    mean_a, moves_a = tail_mean([harm(pair, "a") for pair in pairs], WORST_SHARE)
    mean_b, moves_b = tail_mean(harms_b, WORST_SHARE)
    moves = [a - b for a, b in zip(moves_a, moves_b, strict=True)]
    half = 100 * Z95 * stdev(moves) / math.sqrt(n)
    value = 100 * (mean_a - mean_b)
    difference = Interval(value, value - half, value + half)
    losses = [pair for pair, amount in zip(pairs, harms_b, strict=True) if amount >= HARM_LOST]
    card = SKEPTIC.card(
        n, (100 * (1 - mean_a), 100 * (1 - mean_b)), difference, step_by(difference), details
    )
    return replace(card, evidence=choose_evidence(losses, "against B"))


HARM_LOST = 0.5


def harm(pair: Pair, name: SideName) -> float:
    """How badly a side did on one prompt, 0 to 1."""
    side, other = pair.side(name), pair.side("b" if name == "a" else "a")
    if not side.is_answered:
        return 1.0
    if side.is_alone_wrong:
        return 0.75
    lost_by_label = side.is_right is False and other.is_right is True
    lost_by_judge = side.is_right is None and pair.judgement.choice == other_name(name)
    if lost_by_label or lost_by_judge:
        return HARM_LOST
    return 0.25 if pair.judgement.is_flip else 0.0


def other_name(name: SideName) -> SideName:
    """The other side."""
    return "b" if name == "a" else "a"


def creator(names: Names, pairs: Sequence[Pair]) -> Card:
    """Who wins on open prompts, as judged."""
    if names.kind == "pools":
        return CREATOR.unknown(0, "judges compare answers inside a pool, not those of two pools")
    choices = [
        (pair, pair.by_judge)
        for pair in pairs
        if pair.answer_kind == "open" and pair.by_judge is not None
    ]
    n = len(choices)
    if n < LEAST_N:
        missing = _too_few(n) if n else "no open prompts with a verdict between the two"
        return CREATOR.unknown(n, missing)
    signs = [sign for _, sign in choices]
    # The win rate of B less that of A is twice its distance from a half.
    difference = points(signs)
    rate = 50 + difference.value / 2
    counts = f"B won {signs.count(1)}, A {signs.count(-1)}, {signs.count(0)} ties"
    card = CREATOR.card(n, (100 - rate, rate), difference, step_by(difference), (counts,))
    return choice_evidence(card, choices)


_SIDES: tuple[SideName, SideName] = ("a", "b")


def _too_few(n: int) -> str:
    return f"{n} prompts; {LEAST_N} are the least"


def _failures(pairs: Sequence[Pair], name: SideName) -> str:
    return _share_text(sum(not pair.side(name).is_answered for pair in pairs), len(pairs))


def _share_text(count: int, n: int) -> str:
    interval = wilson(count, n)
    value = f"{100 * interval.value:.1f} %" if n >= LEAST_N else "–"
    return f"{value} ({100 * interval.low:.1f} to {100 * interval.high:.1f}, n {n:,})"
