"""When to call again: exponential backoff with full jitter, and what a provider asks for.

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
"""A prompt that still has so long, as those of batches do, waits in proportion."""
_EPOCH_S = 1e9
_EPOCH_MS = 1e11


@dataclass(frozen=True, slots=True)
class Backoff:
    """The waits between attempts, in seconds: uniform over 0 to min(cap, base * 2^(attempt - 1)).

    A prompt that has an hour is not given up within seconds: from the second wait on, it is up to a share of the
    time that is left.
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
        """Seconds to wait after attempt number `attempt` (from 1), or None to stop now.

        Args:
            random: a draw from [0, 1).
            retry_after_s: what the provider asked for. It is never undercut; up to `base_s`
                of jitter is added, so that those who were turned away together do not return together.
        """
        if attempt >= max_attempts:
            return None
        left_s = (deadline - now).total_seconds()
        if retry_after_s is not None:
            wait = retry_after_s + random * self.base_s
        else:
            usual = min(self.cap_s, self.base_s * 2 ** (attempt - 1))
            patient = (
                min(self.longest_s, self.share * left_s)
                if attempt > 1 and left_s > PATIENT_S
                else 0.0
            )
            wait = random * max(usual, patient)
        return wait if wait < left_s else None


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that a response's headers ask to wait, or None when they do not say.

    Reads, in this order, `retry-after-ms`, `retry-after` (seconds or an HTTP date) and the
    longest `x-ratelimit-reset*` whose `x-ratelimit-remaining*` is not above zero.

    Args:
        headers: with lower-case names.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    asked = headers.get("retry-after")
    if asked is not None:
        seconds = _number(asked)
        return seconds if seconds is not None else _until(asked, now)
    resets = [
        wait
        for name, value in headers.items()
        if name.startswith(_RESET)
        and (_number(headers.get(_REMAINING + name.removeprefix(_RESET))) or 0) == 0
        and (wait := _reset_s(value, now)) is not None
    ]
    return max(resets, default=None)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _until(date: str, now: datetime) -> float | None:
    try:
        when = parsedate_to_datetime(date)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - now) / timedelta(seconds=1))


def _reset_s(text: str, now: datetime) -> float | None:
    """Read seconds ("7.66"), a duration ("1m30s", "17ms") or a Unix time in seconds or milliseconds."""
    value = _number(text)
    if value is None:
        parts = _DURATION.findall(text)
        if not parts or "".join(n + u for n, u in parts) != text.strip():
            return None
        return sum(float(n) * _UNIT_S[u] for n, u in parts)
    if value < _EPOCH_S:
        return value
    when = value / 1000 if value >= _EPOCH_MS else value
    return max(0.0, when - now.timestamp())
