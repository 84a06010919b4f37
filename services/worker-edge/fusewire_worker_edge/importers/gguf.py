"""Read a GGUF file: what the architecture is, and its tensors.

The format: ggml's docs/gguf.md. Read with the `gguf` package, which is pure Python over a memory map.
"""

import hashlib
import mmap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

from fusewire_worker_edge.importers import ModelImportError
from fusewire_worker_edge.importers.gguf_check import gguf_problem
from fusewire_worker_edge.importers.repack import FOUR_BITS, QUANTISED, Floats, Packed, quantize, repack

DENSE = frozenset({"F32", "F16", "BF16"})
ARCHITECTURES = ("llama", "qwen2")
"""As GGUF names them; Mistral's models are of the first."""
EXACT = 32
"""The block size at which GGUF's blocks are kept as they are."""


@dataclass(frozen=True)
class ImportOptions:
    """How weights are to be stored.

    Args:
        block_size: of the product's blocks: 32 keeps the file's own blocks, 128 is smaller and faster, and rounds anew.
        bits: of what is rounded anew, 4 or 8; None keeps floating point as it is, and 4 bits 4.
    """

    block_size: int = EXACT
    bits: int | None = None


@dataclass(frozen=True)
class LlamaShape:
    """The sizes of a decoder."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    vocab_size: int
    context_length: int
    rope_theta: float
    rms_epsilon: float
    rotary_interleaved: bool = True
    """Whether rotation pairs neighbours, as GGUF stores a llama, or the halves of a head."""


class GgufFile:
    """A GGUF file of one of `ARCHITECTURES`.

    Raises:
        ModelImportError: it is not GGUF, or not of a kind that can be converted.
    """

    def __init__(self, path: Path, options: ImportOptions | None = None) -> None:
        self.path = path
        self.options = options or ImportOptions()
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                problem = gguf_problem(memoryview(data))
            if problem:
                raise ModelImportError(f"{path.name} is not a whole GGUF file: {problem}")
            reader = GGUFReader(path)
            self.metadata: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        except OSError as exc:
            raise ModelImportError(f"{path.name} cannot be read: {exc.strerror or 'I/O error'}") from None
        except (ValueError, IndexError, KeyError, OverflowError) as exc:
            raise ModelImportError(f"{path.name} is not a whole GGUF file: {exc}") from None
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._refuse_unknown_types()
        self.architecture = str(self.metadata.get("general.architecture"))
        if self.architecture not in ARCHITECTURES:
            known = " and ".join(f"'{name}'" for name in ARCHITECTURES)
            raise ModelImportError(f"architecture '{self.architecture}' cannot be converted; {known} can")
        self.shape = self._shape()
        self._refuse_stray_ids()

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
        """A matrix with this many columns, stored as the options say."""
        tensor = self._tensor(name)
        if int(tensor.shape[0]) != columns:
            raise ModelImportError(f"tensor '{name}' has {int(tensor.shape[0])} columns where {columns} were expected")
        kind, options = tensor.tensor_type.name, self.options
        if kind in QUANTISED and options.block_size == EXACT:
            return repack(np.asarray(tensor.data), kind)
        if kind in QUANTISED:
            bits = options.bits or 4 if kind in FOUR_BITS else 8
            return quantize(self.floats(name), bits, options.block_size)
        if options.bits is None:
            return self.floats(name)
        # The vocabulary's matrices suffer most from few bits.
        bits = 8 if name in ("token_embd.weight", "output.weight") else options.bits
        return quantize(self.floats(name), bits, options.block_size)

    @property
    def is_rounded(self) -> bool:
        """Whether any matrix is stored otherwise than the file has it."""
        kinds = {t.tensor_type.name for t in self._tensors.values() if len(t.shape) > 1}
        return (self.options.block_size != EXACT and bool(kinds & QUANTISED)) or (
            self.options.bits is not None and bool(kinds & DENSE)
        )

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

    def _refuse_stray_ids(self) -> None:
        for key, value in self.metadata.items():
            if key.endswith("_token_id") and not 0 <= int(value) < self.shape.vocab_size:
                raise ModelImportError(f"'{key}' is {value}, and there are {self.shape.vocab_size} tokens")

    def _shape(self) -> LlamaShape:
        def number(key: str, default: float | None = None) -> float:
            if default is not None and f"{self.architecture}.{key}" not in self.metadata:
                return default
            return float(self.require(f"{self.architecture}.{key}"))

        scaling = self.metadata.get(f"{self.architecture}.rope.scaling.type", "none")
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
            rotary_interleaved=self.architecture == "llama",
        )
