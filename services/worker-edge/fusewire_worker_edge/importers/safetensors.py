"""Read the tensors of a safetensors file.

Not with the package `safetensors`, which has no bfloat16 for numpy and maps whole files.
Format: https://github.com/huggingface/safetensors, "Format".
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusewire_worker_edge.importers import ModelImportError
from fusewire_worker_edge.importers.repack import Floats

_TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_LONGEST_HEADER = 100 << 20
"""Longest header in bytes, as in the format's own reader."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a safetensors file."""

    file: Path
    kind: str
    """The format's name of its data type."""
    shape: tuple[int, ...]
    """Rows first."""
    offset: int
    """Position of its first byte in the file."""

    def read(self, rows: slice = slice(None)) -> Floats:
        """Read the tensor or some of its rows, as float32."""
        start, stop, _ = rows.indices(self.shape[0])
        width = math.prod(self.shape[1:])
        kind = np.dtype(_TYPES[self.kind])
        with self.file.open("rb") as file:
            file.seek(self.offset + start * width * kind.itemsize)
            raw = np.fromfile(file, kind, (stop - start) * width).reshape(
                stop - start, *self.shape[1:]
            )
        if self.kind == "BF16":
            # The bits of a bfloat16 are the upper half of a float32.
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32)


def read_tensors(path: Path) -> dict[str, Stored]:
    """Read the header of a file: its tensors by name.

    Raises:
        ModelImportError: the file is damaged, or has tensors of other types than floats.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = _header_length(file.read(8), size)
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {
            name: _parse_tensor(path, name, entry, 8 + length, size)
            for name, entry in header.items()
        }
    except OSError as exc:
        raise ModelImportError(
            f"{path.name} cannot be read: {exc.strerror or 'I/O error'}"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError, struct.error, RecursionError) as exc:
        raise ModelImportError(f"{path.name} is not a whole safetensors file: {exc}") from None


def _header_length(raw: bytes, size: int) -> int:
    length = int(struct.unpack("<Q", raw)[0])
    if length > min(_LONGEST_HEADER, size - 8):
        raise ValueError(f"its header of {length} bytes reaches beyond its end")
    return length


def _parse_tensor(path: Path, name: str, entry: Any, data_start: int, size: int) -> Stored:
    """Check a tensor's entry of the header against the size of the file.

    Raises:
        ModelImportError: its type cannot be converted.
        ValueError: its shape or its place is wrong.
    """
    kind, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if kind not in _TYPES:
        raise ModelImportError(
            f"tensor '{name}' is of type {kind}; {', '.join(_TYPES)} can be converted"
        )
    are_sizes = all(type(number) is int and number > 0 for number in (*shape, end))
    if not shape or not are_sizes or type(start) is not int:
        raise ValueError(f"tensor '{name}' has no size")
    byte_count = math.prod(shape) * np.dtype(_TYPES[kind]).itemsize
    if start < 0 or end - start != byte_count or data_start + end > size:
        raise ValueError(f"tensor '{name}' is not where it says")
    return Stored(path, kind, shape, data_start + start)
