"""The table of an evaluation. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fusewire_cli.eval.measures import paired_difference, wilson

LEAST_N = 30
"""Questions below which no rate is shown, only its interval."""

Kind = Literal[
    "member", "best-of-equal", "best-of-learned", "merge", "debate", "oracle", "all-wrong"
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
    """How one question went for one row; None where a figure is not known."""

    is_right: bool
    is_failed: bool = False
    is_degraded: bool = False
    cost_usd: float | None = None
    latency_ms: float | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Row:
    """One row; None where a figure is not known, or makes no sense there."""

    name: str
    kind: Kind
    n: int
    right: int
    accuracy: float | None
    """Share of questions that were answered right (of `all-wrong`: by no member), 0 to 1; None below 30 questions."""
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
    members: Mapping[str, Sequence[Score]], fused: Mapping[tuple[str, Kind], Sequence[Score]]
) -> list[Row]:
    """All rows: members, fusions, the oracle and the questions that everybody gets wrong.

    Args:
        members: by member, its scores in the order of the questions.
        fused: by name and kind, likewise.
    """
    best = best_member(members)
    base = _rights(members[best])
    anyone = [any(answers) for answers in zip(*map(_rights, members.values()), strict=True)]
    rows = [
        _row(name, "member", scores, None if name == best else base)
        for name, scores in members.items()
    ]
    rows += [_row(name, kind, scores, base) for (name, kind), scores in fused.items()]
    rows.append(_rate("oracle (any member right)", "oracle", anyone, base))
    rows.append(_rate("all wrong (beta)", "all-wrong", [not one for one in anyone], None))
    return rows


def best_member(members: Mapping[str, Sequence[Score]]) -> str:
    """Who is right most often; the first of equals."""
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
    known = [figure for figure in figures if figure is not None]
    return sum(known) / count if count and len(known) == len(figures) else None


def notes(rows: Sequence[Row], best: str) -> list[str]:
    """What a reader must know to read the rows."""
    n = rows[0].n
    said = [
        f"The best member, {best}, was chosen on these same {n} questions, which flatters it.",
        f"{n} questions cannot show a difference smaller than its interval: one that holds 0 is no finding.",
        "Intervals: Wilson for rates, Agresti and Min (2005) for paired differences.",
        "Oracle: any member is right; no selection among the answers does better. Beta: all members are wrong.",
        "USD and seconds of a fusion are those of all its members, asked at once, and of its judge.",
        "Failed counts as wrong.",
    ]
    if n < LEAST_N:
        said.insert(
            0, f"Rates are left out: {n} questions are fewer than {LEAST_N}. The intervals stand."
        )
    return said


def cells(row: Row) -> tuple[str | int, ...]:
    """A row as it is printed, in the order of COLUMNS."""
    has_gain = row.difference_low is not None and row.difference_high is not None
    return (
        row.name,
        row.n,
        row.right,
        "–" if row.accuracy is None else f"{row.accuracy:.1%}",
        f"{row.accuracy_low:.1%} to {row.accuracy_high:.1%}",
        "–" if row.difference_points is None else f"{row.difference_points:+.1f}",
        f"{row.difference_low:+.1f} to {row.difference_high:+.1f}" if has_gain else "–",
        _shown(row.usd_per_right, ".3g"),
        _shown(row.seconds_per_right, ".3g"),
        _shown(row.tokens_per_prompt, ".0f"),
        _shown(row.failed, "d"),
        _shown(row.degraded, "d"),
    )


def _shown(figure: float | None, form: str) -> str:
    return "–" if figure is None else format(figure, form)


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows for machines, rounded to what their sample can bear."""
    return [
        {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(row).items()}
        for row in rows
    ]
