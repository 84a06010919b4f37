"""Read a GGUF file: what the architecture is, and its tensors.

The format: ggml's docs/gguf.md. Read with the `gguf` package, which is pure Python over a memory map.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

from fusewire_worker_edge.importers import ModelImportError
from fusewire_worker_edge.importers.repack import QUANTISED, Floats, Packed, repack

DENSE = frozenset({"F32", "F16"})


@dataclass(frozen=True)
class LlamaShape:
    """The sizes of a llama decoder."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    vocab_size: int
    context_length: int
    rope_theta: float
    rms_epsilon: float


class GgufFile:
    """A GGUF file whose architecture is `llama`.

    Raises:
        ModelImportError: it is not GGUF, or not of a kind that can be converted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            reader = GGUFReader(path)
            self.metadata: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        except OSError as exc:
            raise ModelImportError(f"{path.name} cannot be read: {exc.strerror or 'I/O error'}") from None
        except (ValueError, IndexError, KeyError, UnicodeDecodeError) as exc:
            raise ModelImportError(f"{path.name} is not a whole GGUF file: {exc}") from None
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._refuse_unknown_types()
        self.architecture = str(self.metadata.get("general.architecture"))
        if self.architecture != "llama":
            raise ModelImportError(f"architecture '{self.architecture}' cannot be converted; 'llama' can")
        self.shape = self._shape()

    @property
    def names(self) -> set[str]:
        """The names of the tensors."""
        return set(self._tensors)

    @property
    def quantisation(self) -> dict[str, int]:
        """How many tensors there are of each ggml type."""
        return dict(sorted(Counter(t.tensor_type.name for t in self._tensors.values()).items()))

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

    def floats(self, name: str) -> Floats:
        """A tensor, dequantised, in its own shape (rows first)."""
        tensor = self._tensor(name)
        return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)

    def matrix(self, name: str, columns: int) -> Packed | Floats:
        """A matrix with this many columns, repacked where it is quantised and float32 where it is not."""
        tensor = self._tensor(name)
        if int(tensor.shape[0]) != columns:
            raise ModelImportError(f"tensor '{name}' has {int(tensor.shape[0])} columns where {columns} were expected")
        if tensor.tensor_type.name in QUANTISED:
            return repack(np.asarray(tensor.data), tensor.tensor_type.name)
        return self.floats(name)

    def _tensor(self, name: str) -> Any:
        if name not in self._tensors:
            raise ModelImportError(f"tensor '{name}' is missing")
        return self._tensors[name]

    def _refuse_unknown_types(self) -> None:
        known = QUANTISED | DENSE
        unknown = [t for t in self._tensors.values() if t.tensor_type.name not in known]
        if unknown:
            types = ", ".join(sorted({t.tensor_type.name for t in unknown}))
            raise ModelImportError(
                f"{len(unknown)} tensors are of type {types}, the first is '{unknown[0].name}';"
                f" {', '.join(sorted(known))} can be converted: take such a file of the same model"
            )

    def _shape(self) -> LlamaShape:
        def number(key: str, default: float | None = None) -> float:
            if default is not None and f"llama.{key}" not in self.metadata:
                return default
            return float(self.require(f"llama.{key}"))

        scaling = self.metadata.get("llama.rope.scaling.type", "none")
        if scaling != "none":
            raise ModelImportError(f"rope scaling '{scaling}' cannot be converted")
        hidden, heads = int(number("embedding_length")), int(number("attention.head_count"))
        head_size = int(number("attention.key_length", hidden // heads))
        if int(number("rope.dimension_count", head_size)) != head_size:
            raise ModelImportError("rotary embedding of a part of each head cannot be converted")
        return LlamaShape(
            layers=int(number("block_count")),
            hidden=hidden,
            heads=heads,
            kv_heads=int(number("attention.head_count_kv", heads)),
            head_size=head_size,
            vocab_size=len(self.require("tokenizer.ggml.tokens")),
            context_length=int(number("context_length")),
            rope_theta=number("rope.freq_base", 10000.0),
            rms_epsilon=number("attention.layer_norm_rms_epsilon"),
        )
