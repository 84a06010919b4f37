"""The header of a GGUF file: its metadata and the places of its tensors. Pure.

Lengths and counts are checked against the file before they are used: with a hostile count, a
trusting reader loops or fills the memory long before it fails. Not read with the package `gguf`,
whose reader makes an object of each token: 16 s for the 150,000 of Qwen's vocabulary, 1 s here.
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
"""numpy's data type of each numeric type of GGUF, by its number."""
_MAX_DIMS = 4
_MAX_ALIGNMENT = 1 << 20


class MalformedError(Exception):
    """The file is damaged or not GGUF. The message says where."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as the header describes it."""

    kind: str
    """ggml's name of its data type, such as `Q4_K`."""
    shape: tuple[int, ...]
    """Rows first."""
    offset: int
    """Position of its first byte in the file."""
    size: int
    """Size in bytes."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a GGUF file, which precedes the data of the tensors."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


class _Cursor:
    """A reading position in the header. Every read is checked against the end of the file."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.at = 0

    def skip(self, count: int, what: str) -> int:
        """Advance by `count` bytes. Return the position before; `what` names them in the error."""
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
        """Read a value of a type. Arrays have no arrays as elements: `inner` forbids them."""
        if kind in _NUMBERS:
            return self.numbers(kind, 1, "a value")[0]
        if kind == _STRING:
            return self.text("a string")
        if kind != _ARRAY or inner:
            raise MalformedError(f"a value at byte {self.at} is of the unknown type {kind}")
        element_kind, count = self.number("an array", "<I"), self.number("an array")
        if element_kind in _NUMBERS:
            return self.numbers(element_kind, count, "an array")
        return [self.value(element_kind, inner=True) for _ in range(count)]

    def tensor(self, tensors: dict[str, TensorInfo]) -> None:
        """Read the description of a tensor, and add it to `tensors`."""
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
        columns = columns_first[0] if dims else 1
        kind, size = _type_and_bytes(self.number("a tensor", "<I"), elements, columns)
        if name in tensors:
            raise MalformedError(f"there are two tensors '{name}'")
        shape = tuple(reversed(columns_first))
        tensors[name] = TensorInfo(kind, shape, self.number("a tensor"), size)


def _type_and_bytes(number: int, elements: int, columns: int) -> tuple[str, int]:
    """The name of the type with a number, and the bytes of a tensor of that type."""
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise MalformedError(f"a tensor is of the unknown type {number}") from None
    block, width = GGML_QUANT_SIZES[kind]
    if columns % block:
        raise MalformedError(
            f"a tensor of type {kind.name} has {columns} columns,"
            f" which are no whole blocks of {block}"
        )
    return kind.name, elements // block * width


def read_header(data: memoryview) -> Header:
    """Read the header of a file.

    Args:
        data: the whole file.

    Raises:
        MalformedError: the file is not GGUF, or a length or count does not fit the file.
    """
    cursor = _Cursor(data)
    if bytes(data[: cursor.skip(4, "the header") + 4]) != MAGIC:
        raise MalformedError("it does not begin with 'GGUF'")
    version = cursor.number("the header", "<I")
    if version not in (2, 3):
        raise MalformedError(f"its version is {version}, 2 and 3 can be read")
    tensor_count, pair_count = cursor.number("the header"), cursor.number("the header")
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = cursor.text("a key")
        metadata[key] = cursor.value(cursor.number("a value", "<I"))
    tensors: dict[str, TensorInfo] = {}
    for _ in range(tensor_count):
        cursor.tensor(tensors)
    alignment = metadata.get("general.alignment", 32)
    return Header(metadata, _locate_tensors(tensors, cursor.at, alignment, len(data)))


def _locate_tensors(
    tensors: dict[str, TensorInfo], header_end: int, alignment: object, file_end: int
) -> dict[str, TensorInfo]:
    """The tensors with their offsets from the beginning of the file, not of the data section."""
    if not isinstance(alignment, int) or not _is_alignment(alignment):
        raise MalformedError(f"its alignment is {alignment}, which is no power of two")
    data_start = -(-header_end // alignment) * alignment
    tensors_in_file = {}
    for name, tensor in tensors.items():
        offset = data_start + tensor.offset
        if offset + tensor.size > file_end:
            raise MalformedError(f"the tensor '{name}' at byte {offset} reaches beyond its end")
        if tensor.offset % alignment:
            raise MalformedError(
                f"the tensor '{name}' at byte {offset} is not aligned to {alignment}"
            )
        tensors_in_file[name] = TensorInfo(tensor.kind, tensor.shape, offset, tensor.size)
    return tensors_in_file


def _is_alignment(number: int) -> bool:
    """Whether a number is a power of two, and not too large.

    >>> _is_alignment(32), _is_alignment(48), _is_alignment(0)
    (True, False, False)
    """
    return 0 < number <= _MAX_ALIGNMENT and not number & (number - 1)
