"""The verdict of a comparison, on prompts with planted differences."""

import random
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest

from fusewire.analysis.compare import Judgement, Pair, Side
from fusewire.analysis.compare.verdict import Z_REASON, Header, judge_header
from fusewire.analysis.compare.quality import read_worths

T0 = datetime(2026, 11, 1, tzinfo=UTC)


def make_side(number: int = 0, **overrides: object) -> Side:
    side = Side(
        outcome_id=f"o{number}",
        is_answered=True,
        is_clean=True,
        is_right=True,
        is_alone_wrong=False,
        cost_usd=0.001,
        latency_ms=100.0,
    )
    return replace(side, **overrides)  # type: ignore[arg-type]


def make_pair(number: int, a: Side, b: Side, **judgement: object) -> Pair:
    said = Judgement(a.outcome_id, None, False, f"sentence {number}", "j", 0.5)
    said = replace(said, **judgement)  # type: ignore[arg-type]
    return Pair(f"p{number}", T0 + timedelta(hours=number), "open", a, b, said)


def planted(
    seed: int,
    n: int,
    *,
    accuracy: tuple[float, float] = (0.7, 0.7),
    price: float = 1.0,
    slowness: float = 1.0,
    source: Literal["labels", "judge"] = "labels",
) -> list[Pair]:
    """Pairs whose prompts are hard or easy for both, with heavy-tailed costs and latencies."""
    rng = random.Random(seed)
    pairs = []
    for number in range(n):
        ease = rng.uniform(-0.25, 0.25)
        cost, latency = rng.lognormvariate(-7, 1), rng.lognormvariate(6, 0.5)
        rights = [rng.random() < p + ease for p in accuracy]
        choice = None
        if source == "judge":
            choice = "tie" if rights[0] == rights[1] else ("a" if rights[0] else "b")
        a, b = (
            make_side(
                number,
                is_right=right if source == "labels" else None,
                cost_usd=cost * factor * rng.lognormvariate(0, 1.2),
                latency_ms=latency * slow * rng.lognormvariate(0, 0.8),
            )
            for right, factor, slow in zip(rights, (1.0, price), (1.0, slowness), strict=True)
        )
        pairs.append(make_pair(number, a, b, choice=choice))
    return pairs


def decide(pairs: list[Pair], margin: float = 3.0) -> Header:
    return judge_header(pairs, margin)


def test_two_that_are_alike_are_too_close() -> None:
    decisions = Counter(decide(planted(seed, 400)).decision for seed in range(100))

    assert decisions["TOO CLOSE"] >= 95
