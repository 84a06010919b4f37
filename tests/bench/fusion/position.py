"""A judge that prefers what stands first: do its verdicts tell, and do its choices show it?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fusewire.contracts import Policy

from . import stats
from .minds import Judge, ModelPool
from .simulation import PoolSettings, make_member, play
from .world import Member, Question, World

BIASES = (0.1, 0.3, 0.5)
FRESH = 0.2
MEMBERS = (Member("a", 0.62), Member("b", 0.68), Member("c", 0.74))
# All are shown and no control is, so that the expected share follows from the planted figures.
SETUP = PoolSettings(
    "best-of",
    tuple(make_member(m.name) for m in MEMBERS),
    policy=Policy(control_share=0),
    quorum=1.0,
)


@dataclass(frozen=True)
class Row:
    """One prompt."""

    consistent: bool
    expected: float
    place: int
    """Of the winner in the first order, from 0."""
    single_place: int
    """Of the one that the first order alone would have chosen."""
    right: bool
    single_right: bool


def rows(seed: str, bias: float, start: int, stop: int) -> list[Row]:
    """A judge of this bias on the prompts of a slice."""
    world = World(MEMBERS, seed, is_open=True)
    judge = Judge(discrimination=0.8, fresh=FRESH, first=bias)
    cast = ModelPool({"judge": judge})
    return [_row(world.question(number), judge, cast) for number in range(start, stop)]


def _row(question: Question, judge: Judge, cast: ModelPool) -> Row:
    draft = play(question, SETUP, cast).draft
    first, second = (v for v in draft.verdicts if v.call.startswith("verdict-"))
    if first.shown != second.shown[::-1]:
        raise RuntimeError("the orders are not opposite")
    if first.winner is None or draft.winner is None:
        raise RuntimeError("this judge always keeps to the form")
    claims = {member.name: question.claim(member) for member in MEMBERS}
    right = list(claims.values()).count(0)
    return Row(
        consistent=bool(first.is_consistent),
        expected=judge.same_twice(right, len(MEMBERS) - right),
        place=first.shown.index(draft.winner),
        single_place=first.shown.index(first.winner),
        right=claims[draft.winner] == 0,
        single_right=claims[first.winner] == 0,
    )


def report(biased_rows: Sequence[Row], fair_rows: Sequence[Row]) -> dict[str, Any]:
    """One bias beside a judge without."""
    n = len(biased_rows)

    def at(results: Sequence[Row], place: int) -> tuple[int, int]:
        return sum(row.place == place for row in results), len(results)

    def single(results: Sequence[Row]) -> tuple[int, int]:
        return sum(row.single_place == 0 for row in results), len(results)

    expected = sum(row.expected for row in biased_rows) / n
    value, ci = stats.share(sum(row.consistent for row in biased_rows), n)
    shift, shift_ci = stats.difference(at(biased_rows, 0), at(fair_rows, 0))
    middle, middle_ci = stats.difference(at(biased_rows, 1), at(fair_rows, 1))
    alone, alone_ci = stats.difference(single(biased_rows), single(fair_rows))
    gain, gain_ci = stats.mean([row.right - row.single_right for row in biased_rows])
    return {
        "order_consistency": stats.figure(
            value,
            ci,
            n,
            "within 2 points of what was planted",
            abs(value - expected) <= 0.02,
            expected=expected,
        ),
        "first_shown_wins": stats.figure(
            shift,
            shift_ci,
            n,
            "no more than with a fair judge, beyond noise",
            shift_ci[0] <= 0 <= shift_ci[1],
            share=at(biased_rows, 0)[0] / n,
        ),
        "middle_wins": stats.figure(middle, middle_ci, n, share=at(biased_rows, 1)[0] / n),
        "first_shown_wins_in_one_order": stats.figure(
            alone, alone_ci, n, share=single(biased_rows)[0] / n
        ),
        "accuracy_over_one_order": stats.figure(
            gain, gain_ci, n, fused=sum(row.right for row in biased_rows) / n
        ),
    }
