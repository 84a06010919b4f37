"""How many calls of a model may be under way at once, found out from how they end. No IO.

Additive increase and multiplicative decrease (Chiu and Jain, 1989), which converges to a fair
share among workers that know nothing of each other; after an outage, TCP's slow start. What was
compared with it: `tests/bench/concurrency.py` and docs/decisions/0062.

Times are seconds of a clock that never goes back.
"""

import math

_WEIGHT = 0.1
"""Of the last answer's latency in the mean."""


class AdaptiveLimit:
    """A limit between 1 and `most`, where it begins.

    Args:
        most: the highest limit.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = float(most)
        self._slow_from = float(most)
        """The limit up to which it grows by one for each answer."""
        self._lowered_at = -math.inf
        self._latency_s: float | None = None

    @property
    def limit(self) -> int:
        """The calls that may be under way at once."""
        return int(self._limit)

    @property
    def latency_s(self) -> float | None:
        """Mean time of an answer, weighted towards the last ones; None before the first."""
        return self._latency_s

    def add_answer(self, *, started_at: float, now: float, running: int) -> None:
        """Take note of an answer: by one for as many of them as the limit, the limit grows.

        Args:
            started_at: when the call was made.
            now: when it was answered.
            running: calls under way, this one included. If these are less than half of the limit,
                nothing shows that more would do no harm.
        """
        latency_s = now - started_at
        mean_s = latency_s if self._latency_s is None else self._latency_s
        self._latency_s = mean_s + _WEIGHT * (latency_s - mean_s)
        if 2 * running < self.limit:
            return
        step = 1.0 if self._limit < self._slow_from else 1.0 / self._limit
        self._limit = min(float(self._most), self._limit + step)

    def add_overload(self, *, started_at: float, now: float) -> bool:
        """Take note of a call that was too many: halve the limit. Returns whether it did.

        It does at most once in the time that an answer takes, and never for a call that was made
        before the last time: such a call was let in by the limit from before.
        """
        since_s = now - self._lowered_at
        if started_at < self._lowered_at or since_s < (self._latency_s or 0.0):
            return False
        self._limit = self._slow_from = max(1.0, self._limit / 2)
        self._lowered_at = now
        return True

    def restart(self, running: int) -> None:
        """Begin low again after an outage, and grow quickly up to half of what it was.

        Args:
            running: calls under way, of which at least one has just been answered. The limit is
                that, as those that began before the outage may hang for a long time yet.
        """
        self._slow_from = max(1.0, self._limit / 2)
        self._limit = min(self._limit, max(1.0, float(running)))
