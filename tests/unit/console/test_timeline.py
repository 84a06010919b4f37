"""The steps of a fusion on one axis of time."""

from datetime import UTC, datetime, timedelta
from typing import Any

from fusewire_console.figures.timeline import LEAST_WIDTH, draw

START = datetime(2026, 3, 1, tzinfo=UTC)


def event(name: str, at_ms: float, **values: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("round", "call", "model", "detail"))
    return {**empty, "event": name, "at": START + timedelta(milliseconds=at_ms), **values}


EVENTS = [
    event("voted", 90_000_000, detail="alpha"),
    event("decided", 1600, detail="selected"),
    event("answered", 1600, round=1, call="verdict-1-1", model="judge"),
    event("asked", 1100, round=1),
    event("failed", 1100, round=0, call="beta", model="beta", detail="timeout"),
    event("answered", 600, round=0, call="alpha", model="alpha"),
    event("late", 2000, round=0, call="gamma", model="gamma"),
    event("published", 100),
    event("accepted", 0, detail="pool"),
]


def test_bars_run_from_the_round_to_the_answer() -> None:
    timeline = draw(EVENTS)
    assert timeline is not None
    bars = {step.call: (step.x, step.width, step.took_ms) for step in timeline.steps if step.call}
    assert bars == {
        "alpha": (5.0, 25.0, 500.0),
        "beta": (5.0, 50.0, 1000.0),
        "gamma": (5.0, 95.0, 1900.0),
        "verdict-1-1": (55.0, 25.0, 500.0),
    }
    assert (timeline.length_ms, timeline.end) == (2000.0, 80.0)


def test_votes_are_no_part_of_it_and_steps_are_in_order() -> None:
    timeline = draw(EVENTS)
    assert timeline is not None
    assert "voted" not in [step.event for step in timeline.steps]
    times = [step.at_ms for step in timeline.steps]
    assert times == sorted(times)
    assert timeline.steps[0].event == "accepted"


def test_a_short_call_can_still_be_seen() -> None:
    timeline = draw([event("accepted", 0), event("asked", 9999, round=1),
                     event("answered", 10_000, round=1, call="a")])  # fmt: skip
    assert timeline is not None
    bar = timeline.steps[-1]
    assert bar.width == LEAST_WIDTH
    assert bar.x + bar.width <= 100


def test_a_fusion_that_runs_has_no_decision() -> None:
    timeline = draw([event("accepted", 0)])
    assert timeline is not None
    assert timeline.end is None
    assert draw([]) is None
