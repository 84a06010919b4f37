"""Ways to find out how many calls may run at once, side by side, simulated.

`python tests/bench/concurrency.py` prints a table in some seconds. Nothing here calls a model: a
provider is a queue with places, a rate limit or an outage, in simulated time. docs/decisions/0062
says what was chosen by it.
"""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from fusewire_worker_remote.concurrency import AdaptiveLimit

MOST = 32
SECONDS = 1800.0
TIMEOUT_S = 30.0
REJECTION_S = 0.05
RETRY_S = 2.0
"""After a rejection or a timeout its task comes again after so many seconds."""


class Limit(Protocol):
    """A way to limit calls."""

    @property
    def limit(self) -> int: ...

    def add_answer(self, *, started_at: float, now: float, running: int) -> None: ...

    def add_overload(self, *, started_at: float, now: float) -> bool: ...


class Fixed:
    """`max_concurrency`, whatever happens."""

    limit = MOST

    def add_answer(self, *, started_at: float, now: float, running: int) -> None: ...

    def add_overload(self, *, started_at: float, now: float) -> bool:
        return False


class EachBurst(AdaptiveLimit):
    """AIMD that halves for each burst of calls, however short these are."""

    def add_overload(self, *, started_at: float, now: float) -> bool:
        self._latency_s, mean_s = 0.0, self._latency_s
        try:
            return super().add_overload(started_at=started_at, now=now)
        finally:
            self._latency_s = mean_s


