"""Sums of costs: what has no price is counted, and is no zero."""

from typing import Any

from fusewire_console.figures.costs import add_up, cost_sums


def row(key: str, n: int, unpriced: int, usd: float | None) -> dict[str, Any]:
    return {"key": key, "n": n, "unpriced": unpriced, "usd": usd}


def test_shares_and_means_are_of_what_is_priced() -> None:
    first, second = cost_sums([row("a", 50, 20, 3.0), row("b", 40, 0, 1.0)], "key")
    assert (first.key, first.unpriced, first.usd, first.share) == (("a",), 20, 3.0, 0.75)
    assert first.usd_each == 0.1
    assert second.usd_each == 0.025


def test_what_nobody_knows_is_not_0() -> None:
    unknown, free = cost_sums([row("a", 40, 40, 0.0), row("b", 40, 0, 0.0)], "key")
    assert (unknown.usd, unknown.share, unknown.usd_each) == (None, None, None)
    assert (free.usd, free.usd_each) == (0.0, 0.0)


def test_a_mean_needs_30() -> None:
    few, enough = cost_sums([row("a", 40, 11, 1.0), row("b", 40, 10, 1.0)], "key")
    assert few.usd_each is None
    assert enough.usd_each == 1 / 30


def test_all_of_them_are_added_up() -> None:
    total = add_up(cost_sums([row("a", 50, 50, 0.0), row("b", 40, 10, 1.5)], "key"), "all")
    assert (total.n, total.unpriced, total.usd) == (90, 60, 1.5)
    assert add_up([], "all").usd is None
