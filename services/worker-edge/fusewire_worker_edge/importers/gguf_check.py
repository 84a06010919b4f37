"""Whether a GGUF file's lengths and counts stay within the file, told before anything believes them.

A reader that trusts a hostile count loops, or fills memory, long before it fails.
Format: ggml's docs/gguf.md, versions 2 and 3, little-endian. Pure.
"""

import struct

MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type's number."""
_MAX_DIMS = 4


class _Malformed(Exception):  # noqa: N818 - it never leaves this module
    """What is wrong, and where."""


class _Walk:
    """A position in the header; every step is checked against the end."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.at = 0

    def skip(self, count: int, what: str) -> int:
        start = self.at
        if count > len(self._data) - start:
            raise _Malformed(f"{what} at byte {start} reaches beyond its end")
        self.at = start + count
        return start

    def number(self, what: str, code: str = "<Q") -> int:
        start = self.skip(struct.calcsize(code), what)
        return int(struct.unpack_from(code, self._data, start)[0])

    def text(self, what: str) -> None:
        self.skip(self.number(what), what)

    def value(self, kind: int, depth: int = 0) -> None:
        if kind in _SIZES:
            self.skip(_SIZES[kind], "a value")
        elif kind == _STRING:
            self.text("a string")
        elif kind == _ARRAY and depth == 0:
            inner, count = self.number("an array", "<I"), self.number("an array")
            if inner in _SIZES:
                self.skip(count * _SIZES[inner], "an array")
            else:
                for _ in range(count):
                    self.value(inner, 1)
        else:
            raise _Malformed(f"a value at byte {self.at} is of the unknown type {kind}")

    def tensor(self) -> None:
        self.text("a tensor's name")
        dims = self.number("a tensor", "<I")
        if dims > _MAX_DIMS:
            raise _Malformed(f"a tensor has {dims} dimensions")
        elements = 1
        for _ in range(dims):
            elements *= self.number("a tensor")
        # No type has fewer than one bit for each element.
        if not 0 < elements <= 8 * len(self._data):
            raise _Malformed(f"a tensor of {elements} elements does not fit the file")
        self.skip(12, "a tensor")

    def header(self) -> None:
        if bytes(self._data[: self.skip(4, "the header") + 4]) != MAGIC:
            raise _Malformed("it does not begin with 'GGUF'")
        version = self.number("the header", "<I")
        if version not in (2, 3):
            raise _Malformed(f"its version is {version}, 2 and 3 can be read")
        tensors, pairs = self.number("the header"), self.number("the header")
        for _ in range(pairs):
            self.text("a key")
            self.value(self.number("a value", "<I"))
        for _ in range(tensors):
            self.tensor()


def gguf_problem(data: memoryview) -> str | None:
    """Say what is wrong with a file's header, or None."""
    try:
        _Walk(data).header()
    except _Malformed as exc:
        return str(exc)
    return None
