"""For tests: what must hold of any history, whatever befell the stack. Pure.

Each invariant is a function of its own, from a history to its violations.

| | holds |
|---|---|
| I1 | what was accepted has exactly one stored outcome |
| I2 | no outcome without an acceptance |
| I3 | a task is paid for once, and once more for each fault between; its candidate says so |
| I4 | no account spends more than its limit and what was in flight |
| I5 | what an edge-only prompt holds is nowhere outside the edge |
| I6 | a batch's output has the lines of its input, in their order |
| I7 | a final state never changes |
| I8 | a winner is a candidate of its fusion |
| I9 | at the end no work is left in queues |
| I10 | after a fault something ends soon |
| I11 | memory does not grow |
"""

import itertools
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fusewire.testing.history import (
    Acceptance,
    AccountCost,
    BatchLines,
    Event,
    FaultEnd,
    FaultStart,
    LeakCheck,
    MemorySample,
    ModelCall,
    OutcomeCount,
    OutcomeView,
    QueueCount,
    StoredCandidate,
    StoredVerdict,
)

_E = TypeVar("_E", bound=Event)


@dataclass(frozen=True)
class Limits:
    """What is still good.

    Attributes:
        recovery_s: the 99th percentile of the time from a fault's end to the next final state, s.
        after_fault_s: how long after its end a fault may still be the cause of a second call, s:
            the broker delivers again what a dead worker had when its `ack_wait` is over.
        growth_mb_per_hour: of one process, by least squares over the second half of its samples.
        least_span_s: samples over a shorter time tell nothing about growth, s.
    """

    recovery_s: float = 10.0
    after_fault_s: float = 60.0
    growth_mb_per_hour: float = 60.0
    least_span_s: float = 60.0


@dataclass(frozen=True)
class InvariantFault:
    """An invariant that does not hold, of what, and why."""

    invariant: str
    subject: str
    why: str


@dataclass(frozen=True)
class _FaultTime:
    """A fault, from its beginning to its end."""

    kind: str
    start: float
    end: float


def of_kind(history: Sequence[Event], kind: type[_E]) -> list[_E]:
    """The events of a kind, in order."""
    return [event for event in history if isinstance(event, kind)]


def check(history: Sequence[Event], limits: Limits | None = None) -> list[InvariantFault]:
    """All that does not hold of a history."""
    faults: list[InvariantFault] = []
    for find in INVARIANTS.values():
        faults += find(history, limits or Limits())
    return faults


def _lost_or_double(history: Sequence[Event], _limits: Limits) -> Iterator[InvariantFault]:
    counts = {event.fusion: event.count for event in of_kind(history, OutcomeCount)}
    for event in of_kind(history, Acceptance):
        if (count := counts.get(event.fusion, 0)) != 1:
            yield InvariantFault("I1", event.fusion, f"{count} outcomes of {event.name}")


def _unknown_outcomes(history: Sequence[Event], _limits: Limits) -> Iterator[InvariantFault]:
    fusions = {event.fusion for event in of_kind(history, Acceptance)}
    for event in of_kind(history, OutcomeCount):
        if event.fusion not in fusions:
            yield InvariantFault(
                "I2", event.fusion, "an outcome of what nobody was told is accepted"
            )


def _fault_times(history: Sequence[Event]) -> list[_FaultTime]:
    ends = {event.number: event.at for event in of_kind(history, FaultEnd)}
    return [
        _FaultTime(event.kind, event.at, ends.get(event.number, math.inf))
        for event in of_kind(history, FaultStart)
    ]


def paid_calls(history: Sequence[Event]) -> Mapping[str, list[float]]:
    """Times of the calls that are paid for, by task."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    for event in of_kind(history, ModelCall):
        if event.fate == "answered":
            times[event.task].append(event.at)
    return times


def paid_duplicates(history: Sequence[Event], limits: Limits | None = None) -> Counter[str]:
    """Paid calls beyond the first of each task, by the kinds of the faults between them."""
    faults, counts = _fault_times(history), Counter[str]()
    for times in paid_calls(history).values():
        if len(times) > 1:
            causes = {fault.kind for fault in _causes(times, faults, limits or Limits())}
            counts[" ".join(sorted(causes))] += len(times) - 1
    return counts


def _causes(
    calls: Sequence[float], faults: Sequence[_FaultTime], limits: Limits
) -> list[_FaultTime]:
    """The faults between the first and the last of a task's calls."""
    first, last = min(calls), max(calls)
    return [f for f in faults if f.start <= last and f.end + limits.after_fault_s >= first]


def _paid_twice(history: Sequence[Event], limits: Limits) -> Iterator[InvariantFault]:
    spans = _fault_times(history)
    candidates = {event.task: event for event in of_kind(history, StoredCandidate)}
    for task, times in paid_calls(history).items():
        extra = len(times) - 1
        if not extra:
            continue
        causes = _causes(times, spans, limits)
        if extra > len(causes):
            yield InvariantFault("I3", task, f"{len(times)} paid calls and {len(causes)} faults")
        candidate = candidates.get(task)
        if candidate and not (candidate.maybe_paid_twice or candidate.attempts > extra):
            yield InvariantFault(
                "I3", task, f"{len(times)} paid calls, and its candidate tells of one"
            )


def _overspent(history: Sequence[Event], _limits: Limits) -> Iterator[InvariantFault]:
    for event in of_kind(history, AccountCost):
        if event.usd > event.limit_usd + event.in_flight_usd:
            yield InvariantFault("I4", event.account, f"{event.usd} USD of {event.limit_usd}")


