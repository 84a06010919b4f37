"""Whether a text states only what its sources hold: numbers, addresses and identifiers. Pure."""

import re
from collections.abc import Iterable

_URL = re.compile(r"(?:https?://|www\.)[^\s<>\"'`)\]}]+")
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?")
_IDENTIFIER = re.compile(
    r"\b(?:[A-Za-z]\w*_\w+|[a-z]+[A-Z]\w*|[A-Za-z]+\d\w*|\d+[A-Za-z]\w*\d\w*|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+|[A-Z]{2,}-\d+)\b"
)
"""snake_case, camelCase, letters with digits (hashes too), dotted names, CVE- and ticket-like keys."""
_LIST_MARK = re.compile(r"^[ \t]*(?:\(?\d{1,3}[.):]|[-*#]+)\s+", re.MULTILINE)
FREE = frozenset(str(n) for n in range(11))
"""Small counts ("three reasons", "2 steps") are how one writes, not what one claims."""


def ungrounded(text: str, sources: Iterable[str]) -> tuple[str, ...]:
    """Numbers, URLs and identifiers of a text that none of its sources holds.

    Args:
        text: what was written.
        sources: the candidates and the request.

    Returns:
        Each once, in order; empty if everything is grounded.
    """
    known: set[str] = set()
    for source in sources:
        known |= _claims(source)
    return tuple(
        dict.fromkeys(claim for claim in _ordered(text) if claim not in known and claim not in FREE)
    )


def _claims(text: str) -> set[str]:
    return set(_ordered(text))


def _ordered(text: str) -> list[str]:
    plain = _LIST_MARK.sub("", text)
    urls = [url.rstrip(".,;:!?") for url in _URL.findall(plain)]
    rest = _URL.sub(" ", plain)
    names = [name.casefold() for name in _IDENTIFIER.findall(rest)]
    numbers = [_number(n) for n in _NUMBER.findall(_IDENTIFIER.sub(" ", rest))]
    return [*urls, *names, *numbers]


def _number(text: str) -> str:
    plain = text.replace(",", "").lstrip("+-")
    return (plain.rstrip("0").rstrip(".") if "." in plain else plain).lstrip("0") or "0"
