"""The steps of a fusion as bars on one axis of time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

LEAST_WIDTH = 0.8
"""Of a bar that could not be seen otherwise, in percent of the axis."""
CALL_EVENTS = ("answered", "failed", "late")


@dataclass(frozen=True)
class FusionStep:
    """A step, as a row of the timeline."""

    at_ms: float
    """When it happened, or a call was asked for; ms since the prompt was accepted."""
    took_ms: float | None
    """From when a call was asked for to when its answer came; None for what is no call."""
    event: str
    round: int | None
    call: str | None
    model: str | None
    detail: str | None
    x: float
    """Where it begins, in percent of the axis."""
    width: float
    """How wide its bar is, in percent of the axis; 0 for what is no call."""


@dataclass(frozen=True)
class FusionSteps:
    """The timeline of a fusion."""

    steps: tuple[FusionStep, ...]
    length_ms: float
    """The length of the axis."""
    end: float | None
    """Where the outcome was decided, in percent of the axis; None if it runs."""


def draw(events: Sequence[Mapping[str, Any]]) -> FusionSteps | None:
    """Lay the steps of a fusion out.

    Args:
        events: rows of `v_event`, of one fusion. Votes are left out: they come days later.

    Returns:
        None without an acceptance, from which time is counted.
    """
    by_time = sorted(
        (event for event in events if event["event"] != "voted"), key=lambda event: event["at"]
    )
    start = next((event["at"] for event in by_time if event["event"] == "accepted"), None)
    if start is None:
        return None
    length_ms = max(1.0, *(_ms(start, event["at"]) for event in by_time))
    asked_at = _asked_at(by_time, start)
    steps = sorted(
        (_step(event, start, asked_at, length_ms) for event in by_time),
        key=lambda step: step.at_ms,
    )
    decided_at = next((event["at"] for event in by_time if event["event"] == "decided"), None)
    end = round(100 * _ms(start, decided_at) / length_ms, 2) if decided_at else None
    return FusionSteps(tuple(steps), length_ms, end)


def _asked_at(events: Iterable[Mapping[str, Any]], start: datetime) -> dict[int, datetime]:
    """When each round was asked for; the first is asked for when the prompt is published."""
    times = {0: start}
    for event in events:
        if event["event"] == "published":
            times[0] = event["at"]
        elif event["event"] == "asked" and event["round"] is not None:
            times[event["round"]] = event["at"]
    return times


def _step(
    event: Mapping[str, Any], start: datetime, asked_at: Mapping[int, datetime], length_ms: float
) -> FusionStep:
    began, took_ms = event["at"], None
    if event["event"] in CALL_EVENTS:
        began = min(asked_at.get(event["round"] or 0, start), event["at"])
        took_ms = _ms(began, event["at"])
    width = 0.0
    if took_ms is not None:
        width = max(round(100 * took_ms / length_ms, 2), LEAST_WIDTH)
    at_ms = _ms(start, began)
    x = min(round(100 * at_ms / length_ms, 2), 100 - width)
    names = {name: event[name] for name in ("event", "round", "call", "model", "detail")}
    return FusionStep(at_ms=at_ms, took_ms=took_ms, x=x, width=width, **names)


def _ms(start: datetime, at: datetime) -> float:
    return (at - start).total_seconds() * 1000