class Gradient(AdaptiveLimit):
    """Netflix's Gradient2: lowers the limit as latency rises above its long mean; halves too."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._long_s: float | None = None
        self._short_s = 0.0

    def add_answer(self, *, started_at: float, now: float, running: int) -> None:
        latency_s = now - started_at
        if self._long_s is None:
            self._long_s = self._short_s = self._latency_s = latency_s
        self._long_s += 0.005 * (latency_s - self._long_s)
        self._short_s += 0.1 * (latency_s - self._short_s)
        self._latency_s = self._long_s
        if 2 * running < self.limit:
            return
        gradient = max(0.5, min(1.0, 1.5 * self._long_s / max(self._short_s, 1e-9)))
        new = self._limit * gradient + math.sqrt(self._limit) / self._limit
        self._limit = max(1.0, min(float(self._most), 0.8 * self._limit + 0.2 * new))


@dataclass
class Provider:
    """A provider: so many places, each serving a call in a log-normal time; what is more waits."""

    places: int = 10_000
    most_waiting: int = 10_000
    """Calls beyond these are turned away at once with 429."""
    per_second: float = math.inf
    """Calls a second; what is more is turned away at once with 429."""
    changes: tuple[tuple[float, int], ...] = ()
    """From these times on it has other places."""
    latency_s: float = 2.0
    sigma: float = 0.8
    _busy: int = 0
    _waiting: deque[Callable[[], None]] = field(default_factory=deque)


@dataclass
class Result:
    """What came of a simulation."""

    answers: int = 0
    rejections: int = 0
    timeouts: int = 0
    latencies: list[float] = field(default_factory=list)

    def row(self) -> str:
        calls = self.answers + self.rejections + self.timeouts
        latencies = sorted(self.latencies)
        p95 = latencies[int(0.95 * len(latencies))] if latencies else math.nan
        return (
            f"{self.answers / SECONDS:9.2f} {self.rejections / calls:9.1%} "
            f"{self.timeouts / calls:9.1%} {p95:8.1f}"
        )


def simulate(provider: Provider, limit: Limit, *, load: int = 64, seed: int = 0) -> Result:
    """Let `load` tasks be there at any time: a task that has its answer is replaced."""
    rng, result = random.Random(seed), Result()
    numbers = itertools.count()
    events: list[tuple[float, int, Callable[[float], None]]] = []
    running, busy, waiting = 0, 0, deque[tuple[float, list[bool]]]()
    tokens, refilled_at = provider.per_second, 0.0
    ready = load

    def at(when: float, what: Callable[[float], None]) -> None:
        heapq.heappush(events, (when, next(numbers), what))

    def places(now: float) -> int:
        return next((n for since, n in reversed(provider.changes) if now >= since), provider.places)

    def again(now: float) -> None:
        nonlocal ready
        ready += 1
        begin(now)

    def serve(now: float) -> None:
        nonlocal busy
        while waiting and busy < places(now):
            started_at, is_gone = waiting.popleft()
            if is_gone[0]:
                continue
            busy += 1
            time_s = provider.latency_s * math.exp(provider.sigma * rng.gauss(0, 1))
            at(now + time_s, partial(finish, started_at=started_at, is_gone=is_gone))

    def finish(now: float, started_at: float, is_gone: list[bool]) -> None:
        nonlocal busy, running
        busy -= 1
        if not is_gone[0]:
            is_gone[0] = True
            limit.add_answer(started_at=started_at, now=now, running=running)
            running -= 1
            result.answers += 1
            result.latencies.append(now - started_at)
            again(now)
        serve(now)

    def time_out(now: float, started_at: float, is_gone: list[bool]) -> None:
        nonlocal running
        if is_gone[0]:
            return
        is_gone[0] = True
        limit.add_overload(started_at=started_at, now=now)
        running -= 1
        result.timeouts += 1
        at(now + RETRY_S, again)
        begin(now)

    def reject(now: float, started_at: float) -> None:
        nonlocal running
        limit.add_overload(started_at=started_at, now=now)
        running -= 1
        result.rejections += 1
        at(now + RETRY_S, again)
        begin(now)

    def begin(now: float) -> None:
        nonlocal ready, running, tokens, refilled_at
        while ready and running < limit.limit:
            ready -= 1
            running += 1
            if provider.per_second < math.inf:
                gain = (now - refilled_at) * provider.per_second
                tokens, refilled_at = min(provider.per_second * 2, tokens + gain), now
            is_full = busy >= places(now) and len(waiting) >= provider.most_waiting
            if is_full or tokens < 1:
                at(now + REJECTION_S, partial(reject, started_at=now))
                continue
            tokens -= 1
            is_gone = [False]
            waiting.append((now, is_gone))
            at(now + TIMEOUT_S, partial(time_out, started_at=now, is_gone=is_gone))
            serve(now)

    begin(0.0)
    while events and events[0][0] < SECONDS:
        when, _, what = heapq.heappop(events)
        what(when)
    return result


CHANGES = ((0.0, 32), (28.0, 0))
PROVIDERS: dict[str, Callable[[], Provider]] = {
    "no limit": Provider,
    "8 at once, then 429": lambda: Provider(places=8, most_waiting=0),
    "3 calls a second, then 429": lambda: Provider(per_second=3.0),
    "8 places, the rest waits": lambda: Provider(places=8, latency_s=8.0),
    "32 places, 4 for ten minutes": lambda: Provider(
        places=32, changes=((0, 32), (600, 4), (1200, 32)), latency_s=4.0
    ),
    "2 s of 429 each half minute": lambda: Provider(
        places=32,
        most_waiting=0,
        changes=tuple((30.0 * n + at, places) for n in range(61) for at, places in CHANGES),
    ),
}
LIMITS: dict[str, Callable[[], Limit]] = {
    "fixed": Fixed,
    "AIMD": lambda: AdaptiveLimit(MOST),
    "AIMD, each burst": lambda: EachBurst(MOST),
    "gradient": lambda: Gradient(MOST),
}


def main() -> None:
    """Print the table."""
    print(f"{'':32}{'answers/s':>9} {'429':>9} {'timeouts':>9} {'p95 s':>8}")
    for provider_name, provider in PROVIDERS.items():
        print(provider_name)
        for name, limit in LIMITS.items():
            print(f"  {name:<30}{simulate(provider(), limit()).row()}")


if __name__ == "__main__":
    main()
