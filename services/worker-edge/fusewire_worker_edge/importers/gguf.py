"""Read a GGUF file: what the architecture is, and its tensors as they are to be stored."""

import hashlib
import math
import mmap
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from fusewire_worker_edge.importers import ModelImportError
from fusewire_worker_edge.importers.gguf_header import (
    Header,
    MalformedError,
    TensorInfo,
    read_header,
)
from fusewire_worker_edge.importers.repack import (
    FOUR_BITS,
    QUANTISED,
    Bytes,
    Floats,
    PackedMatrix,
    Rows,
    quantize_rows,
    repack,
)
from fusewire_worker_edge.importers.source import (
    ARCHITECTURES,
    EXACT,
    LARGE,
    LONGEST,
    ROPE_FACTORS,
    SHORT_FACTORS,
    VOCABULARY,
    DecoderShape,
    ImportOptions,
    RotaryEmbedding,
    Window,
    check_rotary_size,
    parse_size,
)

DENSE = frozenset({"F32", "F16", "BF16"})
_UNUSED = 5
"""The type of a token that only fills the vocabulary up to a round number."""
_KEPT = FOUR_BITS | {"Q8_0"}
"""Types whose own blocks are as good for the product as others would be."""
_GEMMA_WINDOW_EVERY, _GEMMA_WINDOW_THETA = 6, 10_000.0
"""Of Gemma 3, whose files do not say it: all but each sixth layer look back over a window only, and rotate by this."""
_GEMMA_27B = 62
"""Its layers."""


def _header(data: mmap.mmap) -> Header:
    """Read with a view that is let go, so that the map can be closed."""
    with memoryview(data) as view:
        return read_header(view)


