"""Rate limits: one token bucket a tenant. Pure; the clock is an argument."""

from dataclasses import dataclass


@dataclass
class TokenBucket:
    """A token bucket: it holds a minute's worth, and fills evenly."""

    per_minute: int
    level: float
    at: float
    """When `level` was right, seconds of a clock that never goes back."""

    def take(self, now: float) -> float:
        """Take one token. Returns the seconds until there is one; 0 if it was taken."""
        per_s = self.per_minute / 60
        self.level = min(float(self.per_minute), self.level + max(now - self.at, 0.0) * per_s)
        self.at = now
        if self.level >= 1 - 1e-9:
            self.level = max(self.level - 1, 0.0)
            return 0.0
        return (1 - self.level) / per_s


class Rates:
    """The buckets of all tenants that have a limit."""

    def __init__(self) -> None:
        self._buckets: dict[str, TokenBucket] = {}

    def take(self, tenant: str, per_minute: int, now: float) -> float:
        """Count one request. Returns the seconds after which it may be sent again; 0 if it may pass now."""
        bucket = self._buckets.get(tenant)
        if bucket is None:
            bucket = self._buckets[tenant] = TokenBucket(per_minute, per_minute, now)
        return bucket.take(now)
