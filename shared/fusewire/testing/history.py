"""For tests: what befell a stack and what it did, as events that a checker reads afterwards.

A history is a file of JSON lines, one event each. Times are Unix times of the machine that runs the
test, s.
"""

import json
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

Fate = Literal["answered", "refused", "broken"]
"""Of a call: answered whole, refused without a bill, or begun and not ended by the model server's
script. A call whose client was killed is `answered`: it is paid for."""


@dataclass(frozen=True)
class Acceptance:
    """A client was told that its prompt is accepted."""

    at: float
    fusion: str
    name: str
    tenant: str = "default"
    residency: str = "any"


@dataclass(frozen=True)
class OutcomeView:
    """A client was shown a final state.

    `digest` is that of all that must not change; `ended_at` when it ended, by its judge's clock.
    """

    at: float
    fusion: str
    status: str
    digest: str
    ended_at: float = 0.0


@dataclass(frozen=True)
class OutcomeCount:
    """At the end so many outcomes of a fusion are stored."""

    at: float
    fusion: str
    count: int


@dataclass(frozen=True)
class FaultStart:
    """A fault began. `number` is its own in this history."""

    at: float
    number: int
    kind: str
    target: str


@dataclass(frozen=True)
class FaultEnd:
    """A fault ended; that of a kill at once."""

    at: float
    number: int


@dataclass(frozen=True)
class ModelCall:
    """A call arrived at the model server."""

    at: float
    task: str
    model: str
    fate: Fate
    fault: str = ""
    """What befell it by the model server's script."""


@dataclass(frozen=True)
class StoredCandidate:
    """At the end a candidate is stored that says this about its calls."""

    at: float
    fusion: str
    task: str
    attempts: int
    maybe_paid_twice: bool


@dataclass(frozen=True)
class StoredVerdict:
    """At the end an outcome names a winner; `candidates` are those that its fusion had."""

    at: float
    fusion: str
    winner: str
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class AccountCost:
    """At the end an account has spent so much; `in_flight_usd` is what one call may cost more."""

    at: float
    account: str
    usd: float
    limit_usd: float
    in_flight_usd: float = 0.0


@dataclass(frozen=True)
class LeakCheck:
    """All bytes of a place were searched for what an edge-only prompt holds."""

    at: float
    place: str
    size: int
    hits: int


@dataclass(frozen=True)
class BatchLines:
    """The custom_ids of a batch's input, and those of its output."""

    at: float
    batch: str
    written: tuple[str, ...]
    read: tuple[str, ...]


@dataclass(frozen=True)
class QueueCount:
    """At the end so much is left of what must be empty, such as a stream."""

    at: float
    what: str
    count: int


@dataclass(frozen=True)
class MemorySample:
    """A process's resident memory."""

    at: float
    process: str
    rss_mb: float


Event = (
    Acceptance
    | OutcomeView
    | OutcomeCount
    | FaultStart
    | FaultEnd
    | ModelCall
    | StoredCandidate
    | StoredVerdict
    | AccountCost
    | LeakCheck
    | BatchLines
    | QueueCount
    | MemorySample
)
_BY_NAME: dict[str, type] = {kind.__name__: kind for kind in get_args(Event)}


def encode(event: Event) -> str:
    """One line, without its end.

    >>> encode(FaultEnd(1.5, 7))
    '{"event": "FaultEnd", "at": 1.5, "number": 7}'
    """
    return json.dumps({"event": type(event).__name__, **asdict(event)})


def decode(line: str) -> Event:
    """The event of a line.

    >>> decode(encode(BatchLines(1, "b", ("x", "y"), ("x", "y")))).read
    ('x', 'y')
    """
    fields = json.loads(line)
    kind = _BY_NAME[fields.pop("event")]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    event: Event = kind(**values)
    return event


class History:
    """Collects events, from any thread, and writes each to a file at once where it has one."""

    def __init__(self, path: Path | None = None) -> None:
        self.events: list[Event] = []
        self._file = path.open("a", encoding="utf-8") if path else None
        self._lock = threading.Lock()
        self._faults = 0

    def add(self, *events: Event) -> None:
        """Add events."""
        with self._lock:
            self.events += events
            if self._file:
                self._file.writelines(encode(event) + "\n" for event in events)
                self._file.flush()

    def begin(self, kind: str, target: str) -> int:
        """Add the beginning of a fault; returns its number for `end`."""
        with self._lock:
            self._faults += 1
            number = self._faults
        self.add(FaultStart(time.time(), number, kind, target))
        return number

    def end(self, number: int) -> None:
        """Add the end of a fault."""
        self.add(FaultEnd(time.time(), number))

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()


def read(lines: Iterable[str]) -> list[Event]:
    """The events of a file's lines."""
    return [decode(line) for line in lines if line.strip()]