class GgufFile:
    """A GGUF file of one of `ARCHITECTURES`.

    Raises:
        ModelImportError: it is not GGUF, or not of a kind that can be converted.
    """

    def __init__(self, path: Path, options: ImportOptions | None = None) -> None:
        self.path = path
        self.name = path.name
        self.options = options or ImportOptions()
        self.block_size = self.options.block_size or EXACT
        try:
            with (
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            ):
                header = _header(data)
        except OSError as exc:
            raise ModelImportError(
                f"{path.name} cannot be read: {exc.strerror or 'I/O error'}"
            ) from None
        except (MalformedError, ValueError) as exc:  # an empty file cannot be mapped
            raise ModelImportError(f"{path.name} is not a whole GGUF file: {exc}") from None
        self.metadata, self._tensors = header.metadata, header.tensors
        self._refuse_unknown_types()
        self.architecture = str(self.metadata.get("general.architecture"))
        if self.architecture not in ARCHITECTURES:
            *most, last = (f"'{name}'" for name in ARCHITECTURES)
            known = f"{', '.join(most)} and {last}"
            raise ModelImportError(
                f"architecture '{self.architecture}' cannot be converted; {known} can"
            )
        self.tokens, self.token_kinds = self._vocabulary()
        self.shape = self._shape()
        self._refuse_stray_ids()

    @property
    def names(self) -> set[str]:
        """The names of the tensors."""
        return set(self._tensors)

    @property
    def quantisation(self) -> dict[str, int]:
        """How many tensors there are of each ggml type."""
        return dict(sorted(Counter(t.kind for t in self._tensors.values()).items()))

    def sha256(self) -> str:
        """The hash of the whole file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def require(self, key: str) -> Any:
        """A value of the metadata.

        Raises:
            ModelImportError: it is not there.
        """
        if key not in self.metadata:
            raise ModelImportError(f"the metadata has no '{key}'")
        return self.metadata[key]

    def number(self, key: str) -> float:
        """A number of the metadata that is not negative.

        Raises:
            ModelImportError: it is not there, or is no such number.
        """
        value = self.require(key)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or value < 0
        ):
            raise ModelImportError(f"'{key}' is no number that could be meant")
        return float(value)

    def texts(self, key: str) -> list[str]:
        """A list of texts of the metadata.

        Raises:
            ModelImportError: it is not there, or is no such list.
        """
        value = self.require(key)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise ModelImportError(f"'{key}' is no list of texts")
        return value

    def floats(self, name: str, rows: Rows = slice(None)) -> Floats:
        """A tensor, dequantised, in its own shape (rows first); of a matrix those rows."""
        tensor = self._tensor(name)
        if isinstance(rows, slice):
            raw = self._raw(name, rows)
        else:
            raw = np.concatenate([self._raw(name, slice(row, row + 1)) for row in rows])
        found = np.asarray(dequantize(raw, GGMLQuantizationType[tensor.kind]), np.float32)
        return found.ravel() if len(tensor.shape) == 1 else found

    def columns(self, name: str) -> int | None:
        """How many columns a matrix has; None of a vector."""
        shape = self._tensor(name).shape
        return shape[1] if len(shape) == 2 else None

    def matrix(self, name: str, columns: int) -> PackedMatrix | Floats:
        """A matrix with this many columns, stored as the options say.

        Raises:
            ModelImportError: it is missing, or no such matrix.
        """
        tensor = self._tensor(name)
        if len(tensor.shape) != 2 or tensor.shape[1] != columns:
            raise ModelImportError(
                f"tensor '{name}' is {list(tensor.shape)} where {columns} columns were expected"
            )
        if self._is_kept(tensor):
            return (
                repack(self._raw(name), tensor.kind)
                if tensor.kind in QUANTISED
                else self.floats(name)
            )
        return self._rounded(name, tensor)

    @property
    def is_rounded(self) -> bool:
        """Whether any matrix is stored otherwise than the file has it."""
        return any(len(t.shape) > 1 and not self._is_kept(t) for t in self._tensors.values())

    def _is_kept(self, tensor: TensorInfo) -> bool:
        """Whether a matrix is stored as the file has it."""
        size = self.options.block_size
        if tensor.kind in DENSE:
            return self.options.bits is None
        return size == EXACT or (size is None and tensor.kind in _KEPT)

    def _rounded(self, name: str, tensor: TensorInfo) -> PackedMatrix:
        """A matrix in new codes, made in pieces."""
        size, bits = self.options.block_size or LARGE, 8
        if tensor.kind in FOUR_BITS:
            bits = self.options.bits or 4
        elif tensor.kind in DENSE and name not in VOCABULARY:
            # The vocabulary's matrices suffer most from few bits.
            bits = self.options.bits or 8
        return quantize_rows(self._rows(name), lambda rows: self.floats(name, rows), bits, size)

    def _raw(self, name: str, rows: slice = slice(None)) -> Bytes:
        """Rows of a tensor as bytes, [rows, bytes per row]. Read and not mapped, so that they do not stay in memory."""
        tensor, whole = self._tensor(name), self._rows(name)
        start, stop, _ = rows.indices(whole)
        width = tensor.size // math.prod(tensor.shape[:-1])
        with self.path.open("rb") as file:
            file.seek(tensor.offset + start * width)
            return np.fromfile(file, np.uint8, (stop - start) * width).reshape(stop - start, width)

    def _rows(self, name: str) -> int:
        """How many rows a tensor has; the vocabulary's matrices without those of no token."""
        rows = math.prod(self._tensor(name).shape[:-1])
        if name not in VOCABULARY:
            return rows
        if rows < len(self.tokens):
            raise ModelImportError(f"tensor '{name}' has {rows} rows for {len(self.tokens)} tokens")
        return len(self.tokens)

    def _tensor(self, name: str) -> TensorInfo:
        if name not in self._tensors:
            raise ModelImportError(f"tensor '{name}' is missing")
        return self._tensors[name]

    def _vocabulary(self) -> tuple[list[str], list[int]]:
        """The tokens and their types, without those at the end that only fill up."""
        tokens, kinds = (
            self.texts("tokenizer.ggml.tokens"),
            self.require("tokenizer.ggml.token_type"),
        )
        if (
            not isinstance(kinds, list)
            or len(kinds) != len(tokens)
            or not all(isinstance(k, int) for k in kinds)
        ):
            raise ModelImportError("'tokenizer.ggml.token_type' does not give each token a type")
        used = [at for at, kind in enumerate(kinds) if kind != _UNUSED]
        count = used[-1] + 1 if used else 0
        return tokens[:count], kinds[:count]

    def _refuse_unknown_types(self) -> None:
        known = QUANTISED | DENSE
        unknown = {name: t.kind for name, t in self._tensors.items() if t.kind not in known}
        if unknown:
            raise ModelImportError(
                f"{len(unknown)} tensors are of type {', '.join(sorted(set(unknown.values())))}, the first is"
                f" '{next(iter(unknown))}'; {', '.join(sorted(known))} can be converted: take such a file of the"
                " same model"
            )

    def _refuse_stray_ids(self) -> None:
        for key in [key for key in self.metadata if key.endswith("_token_id")]:
            if not 0 <= self.number(key) < self.shape.vocab_size:
                raise ModelImportError(
                    f"'{key}' is {self.metadata[key]}, and there are {self.shape.vocab_size} tokens"
                )

    def _size(self, key: str, default: int | None = None) -> int:
        """A size of the architecture, at least 1."""
        whole = f"{self.architecture}.{key}"
        if default is not None and whole not in self.metadata:
            return default
        return parse_size(whole, self.number(whole))

    def _shape(self) -> DecoderShape:
        name = self.architecture
        hidden, heads = self._size("embedding_length"), self._size("attention.head_count")
        head_size = self._size("attention.key_length", max(1, hidden // heads))
        if self._size("attention.value_length", head_size) != head_size:
            raise ModelImportError("values of another size than the keys cannot be converted")
        rotation = self._rotation(head_size)
        length = min(self._size("context_length"), LONGEST)
        if rotation.factors == SHORT_FACTORS:
            length = min(length, self._size("rope.scaling.original_context_length", LONGEST))
        is_gemma, layers = name == "gemma3", self._size("block_count")
        return DecoderShape(
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=self._size("attention.head_count_kv", heads),
            head_size=head_size,
            vocab_size=len(self.tokens),
            context_length=length,
            rms_epsilon=self.number(f"{name}.attention.layer_norm_rms_epsilon"),
            rotation=rotation,
            window=self._window(rotation) if is_gemma else None,
            # Gemma 3 of 27B scales as if its heads shared the hidden size.
            attention_scale=(hidden // heads if is_gemma and layers == _GEMMA_27B else head_size)
            ** -0.5,
            embedding_scale=math.sqrt(hidden) if is_gemma else 1.0,
            activation="gelu" if is_gemma else "silu",
        )

    def _rotation(self, head_size: int) -> RotaryEmbedding:
        name = self.architecture
        size = check_rotary_size(
            f"{name}.rope.dimension_count", self._size("rope.dimension_count", head_size), head_size
        )
        scaling = str(self.metadata.get(f"{name}.rope.scaling.type", "none"))
        if scaling not in ("none", "linear", "longrope"):
            raise ModelImportError(f"rope scaling '{scaling}' cannot be converted")
        theta, factor = f"{name}.rope.freq_base", f"{name}.rope.scaling.factor"
        magnitude = f"{name}.rope.scaling.attn_factor"
        return RotaryEmbedding(
            size=size,
            theta=self.number(theta) if theta in self.metadata else 10_000.0,
            position_scale=1 / (self.number(factor) or 1)
            if scaling == "linear" and factor in self.metadata
            else 1.0,
            magnitude=self.number(magnitude) if magnitude in self.metadata else 1.0,
            factors=next(
                (found for found in (ROPE_FACTORS, SHORT_FACTORS) if found in self._tensors), None
            ),
            is_interleaved=name == "llama",
        )

    def _window(self, rotation: RotaryEmbedding) -> Window:
        local = replace(rotation, theta=_GEMMA_WINDOW_THETA, position_scale=1.0)
        return Window(self._size("attention.sliding_window"), _GEMMA_WINDOW_EVERY, local)
