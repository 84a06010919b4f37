"""Figures as text, always with their unit. Pure; None, which is what nobody knows, is a dash."""

import math
from datetime import UTC, datetime

from fusewire.analysis.measures import Rate

DASH = "–"
_BYTES = ("B", "kB", "MB", "GB")


def count(n: float | None) -> str:
    """A number of things.

    >>> count(1234567), count(None)
    ('1,234,567', '–')
    """
    return DASH if n is None else f"{n:,.0f}"


def usd(amount: float | None) -> str:
    """An amount in USD: cents, or three digits of what is smaller.

    >>> usd(1234.5), usd(0.00412), usd(0)
    ('1,234.50 USD', '0.00412 USD', '0 USD')
    """
    if amount is None:
        return DASH
    if not amount:
        return "0 USD"
    size = abs(amount)
    decimals = 2 if size >= 1 else min(2 - math.floor(math.log10(size)), 12)
    return f"{amount:,.{decimals}f} USD"


def ms(latency_ms: float | None) -> str:
    """A latency.

    >>> ms(0.4), ms(312), ms(1240), ms(200_000)
    ('0.4 ms', '312 ms', '1.24 s', '3.3 min')
    """
    if latency_ms is None:
        return DASH
    if latency_ms < 10:
        return f"{latency_ms:.1f} ms"
    if latency_ms < 1000:
        return f"{latency_ms:.0f} ms"
    return f"{latency_ms / 1000:.2f} s" if latency_ms < 60_000 else duration(latency_ms / 1000)


def duration(seconds: float | None) -> str:
    """A length of time.

    >>> duration(42), duration(200), duration(9000), duration(200_000)
    ('42 s', '3.3 min', '2.5 h', '2.3 d')
    """
    if seconds is None:
        return DASH
    for unit, length_s in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length_s:
            return f"{seconds / length_s:.1f} {unit}"
    return f"{seconds:.0f} s"


def percent(share: float | None, digits: int = 1) -> str:
    """A share.

    >>> percent(0.5714), percent(1, 0)
    ('57.1 %', '100 %')
    """
    return DASH if share is None else f"{100 * share:.{digits}f} %"


def rate(value: Rate | None) -> str:
    """A share with its 95 % interval.

    >>> rate(Rate(48, 96, 0.5, 0.4, 0.6)), rate(Rate(2, 4, None, 0.15, 0.85))
    ('50.0 % (40.0 to 60.0)', '–')
    """
    if value is None or value.value is None:
        return DASH
    return f"{percent(value.value)} ({100 * value.low:.1f} to {100 * value.high:.1f})"


def size(n_bytes: float | None) -> str:
    """A number of bytes.

    >>> size(512), size(1_500_000)
    ('512 B', '1.5 MB')
    """
    if n_bytes is None:
        return DASH
    step = 0
    while n_bytes >= 1000 and step < len(_BYTES) - 1:
        n_bytes /= 1000
        step += 1
    return f"{n_bytes:.0f} {_BYTES[step]}" if not step else f"{n_bytes:.1f} {_BYTES[step]}"


def moment(at: datetime | None) -> str:
    """A time in UTC, to the second.

    >>> moment(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    '2026-01-02 03:04:05'
    """
    return DASH if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def ago(at: datetime | None, now: datetime) -> str:
    """How long ago a time was.

    >>> from datetime import timedelta
    >>> now = datetime(2026, 1, 2, tzinfo=UTC)
    >>> ago(now - timedelta(minutes=3), now), ago(now, now)
    ('3.0 min ago', 'now')
    """
    if at is None:
        return DASH
    seconds = (now - at).total_seconds()
    return f"{duration(seconds)} ago" if seconds >= 1 else "now"
