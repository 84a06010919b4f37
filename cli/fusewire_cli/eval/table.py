"""The table of an evaluation. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fusewire.analysis.measures import LEAST_N, paired_difference, wilson

Kind = Literal[
    "member",
    "best-of-equal",
    "best-of-learned",
    "best-of-route",
    "merge",
    "debate",
    "verify",
    "oracle",
    "all-wrong",
]

COLUMNS = (
    "",
    "n",
    "right",
    "accuracy",
    "95 % interval",
    "to best member",
    "95 % interval (points)",
    "USD / right",
    "s / right",
    "tokens / prompt",
    "failed",
    "degraded",
)


@dataclass(frozen=True)
class Score:
    """The score of one question in one row; None is an unknown figure."""

    is_right: bool
    is_failed: bool = False
    is_degraded: bool = False
    cost_usd: float | None = None
    latency_ms: float | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Row:
    """One row; None is a figure that is unknown or makes no sense in it."""

    name: str
    kind: Kind
    n: int
    right: int
    accuracy: float | None
    """Share of questions answered right (in `all-wrong`: by no member), 0 to 1; None below 30."""
    accuracy_low: float
    accuracy_high: float
    difference_points: float | None = None
    """Paired difference to the best member, percentage points; None below 30 questions."""
    difference_low: float | None = None
    difference_high: float | None = None
    usd_per_right: float | None = None
    seconds_per_right: float | None = None
    tokens_per_prompt: float | None = None
    failed: int | None = None
    degraded: int | None = None


def build(
    members: Mapping[str, Sequence[Score]], fusions: Mapping[tuple[str, Kind], Sequence[Score]]
) -> list[Row]:
    """All rows: members, fusions, the oracle, and the questions that all members get wrong.

    Args:
        members: by member, its scores in the order of the questions.
        fusions: by name and kind, likewise.
    """
    best = best_member(members)
    best_rights = _rights(members[best])
    any_right = [any(answers) for answers in zip(*map(_rights, members.values()), strict=True)]
    rows = [
        _row(name, "member", scores, None if name == best else best_rights)
        for name, scores in members.items()
    ]
    rows += [_row(name, kind, scores, best_rights) for (name, kind), scores in fusions.items()]
    rows.append(_rate("oracle (any member right)", "oracle", any_right, best_rights))
    rows.append(_rate("all wrong (beta)", "all-wrong", [not right for right in any_right], None))
    return rows


def best_member(members: Mapping[str, Sequence[Score]]) -> str:
    """The member that is right most often; the first of equals."""
    return max(members, key=lambda name: sum(_rights(members[name])))


def _rights(scores: Sequence[Score]) -> list[bool]:
    return [score.is_right for score in scores]


def _rate(name: str, kind: Kind, rights: Sequence[bool], base: Sequence[bool] | None) -> Row:
    n = len(rights)
    rate = wilson(sum(rights), n)
    gain = None if base is None else paired_difference(rights, base)
    return Row(
        name=name,
        kind=kind,
        n=n,
        right=sum(rights),
        accuracy=rate.value if n >= LEAST_N else None,
        accuracy_low=rate.low,
        accuracy_high=rate.high,
        difference_points=gain.value * 100 if gain and n >= LEAST_N else None,
        difference_low=gain.low * 100 if gain else None,
        difference_high=gain.high * 100 if gain else None,
    )


def _row(name: str, kind: Kind, scores: Sequence[Score], base: Sequence[bool] | None) -> Row:
    rate = _rate(name, kind, _rights(scores), base)
    usd = _per([s.cost_usd for s in scores], rate.right)
    milliseconds = _per([s.latency_ms for s in scores], rate.right)
    return Row(
        **{
            **asdict(rate),
            "usd_per_right": usd,
            "seconds_per_right": None if milliseconds is None else milliseconds / 1000,
            "tokens_per_prompt": _per([s.tokens for s in scores], rate.n),
            "failed": sum(s.is_failed for s in scores),
            "degraded": None if kind == "member" else sum(s.is_degraded for s in scores),
        }
    )


def _per(figures: Sequence[float | None], count: int) -> float | None:
    """The sum divided by a count; None if a figure is unknown or the count is 0."""
    known_figures = [figure for figure in figures if figure is not None]
    if not count or len(known_figures) < len(figures):
        return None
    return sum(known_figures) / count


def notes(rows: Sequence[Row], best: str) -> list[str]:
    """What a reader must know to read the rows."""
    n = rows[0].n
    no_finding = "one that holds 0 is no finding."
    oracle = "no selection among the answers does better"
    parts = "all its members, asked at once, and of its judge"
    lines = [
        f"The best member, {best}, was chosen on these same {n} questions, which flatters it.",
        f"{n} questions cannot show a difference smaller than its interval: {no_finding}",
        "Intervals: Wilson for rates, Agresti and Min (2005) for paired differences.",
        f"Oracle: any member is right; {oracle}. Beta: all members are wrong.",
        f"USD and seconds of a fusion are those of {parts}.",
        "Failed counts as wrong.",
    ]
    if n < LEAST_N:
        reason = f"{n} questions are fewer than {LEAST_N}"
        lines.insert(0, f"Rates are left out: {reason}. The intervals stand.")
    return lines


def cells(row: Row) -> tuple[str | int, ...]:
    """The cells of a printed row, in the order of COLUMNS."""
    has_gain = row.difference_low is not None and row.difference_high is not None
    return (
        row.name,
        row.n,
        row.right,
        "–" if row.accuracy is None else f"{row.accuracy:.1%}",
        f"{row.accuracy_low:.1%} to {row.accuracy_high:.1%}",
        "–" if row.difference_points is None else f"{row.difference_points:+.1f}",
        f"{row.difference_low:+.1f} to {row.difference_high:+.1f}" if has_gain else "–",
        _cell(row.usd_per_right, ".3g"),
        _cell(row.seconds_per_right, ".3g"),
        _cell(row.tokens_per_prompt, ".0f"),
        _cell(row.failed, "d"),
        _cell(row.degraded, "d"),
    )


def _cell(figure: float | None, form: str) -> str:
    return "–" if figure is None else format(figure, form)


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows for JSON, with rounded figures."""
    return [_rounded_dict(row) for row in rows]


def _rounded_dict(row: Row) -> dict[str, Any]:
    figures = asdict(row)
    for name, figure in figures.items():
        if isinstance(figure, float):
            figures[name] = round(figure, 6)
    return figures