def _leaks(history: Sequence[Event], _limits: Limits) -> Iterator[InvariantFault]:
    for event in of_kind(history, LeakCheck):
        if event.hits:
            yield InvariantFault("I5", event.place, f"{event.hits} times in {event.size} bytes")


def misplaced_lines(order: BatchLines) -> int:
    """Lines of a batch's output that are not those of the input at their place.

    >>> misplaced_lines(BatchLines(0, "b", ("x", "y", "z"), ("x", "z")))
    2
    """
    return sum(a != b for a, b in itertools.zip_longest(order.written, order.read))


def _out_of_order(history: Sequence[Event], _limits: Limits) -> Iterator[InvariantFault]:
    for event in of_kind(history, BatchLines):
        if count := misplaced_lines(event):
            yield InvariantFault("I6", event.batch, f"{count} lines are not at their place")


def _changes(history: Sequence[Event], _limits: Limits) -> Iterator[InvariantFault]:
    first: dict[str, OutcomeView] = {}
    for event in of_kind(history, OutcomeView):
        before = first.setdefault(event.fusion, event)
        if (before.status, before.digest) != (event.status, event.digest):
            yield InvariantFault("I7", event.fusion, f"was {before.status}, is {event.status}")


def _unknown_winners(history: Sequence[Event], _limits: Limits) -> Iterator[InvariantFault]:
    for event in of_kind(history, StoredVerdict):
        if event.winner not in event.candidates:
            yield InvariantFault("I8", event.fusion, f"{event.winner} wins and was no candidate")


def _left_over(history: Sequence[Event], _limits: Limits) -> Iterator[InvariantFault]:
    for event in of_kind(history, QueueCount):
        if event.count:
            yield InvariantFault("I9", event.what, f"{event.count} are left")


def recoveries(history: Sequence[Event]) -> list[float]:
    """Times from the end of a fault to the next final state that a client sees, s.

    Of faults at whose end something is unfinished, and that no other fault follows before: then
    that one counts.
    """
    accepted = {event.fusion: event.at for event in of_kind(history, Acceptance)}
    views = reversed(of_kind(history, OutcomeView))
    ends = {event.fusion: event.at for event in views}
    faults = _fault_times(history)
    times: list[float] = []
    for fault in faults:
        waiting = {f for f, at in accepted.items() if at <= fault.end < ends.get(f, math.inf)}
        next_end = min(filter(fault.end.__lt__, ends.values()), default=math.inf)
        if waiting and not _is_followed(fault, next_end, faults):
            times.append(next_end - fault.end)
    return times


def _is_followed(fault: _FaultTime, next_end: float, faults: Sequence[_FaultTime]) -> bool:
    """Whether another fault lies between a fault's end and the next final state."""
    return any(
        other is not fault and other.start <= next_end and other.end > fault.end for other in faults
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed; 0 of none.

    >>> percentile([3, 1, 2], 0.99)
    3
    """
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else 0.0


def _slow_recovery(history: Sequence[Event], limits: Limits) -> Iterator[InvariantFault]:
    p99 = percentile(recoveries(history), 0.99)
    if p99 > limits.recovery_s:
        yield InvariantFault("I10", "recovery", f"p99 is {p99:.1f} s, of {limits.recovery_s:g}")


def slope(points: Sequence[tuple[float, float]]) -> float:
    """By least squares, of what is at least two points; 0 of fewer.

    >>> slope([(0, 1), (1, 3), (2, 5)])
    2.0
    """
    if len({x for x, _ in points}) < 2:
        return 0.0
    return float(statistics.linear_regression(*zip(*points, strict=True)).slope)


def second_half(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Those points whose time is past the middle."""
    middle = (points[0][0] + points[-1][0]) / 2
    return [point for point in points if point[0] >= middle]


def growths(history: Sequence[Event], limits: Limits) -> dict[str, float]:
    """MB per hour by process, of those that were seen for long enough."""
    samples: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for event in of_kind(history, MemorySample):
        samples[event.process].append((event.at, event.rss_mb))
    return {
        process: slope(second_half(points)) * 3600
        for process, points in samples.items()
        if points[-1][0] - points[0][0] >= limits.least_span_s
    }


def _growing(history: Sequence[Event], limits: Limits) -> Iterator[InvariantFault]:
    for process, growth in growths(history, limits).items():
        if growth > limits.growth_mb_per_hour:
            yield InvariantFault("I11", process, f"grows by {growth:.0f} MB an hour")


def fault_counts(history: Sequence[Event]) -> Counter[str]:
    """How many faults of each kind there were, by `kind target`; of models by what befell calls."""
    counts = Counter(f"{event.kind} {event.target}" for event in of_kind(history, FaultStart))
    counts.update(f"model {event.fault}" for event in of_kind(history, ModelCall) if event.fault)
    return counts


INVARIANTS: dict[str, Callable[[Sequence[Event], Limits], Iterator[InvariantFault]]] = {
    "I1": _lost_or_double,
    "I2": _unknown_outcomes,
    "I3": _paid_twice,
    "I4": _overspent,
    "I5": _leaks,
    "I6": _out_of_order,
    "I7": _changes,
    "I8": _unknown_winners,
    "I9": _left_over,
    "I10": _slow_recovery,
    "I11": _growing,
}
