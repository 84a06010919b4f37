"""The verdicts of judges, each beside the one that saw the opposite order."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_CHARS = 300
"""Characters of a judge's sentence that are shown; a judge is asked for 240 at most."""


@dataclass(frozen=True)
class Verdict:
    """One call of a judge."""

    call: str
    shown: tuple[str, ...]
    """Members in the order shown, `~merged` and `~control` among them."""
    winner: str | None
    void: str | None
    sentence: str | None
    """What the judge gave as its reason; all that it wrote, where that is no JSON; None for a judge
    by margin, which writes nothing, and where texts are deleted."""
    label: str | None
    """What the judge calls the winner; it does not know the members' names."""
    verdict_parse: str | None


@dataclass(frozen=True)
class VerdictPair:
    """Verdicts of one judge on the same answers, in opposite orders where there are two."""

    kind: str
    judge_model: str
    is_by_margin: bool
    is_consistent: bool | None
    """Whether both name the same winner; None if that is not known."""
    verdicts: tuple[Verdict, ...]


def pairs(rows: Sequence[Mapping[str, Any]]) -> list[VerdictPair]:
    """Put each verdict beside that of the opposite order.

    Args:
        rows: of `v_verdict`, of one outcome, in the order of their calls.
    """
    rows_by_call = {row["call"]: row for row in rows}
    pairs_ = []
    for row in rows:
        # The second one of a pair came along with the first.
        if rows_by_call.pop(row["call"], None) is None:
            continue
        other = rows_by_call.pop(row["swap_of"], None)
        pairs_.append(_pair(row, [row, other] if other else [row]))
    return pairs_


def _pair(row: Mapping[str, Any], both: Sequence[Mapping[str, Any]]) -> VerdictPair:
    return VerdictPair(
        kind=row["kind"],
        judge_model=row["judge_model"],
        is_by_margin=bool(row["is_by_margin"]),
        is_consistent=row["is_consistent"],
        verdicts=tuple(_verdict(entry) for entry in both),
    )


def _verdict(row: Mapping[str, Any]) -> Verdict:
    sentence, label = _read(row["output"])
    return Verdict(
        call=row["call"],
        shown=tuple(json.loads(row["shown"] or "[]")),
        winner=row["winner"],
        void=row["void"],
        sentence=sentence[:MOST_CHARS] if sentence else None,
        label=label if row["winner"] else None,
        verdict_parse=row["verdict_parse"],
    )


def _read(output: str | None) -> tuple[str | None, str | None]:
    """The judge's sentence and its label of the winner, as far as its output can be read."""
    if not output:
        return None, None
    try:
        value = json.loads(output)
    except (ValueError, RecursionError):
        return output, None
    if not isinstance(value, dict) or not isinstance(value.get("reason"), str):
        return output, None
    label = value.get("winner")
    return value["reason"], label if isinstance(label, str) else None
