"""Percentiles and histograms of latencies, from buckets."""

from typing import Any

from fusewire_console.figures.latency import bucket_axis, latency_rows

BOUNDS = (10, 100, 1000, 10_000, 100_000)


def row(stage: str, model: str | None, bucket_ms: int, n: int) -> dict[str, Any]:
    return {"stage": stage, "model": model, "bucket_ms": bucket_ms, "n": n}


def test_rows_are_in_the_order_of_the_stages_and_added_up() -> None:
    rows = latency_rows(
        [
            row("call", "b", 100, 1),
            row("call", "a", 100, 1),
            row("judge", "j", 100, 1),
            row("total", None, 100, 1),
            row("total", None, 1000, 2),
            row("total", None, 100, 4),
            row("panel", None, 100, 1),
        ],
        BOUNDS,
    )
    assert [(r.stage, r.model, r.n) for r in rows] == [
        ("total", None, 7),
        ("panel", None, 1),
        ("judge", "j", 1),
        ("call", "a", 1),
        ("call", "b", 1),
    ]


def test_a_percentile_of_too_few_is_not_shown() -> None:
    def shown(n: int) -> list[bool]:
        (latencies,) = latency_rows([row("total", None, 100, n)], BOUNDS)
        return [value is not None for value in latencies.quantiles_ms]

    assert shown(29) == [False, False, False]
    assert shown(30) == shown(99) == [True, True, False]
    assert shown(100) == [True, True, True]


def test_a_percentile_lies_in_its_bucket() -> None:
    (latencies,) = latency_rows(
        [row("total", None, 100, 90), row("total", None, 10_000, 10)], BOUNDS
    )
    p50, p95, p99 = latencies.quantiles_ms
    assert p50 is not None
    assert p95 is not None
    assert p99 is not None
    assert 10 < p50 <= 100
    assert 1000 < p95 < p99 <= 10_000


def test_histograms_share_an_axis_from_the_first_to_the_last_bucket() -> None:
    rows = latency_rows(
        [row("total", None, 100, 4), row("total", None, 10_000, 1), row("panel", None, 1000, 3)],
        BOUNDS,
    )
    axis = bucket_axis(rows, BOUNDS)
    assert (axis.low_ms, axis.high_ms, axis.bounds_ms) == (10, 10_000, (100, 1000, 10_000))
    assert [axis.bars(r) for r in rows] == [[(0, 100.0), (2, 25.0)], [(1, 100.0)]]


def test_without_latencies_there_is_an_empty_axis() -> None:
    axis = bucket_axis([], BOUNDS)
    assert (axis.bounds_ms, axis.low_ms, axis.high_ms) == ((), 0, 0)
    assert bucket_axis(latency_rows([row("total", None, 10, 1)], BOUNDS), BOUNDS).low_ms == 0
