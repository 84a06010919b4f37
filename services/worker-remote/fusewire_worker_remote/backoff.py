"""When to call again: exponential backoff with full jitter, and the wait a provider asks for.

Full jitter after Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_RESET = "x-ratelimit-reset"
_REMAINING = "x-ratelimit-remaining"
PATIENT_S = 600.0
"""A prompt with more time left than this, such as a batch's, waits in proportion to it."""
# No wait is that long: from here on a number is a time since 1970.
_EPOCH_S = 1e9
_EPOCH_MS = 1e11
MOST_WAIT_S = 31 * 86_400.0
"""The longest wait that is believed, in seconds: a quota of a month."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """The waits between attempts, in seconds: uniform over 0 to min(cap, base * 2^(attempt - 1)).

    A prompt that has an hour is not given up within seconds: from the second wait on, the bound is
    at least a share of the time that is left.
    """

    base_s: float = 0.5
    cap_s: float = 20.0
    share: float = 0.05
    longest_s: float = 60.0

    def wait_s(
        self,
        *,
        attempt: int,
        max_attempts: int,
        now: datetime,
        deadline: datetime,
        random: float,
        retry_after_s: float | None = None,
    ) -> float | None:
        """Return seconds to wait after attempt number `attempt` (from 1), or None to stop now.

        Args:
            random: a draw from [0, 1).
            retry_after_s: the wait that the provider asked for. It is never undercut; up to
                `base_s` of jitter is added, so that callers which were turned away together do not
                return together.
        """
        if attempt >= max_attempts:
            return None
        left_s = (deadline - now).total_seconds()
        if retry_after_s is not None:
            wait = retry_after_s + random * self.base_s
        else:
            wait = random * self._bound_s(attempt, left_s)
        return wait if wait < left_s else None

    def _bound_s(self, attempt: int, left_s: float) -> float:
        """Return the longest wait after an attempt, with `left_s` until the deadline."""
        bound: float = min(self.cap_s, self.base_s * 2 ** (attempt - 1))
        if attempt > 1 and left_s > PATIENT_S:
            bound = max(bound, min(self.longest_s, self.share * left_s))
        return bound


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds that a response's headers ask to wait, or None.

    Reads, in this order, `retry-after-ms`, `retry-after` (seconds or an HTTP date) and the
    longest `x-ratelimit-reset*` whose `x-ratelimit-remaining*` is not above zero. Whatever they
    say, it is not above `MOST_WAIT_S`.

    Args:
        headers: headers with lower-case names.
        now: the current time, with a zone.
    """
    return believable_s(_asked_wait_s(headers, now))


def believable_s(wait_s: float | None) -> float | None:
    """Return a wait that somebody else has written, at most `MOST_WAIT_S`."""
    return None if wait_s is None else min(wait_s, MOST_WAIT_S)


def _asked_wait_s(headers: Mapping[str, str], now: datetime) -> float | None:
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    retry_after = headers.get("retry-after")
    if retry_after is not None:
        seconds = _number(retry_after)
        return seconds if seconds is not None else _until(retry_after, now)
    resets = [
        _reset_s(text, now)
        for name, text in headers.items()
        if name.startswith(_RESET) and _is_used_up(headers, name.removeprefix(_RESET))
    ]
    return max((reset for reset in resets if reset is not None), default=None)


def _is_used_up(headers: Mapping[str, str], limit: str) -> bool:
    """Whether a rate limit, such as `-tokens`, has nothing remaining or does not say."""
    return not _number(headers.get(_REMAINING + limit))


def _number(text: str | None) -> float | None:
    """Return a finite number that is not negative; None for any other text."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _until(date: str, now: datetime) -> float | None:
    """Return the seconds until an HTTP date, at least 0; None if it is none."""
    try:
        when = parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        # OverflowError: a year or a zone of more digits than C's integers have.
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - now) / timedelta(seconds=1))


def _reset_s(text: str, now: datetime) -> float | None:
    """Read a reset time: seconds, a duration, or a Unix time in seconds or milliseconds.

    >>> _reset_s("1m30s", datetime(2026, 1, 1, tzinfo=UTC))
    90.0
    """
    value = _number(text)
    if value is None:
        parts = _DURATION.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text.strip():
            return None
        return sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    if value < _EPOCH_S:
        return value
    when = value / 1000 if value >= _EPOCH_MS else value
    return max(0.0, when - now.timestamp())
