"""Rate limits: one token bucket a tenant. Pure; the clock is an argument."""

from dataclasses import dataclass


@dataclass
class TokenBucket:
    """A token bucket: it holds the tokens of one minute, and refills evenly."""

    per_minute: int
    level: float
    at: float
    """When `level` was computed, seconds of a monotonic clock."""

    def take(self, now: float) -> float:
        """Take one token. Returns 0 if there was one, or else the seconds until there is."""
        per_s = self.per_minute / 60
        self.level = min(float(self.per_minute), self.level + max(now - self.at, 0.0) * per_s)
        self.at = now
        # Rounding must not refuse a token that has refilled.
        if self.level >= 1 - 1e-9:
            self.level = max(self.level - 1, 0.0)
            return 0.0
        return (1 - self.level) / per_s


class Rates:
    """The token buckets of all tenants that have a limit."""

    def __init__(self) -> None:
        self._buckets: dict[str, TokenBucket] = {}

    def take(self, tenant: str, per_minute: int, now: float) -> float:
        """Count one request. Returns 0 if it may pass, or else after how many seconds to retry."""
        bucket = self._buckets.get(tenant)
        if bucket is None:
            bucket = self._buckets[tenant] = TokenBucket(per_minute, per_minute, now)
        return bucket.take(now)
