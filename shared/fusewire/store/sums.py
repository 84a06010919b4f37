"""What outcomes add to the summary tables. Pure: rows of tables in, amounts by key out.

This is the definition of each sum (docs/decisions/0045).
"""

import json
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date
from itertools import chain
from typing import Any

Row = Mapping[str, Any]
"""A row of `outcomes`, `answers` or `verdicts`, by column."""
Key = tuple[Hashable, ...]
Amounts = tuple[float, ...]

BUCKETS_PER_DECADE = 10
LONGEST_MS = 10_000_000
"""The upper bound of the last latency bucket, which holds longer ones too: close to 3 hours."""


def bucket_bounds() -> tuple[int, ...]:
    """Return the upper bounds of the latency buckets, in ms: ten for each power of ten.

    A quantile read from them is at most 26 % too high.
    """
    decades = len(str(LONGEST_MS)) - 1
    steps = range(decades * BUCKETS_PER_DECADE + 1)
    return tuple(sorted({round(10 ** (step / BUCKETS_PER_DECADE)) for step in steps}))


BOUNDS_MS = bucket_bounds()


def bucket(latency_ms: float) -> int:
    """Return the upper bound of the bucket that holds a latency."""
    return BOUNDS_MS[min(bisect_left(BOUNDS_MS, latency_ms), len(BOUNDS_MS) - 1)]


@dataclass(frozen=True)
class StoredOutcome:
    """An outcome with its answers and verdicts, as rows."""

    outcome: Row
    answers: Sequence[Row]
    verdicts: Sequence[Row]

    @property
    def place(self) -> tuple[str, date, str]:
        """Tenant, UTC day and pool: how each key begins."""
        row = self.outcome
        return row["tenant"], row["finished_at"].astimezone(UTC).date(), row["pool"]


def pool_days(record: StoredOutcome) -> Iterator[tuple[Key, Amounts]]:
    """What an outcome adds to `pool_days`; nothing for a replay."""
    row = record.outcome
    if row["is_replay"]:
        return
    is_labelled = row["accepted"] is not None
    agreement = row["agreement"]
    is_closed = row["answer_kind"] not in (None, "open")
    is_split = is_closed and agreement is not None and agreement < 1
    yield (
        (*record.place, row["mode"], row["config_hash"] or ""),
        (
            1,
            row["status"] in ("failed", "expired"),
            row["status"] == "cancelled",
            row["judge_rung"] == "fallback",
            bool(row["is_degraded"]),
            is_split,
            row["judge_rung"] == "repaired",
            is_labelled,
            bool(row["accepted"]),
            is_labelled and any(answer["is_right"] for answer in record.answers),
            row["cost_usd"] is None,
            row["cost_usd"] or 0.0,
        ),
    )


def model_days(record: StoredOutcome) -> Iterator[tuple[Key, Amounts]]:
    """What each answer adds to `model_days`; nothing for a replay."""
    if record.outcome["is_replay"]:
        return
    accepted = record.outcome["accepted"]
    n_right = sum(bool(answer["is_right"]) for answer in record.answers)
    groups = [answer["vote_group"] for answer in record.answers]
    for answer in record.answers:
        status = answer["status"]
        is_asked = status != "unasked"
        is_right = accepted is not None and bool(answer["is_right"])
        is_only_right = is_right and n_right == 1
        group = answer["vote_group"]
        is_alone = group is None or groups.count(group) == 1
        yield (
            (*record.place, answer["model"], answer["tier"]),
            (
                is_asked,
                status == "ok",
                status in ("error", "missing"),
                bool(answer["is_winner"]),
                bool(answer["is_winner"]) and is_alone,
                is_asked and accepted is not None,
                is_right,
                is_only_right,
                is_only_right and bool(accepted),
                status == "ok" and answer["cost_usd"] is None,
                answer["tokens_in"] or 0,
                answer["tokens_out"] or 0,
                answer["cost_usd"] or 0.0,
            ),
        )


