"""How models do, from rows of views."""

from datetime import UTC, datetime, timedelta
from typing import Any

from fusewire_console.figures.models import TokenPrice, judge_calls, member_calls, token_prices

NOW = datetime(2026, 11, 30, tzinfo=UTC)


def call(model: str, status: str, code: str | None, n: int, ago_s: int = 0) -> dict[str, Any]:
    at = NOW - timedelta(seconds=ago_s)
    return {"model": model, "status": status, "error_code": code, "n": n, "last_at": at}


def test_failures_have_their_codes_the_most_frequent_first() -> None:
    calls = member_calls(
        [
            call("a", "error", "timeout", 2),
            call("a", "ok", None, 40, ago_s=9),
            call("a", "missing", None, 3),
            call("b", "error", "rate_limited", 1),
        ]
    )
    assert (calls["a"].n, calls["a"].failed) == (45, 5)
    assert list(calls["a"].errors.items()) == [("missing", 3), ("timeout", 2)]
    assert calls["a"].last_at == NOW - timedelta(seconds=9)
    assert calls["a"].failure_rate.value == 5 / 45
    assert calls["b"].last_at is None


def test_a_verdict_that_does_not_count_has_failed() -> None:
    rows: list[dict[str, Any]] = [
        {"model": "j", "void": None, "n": 7, "last_at": NOW},
        {"model": "j", "void": "not_json", "n": 2, "last_at": NOW},
    ]
    count = judge_calls(rows)["j"]
    assert (count.n, count.failed, count.errors, count.last_at) == (9, 2, {"not_json": 2}, NOW)


def test_prices_are_per_million_tokens_and_unknown_ones_no_zero() -> None:
    models = [
        {"id": "free", "pricing": {"prompt": "0", "completion": "0"}},
        {"id": "paid", "pricing": {"prompt": "0.00000015", "completion": "0.0000006"}},
        {"id": "odd", "pricing": {"prompt": "-1", "completion": "-1"}},
    ]
    assert token_prices(models) == {
        "free": TokenPrice(0.0, 0.0),
        "paid": TokenPrice(0.15, 0.6),
        "odd": TokenPrice(None, None),
    }
