"""Quorum: when the panel has said enough."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.contracts import Plan
from fusewire.testing.factories import T0, make_candidate, make_member, make_plan
from fusewire_judge.fusion.case import Heard
from fusewire_judge.quorum import panel

PANEL_S = 45.0


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def heard(**arrivals: float) -> dict[str, Heard]:
    """Answers by the second they came; a name in capitals failed."""
    return {
        name.lower(): Heard(
            make_candidate(call=name.lower(), fails="server_error" if name.isupper() else None), at(seconds), 0
        )
        for name, seconds in arrivals.items()
    }


def closes(plan: Plan, arrivals: dict[str, float], now: float) -> float | None:
    """When the panel closes, in seconds; None if it is over."""
    found = panel(plan, heard(**arrivals), at(now))
    return None if found is None else (found - T0).total_seconds()


TABLE = [
    # what, quorum, arrivals, now, closes
    ("nobody yet", 0.67, {}, 0, PANEL_S),
    ("one of three", 0.67, {"a": 1}, 1, PANEL_S),
    ("two of three meet 0.67: the tolerance", 0.67, {"a": 2, "b": 4}, 4, 5.4),
    ("grace is 0.35 of what it took", 0.67, {"a": 2, "b": 20}, 20, 27),
    ("grace is half a second at least", 0.67, {"a": 0.1, "b": 0.2}, 0.2, 0.7),
    ("grace is ten seconds at most", 0.5, {"a": 2, "b": 32}, 32, 42),
    ("grace ends at the panel's deadline", 0.67, {"a": 2, "b": 40}, 40, PANEL_S),
    ("grace is over", 0.67, {"a": 2, "b": 4}, 5.4, None),
    ("grace is not over yet", 0.67, {"a": 2, "b": 4}, 5.3, 5.4),
    ("everyone", 0.67, {"a": 1, "b": 1, "c": 1}, 1, None),
    ("everyone, some failed", 1.0, {"a": 1, "B": 1, "C": 1}, 1, None),
    ("a failure has no weight", 0.67, {"a": 1, "B": 1}, 1, PANEL_S),
    ("two of three do not meet 0.7", 0.7, {"a": 1, "b": 1}, 1, PANEL_S),
    ("two of three meet 0.671", 0.671, {"a": 1, "b": 1}, 1, 1.5),
    ("all of them are needed", 1.0, {"a": 1, "b": 1}, 1, PANEL_S),
    ("one alone is never enough", 0.1, {"a": 1}, 1, PANEL_S),
    ("the deadline", 0.67, {"a": 1}, PANEL_S, None),
    ("just before the deadline", 0.67, {"a": 1}, PANEL_S - 0.001, PANEL_S),
]


@pytest.mark.parametrize(
    ("quorum", "arrivals", "now", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_panel(quorum: float, arrivals: dict[str, float], now: float, expected: float | None) -> None:
    assert closes(make_plan(quorum=quorum), arrivals, now) == pytest.approx(expected)


def test_weights_count_not_heads() -> None:
    plan = make_plan(members=[make_member("a", 8), make_member("b"), make_member("c")], quorum=0.8)

    assert closes(plan, {"b": 1, "c": 1}, 1) == PANEL_S
    assert closes(plan, {"a": 1, "b": 1}, 1) == 1.5


def test_a_heavy_member_alone_is_not_a_quorum() -> None:
    plan = make_plan(members=[make_member("a", 98), make_member("b"), make_member("c")], quorum=0.8)

    assert closes(plan, {"a": 1}, 1) == PANEL_S


def test_a_pool_of_one_is_over_with_its_answer() -> None:
    assert closes(make_plan(members="a"), {"a": 1}, 1) is None


def test_grace_runs_from_the_answer_that_made_the_quorum() -> None:
    plan = make_plan(members="abcd", quorum=0.5)

    assert closes(plan, {"a": 2, "b": 10}, 10) == pytest.approx(13.5)
    assert closes(plan, {"a": 2, "b": 10, "c": 13}, 13) == pytest.approx(13.5)


ARRIVALS = st.dictionaries(
    st.sampled_from(["a", "b", "c", "D", "E"]), st.floats(0, PANEL_S, allow_nan=False), max_size=5
)


@given(ARRIVALS, st.floats(0.05, 1), st.floats(0, 100), st.floats(0, 100))
def test_a_panel_that_is_over_stays_over(arrivals: dict[str, float], quorum: float, now: float, later: float) -> None:
    plan = make_plan(members="abcde", quorum=quorum)
    come = {name: when for name, when in arrivals.items() if when <= now}

    closing = closes(plan, come, now)

    if closing is None:
        assert closes(plan, come, now + later) is None
    else:
        assert now < closing <= PANEL_S
        assert closes(plan, come, closing) is None
