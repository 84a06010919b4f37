"""Bars, intervals and numbers as text, for terminals of 80 columns."""

from fusewire.analysis.measures import Interval, Rate
from fusewire.analysis.money import usd

DASH = "–"
BLOCKS = " ▏▎▍▌▋▊▉█"


def bar(share: float | None, width: int) -> str:
    """A bar that fills a share of `width` characters, in steps of an eighth of one.

    None, and what is not from 0 to 1, is drawn as none and as the nearest that is.

    >>> bar(0.5, 4)
    '██  '
    """
    eighths = round(min(max(share or 0.0, 0.0), 1.0) * width * 8)
    text = BLOCKS[8] * (eighths // 8) + BLOCKS[eighths % 8] * bool(eighths % 8)
    return text.ljust(width)


def interval(
    low: float, value: float | None, high: float, lowest: float, highest: float, width: int
) -> str:
    """An interval on an axis from `lowest` to `highest`, of `width` characters.

    What lies outside the axis is drawn at its end. None draws no value.

    >>> interval(0.25, 0.5, 0.75, 0, 1, 9)
    '  ├─●─┤  '
    """
    last = width - 1

    def place(at: float) -> int:
        share = (at - lowest) / (highest - lowest) if highest > lowest else 0.5
        return round(min(max(share, 0.0), 1.0) * last)

    first, end = place(low), place(high)
    cells = [" "] * width
    cells[first : end + 1] = "─" * (end + 1 - first)
    if first < end:
        cells[first], cells[end] = "├", "┤"
    if value is not None:
        cells[place(value)] = "●"
    return "".join(cells)


def percent(share: float | None, digits: int = 1) -> str:
    """A share in percent; a dash for None."""
    return DASH if share is None else f"{100 * share:.{digits}f} %"


def rate_text(rate: Rate | None) -> str:
    """A rate with its interval in percent: `57.1 % (51.2–63.0)`."""
    if rate is None or not rate.n:
        return DASH
    return f"{percent(rate.value)} ({100 * rate.low:.1f}–{100 * rate.high:.1f})"


def usd_interval(mean: Interval | None) -> str:
    """A mean amount with its interval; a dash for None."""
    return DASH if mean is None else f"{usd(mean.value)} ({usd(mean.low)}–{usd(mean.high)})"


def milliseconds(latency_ms: float | None) -> str:
    """A latency; a dash for None."""
    if latency_ms is None:
        return DASH
    return f"{latency_ms:.0f} ms" if latency_ms < 1000 else f"{latency_ms / 1000:.1f} s"
