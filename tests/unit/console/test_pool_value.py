"""What members add and cost, drawn and told."""

import pytest

from fusewire.analysis.measures import Interval, rate
from fusewire.analysis.reports.pool import AblationRow, LiftRow
from fusewire_console.figures.pool_value import describe_lift, member_values, value_plot

RIGHT_MORE_OFTEN = "Fused answers are right 3.1 points more often than those of alpha."
ON_THE_SAME = "On the newest 1,200 outcomes that it answered too,"


def ablation(model: str, losses: int, n: int, cost_usd: float | None) -> AblationRow:
    return AblationRow(model, rate(losses, n), rate(losses, n), 0, 0, cost_usd, None)


def lift(value: float | None, source: str = "gold", paired: Interval | None = None) -> LiftRow:
    n = 12 if value is None else 40
    score = rate(6, n)
    return LiftRow(source, n, score, "alpha", score, score, value, paired, 1200)


def test_costs_are_per_outcome_that_a_model_was_asked_for() -> None:
    first, second, third = member_values(
        [ablation("a", 1, 40, 2.0), ablation("b", 1, 40, None), ablation("c", 1, 40, 0.0)],
        {"a": 100, "b": 100},
    )
    assert first.usd_per_outcome == 0.02
    assert second.usd_per_outcome is None
    assert third.usd_per_outcome is None


def test_what_has_no_cost_or_too_few_labels_is_named_and_not_drawn() -> None:
    rows = [ablation("a", 4, 40, 2.0), ablation("b", 4, 40, None), ablation("c", 4, 29, 1.0)]
    plot, missing = value_plot(member_values(rows, {"a": 100, "b": 100, "c": 100}))
    assert [point.name for point in plot.points] == ["a"]
    assert missing == ("b", "c")
    assert plot.x_axis.highest == 0.02


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (lift(None), "Too few outcomes to say: 12 of the 30 it needs."),
        (lift(0.031), RIGHT_MORE_OFTEN),
        (lift(-0.02), "Fused answers are right 2.0 points less often than those of alpha."),
        (lift(0.0, "votes"), "Fused answers are chosen as often as those of alpha."),
        (
            lift(0.031, paired=Interval(0.03, 0.01, 0.05)),
            f"{RIGHT_MORE_OFTEN} {ON_THE_SAME} the difference is clear: +1.0 to +5.0 points.",
        ),
        (
            lift(0.031, paired=Interval(0.03, -0.01, 0.05)),
            f"{RIGHT_MORE_OFTEN} {ON_THE_SAME} no difference is seen: -1.0 to +5.0 points.",
        ),
    ],
)
def test_a_lift_is_told_in_points(row: LiftRow, text: str) -> None:
    assert describe_lift(row) == text
