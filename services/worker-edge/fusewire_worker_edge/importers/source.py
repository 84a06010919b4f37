"""What a conversion is made from: the sizes of a decoder, and its weights by the names that GGUF gives them."""

from dataclasses import dataclass
from typing import Literal, Protocol

from fusewire_worker_edge.importers import ModelImportError
from fusewire_worker_edge.importers.repack import Floats, PackedMatrix, Rows

ARCHITECTURES = ("llama", "qwen2", "qwen3", "phi3", "gemma3")
"""As GGUF names them; Mistral's models are of the first."""
ROPE_FACTORS = "rope_freqs.weight"
"""What each frequency of the rotation is divided by; Llama 3.1 and later."""
SHORT_FACTORS, LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"
"""The same of LongRoPE, up to the length that a model was first trained for, and beyond."""
VOCABULARY = ("token_embd.weight", "output.weight")
"""The matrices with a row for each token."""
EXACT = 32
"""The block size at which GGUF's blocks are kept as they are."""
LARGE = 128
"""The block size whose product reads the least memory and is fast on CPUs."""
_ROTATED_TOGETHER = 16
"""GroupQueryAttention rotates this many elements at a time."""
LONGEST = 32_768
"""Positions: the tables of the rotation are in memory for each of them, and a longer cache has no room at an edge."""
_MOST = {
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
"""Sizes beyond these are those of no model, and would fill the memory."""


@dataclass(frozen=True)
class ImportOptions:
    """How weights are to be stored.

    Args:
        block_size: of the product's blocks. 32 keeps the file's own blocks; 128 is smaller and faster, and rounds anew;
            None keeps what has 4 or 8 bits and rounds the rest to 8 bits in blocks of 128.
        bits: of what is rounded anew, 4 or 8; None keeps floating point as it is, and 4 bits 4.
    """

    block_size: int | None = None
    bits: int | None = None


@dataclass(frozen=True)
class RotaryEmbedding:
    """How a layer rotates queries and keys by their positions (Su et al., arXiv:2104.09864).

    Args:
        size: how many elements of each head are rotated, the first ones.
        theta: the base of the frequencies.
        position_scale: what positions are multiplied with.
        magnitude: what the rotated elements are multiplied with.
        factors: the tensor of what each frequency is divided by.
        is_interleaved: whether neighbours are pairs, as GGUF stores a llama, or an element and that half a size on.
    """

    size: int
    theta: float
    position_scale: float = 1.0
    magnitude: float = 1.0
    factors: str | None = None
    is_interleaved: bool = False


@dataclass(frozen=True)
class Window:
    """Layers that look back over so many positions only, their own included.

    Args:
        positions: how many.
        every: each layer of this number, counted from 1, and its multiples look back over all.
        rotation: of the layers with a window.
    """

    positions: int
    every: int
    rotation: RotaryEmbedding


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a decoder, and where architectures differ beyond the tensors that they have."""

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
        """The window of a layer, counted from 0."""
        return self.window if self.window and (layer + 1) % self.window.every else None

    def rotation_of(self, layer: int) -> RotaryEmbedding:
        """The rotation of a layer, counted from 0."""
        window = self.window_of(layer)
        return window.rotation if window else self.rotation


def rotated(name: str, size: int, head_size: int) -> int:
    """How many elements of a head are rotated, if that can be converted.

    Raises:
        ModelImportError: it cannot; `name` is what says so many.
    """
    if not 0 < size <= head_size or size % _ROTATED_TOGETHER:
        raise ModelImportError(
            f"'{name}' is {size}: a multiple of {_ROTATED_TOGETHER}, up to the {head_size} elements of a head,"
            " can be converted"
        )
    return size


def sized(name: str, value: float) -> int:
    """A size of a model.

    Raises:
        ModelImportError: no model has it.
    """
    most = _MOST.get(name.rpartition(".")[2], 1 << 16)
    if not 1 <= value <= most or value != int(value):
        raise ModelImportError(f"'{name}' is {value:g}, where 1 to {most} can be meant")
    return int(value)


class Weights(Protocol):
    """Weights in float32, and what they are the weights of."""

    @property
    def shape(self) -> DecoderShape:
        """The sizes."""
        ...

    @property
    def names(self) -> set[str]:
        """The names of the tensors."""
        ...

    def floats(self, name: str, rows: Rows = slice(None)) -> Floats:
        """A tensor in its own shape (rows first); of a matrix those rows.

        Raises:
            ModelImportError: it is missing.
        """
        ...


class ModelSource(Weights, Protocol):
    """A model to be converted."""

    @property
    def name(self) -> str:
        """Of its file or folder."""
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
        """Whether any matrix is stored otherwise than the source has it."""
        ...

    def sha256(self) -> str:
        """The hash of all that it is made of."""
        ...

    def columns(self, name: str) -> int | None:
        """How many columns a matrix has; None of a vector."""
        ...

    def matrix(self, name: str, columns: int) -> PackedMatrix | Floats:
        """A matrix with this many columns, as it is to be stored.

        Raises:
            ModelImportError: it is missing, or no such matrix.
        """
        ...
