"""Whether a text states only what its sources hold: numbers, addresses and identifiers. Pure."""

import re
from collections.abc import Iterable

_URL = re.compile(r"(?:https?://|www\.)[^\s<>\"'`)\]}]+")
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?")
_IDENTIFIER = re.compile(
    r"\b(?:[A-Za-z]\w*_\w+|[a-z]+[A-Z]\w*|[A-Za-z]+\d\w*|\d+[A-Za-z]\w*\d\w*"
    r"|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+|[A-Z]{2,}-\d+)\b"
)
"""snake_case, camelCase, letters with digits (hashes too), dotted names, keys like CVE-1."""
_LIST_MARK = re.compile(r"^[ \t]*(?:\(?\d{1,3}[.):]|[-*#]+)\s+", re.MULTILINE)
FREE = frozenset(str(n) for n in range(11))
"""Numbers that are not checked: small counts ("2 steps") are wording, not claims."""


def ungrounded_claims(text: str, sources: Iterable[str]) -> tuple[str, ...]:
    """Numbers, URLs and identifiers of a text that none of its sources holds.

    Args:
        text: the merge that was written.
        sources: the candidates and the request.

    Returns:
        Each once, in order; empty if everything is grounded.

    >>> ungrounded_claims("It has 1,200 rows.", ["About 900 rows."])
    ('1200',)
    """
    source_claims: set[str] = set()
    for source in sources:
        source_claims.update(_claims(source))
    new_claims = dict.fromkeys(claim for claim in _claims(text) if claim not in source_claims)
    return tuple(claim for claim in new_claims if claim not in FREE)


def _claims(text: str) -> list[str]:
    """The normalized URLs, identifiers and numbers of a text, each kind in order."""
    prose = _LIST_MARK.sub("", text)
    urls = [url.rstrip(".,;:!?") for url in _URL.findall(prose)]
    without_urls = _URL.sub(" ", prose)
    names = [name.casefold() for name in _IDENTIFIER.findall(without_urls)]
    without_names = _IDENTIFIER.sub(" ", without_urls)
    numbers = [_number(digits) for digits in _NUMBER.findall(without_names)]
    return [*urls, *names, *numbers]


def _number(text: str) -> str:
    digits = text.replace(",", "").lstrip("+-")
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return digits.lstrip("0") or "0"
