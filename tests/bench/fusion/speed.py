"""Time and calls: heavy tails, hedges, and the edge before the hosted members."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fusewire.contracts import Policy

from . import stats
from .minds import Judge, ModelPool
from .simulation import PoolSettings, make_member, play
from .world import Member, World

# -- heavy tails --------------------------------------------------------------------------------

HEDGE = 0.1
TAILED = tuple(
    Member(name, p, p50_s=2.0, tail=10.0)
    for name, p in zip("abcd", (0.62, 0.66, 0.70, 0.74), strict=True)
)
PANELS = {"closed_3": (TAILED[1:], False), "open_4": (TAILED, True)}

Times = tuple[float, float, int]
"""The panel's time, that of its slowest first call (seconds), and the second calls made."""


def tail_rows(panel: str, seed: str, hedge: float, start: int, stop: int) -> list[Times]:
    """Panels of a slice, with the default quorum and grace, and without a judge.

    A member is hedged after the time that all but `hedge` of its answers take, which the judge
    would know from outcomes.
    """
    members, is_open = PANELS[panel]
    world = World(members, seed, is_open=is_open)
    after = {m.name: m.latency_quantile_s(1 - hedge) if hedge else None for m in members}
    setup = PoolSettings(
        "best-of",
        tuple(make_member(m.name, hedge_after_s=after[m.name]) for m in members),
        (),
        Policy(hedge=hedge),
    )
    cast = ModelPool({})
    results = []
    for question in map(world.question, range(start, stop)):
        fusion = play(question, setup, cast)
        slowest = max(cast.latency_s(f"0/{m.name}", m.name, question) for m in members)
        results.append(
            (
                fusion.panel_s,
                slowest,
                sum(n for (kind, _), n in fusion.calls.items() if kind == "hedge"),
            )
        )
    return results


def tail_report(results: Sequence[Times], members: int, times: int) -> dict[str, Any]:
    """Quantiles of the panel's time over those of waiting for all."""
    figures: dict[str, Any] = {}
    for name, q, aim in (("p50", 0.5, None), ("p95", 0.95, 0.75), ("p99", 0.99, 0.60)):

        def ratio(rows: Sequence[tuple[float, ...]], q: float = q) -> float:
            return stats.quantile([row[0] for row in rows], q) / stats.quantile(
                [row[1] for row in rows], q
            )

        value, ci = stats.bootstrap(results, ratio, name, times)
        aim_text, is_met = (f"at most {aim}", value <= aim) if aim else ("", None)
        seconds = stats.quantile([row[0] for row in results], q)
        figures[name] = stats.figure(value, ci, len(results), aim_text, is_met, seconds=seconds)
    value, ci = stats.share(sum(row[2] for row in results), members * len(results))
    figures["extra_calls"] = stats.figure(
        value, ci, members * len(results), f"at most {HEDGE:.0%}", value <= HEDGE
    )
    return figures


# -- edge first ---------------------------------------------------------------------------------

EDGE = Member("edge", 0.86, p50_s=1.0)
HOSTED = (Member("h1", 0.90), Member("h2", 0.92))
SAMPLES = 3

Gated = tuple[bool, bool, int, bool, bool]
"""Right with the gate, right without, hosted calls with it, gate sufficient, edge answer right."""


def gate_rows(seed: str, start: int, stop: int) -> list[Gated]:
    """Easy prompts of a slice, with the gate and without."""
    world = World((EDGE, *HOSTED), seed)
    cast = ModelPool({"judge": Judge()})
    edge = make_member("edge", "edge", samples=SAMPLES)
    whole = PoolSettings("best-of", (edge, *(make_member(m.name) for m in HOSTED)))
    gated_pool = replace(
        whole,
        members=(edge, *(make_member(m.name, wave=1) for m in HOSTED)),
        policy=Policy(gate="edge-first"),
    )
    results = []
    for question in map(world.question, range(start, stop)):
        with_gate, without = (
            play(question, gated_pool, cast),
            play(world.question(question.number), whole, cast),
        )
        results.append(
            (
                question.is_right(with_gate.draft.content),
                question.is_right(without.draft.content),
                sum(
                    n
                    for (kind, tier), n in with_gate.calls.items()
                    if kind == "answer" and tier == "remote"
                ),
                with_gate.panel is not None and with_gate.panel.closed_by == "gate",
                question.claim(EDGE) == 0,
            )
        )
    return results


def gate_report(results: Sequence[Gated]) -> dict[str, Any]:
    """Hosted calls saved, and what that costs."""
    n = len(results)
    share_saved, saved_ci = stats.mean([1 - row[2] / len(HOSTED) for row in results])
    loss, loss_ci = stats.mean([row[0] - row[1] for row in results])
    opened_rows = [row for row in results if row[3]]
    accuracy, agreed_ci = stats.share(sum(row[0] for row in opened_rows), len(opened_rows))
    return {
        "hosted_calls_saved": stats.figure(
            share_saved, saved_ci, n, "at least 60 %", saved_ci[0] >= 0.6
        ),
        "accuracy": stats.figure(
            loss,
            loss_ci,
            n,
            "at most 1 point less (lower 95 % bound)",
            loss_ci[0] >= -0.01,
            gated=sum(row[0] for row in results) / n,
            ungated=sum(row[1] for row in results) / n,
        ),
        "right_when_the_edge_agrees_with_itself": stats.figure(
            accuracy, agreed_ci, len(opened_rows), alone=EDGE.accuracy
        ),
    }
