"""What the figures of a judge mean, each in a sentence. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fusewire.analysis.measures import LEAST_N, Rate
from fusewire.analysis.reports.judge import BiasTest, JudgeRow
from fusewire_console.formats import count, percent

Tone = Literal["good", "warn", ""]
Rows = Sequence[Mapping[str, Any]]

RECENT_COLUMNS = ("longer_wins", "longer_shown", "own_family_wins", "own_family_shown")
"""Counts of `v_judge_bias` that need a fair rate which no sum holds."""


@dataclass(frozen=True)
class JudgeFigure:
    """A rate of a judge, and what it means."""

    title: str
    rate: Rate | None
    sentence: str
    fair_rate: float | None = None
    finding: str = ""
    """A word or two for a badge; "" for none."""
    tone: Tone = ""


def with_recent(biases: Rows, recent_verdicts: Rows) -> list[dict[str, Any]]:
    """Rows of `v_judge_bias` whose counts of length and family are those of recent verdicts.

    Only of those is the fair rate known, without reading every verdict.
    """
    by_judge = {row["judge_model"]: row for row in recent_verdicts}
    rows = []
    for bias in biases:
        recent = by_judge.get(bias["judge_model"], {})
        rows.append({**bias, **{name: recent.get(name, 0) for name in RECENT_COLUMNS}})
    return rows


def bias_figures(row: JudgeRow) -> tuple[JudgeFigure, ...]:
    """Whether a judge's verdicts follow something that they should not."""
    return (
        _flips(row),
        _bias("First answer", row.place, "the first answer"),
        _bias(
            "Longest answer", row.length, "the longest answer", "Longer answers may be better ones."
        ),
        _bias(
            "Own family",
            row.family,
            "an answer of its own family",
            "Its family's answers may be better ones.",
            none_shown="No line-up had answers of its own family and of others.",
        ),
    )


def care_figures(row: JudgeRow) -> tuple[JudgeFigure, ...]:
    """How carefully a judge works."""
    if not row.controls.n:
        text = "No control was shown; control_share of the pool sets how often one is."
    elif row.controls.count:
        text = "It named an answer that only a broken judge picks."
    else:
        text = "It never named the answer that only a broken judge picks."
    return (
        JudgeFigure("Repaired", row.repaired, "Verdicts mended before they could be read."),
        JudgeFigure("Asked again", row.reasked, "Verdicts that no mending made readable."),
        JudgeFigure("Controls picked", row.controls, text),
    )


def agreement_figures(row: JudgeRow) -> tuple[JudgeFigure, ...]:
    """How far people and labels agree with a judge."""
    figures = []
    if row.votes:
        text = "Votes for the outcome's answer, of those that are no tie."
        if row.votes.kappa is not None:
            text += f" Beyond chance: kappa {row.votes.kappa:.2f} of at most 1."
        figures.append(JudgeFigure("People agree", row.votes.rate, text))
    if row.labels:
        figures += [
            JudgeFigure("Right by label", row.labels.accepted, "Outcomes that it decided."),
            JudgeFigure(
                "A right answer was there",
                row.labels.oracle,
                "What a perfect judge would reach by choosing.",
            ),
            JudgeFigure(
                "Right where one was there",
                row.labels.choice,
                "How well it tells right from wrong.",
            ),
        ]
    return tuple(figures)


def _flips(row: JudgeRow) -> JudgeFigure:
    title, flips = "Another winner in the opposite order", row.flips
    if flips.n < LEAST_N:
        return JudgeFigure(title, flips, _too_few(flips.n, "pairs judged in both orders"))
    text = (
        f"Of pairs that it judged in both orders, {percent(1 - flips.count / flips.n)}"
        " have the same winner in both."
    )
    return JudgeFigure(title, flips, text)


def _bias(
    title: str, test: BiasTest, answer: str, caution: str = "", *, none_shown: str = ""
) -> JudgeFigure:
    rate, fair_rate = test.rate, test.fair_rate
    if test.finding == "too few" or fair_rate is None:
        text = none_shown if none_shown and not rate.n else _too_few(rate.n, "verdicts")
        return JudgeFigure(title, rate, text, fair_rate, "too few" if rate.n else "")
    low, high = 100 * (rate.low - fair_rate), 100 * (rate.high - fair_rate)
    if test.finding == "no bias seen":
        text = f"Names {answer} as often as fair: {low:+.1f} to {high:+.1f} points from it."
        return JudgeFigure(title, rate, text, fair_rate, "no bias seen", "good")
    text = f"Names {answer} {_distance(rate.count / rate.n - fair_rate, low, high)}."
    if caution and low > 0:
        text += f" {caution}"
    return JudgeFigure(title, rate, text, fair_rate, "bias", "warn")


def _distance(difference: float, low: float, high: float) -> str:
    """How far from the fair rate, in points: `6.2 points more often than fair: 4.4 to 8.0`."""
    nearest, farthest = sorted((abs(low), abs(high)))
    direction = "more" if difference > 0 else "less"
    return (
        f"{abs(100 * difference):.1f} points {direction} often than fair:"
        f" {nearest:.1f} to {farthest:.1f}"
    )


def _too_few(n: int, what: str) -> str:
    return f"Too few {what} to say: {count(n)} of the {LEAST_N} it needs."
