"""Weights as the blocks that onnxruntime's `MatMulNBits` computes with.

`MatMulNBits` computes `scale * (code - zero_point)` with a fixed integer zero point (8 for 4 bits,
128 for 8 bits). A GGUF block of weights is `w = d*q + m`, so the scale is `d`, and the remainder is
one number per block, the offset. It is zero for Q4_0, Q5_0, Q6_K and Q8_0; for Q4_1 and Q4_K it is
`m + 8*d`, for Q5_1 and Q5_K `m + 16*d`, and the graph adds `sum(x over the block) * offset` to the
product. So blocks are re-encoded exactly and not quantised again. Codes of 5 and 6 bits become 8.
Block layouts: ggml's ggml-common.h (block_q4_0, block_q5_0, block_q4_K and so on).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Rows = slice | Sequence[int]

_CHUNK_WEIGHTS = 8 << 20
"""Weights to hold in float32 at a time: a whole matrix would need too much memory."""
_CENTRE = 128
"""The zero point of 8-bit codes."""


@dataclass(frozen=True)
class PackedMatrix:
    """A quantised matrix of N rows and K columns, in blocks of b columns.

    Args:
        bits: 4 or 8 per weight.
        codes: [N, K/b, b*bits/8]; with 4 bits the even column is in the low nibble.
        scales: [N, K/b].
        offsets: [N, K/b], or None where every offset is zero.
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
        return int(self.codes.shape[1]) * self.block_size

    @property
    def block_size(self) -> int:
        """B."""
        return int(self.codes.shape[2]) * 8 // self.bits

    @property
    def encoding(self) -> tuple[int, int, bool]:
        """Bits, block size and whether there are offsets; the same for matrices to stack."""
        return self.bits, self.block_size, self.offsets is not None

    def take(self, rows: Rows) -> "PackedMatrix":
        """Return a matrix of some of the rows."""
        offsets = None if self.offsets is None else self.offsets[rows]
        return PackedMatrix(self.bits, self.codes[rows], self.scales[rows], offsets)

    def dequantize(self) -> Floats:
        """Return the weights in float32, [N, K]."""
        if self.bits == 8:
            codes = self.codes.astype(np.float32) - _CENTRE
        else:
            nibbles = np.stack([self.codes & 0x0F, self.codes >> 4], axis=-1)
            codes = nibbles.reshape(*self.scales.shape, self.block_size).astype(np.float32) - 8
        weights = codes * self.scales[..., None]
        if self.offsets is not None:
            weights = weights + self.offsets[..., None]
        return weights.reshape(self.rows, self.columns)


def _pairs(codes: Bytes) -> Bytes:
    """Pack two 4-bit codes into a byte, the even one low. [..., b] -> [..., b/2]."""
    return np.asarray(codes[..., 0::2] | (codes[..., 1::2] << 4))


def _halves(nibbles: Bytes) -> Bytes:
    """Unpack ggml's bytes, each of columns j and j+n/2. [..., n/2] -> [..., n]."""
    return np.concatenate([nibbles & 0x0F, nibbles >> 4], axis=-1)


def _half(raw: Bytes) -> Floats:
    """Decode a little-endian float16 from two bytes. [..., 2] -> [...]."""
    return np.ascontiguousarray(raw).view("<f2")[..., 0].astype(np.float32)


def _q4_0(blocks: Bytes) -> PackedMatrix:
    return PackedMatrix(4, _pairs(_halves(blocks[..., 2:])), _half(blocks[..., :2]), None)


def _q4_1(blocks: Bytes) -> PackedMatrix:
    scales = _half(blocks[..., :2])
    return PackedMatrix(
        4, _pairs(_halves(blocks[..., 4:])), scales, _half(blocks[..., 2:4]) + 8 * scales
    )


def _q8_0(blocks: Bytes) -> PackedMatrix:
    return PackedMatrix(8, blocks[..., 2:] ^ np.uint8(0x80), _half(blocks[..., :2]), None)


def _fifth_bits(raw: Bytes) -> Bytes:
    """Unpack the fifth bits of 32 codes from a little-endian number. [..., 4] -> [..., 32]."""
    return np.unpackbits(raw, axis=-1, bitorder="little") << np.uint8(4)


def _q5_0(blocks: Bytes) -> PackedMatrix:
    codes = _halves(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6])
    return PackedMatrix(8, codes + np.uint8(_CENTRE - 16), _half(blocks[..., :2]), None)


def _q5_1(blocks: Bytes) -> PackedMatrix:
    codes, scales = _halves(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8]), _half(blocks[..., :2])
    return PackedMatrix(
        8, codes + np.uint8(_CENTRE - 16), scales, _half(blocks[..., 2:4]) + 16 * scales
    )


def _k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """Decode the scales and minima of a super-block: 256 weights in 8 blocks of 32.

    Each is a number of 6 bits times one float of the super-block.

    Returns:
        scales and minima, [..., 8] each.
    """
    d, d_min = _half(blocks[..., :2]), _half(blocks[..., 2:4])
    low, middle, high = (blocks[..., 4 + 4 * i : 8 + 4 * i] for i in range(3))
    scale = np.concatenate([low & 63, (high & 0x0F) | (low >> 6 << 4)], axis=-1)
    minimum = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], axis=-1)
    return d[..., None] * scale, d_min[..., None] * minimum


def _q4_k(blocks: Bytes) -> PackedMatrix:
    rows, supers = blocks.shape[:2]
    scales, minima = _k_scales(blocks)
    codes = _halves(blocks[..., 16:].reshape(rows, supers, 4, 32)).reshape(rows, supers * 8, 32)
    return PackedMatrix(
        4, _pairs(codes), scales.reshape(rows, -1), (8 * scales - minima).reshape(rows, -1)
    )


