"""Read the tensors of a file in the format safetensors.

Read here and not with the package of that name, which has no bfloat16 for numpy, and maps whole files.
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
"""What the format's own reader takes at most, in bytes."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file."""

    file: Path
    kind: str
    """The format's name of its type."""
    shape: tuple[int, ...]
    """Rows first."""
    offset: int
    """Of its first byte in the file."""

    def read(self, rows: slice = slice(None)) -> Floats:
        """It, or some of its rows, in float32."""
        start, stop, _ = rows.indices(self.shape[0])
        width = math.prod(self.shape[1:])
        kind = np.dtype(_TYPES[self.kind])
        with self.file.open("rb") as file:
            file.seek(self.offset + start * width * kind.itemsize)
            raw = np.fromfile(file, kind, (stop - start) * width).reshape(
                stop - start, *self.shape[1:]
            )
        if self.kind == "BF16":
            # Its bits are the upper half of those of a float32.
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32)


def read_tensors(path: Path) -> dict[str, Stored]:
    """Where the tensors of a file are, by name.

    Raises:
        ModelImportError: it is not a whole file of the format, or has tensors of another type than floats.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = _header_length(file.read(8), size)
            header = json.loads(file.read(length))
        named = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return {name: _stored(path, name, entry, 8 + length, size) for name, entry in named.items()}
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


def _stored(path: Path, name: str, entry: Any, begin: int, size: int) -> Stored:
    kind, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if kind not in _TYPES:
        raise ModelImportError(
            f"tensor '{name}' is of type {kind}; {', '.join(_TYPES)} can be converted"
        )
    if (
        not shape
        or not all(type(n) is int and n > 0 for n in (*shape, end))
        or type(start) is not int
    ):
        raise ValueError(f"tensor '{name}' has no size")
    if (
        start < 0
        or end - start != math.prod(shape) * np.dtype(_TYPES[kind]).itemsize
        or begin + end > size
    ):
        raise ValueError(f"tensor '{name}' is not where it says")
    return Stored(path, kind, shape, begin + start)
