"""Re-encode GGUF's quantised blocks as the blocks that onnxruntime's `MatMulNBits` computes with.

Nothing is quantised anew. A GGUF block of 32 weights is `w = d*q + m`. `MatMulNBits` computes
`scale * (code - zero_point)` with a fixed integer zero point (8 for 4 bits, 128 for 8 bits), so the
scale is `d` and what is left over is one number per block, the offset. It is zero for Q4_0 and Q8_0;
for Q4_1 it is `m + 8*d`, and the graph adds `sum(x over the block) * offset` to the product.
Block layouts: ggml's ggml-common.h (block_q4_0, block_q4_1, block_q8_0).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_SIZE = 32

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Packed:
    """A quantised matrix of N rows and K columns, in blocks of 32 columns.

    Args:
        bits: 4 or 8 per weight.
        codes: [N, K/32, 32*bits/8]; with 4 bits the even column is in the low nibble.
        scales: [N, K/32].
        offsets: [N, K/32], or None where every offset is zero.
    """

    bits: int
    codes: Bytes
    scales: Floats
    offsets: Floats | None

    @property
    def rows(self) -> int:
        """N."""
        return int(self.codes.shape[0])

    @property
    def columns(self) -> int:
        """K."""
        return int(self.codes.shape[1]) * BLOCK_SIZE

    @property
    def encoding(self) -> tuple[int, bool]:
        """Matrices of the same encoding can be stacked."""
        return self.bits, self.offsets is not None

    def dequantize(self) -> Floats:
        """The weights, [N, K]."""
        if self.bits == 8:
            codes = self.codes.astype(np.float32) - 128
        else:
            nibbles = np.stack([self.codes & 0x0F, self.codes >> 4], axis=-1)
            codes = nibbles.reshape(*self.scales.shape, BLOCK_SIZE).astype(np.float32) - 8
        weights = codes * self.scales[..., None]
        if self.offsets is not None:
            weights = weights + self.offsets[..., None]
        return weights.reshape(self.rows, self.columns)


def _interleave(nibbles: Bytes) -> Bytes:
    """From ggml, which keeps columns j and j+16 in a byte, to columns 2j and 2j+1. [..., 16] -> [..., 16]."""
    ordered = np.concatenate([nibbles & 0x0F, nibbles >> 4], axis=-1)
    return np.asarray(ordered[..., 0::2] | (ordered[..., 1::2] << 4))


def _half(raw: Bytes) -> Floats:
    """Little-endian float16 in two bytes, [..., 2] -> [...]."""
    return np.ascontiguousarray(raw).view("<f2")[..., 0].astype(np.float32)


def _q4_0(blocks: Bytes) -> Packed:
    return Packed(4, _interleave(blocks[..., 2:]), _half(blocks[..., :2]), None)


def _q4_1(blocks: Bytes) -> Packed:
    scales = _half(blocks[..., :2])
    return Packed(4, _interleave(blocks[..., 4:]), scales, _half(blocks[..., 2:4]) + 8 * scales)


def _q8_0(blocks: Bytes) -> Packed:
    return Packed(8, blocks[..., 2:] ^ np.uint8(0x80), _half(blocks[..., :2]), None)


_FORMATS: dict[str, tuple[int, Callable[[Bytes], Packed]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q8_0": (34, _q8_0),
}
QUANTISED = frozenset(_FORMATS)
"""The names of ggml's quantised types that can be repacked."""


def repack(raw: Bytes, quantisation: str) -> Packed:
    """Re-encode a matrix.

    Args:
        raw: its rows as they are in the file, [N, bytes per row].
        quantisation: one of `QUANTISED`.
    """
    block_bytes, convert = _FORMATS[quantisation]
    return convert(raw.reshape(raw.shape[0], -1, block_bytes))


def stack(parts: Sequence[Packed]) -> Packed:
    """Put matrices of one encoding and width on top of each other."""
    offsets = [p.offsets for p in parts if p.offsets is not None]
    return Packed(
        parts[0].bits,
        np.concatenate([p.codes for p in parts]),
        np.concatenate([p.scales for p in parts]),
        np.concatenate(offsets) if offsets else None,
    )