def _q5_k(blocks: Bytes) -> PackedMatrix:
    """Like Q4_K, with fifth bits: those of block i are bit i of 32 bytes."""
    rows, supers = blocks.shape[:2]
    scales, minima = _k_scales(blocks)
    low = _halves(blocks[..., 48:].reshape(rows, supers, 4, 32)).reshape(rows, supers, 8, 32)
    high = blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    codes = np.asarray(low | (high << 4), np.uint8).reshape(rows, supers * 8, 32)
    offsets = (16 * scales - minima).reshape(rows, -1)
    return PackedMatrix(8, codes + np.uint8(_CENTRE - 16), scales.reshape(rows, -1), offsets)


def _q6_k(blocks: Bytes) -> PackedMatrix:
    """256 weights of 6 bits in 16 blocks of 16; a scale is an int8 times one float."""
    rows, supers = blocks.shape[:2]
    low = (
        blocks[..., :128].reshape(rows, supers, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None]
        & 0x0F
    )
    high = (
        blocks[..., 128:192].reshape(rows, supers, 2, 1, 32)
        >> np.array([0, 2, 4, 6], np.uint8)[:, None]
        & 3
    )
    codes = np.asarray(low.reshape(rows, -1, 16) | (high.reshape(rows, -1, 16) << 4), np.uint8)
    scales = _half(blocks[..., 208:])[..., None] * blocks[..., 192:208].view(np.int8)
    return PackedMatrix(8, codes + np.uint8(_CENTRE - 32), scales.reshape(rows, -1), None)


_FORMATS: dict[str, tuple[int, Callable[[Bytes], PackedMatrix]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q8_0": (34, _q8_0),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
}
FOUR_BITS = frozenset({"Q4_0", "Q4_1", "Q4_K"})
"""The quantised types with 4 bits per weight."""
QUANTISED = frozenset(_FORMATS)
"""Names of ggml's quantised types that can be repacked."""


def repack(raw: Bytes, quantisation: str) -> PackedMatrix:
    """Re-encode a matrix without any loss.

    Args:
        raw: the bytes of its rows in the file, [N, bytes per row].
        quantisation: one of `QUANTISED`.
    """
    block_bytes, convert = _FORMATS[quantisation]
    return convert(raw.reshape(raw.shape[0], -1, block_bytes))


def quantize(weights: Floats, bits: int, block_size: int) -> PackedMatrix:
    """Round a matrix to the nearest codes, block by block.

    4-bit codes range from the smallest weight of a block to the largest; 8-bit codes are symmetric.

    Args:
        weights: [N, K].
        bits: 4 or 8.
        block_size: a power of two. If it does not divide K, the largest that does is used.
    """
    rows, columns = weights.shape
    while columns % block_size:
        block_size //= 2
    blocks = weights.reshape(rows, -1, block_size).astype(np.float32)
    if bits == 8:
        scales = np.abs(blocks).max(axis=-1) / 127
        codes = np.rint(blocks / np.where(scales, scales, 1)[..., None]) + _CENTRE
        return PackedMatrix(8, codes.astype(np.uint8), scales, None)
    lowest = blocks.min(axis=-1)
    scales = (blocks.max(axis=-1) - lowest) / 15
    codes = np.rint((blocks - lowest[..., None]) / np.where(scales, scales, 1)[..., None])
    return PackedMatrix(4, _pairs(codes.astype(np.uint8)), scales, lowest + 8 * scales)


def quantize_rows(
    count: int, read: Callable[[slice], Floats], bits: int, block_size: int
) -> PackedMatrix:
    """Quantise a matrix of `count` rows like `quantize`, reading some rows at a time.

    Args:
        count: the number of rows.
        read: reads some rows, [rows, K].
        bits: 4 or 8.
        block_size: see `quantize`.
    """
    width = read(slice(0, 1)).shape[1]
    step = max(1, _CHUNK_WEIGHTS // width)
    spans = (slice(at, min(at + step, count)) for at in range(0, count, step))
    return _assemble(count, (quantize(read(span), bits, block_size) for span in spans))


def _assemble(rows: int, parts: Iterable[PackedMatrix]) -> PackedMatrix:
    """Copy parts one after the other into a matrix of `rows` rows. Holds one part at a time."""
    whole: PackedMatrix | None = None
    at = 0
    for part in parts:
        whole = whole or _empty(rows, part)
        end = at + part.rows
        whole.codes[at:end], whole.scales[at:end] = part.codes, part.scales
        if whole.offsets is not None and part.offsets is not None:
            whole.offsets[at:end] = part.offsets
        at = end
    if whole is None:
        raise ValueError("there are no pieces")
    return whole


def _empty(rows: int, like: PackedMatrix) -> PackedMatrix:
    """An uninitialised matrix of `rows` rows with the encoding and the width of another."""

    def empty_array(array: NDArray[Any]) -> NDArray[Any]:
        return np.empty((rows, *array.shape[1:]), array.dtype)

    return PackedMatrix(
        like.bits,
        empty_array(like.codes),
        empty_array(like.scales),
        None if like.offsets is None else empty_array(like.offsets),
    )


def stack(parts: Sequence[PackedMatrix]) -> PackedMatrix:
    """Stack the rows of matrices of one encoding and one width."""
    offsets = [part.offsets for part in parts if part.offsets is not None]
    return PackedMatrix(
        parts[0].bits,
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate(offsets) if offsets else None,
    )
