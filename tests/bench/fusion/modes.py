"""Every mode against the best member alone, prompt by prompt."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

from fusewire.contracts import CONTROL, Mode
from fusewire_judge.learning.statistics import StoredHistory, StoredVerdict, learn_statistics

from . import stats
from .minds import Judge, ModelPool
from .simulation import PoolSettings, make_member, play, with_weights
from .voting import HISTORY, learned_weights
from .world import Member, World

EARLIER = 10_000_000
"""The number of the first earlier prompt."""
AFTER_HISTORY = 250
"""So many prompts are fused after each history of `HISTORY` earlier ones. What one history teaches
would decide all figures."""
AIM = "lower 95 % bound of fused less best member at least -1 point"

NEAR = (Member("a", 0.62, words=16), Member("b", 0.68, words=24), Member("c", 0.74, words=32))
LOPSIDED = (Member("a", 0.45, words=24), Member("b", 0.55, words=32), Member("c", 0.80, words=16))
POOLS = {"near": NEAR, "lopsided": LOPSIDED}

JUDGE = Judge(discrimination=0.8, fresh=0.25, first=0.1, length=0.2)
"""An ordinary judge: right on four pairs of five, with some noise and bias (place, length)."""


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
    "verify_closed": Contest("verify", is_open=False),
    "verify_open": Contest("verify", is_open=True),
}


@dataclass(frozen=True)
class Row:
    """One prompt."""

    history: int
    """The number of what was learned from before it."""
    fused: bool
    best: bool
    any: bool
    calls: int
    total_s: float
    closed_by: str
    guard: str


@cache
def setup(contest: Contest, world: World, history: int) -> PoolSettings:
    """A pool as it comes, its weights learned from 500 earlier prompts without labels."""
    first = EARLIER + history * HISTORY
    members = tuple(make_member(m.name) for m in world.members)
    if contest.is_open:
        members = with_weights(members, "open", learned_odds(world, first))
    else:
        members = with_weights(members, "number", learned_weights(world, start=first))
    return PoolSettings(contest.mode, members)


def learned_odds(world: World, first: int) -> Mapping[str, float]:
    """The weights that the judge would learn from its own verdicts on earlier, open answers."""
    members = tuple(make_member(member.name) for member in world.members)
    pool, cast = PoolSettings("best-of", members), ModelPool({"judge": JUDGE})
    verdicts = []
    for number in range(first, first + HISTORY):
        draft = play(world.question(number), pool, cast).draft
        verdicts += [
            StoredVerdict(
                "", str(number), "open", verdict.judge_model, verdict.shown, verdict.winner
            )
            for verdict in draft.verdicts
            if verdict.winner and not verdict.void and CONTROL not in verdict.shown
        ]
    return learn_statistics(StoredHistory(verdicts=verdicts)).weights["", "open"]


def rows(pool: str, name: str, seed: str, start: int, stop: int) -> list[Row]:
    """A mode on the prompts of a slice."""
    contest = CONTESTS[name]
    world = World(POOLS[pool], f"{seed}/{pool}", is_open=contest.is_open)
    cast = ModelPool({"judge": JUDGE})
    results = []
    for question in map(world.question, range(start, stop)):
        history = question.number // AFTER_HISTORY
        fusion = play(question, setup(contest, world, history), cast)
        results.append(
            Row(
                history=history,
                fused=question.is_right(fusion.draft.content),
                best=question.claim(world.best) == 0,
                any=any(question.claim(m) == 0 for m in world.members),
                calls=fusion.calls.total(),
                total_s=fusion.total_s,
                closed_by=(fusion.panel.closed_by if fusion.panel else None) or "",
                guard=fusion.draft.guard or "",
            )
        )
    return results


def report(results: Sequence[Row]) -> stats.Figure:
    """Fused less best member; prompts after one history are no independent sample."""
    n = len(results)
    gains = defaultdict(list)
    for row in results:
        gains[row.history].append(row.fused - row.best)
    value, ci = stats.mean([fmean(of_history) for of_history in gains.values()])
    closed_by, guard = (
        Counter(row.closed_by for row in results),
        Counter(row.guard for row in results if row.guard),
    )
    more: dict[str, Any] = {
        "fused": sum(row.fused for row in results) / n,
        "best": sum(row.best for row in results) / n,
        "oracle": sum(row.any for row in results) / n,
        "calls": sum(row.calls for row in results) / n,
        "p50_s": stats.quantile([row.total_s for row in results], 0.5),
        "closed_by": {name: round(count / n, 4) for name, count in sorted(closed_by.items())},
    }
    if guard:
        more["guard"] = {name: round(count / n, 4) for name, count in sorted(guard.items())}
    return stats.figure(value, ci, n, AIM, ci[0] >= -0.01, **more)
