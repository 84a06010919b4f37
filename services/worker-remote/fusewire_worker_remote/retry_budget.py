"""How many calls may be made again, so that retries do not multiply an outage. No IO.

A token bucket as in Finagle's `RetryBudget` (Twitter, 2016).
"""

_SHARE = 0.1
"""Of all calls, so many may be made again."""
_LEAST = 10.0
"""Calls that may be made again after a time with few calls."""
_MOST = 100.0
"""Calls that may be made again at once, after many that were not."""
_REFILL_S = 6.0
"""Seconds in which one more may be made again, up to `_LEAST`."""


class RetryBudget:
    """In a time of t seconds with n calls, at most 100 + n / 10 + t / 6 are allowed."""

    def __init__(self) -> None:
        self._tokens = _LEAST
        self._refilled_at: float | None = None

    def add_call(self) -> None:
        """Take note of a call that is made for the first time."""
        self._tokens = min(_MOST, self._tokens + _SHARE)

    def has_retry(self, now: float) -> bool:
        """Whether a call may be made again at this time, in seconds."""
        if self._refilled_at is not None and self._tokens < _LEAST:
            gain = max(0.0, now - self._refilled_at) / _REFILL_S
            self._tokens = min(_LEAST, self._tokens + gain)
        self._refilled_at = now
        return self._tokens >= 1

    def take(self, now: float) -> bool:
        """Make use of one retry; return whether there was one."""
        if not self.has_retry(now):
            return False
        self._tokens -= 1
        return True
