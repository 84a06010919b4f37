"""Read a GGUF file: its architecture, its vocabulary and its tensors as they are to be stored."""

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
    is_magnitude,
    parse_size,
)

DENSE = frozenset({"F32", "F16", "BF16"})
_UNUSED = 5
"""The type of tokens that only pad the vocabulary to a round number."""
_FAST_TYPES = FOUR_BITS | {"Q8_0"}
"""Types whose own blocks give as fast a matrix product as any others."""
_GEMMA_WINDOW_EVERY, _GEMMA_WINDOW_THETA = 6, 10_000.0
"""Gemma 3's window, which its files do not describe.

All but every sixth layer have a window, and a rotary embedding with this theta.
"""
_GEMMA_27B_LAYERS = 62


def _header(data: mmap.mmap) -> Header:
    """Read the header through a view that is released, or the map could not be closed."""
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
            *names, last_name = (f"'{name}'" for name in ARCHITECTURES)
            raise ModelImportError(
                f"architecture '{self.architecture}' cannot be converted;"
                f" {', '.join(names)} and {last_name} can"
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
        return dict(sorted(Counter(tensor.kind for tensor in self._tensors.values()).items()))

    def sha256(self) -> str:
        """Return the hash of the whole file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def require(self, key: str) -> Any:
        """Return a value of the metadata.

        Raises:
            ModelImportError: the key is missing.
        """
        if key not in self.metadata:
            raise ModelImportError(f"the metadata has no '{key}'")
        return self.metadata[key]

    def number(self, key: str) -> float:
        """Return a number of the metadata that is finite and not negative.

        Raises:
            ModelImportError: the key is missing, or the value is no such number.
        """
        value = self.require(key)
        if not is_magnitude(value):
            raise ModelImportError(f"'{key}' is no number that could be meant")
        return float(value)

    def texts(self, key: str) -> list[str]:
        """Return a list of texts of the metadata.

        Raises:
            ModelImportError: the key is missing, or the value is no such list.
        """
        value = self.require(key)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise ModelImportError(f"'{key}' is no list of texts")
        return value

    def floats(self, name: str, rows: Rows = slice(None)) -> Floats:
        """Return a tensor, dequantised, in its own shape (rows first), or some rows of it."""
        tensor = self._tensor(name)
        if isinstance(rows, slice):
            raw = self._raw(name, rows)
        else:
            raw = np.concatenate([self._raw(name, slice(row, row + 1)) for row in rows])
        floats = np.asarray(dequantize(raw, GGMLQuantizationType[tensor.kind]), np.float32)
        return floats.ravel() if len(tensor.shape) == 1 else floats

    def columns(self, name: str) -> int | None:
        """Return the number of columns of a matrix, or None for a vector."""
        shape = self._tensor(name).shape
        return shape[1] if len(shape) == 2 else None

    def matrix(self, name: str, columns: int) -> PackedMatrix | Floats:
        """Return a matrix, stored as the options say.

        Raises:
            ModelImportError: it is missing, or not a matrix with this number of columns.
        """
        tensor = self._tensor(name)
        if len(tensor.shape) != 2 or tensor.shape[1] != columns:
            raise ModelImportError(
                f"tensor '{name}' is {list(tensor.shape)} where {columns} columns were expected"
            )
        if not self._is_kept(tensor):
            return self._quantize(name, tensor)
        if tensor.kind in QUANTISED:
            return repack(self._raw(name), tensor.kind)
        return self.floats(name)

    @property
    def is_rounded(self) -> bool:
        """Whether any matrix is quantised again, and so differs from the file."""
        matrices = (tensor for tensor in self._tensors.values() if len(tensor.shape) > 1)
        return any(not self._is_kept(matrix) for matrix in matrices)

    def _is_kept(self, tensor: TensorInfo) -> bool:
        """Whether a matrix is stored with the file's own values."""
        size = self.options.block_size
        if tensor.kind in DENSE:
            return self.options.bits is None
        return size == EXACT or (size is None and tensor.kind in _FAST_TYPES)

    def _quantize(self, name: str, tensor: TensorInfo) -> PackedMatrix:
        """Quantise a matrix again, some rows at a time."""
        size, bits = self.options.block_size or LARGE, 8
        if tensor.kind in FOUR_BITS:
            bits = self.options.bits or 4
        elif tensor.kind in DENSE and name not in VOCABULARY:
            # Embedding and head stay at 8 bits: they suffer most from fewer.
            bits = self.options.bits or 8
        return quantize_rows(self._rows(name), lambda rows: self.floats(name, rows), bits, size)

    def _raw(self, name: str, rows: slice = slice(None)) -> Bytes:
        """Read rows of a tensor as bytes, [rows, bytes per row].

        Read and not mapped, so that they do not stay in memory.
        """
        tensor = self._tensor(name)
        start, stop, _ = rows.indices(self._rows(name))
        width = tensor.size // math.prod(tensor.shape[:-1])
        with self.path.open("rb") as file:
            file.seek(tensor.offset + start * width)
            return np.fromfile(file, np.uint8, (stop - start) * width).reshape(stop - start, width)

    def _rows(self, name: str) -> int:
        """The number of rows of a tensor. Embedding and head without the rows of padding tokens."""
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
        """The tokens and their types, without the padding tokens at the end."""
        tokens = self.texts("tokenizer.ggml.tokens")
        kinds = self.require("tokenizer.ggml.token_type")
        is_list = isinstance(kinds, list) and all(isinstance(kind, int) for kind in kinds)
        if not is_list or len(kinds) != len(tokens):
            raise ModelImportError("'tokenizer.ggml.token_type' does not give each token a type")
        count = len(kinds)
        while count and kinds[count - 1] == _UNUSED:
            count -= 1
        return tokens[:count], kinds[:count]

    def _refuse_unknown_types(self) -> None:
        usable_types = QUANTISED | DENSE
        unusable = {
            name: tensor.kind
            for name, tensor in self._tensors.items()
            if tensor.kind not in usable_types
        }
        if unusable:
            kinds = ", ".join(sorted(set(unusable.values())))
            raise ModelImportError(
                f"{len(unusable)} tensors are of type {kinds}, the first is"
                f" '{next(iter(unusable))}'; {', '.join(sorted(usable_types))} can be converted:"
                " take such a file of the same model"
            )

    def _refuse_stray_ids(self) -> None:
        for key in self.metadata:
            if key.endswith("_token_id") and not 0 <= self.number(key) < self.shape.vocab_size:
                raise ModelImportError(
                    f"'{key}' is {self.metadata[key]}, and there are {self.shape.vocab_size} tokens"
                )

    def _size(self, key: str, default: int | None = None) -> int:
        """A size in the metadata of the architecture, at least 1.

        Raises:
            ModelImportError: see `parse_size`.
        """
        full_key = f"{self.architecture}.{key}"
        if default is not None and full_key not in self.metadata:
            return default
        return parse_size(full_key, self.number(full_key))

    def _shape(self) -> DecoderShape:
        name = self.architecture
        hidden_size, heads = self._size("embedding_length"), self._size("attention.head_count")
        head_size = self._size("attention.key_length", max(1, hidden_size // heads))
        if self._size("attention.value_length", head_size) != head_size:
            raise ModelImportError("values of another size than the keys cannot be converted")
        rotation = self._rotation(head_size)
        length = min(self._size("context_length"), LONGEST)
        if rotation.factors == SHORT_FACTORS:
            length = min(length, self._size("rope.scaling.original_context_length", LONGEST))
        is_gemma, layers = name == "gemma3", self._size("block_count")
        query_size = head_size
        if is_gemma and layers == _GEMMA_27B_LAYERS:
            # Gemma 3 of 27B scales as if its heads shared the hidden size.
            query_size = hidden_size // heads
        return DecoderShape(
            layers=layers,
            hidden=hidden_size,
            heads=heads,
            kv_heads=self._size("attention.head_count_kv", heads),
            head_size=head_size,
            vocab_size=len(self.tokens),
            context_length=length,
            rms_epsilon=self.number(f"{name}.attention.layer_norm_rms_epsilon"),
            rotation=rotation,
            window=self._window(rotation) if is_gemma else None,
            attention_scale=query_size**-0.5,
            embedding_scale=math.sqrt(hidden_size) if is_gemma else 1.0,
            activation="gelu" if is_gemma else "silu",
        )

    def _rotation(self, head_size: int) -> RotaryEmbedding:
        name = self.architecture
        size = self._size("rope.dimension_count", head_size)
        size = check_rotary_size(f"{name}.rope.dimension_count", size, head_size)
        scaling = str(self.metadata.get(f"{name}.rope.scaling.type", "none"))
        if scaling not in ("none", "linear", "longrope"):
            raise ModelImportError(f"rope scaling '{scaling}' cannot be converted")
        theta = self._number_or(f"{name}.rope.freq_base", 10_000.0)
        position_scale = 1.0
        if scaling == "linear":
            # A factor of 0 means that there is none.
            position_scale = 1 / (self._number_or(f"{name}.rope.scaling.factor", 1.0) or 1)
        factor_names = (ROPE_FACTORS, SHORT_FACTORS)
        return RotaryEmbedding(
            size=size,
            theta=theta,
            position_scale=position_scale,
            magnitude=self._number_or(f"{name}.rope.scaling.attn_factor", 1.0),
            factors=next((factor for factor in factor_names if factor in self._tensors), None),
            is_interleaved=name == "llama",
        )

    def _number_or(self, key: str, default: float) -> float:
        return self.number(key) if key in self.metadata else default

    def _window(self, rotation: RotaryEmbedding) -> Window:
        window_rotation = replace(rotation, theta=_GEMMA_WINDOW_THETA, position_scale=1.0)
        return Window(self._size("attention.sliding_window"), _GEMMA_WINDOW_EVERY, window_rotation)
