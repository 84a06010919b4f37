"""Every mode against the best member alone, prompt by prompt."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fusewire.contracts import Mode

from . import stats
from .minds import Cast, Judge
from .simulation import Setup, planned, play, weighed
from .voting import learned_weights
from .world import Member, World

AIM = "lower 95 % bound of fused less best member at least -1 point"

NEAR = (Member("a", 0.62, words=16), Member("b", 0.68, words=24), Member("c", 0.74, words=32))
LOPSIDED = (Member("a", 0.45, words=24), Member("b", 0.55, words=32), Member("c", 0.80, words=16))
POOLS = {"near": NEAR, "lopsided": LOPSIDED}

JUDGE = Judge(discrimination=0.8, fresh=0.25, first=0.1, length=0.2)
"""An ordinary one: right on four pairs of five, with some noise, and some bias for place and for length."""


@dataclass(frozen=True)
class Contest:
    """A mode on one kind of answer."""

    mode: Mode
    is_open: bool


CONTESTS = {
    "best_of_closed": Contest("best-of", is_open=False),
    "best_of_open": Contest("best-of", is_open=True),
    "merge": Contest("merge", is_open=True),
    "debate": Contest("debate", is_open=False),
}


@dataclass(frozen=True)
class Row:
    """One prompt."""

    fused: bool
    best: bool
    any: bool
    calls: int
    total_s: float
    closed_by: str
    guard: str


def setup(contest: Contest, world: World) -> Setup:
    """A pool as it comes, its weights learned from 500 earlier prompts without labels."""
    members = tuple(planned(m.name) for m in world.members)
    if not contest.is_open:
        members = weighed(members, "number", learned_weights(world))
    return Setup(contest.mode, members)


def rows(pool: str, name: str, seed: str, start: int, stop: int) -> list[Row]:
    """A mode on the prompts of a slice."""
    contest = CONTESTS[name]
    world = World(POOLS[pool], f"{seed}/{pool}", is_open=contest.is_open)
    plan, cast = setup(contest, world), Cast({"judge": JUDGE})
    found = []
    for question in map(world.question, range(start, stop)):
        played = play(question, plan, cast)
        found.append(
            Row(
                fused=question.is_right(played.draft.content),
                best=question.claim(world.best) == 0,
                any=any(question.claim(m) == 0 for m in world.members),
                calls=played.calls.total(),
                total_s=played.total_s,
                closed_by=(played.panel.closed_by if played.panel else None) or "",
                guard=played.draft.guard or "",
            )
        )
    return found


def report(found: Sequence[Row]) -> stats.Figure:
    """Fused less best member."""
    n = len(found)
    value, ci = stats.mean([row.fused - row.best for row in found])
    closed_by, guard = (
        Counter(row.closed_by for row in found),
        Counter(row.guard for row in found if row.guard),
    )
    more: dict[str, Any] = {
        "fused": sum(row.fused for row in found) / n,
        "best": sum(row.best for row in found) / n,
        "oracle": sum(row.any for row in found) / n,
        "calls": sum(row.calls for row in found) / n,
        "p50_s": stats.quantile([row.total_s for row in found], 0.5),
        "closed_by": {name: round(count / n, 4) for name, count in sorted(closed_by.items())},
    }
    if guard:
        more["guard"] = {name: round(count / n, 4) for name, count in sorted(guard.items())}
    return stats.figure(value, ci, n, AIM, ci[0] >= -0.01, **more)
