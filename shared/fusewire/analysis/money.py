"""Amounts of money as text. Pure."""

import math

UNKNOWN = "unknown"


def usd(amount: float | None, sign: str = "") -> str:
    """An amount in USD: cents, or three digits of what is smaller; `unknown` for None.

    Args:
        amount: in USD.
        sign: `+z` writes the sign of more than 0 too, as of a difference.

    >>> usd(1234.5), usd(0.00412), usd(0)
    ('1,234.50', '0.00412', '0.00')
    """
    if amount is None:
        return UNKNOWN
    size = abs(amount)
    decimals = 2 if size >= 1 or not size else 2 - math.floor(math.log10(size))
    return f"{amount:{sign},.{decimals}f}"