def pair_days(record: StoredOutcome) -> Iterator[tuple[Key, Amounts]]:
    """What verdicts add to `pair_days`, in both directions."""
    models = {answer["member"]: answer["model"] for answer in record.answers}
    for verdict in record.verdicts:
        place = (*record.place, verdict["judge_model"])
        for winner, loser, is_tie in _comparisons(verdict, record.verdicts):
            first, second = models.get(winner), models.get(loser)
            if first is not None and second is not None and first != second:
                yield (*place, first, second), (1, not is_tie, is_tie)
                yield (*place, second, first), (1, 0, is_tie)


def _comparisons(verdict: Row, verdicts: Sequence[Row]) -> list[tuple[str, str, bool]]:
    """Return winner, loser and whether it is a tie, of each comparison that a verdict makes.

    A judge that named the same answer in both orders says one thing, not two, so one of its two
    verdicts counts. One that did not made no difference between the two that it named.
    """
    winner = verdict["winner"]
    if verdict["void"] is not None or verdict["kind"] in ("guard", "check") or winner is None:
        return []
    if verdict["is_by_margin"]:
        return _wins(verdict)
    # Of the two orders, the one with the lower name counts.
    if verdict["swap_of"] is None or verdict["call"] > verdict["swap_of"]:
        return []
    if verdict["is_consistent"]:
        return _wins(verdict)
    opposites = {other["call"]: other["winner"] for other in verdicts}
    other_winner = opposites.get(verdict["swap_of"])
    return [] if other_winner is None else [(winner, other_winner, True)]


def _wins(verdict: Row) -> list[tuple[str, str, bool]]:
    winner = verdict["winner"]
    return [(winner, member, False) for member in json.loads(verdict["shown"]) if member != winner]


def judge_days(record: StoredOutcome) -> Iterator[tuple[Key, Amounts]]:
    """What comparisons that could be read, and held no control, add to `judge_days`."""
    for verdict in record.verdicts:
        is_comparison = verdict["kind"] != "check" and verdict["control"] is None
        if verdict["winner"] is None or not is_comparison:
            continue
        position, longest = verdict["winner_position"], verdict["longest_position"]
        has_others = 1 <= verdict["n_own_family"] < verdict["n_shown"]
        yield (
            (*record.place, verdict["judge_model"]),
            (
                1,
                position == 1,
                position == 2,
                verdict["is_consistent"] is not None,
                verdict["is_consistent"] is not None and not verdict["is_consistent"],
                longest is not None and position == longest,
                longest is not None,
                has_others and bool(verdict["is_own_family_winner"]),
                has_others,
                verdict["rung"] == "repaired",
                verdict["rung"] == "reasked",
                1.0 / verdict["n_shown"],
            ),
        )


def latency_days(record: StoredOutcome) -> Iterator[tuple[Key, Amounts]]:
    """What the stages of an outcome, and its calls, add to `latency_days`; nothing for a replay."""
    row = record.outcome
    if row["is_replay"]:
        return
    times = [
        ("total", "", row["latency_ms"]),
        ("panel", "", row["panel_ms"]),
        ("judge", row["judge_model"] or "", row["judge_ms"]),
        *(("call", answer["model"], answer["latency_ms"]) for answer in record.answers),
    ]
    for stage, model, latency_ms in times:
        if latency_ms is not None:
            yield (*record.place, stage, model, bucket(latency_ms)), (1,)


CONTRIBUTIONS: Mapping[str, Callable[[StoredOutcome], Iterator[tuple[Key, Amounts]]]] = {
    "pool_days": pool_days,
    "model_days": model_days,
    "pair_days": pair_days,
    "judge_days": judge_days,
    "latency_days": latency_days,
}
"""By table, what an outcome adds to it: keys without the slot, and amounts in column order."""


def add_up(
    outcomes: Sequence[StoredOutcome], sign: int = 1
) -> dict[str, Mapping[Key, Sequence[float]]]:
    """Add up what outcomes contribute, by table and key; `sign` -1 takes it away."""
    sums: dict[str, Mapping[Key, Sequence[float]]] = {}
    for name, contribute in CONTRIBUTIONS.items():
        totals: dict[Key, list[float]] = {}
        for key, amounts in chain.from_iterable(map(contribute, outcomes)):
            total = totals.setdefault(key, [0] * len(amounts))
            for place, amount in enumerate(amounts):
                total[place] += sign * amount
        sums[name] = totals
    return sums
