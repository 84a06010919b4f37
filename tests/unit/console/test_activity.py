"""What goes on, from rows of views."""

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

from fusewire_console.figures.activity import (
    DayCount,
    day_counts,
    degraded_rate,
    minute_counts,
    queue_sums,
    reason_counts,
    tokens_per_s,
)

NOW = datetime(2026, 11, 30, 10, 41, 30, tzinfo=UTC)


def test_every_minute_is_there_and_the_one_that_runs_is_last() -> None:
    early = {"minute": "2026-11-30 10:20", "outcomes": 9}
    counts = minute_counts([early, {"minute": "2026-11-30 10:40", "outcomes": 3}], NOW, 2)
    assert [(f"{count.at:%H:%M}", count.outcomes) for count in counts] == [
        ("10:39", 0),
        ("10:40", 3),
        ("10:41", 0),
    ]


def test_a_day_without_outcomes_has_zeros_and_its_begin() -> None:
    row = {"day": date(2026, 11, 29), "outcomes": 5, "failed": 1, "degraded": 2}
    days = day_counts([row | {"n_unpriced": 4, "cost_priced_usd": 0.5}], date(2026, 11, 30), 2)
    assert days == [DayCount(date(2026, 11, 29), 5, 1, 2, 4, 0.5), DayCount(date(2026, 11, 30))]
    assert days[0].at == 1795910400


def test_a_day_of_sqlite_is_a_text() -> None:
    row = {"day": "2026-11-30", "outcomes": 5, "failed": 0, "degraded": 0}
    (day,) = day_counts([row | {"n_unpriced": 0, "cost_priced_usd": 0}], date(2026, 11, 30), 1)
    assert day.outcomes == 5


def test_a_share_of_few_has_no_value_but_an_interval() -> None:
    few = degraded_rate([DayCount(date(2026, 11, 30), outcomes=29, degraded=3)])
    assert (few.value, few.n) == (None, 29)
    assert few.low < 3 / 29 < few.high
    many = degraded_rate([DayCount(date(2026, 11, day), 30, 0, 6) for day in (29, 30)])
    assert (many.value, many.n) == (0.2, 60)


def test_reasons_are_counted_once_for_each_outcome_the_failed_first() -> None:
    rows: list[dict[str, Any]] = [
        {
            "status": "failed",
            "error": "every member failed (timeout)",
            "degraded_reasons": json.dumps(["failed:a:timeout", "failed:a:again", "undecidable"]),
            "n": 2,
        },
        {"status": "single", "error": None, "degraded_reasons": '["failed:a:x"]', "n": 5},
        {"status": "expired", "error": None, "degraded_reasons": None, "n": 1},
    ]
    reasons = [(count.kind, count.reason, count.outcomes) for count in reason_counts(rows)]
    assert reasons == [
        ("failed", "every member failed (timeout)", 2),
        ("failed", "expired", 1),
        ("degraded", "failed: a", 7),
        ("degraded", "undecidable", 2),
    ]


def test_the_speed_of_the_edge_is_of_the_period_that_was_read() -> None:
    since = NOW - timedelta(minutes=5)
    row = {"tokens": 600, "outcomes": 10, "first_at": NOW - timedelta(seconds=60)}
    assert tokens_per_s(row, NOW, since, 100) == 2.0
    assert tokens_per_s(row, NOW, since, 10) == 10.0
    assert tokens_per_s({**row, "tokens": None}, NOW, since, 100) is None
    # All in one moment: no division by nothing.
    assert tokens_per_s({**row, "first_at": NOW}, NOW, since, 10) == 600.0


def test_queues_are_added_up_by_stream() -> None:
    queues = [
        {"stream": "FW_PROMPT", "durable": name, "waiting": 2, "in_flight": 1, "redelivered": 0}
        for name in ("high", "low")
    ]
    queues.append({**queues[0], "stream": "FW_ROUND", "redelivered": 3})
    sums = [(s.stream, s.waiting, s.in_flight, s.redelivered) for s in queue_sums(queues)]
    assert sums == [("FW_PROMPT", 4, 2, 0), ("FW_ROUND", 2, 1, 3)]
