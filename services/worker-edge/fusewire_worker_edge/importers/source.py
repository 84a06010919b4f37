"""The source of a conversion: the shape of a decoder, and its weights by their names in GGUF."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, TypeGuard

from fusewire_worker_edge.importers import ModelImportError
from fusewire_worker_edge.importers.repack import Floats, PackedMatrix, Rows

ARCHITECTURES = ("llama", "qwen2", "qwen3", "phi3", "gemma3")
"""The architectures that can be converted, as GGUF names them. Mistral's models are `llama`."""
ROPE_FACTORS = "rope_freqs.weight"
"""Name of the tensor of divisors of the rotary embedding's frequencies; Llama 3.1 and later."""
SHORT_FACTORS, LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"
"""The same for LongRoPE: up to the length of the original training, and beyond it."""
VOCABULARY = ("token_embd.weight", "output.weight")
"""The matrices with a row for each token: embedding and head."""
EXACT = 32
"""The block size with which GGUF's blocks are kept exactly."""
LARGE = 128
"""The block size whose matrix product reads the least memory and is fast on CPUs."""
_ROTARY_MULTIPLE = 16
"""GroupQueryAttention rotates this many elements at a time, so sizes must be multiples of it."""
LONGEST = 32_768
"""Longest context, in positions.

The tables of the rotary embedding need memory for each, and an edge has none for a longer KV cache.
"""
_MAX_SIZES = {
    "block_count": 1_000,
    "context_length": 1 << 20,
    "embedding_length": 1 << 20,
    "num_hidden_layers": 1_000,
    "max_position_embeddings": 1 << 24,
    "hidden_size": 1 << 20,
    "vocab_size": 1 << 20,
    "original_context_length": 1 << 20,
    "original_max_position_embeddings": 1 << 20,
    "sliding_window": 1 << 20,
}
"""Upper limits of sizes: no model exceeds them, and a hostile file could fill the memory."""


@dataclass(frozen=True)
class ImportOptions:
    """How to store weights.

    Args:
        block_size: block size of quantised matrices. 32 keeps the file's own blocks. 128 is smaller
            and faster, but quantises again. None keeps matrices of 4 or 8 bits, and quantises the
            others to 8 bits in blocks of 128.
        bits: bits of what is quantised again, 4 or 8. None leaves floating point as it is, and 4
            bits at 4.
    """

    block_size: int | None = None
    bits: int | None = None


@dataclass(frozen=True)
class RotaryEmbedding:
    """The rotary embedding of queries and keys (Su et al., arXiv:2104.09864).

    Args:
        size: how many elements of each head are rotated, from the first on.
        theta: the base of the frequencies.
        position_scale: factor of the positions.
        magnitude: factor of the rotated elements.
        factors: name of the tensor of the frequencies' divisors; None if there is none.
        is_interleaved: whether pairs are neighbours, as in GGUF's llama, or `size / 2` apart.
    """

    size: int
    theta: float
    position_scale: float = 1.0
    magnitude: float = 1.0
    factors: str | None = None
    is_interleaved: bool = False


@dataclass(frozen=True)
class Window:
    """Sliding window attention, in all but every n-th layer.

    Args:
        positions: how many positions a layer attends to, the current one included.
        every: layers of this number and its multiples, counted from 1, attend to all positions.
        rotation: the rotary embedding of the layers with a window.
    """

    positions: int
    every: int
    rotation: RotaryEmbedding


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a decoder, and what differs between architectures besides their tensors."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    vocab_size: int
    context_length: int
    rms_epsilon: float
    rotation: RotaryEmbedding
    window: Window | None = None
    attention_scale: float = 1.0
    embedding_scale: float = 1.0
    activation: Literal["silu", "gelu"] = "silu"

    def window_of(self, layer: int) -> Window | None:
        """Return the window of a layer, counted from 0; None if it attends to all positions."""
        if self.window and (layer + 1) % self.window.every:
            return self.window
        return None

    def rotation_of(self, layer: int) -> RotaryEmbedding:
        """Return the rotary embedding of a layer, counted from 0."""
        window = self.window_of(layer)
        return window.rotation if window else self.rotation


def check_rotary_size(name: str, size: int, head_size: int) -> int:
    """Return `size`, the number of rotated elements of a head, if it can be converted.

    Args:
        name: where the size comes from, for the error.
        size: the number of rotated elements.
        head_size: the number of all elements of a head.

    Raises:
        ModelImportError: the size cannot be converted.
    """
    if not 0 < size <= head_size or size % _ROTARY_MULTIPLE:
        raise ModelImportError(
            f"'{name}' is {size}: a multiple of {_ROTARY_MULTIPLE}, up to the {head_size} elements"
            " of a head, can be converted"
        )
    return size


def parse_size(name: str, number: float) -> int:
    """Return a size of a model as an integer.

    Args:
        name: the key of the size in the source's metadata; its last part has the upper limit.
        number: the size.

    Raises:
        ModelImportError: the number is no integer, less than 1, or above the limit.
    """
    limit = _MAX_SIZES.get(name.rpartition(".")[2], 1 << 16)
    if not 1 <= number <= limit or number != int(number):
        raise ModelImportError(f"'{name}' is {number:g}, where 1 to {limit} can be meant")
    return int(number)


def is_magnitude(number: object) -> TypeGuard[float]:
    """Whether a value of a source's metadata is a finite number and not negative.

    >>> is_magnitude(2), is_magnitude(-1), is_magnitude(True), is_magnitude("2")
    (True, False, False, False)
    """
    if isinstance(number, bool) or not isinstance(number, int | float):
        return False
    return math.isfinite(number) and number >= 0


class Weights(Protocol):
    """Weights in float32, and the shape of their model."""

    @property
    def shape(self) -> DecoderShape:
        """The shape of the model."""
        ...

    @property
    def names(self) -> set[str]:
        """The names of the tensors."""
        ...

    def floats(self, name: str, rows: Rows = slice(None)) -> Floats:
        """Return a tensor in its own shape (rows first), or some rows of it.

        Raises:
            ModelImportError: the tensor is missing.
        """
        ...


class ModelSource(Weights, Protocol):
    """A model to convert."""

    @property
    def name(self) -> str:
        """The name of its file or folder."""
        ...

    @property
    def architecture(self) -> str:
        """One of `ARCHITECTURES`."""
        ...

    @property
    def quantisation(self) -> dict[str, int]:
        """How many tensors there are of each type."""
        ...

    @property
    def block_size(self) -> int:
        """The smallest block that weights are stored in."""
        ...

    @property
    def is_rounded(self) -> bool:
        """Whether any matrix is quantised again, and so differs from the source."""
        ...

    def sha256(self) -> str:
        """Return the hash of everything that it consists of."""
        ...

    def columns(self, name: str) -> int | None:
        """Return the number of columns of a matrix, or None for a vector."""
        ...

    def matrix(self, name: str, columns: int) -> PackedMatrix | Floats:
        """Return a matrix as it is to be stored.

        Raises:
            ModelImportError: it is missing, or not a matrix with this number of columns.
        """
        ...
