"""How much goes on, and what went wrong lately. Pure: rows of views in, figures out."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from fusewire.analysis.measures import Rate, rate
from fusewire.contracts.degraded import DegradedReason

Row = Mapping[str, Any]
Rows = Sequence[Row]


@dataclass(frozen=True)
class TimeCount:
    """How many outcomes the minute from a time on had."""

    at: datetime
    outcomes: int


def minute_counts(rows: Rows, now: datetime, minutes: int) -> list[TimeCount]:
    """The last whole minutes and the one that runs, oldest first.

    Args:
        rows: `minute`, as `2026-11-30 10:41` in UTC, and `outcomes`.
        now: the time.
        minutes: how many whole minutes.
    """
    counts = {str(row["minute"]): int(row["outcomes"]) for row in rows}
    current = now.astimezone(UTC).replace(second=0, microsecond=0)
    times = [current - timedelta(minutes=ago) for ago in range(minutes, -1, -1)]
    return [TimeCount(at, counts.get(f"{at:%Y-%m-%d %H:%M}", 0)) for at in times]


@dataclass(frozen=True)
class DayCount:
    """What a UTC day had."""

    day: date
    outcomes: int = 0
    failed: int = 0
    degraded: int = 0
    unpriced: int = 0
    """Outcomes whose cost is unknown: they are not in `usd`."""
    usd: float = 0.0

    @property
    def at(self) -> int:
        """Its begin, in seconds since 1970."""
        return int(datetime(self.day.year, self.day.month, self.day.day, tzinfo=UTC).timestamp())


def day_counts(rows: Rows, today: date, days: int) -> list[DayCount]:
    """The last days up to today, those without outcomes too, oldest first.

    Args:
        rows: sums of `v_tenant_day`, one for each day.
        today: the UTC day.
        days: how many.
    """
    counts = {str(row["day"]): row for row in rows}
    all_days = [today - timedelta(days=ago) for ago in range(days - 1, -1, -1)]
    return [_day_count(day, counts.get(str(day))) for day in all_days]


def _day_count(day: date, row: Row | None) -> DayCount:
    if row is None:
        return DayCount(day)
    return DayCount(
        day,
        outcomes=int(row["outcomes"]),
        failed=int(row["failed"]),
        degraded=int(row["degraded"]),
        unpriced=int(row["n_unpriced"]),
        usd=float(row["cost_priced_usd"]),
    )


def degraded_rate(days: Sequence[DayCount]) -> Rate:
    """The share of outcomes that are degraded."""
    return rate(sum(day.degraded for day in days), sum(day.outcomes for day in days))


@dataclass(frozen=True)
class ReasonCount:
    """How many outcomes failed, or are degraded, for the same reason."""

    kind: str
    """failed or degraded."""
    reason: str
    outcomes: int


def reason_counts(rows: Rows) -> list[ReasonCount]:
    """Reasons by kind and number. An outcome counts once for each of its reasons.

    Args:
        rows: `status`, `error`, `degraded_reasons` and how many outcomes have these, `n`.

    >>> row = {"status": "single", "error": None, "degraded_reasons": '["missing:b"]', "n": 2}
    >>> reason_counts([row])
    [ReasonCount(kind='degraded', reason='missing: b', outcomes=2)]
    """
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        n = int(row["n"])
        if row["status"] in ("failed", "expired"):
            counts["failed", row["error"] or row["status"]] += n
        for reason in {_words(text) for text in json.loads(row["degraded_reasons"] or "[]")}:
            counts["degraded", reason] += n
    reasons = [ReasonCount(kind, reason, n) for (kind, reason), n in counts.items()]
    # "failed" comes after "degraded", and is the graver one.
    reasons.sort(key=lambda reason: (reason.kind != "failed", -reason.outcomes, reason.reason))
    return reasons


def _words(text: str) -> str:
    reason = DegradedReason.parse(text)
    return f"{reason.code}: {reason.subject}" if reason.subject else reason.code


def tokens_per_s(row: Row, now: datetime, since: datetime, most: int) -> float | None:
    """Tokens that edge models wrote per second; None where they answered nothing.

    Args:
        row: `tokens` of the newest outcomes since `since`, `outcomes`, how many of these there
            are, and `first_at`, when the first of them was decided.
        now: the time.
        since: when the period begins.
        most: the most outcomes that were read; with as many, the period is shorter.
    """
    if row["tokens"] is None:
        return None
    start = row["first_at"] if int(row["outcomes"]) >= most else since
    return float(row["tokens"]) / max((now - start).total_seconds(), 1.0)


@dataclass(frozen=True)
class QueueTotals:
    """What waits in all queues of a stream."""

    stream: str
    waiting: int
    in_flight: int
    redelivered: int


def queue_sums(queues: Rows) -> list[QueueTotals]:
    """Queues, as the API returns them, added up by stream, in the API's order."""
    streams = dict.fromkeys(str(queue["stream"]) for queue in queues)
    return [
        QueueTotals(
            stream,
            _add(queues, stream, "waiting"),
            _add(queues, stream, "in_flight"),
            _add(queues, stream, "redelivered"),
        )
        for stream in streams
    ]


def _add(queues: Rows, stream: str, name: str) -> int:
    return sum(int(queue[name]) for queue in queues if queue["stream"] == stream)
