"""The fences around the candidates that a judge is shown, and their removal from a merge. Pure."""

import re

HEX = 32
"""Hexadecimal digits of a fence's name: 128 bits, which no candidate can guess."""
_FENCE = re.compile(rf"\[\[/?[0-9a-f]{{{HEX}}}")
_PARTIAL_FENCE = re.compile(rf"\[(?:\[(?:/?[0-9a-f]{{0,{HEX - 1}}})?)?\Z")
_PARTIAL_CHARS = len("[[/") + HEX - 1


def without(fence: str, text: str) -> str:
    """A text without copied fences of this name, and without space around it.

    >>> without("ab", "[[ab A]] Paris [[/ab]]")
    'Paris'
    """
    return re.sub(rf"\[\[/?{fence}[^\]\n]*\]\]\s*", "", text).strip()


class UnfencedPrefix:
    """Streams the part of a text that `without` keeps whatever comes later.

    That part is a prefix of what `without` returns: it ends at the first fence of any name. Space
    at its end is held back until more text follows (docs/decisions/0027).
    """

    def __init__(self) -> None:
        self._pending = ""
        self._is_begun = False
        self._is_over = False

    def add(self, piece: str) -> str:
        """Take the next piece; return the text that has become certain."""
        if self._is_over:
            return ""
        self._pending += piece
        fence = _FENCE.search(self._pending)
        # The text may end with a part of a fence: hold it back until that is decided.
        end = fence or _PARTIAL_FENCE.search(
            self._pending, max(0, len(self._pending) - _PARTIAL_CHARS)
        )
        self._is_over = fence is not None
        certain = self._pending[: end.start() if end else None].rstrip()
        self._pending = self._pending[len(certain) :]
        new_text = certain if self._is_begun else certain.lstrip()
        self._is_begun = self._is_begun or bool(new_text)
        return new_text
