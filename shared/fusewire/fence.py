"""The fences between which a judge is shown candidates, and a merge whose writer may copy them. Pure."""

import re

HEX = 32
"""Digits of a fence's name: 128 bits, which nothing that was said can guess."""
_OPENED = re.compile(rf"\[\[/?[0-9a-f]{{{HEX}}}")
_BEGUN = re.compile(rf"\[(?:\[(?:/?[0-9a-f]{{0,{HEX - 1}}})?)?\Z")
_BEGUN_CHARS = len("[[/") + HEX - 1


def without(fence: str, text: str) -> str:
    """A text without the fences of this name that it copied, and without the space around it."""
    return re.sub(rf"\[\[/?{fence}[^\]\n]*\]\]\s*", "", text).strip()


class UnfencedPrefix:
    """A text that comes in pieces: what of it `without` will leave as it is, whatever comes.

    That is a beginning of what `without` returns: it ends at the first fence of any name, and without the space
    before what is still to come.
    """

    def __init__(self) -> None:
        self._held = ""
        self._is_begun = False
        self._is_over = False

    def add(self, piece: str) -> str:
        """Take the next piece; return what is certain now and was not before."""
        if self._is_over:
            return ""
        self._held += piece
        opened = _OPENED.search(self._held)
        # A fence that is only begun may yet become one, or not.
        end = opened or _BEGUN.search(self._held, max(0, len(self._held) - _BEGUN_CHARS))
        self._is_over = opened is not None
        certain = self._held[: end.start() if end else None].rstrip()
        self._held = self._held[len(certain) :]
        shown = certain if self._is_begun else certain.lstrip()
        self._is_begun = self._is_begun or bool(shown)
        return shown
