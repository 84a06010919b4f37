"""The header of a GGUF file: its metadata, and where its tensors are. Pure.

Lengths and counts are checked against the file before anything believes them: a reader that trusts a hostile count
loops, or fills memory, long before it fails. Read here and not with the `gguf` package, whose reader makes an object of
each token: 16 s for the 150,000 of Qwen's vocabulary, where this takes one.
Format: ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_NUMBERS = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
"""How numpy calls a value by its type's number."""
_MAX_DIMS = 4
_MOST_ALIGNMENT = 1 << 20


class MalformedError(Exception):
    """The file is no whole GGUF file. The message says where it ends to be one."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as the header describes it."""

    kind: str
    """ggml's name of its type, such as `Q4_K`."""
    shape: tuple[int, ...]
    """Rows first."""
    offset: int
    """Of its first byte in the file."""
    size: int
    """In bytes."""


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the tensors' data."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


class _Cursor:
    """A position in the header; every step is checked against the end."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.at = 0

    def skip(self, count: int, what: str) -> int:
        start = self.at
        if count > len(self._data) - start:
            raise MalformedError(f"{what} at byte {start} reaches beyond its end")
        self.at = start + count
        return start

    def number(self, what: str, code: str = "<Q") -> int:
        start = self.skip(struct.calcsize(code), what)
        return int(struct.unpack_from(code, self._data, start)[0])

    def text(self, what: str) -> str:
        length = self.number(what)
        start = self.skip(length, what)
        try:
            return str(self._data[start : start + length], "utf-8")
        except UnicodeDecodeError:
            raise MalformedError(f"{what} at byte {start} is not UTF-8") from None

    def numbers(self, kind: int, count: int, what: str) -> list[Any]:
        dtype = np.dtype(_NUMBERS[kind])
        start = self.skip(count * dtype.itemsize, what)
        return list(np.frombuffer(self._data, dtype, count, start).tolist())

    def value(self, kind: int, *, inner: bool = False) -> Any:
        if kind in _NUMBERS:
            return self.numbers(kind, 1, "a value")[0]
        if kind == _STRING:
            return self.text("a string")
        if kind != _ARRAY or inner:
            raise MalformedError(f"a value at byte {self.at} is of the unknown type {kind}")
        of, count = self.number("an array", "<I"), self.number("an array")
        if of in _NUMBERS:
            return self.numbers(of, count, "an array")
        return [self.value(of, inner=True) for _ in range(count)]

    def tensor(self, names: dict[str, TensorInfo]) -> None:
        name = self.text("a tensor's name")
        dims = self.number("a tensor", "<I")
        if dims > _MAX_DIMS:
            raise MalformedError(f"a tensor has {dims} dimensions")
        columns_first = [self.number("a tensor") for _ in range(dims)]
        elements = 1
        for length in columns_first:
            elements *= length
        # No type has fewer than one bit for each element.
        if not 0 < elements <= 8 * len(self._data):
            raise MalformedError(f"a tensor of {elements} elements does not fit the file")
        kind, size = _sized(
            self.number("a tensor", "<I"), elements, columns_first[0] if dims else 1
        )
        if name in names:
            raise MalformedError(f"there are two tensors '{name}'")
        names[name] = TensorInfo(
            kind, tuple(reversed(columns_first)), self.number("a tensor"), size
        )


def _sized(number: int, elements: int, columns: int) -> tuple[str, int]:
    """A type's name, and the bytes of so many elements of it."""
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise MalformedError(f"a tensor is of the unknown type {number}") from None
    block, width = GGML_QUANT_SIZES[kind]
    if columns % block:
        raise MalformedError(
            f"a tensor of type {kind.name} has {columns} columns, which are no whole blocks of {block}"
        )
    return kind.name, elements // block * width


def read_header(data: memoryview) -> Header:
    """Read the header of a file.

    Args:
        data: the whole file.

    Raises:
        MalformedError: it is not GGUF, or a length or a count in it does not fit.
    """
    walk = _Cursor(data)
    if bytes(data[: walk.skip(4, "the header") + 4]) != MAGIC:
        raise MalformedError("it does not begin with 'GGUF'")
    version = walk.number("the header", "<I")
    if version not in (2, 3):
        raise MalformedError(f"its version is {version}, 2 and 3 can be read")
    n_tensors, n_pairs = walk.number("the header"), walk.number("the header")
    metadata: dict[str, Any] = {}
    for _ in range(n_pairs):
        key = walk.text("a key")
        metadata[key] = walk.value(walk.number("a value", "<I"))
    tensors: dict[str, TensorInfo] = {}
    for _ in range(n_tensors):
        walk.tensor(tensors)
    return Header(
        metadata, _placed(tensors, walk.at, metadata.get("general.alignment", 32), len(data))
    )


def _placed(
    tensors: dict[str, TensorInfo], header: int, alignment: object, end: int
) -> dict[str, TensorInfo]:
    """The tensors, their offsets counted from the beginning of the file."""
    if (
        not isinstance(alignment, int)
        or not 0 < alignment <= _MOST_ALIGNMENT
        or alignment & (alignment - 1)
    ):
        raise MalformedError(f"its alignment is {alignment}, which is no power of two")
    start = -(-header // alignment) * alignment
    placed = {}
    for name, tensor in tensors.items():
        offset = start + tensor.offset
        if offset + tensor.size > end:
            raise MalformedError(f"the tensor '{name}' at byte {offset} reaches beyond its end")
        if tensor.offset % alignment:
            raise MalformedError(
                f"the tensor '{name}' at byte {offset} is not aligned to {alignment}"
            )
        placed[name] = TensorInfo(tensor.kind, tensor.shape, offset, tensor.size)
    return placed
