"""What fusing gives over the best single member, and what each member adds."""

from collections.abc import Mapping
from dataclasses import dataclass

from fusewire.analysis.measures import LEAST_N, Interval, Rate, paired_difference, rate
from fusewire.analysis.reports.rows import Row, Rows, add, amount, count, group


@dataclass(frozen=True)
class LiftRow:
    """Whether a pool is right more often than its best single model, by one source of truth.

    The best model is the best on the same outcomes, so the lift is rather too low than too high.
    """

    audit_source: str
    """gold (labels) or votes (of people)."""
    n: int
    fused: Rate
    best_single: str
    single: Rate
    oracle: Rate
    """Outcomes for which any answer is right: no single model reaches it."""
    lift: float | None
    """fused - single; None under LEAST_N."""
    paired: Interval | None
    """The same over outcomes of which both are known, with its 95 % interval; None without those,
    or under LEAST_N."""
    n_paired: int


@dataclass(frozen=True)
class AblationRow:
    """What would be lost without a model, from labelled prompts."""

    model: str
    score_loss: Rate
    """Outcomes that are right, and whose only right answer is this model's."""
    sole_best: Rate
    """Outcomes whose only right answer is this model's: the loss of a perfect judge."""
    wins: int
    sole_wins: int
    cost_usd: float | None
    usd_per_point: float | None
    """Per percentage point of score_loss; None under LEAST_N."""


@dataclass(frozen=True)
class PoolRow:
    """A pool."""

    pool: str
    outcomes: int
    degraded: Rate
    failed: Rate
    fallbacks: Rate
    disagreements: Rate
    """Outcomes with closed answers that were not all the same, of all."""
    closed_by: dict[str, Rate]
    """Why the panel ended: complete, certain, likely, gate, quorum or deadline."""
    lifts: tuple[LiftRow, ...]
    ablations: tuple[AblationRow, ...]


@dataclass(frozen=True)
class PoolReport:
    """`fusewire report pool`."""

    pools: tuple[PoolRow, ...]


@dataclass(frozen=True)
class PoolRows:
    """What the report is made of; all with pool."""

    days: Rows
    """`v_pool_day`."""
    lifts: Rows = ()
    """`v_lift`."""
    pairs: Rows = ()
    """model, fused_right, single_right and n: outcomes with a label that a model answered."""
    ablations: Rows = ()
    """`v_ablation`."""
    closings: Rows = ()
    """closed_by and n."""


def pool_report(rows: PoolRows) -> PoolReport:
    """Say what each pool gives."""
    parts = {
        name: group(getattr(rows, name), "pool")
        for name in ("lifts", "pairs", "ablations", "closings")
    }
    pools = []
    for (pool,), days in group(rows.days, "pool").items():
        own_parts = {name: part.get((pool,), []) for name, part in parts.items()}
        pools.append(_pool_row(pool, days, own_parts))
    return PoolReport(tuple(pools))


def _pool_row(pool: str, days: Rows, parts: Mapping[str, list[Row]]) -> PoolRow:
    outcomes = add(days, "outcomes")
    n_closed = add(parts["closings"], "n")
    closings = {str(row["closed_by"]): count(row, "n") for row in parts["closings"]}
    ablations = map(_ablation_row, parts["ablations"])
    return PoolRow(
        pool=pool,
        outcomes=outcomes,
        degraded=rate(add(days, "degraded"), outcomes),
        failed=rate(add(days, "failed"), outcomes),
        fallbacks=rate(add(days, "fallbacks"), outcomes),
        disagreements=rate(add(days, "disagreements"), outcomes),
        closed_by={name: rate(n, n_closed) for name, n in sorted(closings.items())},
        lifts=tuple(_lift_row(row, parts["pairs"]) for row in parts["lifts"]),
        ablations=tuple(sorted(ablations, key=lambda row: (-row.score_loss.count, row.model))),
    )


def _lift_row(row: Row, pairs: Rows) -> LiftRow:
    n, model = count(row, "n"), str(row["best_fixed_single"])
    cells = [pair for pair in pairs if pair["model"] == model and row["audit_source"] == "gold"]
    n_paired = add(cells, "n")
    return LiftRow(
        audit_source=str(row["audit_source"]),
        n=n,
        fused=_share(row, "fused_score", n),
        best_single=model,
        single=_share(row, "best_single_score", n),
        oracle=_share(row, "oracle_score", n),
        lift=amount(row, "lift") if n >= LEAST_N else None,
        paired=_paired_lift(cells) if n_paired >= LEAST_N else None,
        n_paired=n_paired,
    )


def _share(row: Row, name: str, n: int) -> Rate:
    return rate(round((amount(row, name) or 0.0) * n), n)


def _paired_lift(cells: Rows) -> Interval:
    fused_rights: list[bool] = []
    single_rights: list[bool] = []
    for cell in cells:
        n = count(cell, "n")
        fused_rights += [bool(cell["fused_right"])] * n
        single_rights += [bool(cell["single_right"])] * n
    return paired_difference(fused_rights, single_rights)


def _ablation_row(row: Row) -> AblationRow:
    n = count(row, "n")
    return AblationRow(
        model=str(row["model"]),
        score_loss=_share(row, "score_loss", n),
        sole_best=_share(row, "sole_best_rate", n),
        wins=count(row, "wins"),
        sole_wins=count(row, "sole_wins"),
        cost_usd=amount(row, "cost_usd"),
        usd_per_point=amount(row, "cost_per_point") if n >= LEAST_N else None,
    )
