"""What fusing gives, and what each member adds, as drawings and sentences. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusewire.analysis.measures import LEAST_N
from fusewire.analysis.reports.pool import AblationRow, LiftRow
from fusewire_console.figures.scatter import Plot, ScatterPoint, plot
from fusewire_console.formats import count

CLOSING_MEANINGS = {
    "complete": "Every member had answered or failed.",
    "certain": "The vote was decided, whatever the others would say.",
    "likely": "The vote was as good as decided.",
    "gate": "Edge members agreed, so no hosted one was asked.",
    "quorum": "Enough members had answered, and the grace for the others was over.",
    "deadline": "The time was up.",
}
"""What `closed_by` of an outcome means."""


@dataclass(frozen=True)
class MemberValue:
    """What a model of a pool adds, and costs."""

    ablation: AblationRow
    usd_per_outcome: float | None
    """Per outcome that it was asked for; None if a price is unknown."""


def member_values(
    ablations: Sequence[AblationRow], n_asked: Mapping[str, int]
) -> tuple[MemberValue, ...]:
    """Costs per outcome beside what each model adds.

    Args:
        ablations: the models.
        n_asked: how often each was asked.
    """
    values = []
    for row in ablations:
        n = n_asked.get(row.model, 0)
        usd = row.cost_usd / n if row.cost_usd is not None and n else None
        values.append(MemberValue(row, usd))
    return tuple(values)


def value_plot(values: Sequence[MemberValue]) -> tuple[Plot, tuple[str, ...]]:
    """Cost against score loss; and the models that are not in it, for want of either figure."""
    points, missing = [], []
    for value in values:
        loss = value.ablation.score_loss
        if value.usd_per_outcome is None or loss.value is None:
            missing.append(value.ablation.model)
            continue
        point = ScatterPoint(
            value.ablation.model, value.usd_per_outcome, loss.value, loss.low, loss.high
        )
        points.append(point)
    return plot(points), tuple(missing)


def describe_lift(lift: LiftRow) -> str:
    """What a lift means, in a sentence."""
    if lift.lift is None:
        return f"Too few outcomes to say: {count(lift.n)} of the {LEAST_N} it needs."
    verb = "right" if lift.audit_source == "gold" else "chosen"
    text = f"Fused answers are {verb} {_often(lift.lift)} {lift.best_single}."
    if lift.paired is None:
        return text
    low, high = 100 * lift.paired.low, 100 * lift.paired.high
    finding = "no difference is seen" if low <= 0 <= high else "the difference is clear"
    return (
        f"{text} On the newest {count(lift.n_paired)} outcomes that it answered too, {finding}:"
        f" {low:+.1f} to {high:+.1f} points."
    )


def _often(difference: float) -> str:
    points = round(100 * difference, 1)
    if not points:
        return "as often as those of"
    return f"{abs(points):.1f} points {'more' if points > 0 else 'less'} often than those of"
