"""Rate limits: requests and tokens a minute, and prompts in flight. Pure; the clock is an argument.

Requests and tokens are counted by token buckets (J. Turner: New Directions in Communications, IEEE
Communications Magazine 24:10, 1986), each of which holds what may be used in one minute, and
refills evenly. An account is a tenant or a key of it; what a caller sends has to fit the limits of
all its accounts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Unit = Literal["requests", "tokens"]
_ROUNDING = 1e-9


@dataclass(frozen=True)
class RateLimit:
    """The limits of an account; None: there is none."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    prompts_in_flight: int | None = None

    def per_minute(self, unit: Unit) -> int | None:
        """How many requests or tokens it may use in a minute."""
        return self.requests_per_minute if unit == "requests" else self.tokens_per_minute


UNLIMITED = RateLimit()
Limits = Mapping[str, RateLimit]
"""Limits by account."""


@dataclass(frozen=True)
class RateRefusal:
    """A limit that something would exceed.

    Attributes:
        account: whose limit it is.
        limit: requests or tokens a minute, or prompts in flight.
        wait_s: after how many seconds it fits; infinite if it never does, None if nobody can tell.
    """

    account: str
    limit: int
    wait_s: float | None


@dataclass(frozen=True)
class RateBalance:
    """What is left of a limit.

    Attributes:
        limit: requests or tokens a minute.
        remaining: how many may be used now.
        reset_s: after how many seconds all of them may be used again.
    """

    limit: int
    remaining: int
    reset_s: float


@dataclass
class TokenBucket:
    """A token bucket of one minute."""

    per_minute: int
    level: float
    at: float
    """When `level` was computed, seconds of a monotonic clock."""

    def refill(self, per_minute: int, now: float) -> None:
        """Add what came since the last time. The limit may be another one than then."""
        elapsed_s = max(now - self.at, 0.0)
        self.per_minute = per_minute
        self.level = min(float(per_minute), self.level + elapsed_s * per_minute / 60)
        self.at = now

    def wait_s(self, amount: int) -> float:
        """Seconds until it holds an amount; 0 if it does now, infinite if it never does."""
        if amount > self.per_minute:
            return math.inf
        # Rounding must not refuse what has refilled.
        missing = amount - self.level
        return missing * 60 / self.per_minute if missing > _ROUNDING * amount else 0.0

    def take(self, amount: int) -> None:
        """Take an amount that it holds."""
        self.level = max(self.level - amount, 0.0)


@dataclass
class Rates:
    """What all accounts have used."""

    _buckets: dict[tuple[str, Unit], TokenBucket] = field(default_factory=dict)
    _in_flight: dict[str, dict[str, float]] = field(default_factory=dict)
    """By account: its fusions in flight, and until when each counts at the longest."""
    _accounts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By fusion in flight: its accounts."""

    def take(self, limits: Limits, unit: Unit, amount: int, now: float) -> RateRefusal | None:
        """Use an amount of all accounts.

        Returns:
            None if it fits; otherwise nothing is used, and the limit with the longest wait.
        """
        buckets = self._refill_all(limits, unit, now)
        waits = [
            RateRefusal(account, bucket.per_minute, bucket.wait_s(amount))
            for account, bucket in buckets.items()
        ]
        excess = max(waits, key=lambda wait: wait.wait_s or 0.0, default=None)
        if excess is not None and excess.wait_s:
            return excess
        for bucket in buckets.values():
            bucket.take(amount)
        return None

    def balance(self, limits: Limits, unit: Unit, now: float) -> RateBalance | None:
        """What is left of the tightest limit; None if there is no limit."""
        balances = [
            RateBalance(
                bucket.per_minute,
                math.floor(bucket.level + _ROUNDING * bucket.per_minute),
                (bucket.per_minute - bucket.level) * 60 / bucket.per_minute,
            )
            for bucket in self._refill_all(limits, unit, now).values()
        ]
        return min(balances, key=lambda balance: (balance.remaining, balance.limit), default=None)

    def _refill_all(self, limits: Limits, unit: Unit, now: float) -> dict[str, TokenBucket]:
        buckets = {}
        for account, limit in limits.items():
            if (per_minute := limit.per_minute(unit)) is None:
                continue
            bucket = self._buckets.get((account, unit))
            if bucket is None:
                bucket = self._buckets[account, unit] = TokenBucket(per_minute, per_minute, now)
            bucket.refill(per_minute, now)
            buckets[account] = bucket
        return buckets

    def is_held(self, fusion_id: str) -> bool:
        """Whether a fusion is in flight."""
        return fusion_id in self._accounts

    def hold(self, limits: Limits, fusion_id: str, until: float, now: float) -> RateRefusal | None:
        """Count a fusion as in flight in all accounts.

        Args:
            limits: those of its accounts.
            fusion_id: the fusion.
            until: when it has ended for certain, though nobody said so.
            now: the time now, of the same clock.

        Returns:
            None if it fits; otherwise it is not counted, and a limit that it would exceed.
        """
        if self.is_held(fusion_id):
            return None
        most_by_account = {
            account: limit.prompts_in_flight
            for account, limit in limits.items()
            if limit.prompts_in_flight is not None
        }
        for account, most in most_by_account.items():
            fusions = self._in_flight.setdefault(account, {})
            if len(fusions) >= most:
                self._drop_ended(fusions, now)
            if len(fusions) >= most:
                return RateRefusal(account, most, None)
        for account in most_by_account:
            self._in_flight[account][fusion_id] = until
        if most_by_account:
            self._accounts[fusion_id] = tuple(most_by_account)
        return None

    def release(self, fusion_id: str) -> None:
        """Count a fusion no longer."""
        for account in self._accounts.pop(fusion_id, ()):
            self._in_flight[account].pop(fusion_id, None)

    def _drop_ended(self, fusions: Mapping[str, float], now: float) -> None:
        for fusion_id in [key for key, until in fusions.items() if until <= now]:
            self.release(fusion_id)


def duration(seconds: float) -> str:
    """A duration as OpenAI writes it in `x-ratelimit-reset-*`.

    >>> duration(0.0191), duration(1.5), duration(60), duration(3723.2)
    ('20ms', '1.5s', '1m0s', '1h2m3.2s')
    """
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest_s = divmod(math.ceil(seconds * 10) / 10, 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{rest_s:.1f}".removesuffix(".0") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
