"""The reference for conversions: the forward pass in plain float32 numpy.

It reads the source's own weights, dequantised, and shares no code with the graph.
Architectures: Touvron et al., "LLaMA" (arXiv:2302.13971); Qwen2 (arXiv:2407.10671); Qwen3
(arXiv:2505.09388); Phi-3 (arXiv:2404.14219); Gemma 3 (arXiv:2503.19786). Rotary embedding: Su et
al. (arXiv:2104.09864).
Shapes: S is the number of positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusewire_worker_edge.importers.repack import Floats, PackedMatrix, Rows
from fusewire_worker_edge.importers.source import ModelSource, RotaryEmbedding, Weights

_HEAD_ROWS = 8192
"""Rows of the head's matrix to use at a time: the whole would not fit into memory as float32."""
_POSITIONS = 32
"""Positions to compare at a time, for the same reason."""


class StoredWeights:
    """The weights of a source as the conversion stores them, after its quantisation."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self.shape, self.names = source.shape, source.names
        self._last: tuple[str, PackedMatrix | Floats] | None = None

    def floats(self, name: str, rows: Rows = slice(None)) -> Floats:
        """See `Weights.floats`."""
        columns = self._source.columns(name)
        if columns is None:
            return self._source.floats(name)
        if self._last is None or self._last[0] != name:
            self._last = (name, self._source.matrix(name, columns))
        matrix = self._last[1]
        if isinstance(matrix, PackedMatrix):
            return matrix.take(rows).dequantize()
        return matrix[rows]


@dataclass(frozen=True)
class Divergence:
    """How far logits are from the reference's, over the positions of a text."""

    tokens: int
    kl: float
    """Mean Kullback-Leibler divergence of the next-token distributions, in nats."""
    top1: float
    """Share of positions with the same most probable token."""


def _rms_norm(x: Floats, gain: Floats, epsilon: float) -> Floats:
    scale = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(epsilon))
    return np.asarray(x / scale * gain, np.float32)


def _rotate(x: Floats, rotation: RotaryEmbedding, source: Weights) -> Floats:
    """Apply the rotary embedding to the first `rotation.size` elements of each head.

    [S, heads, head size] -> the same.
    """
    rest, x = x[..., rotation.size :], x[..., : rotation.size]
    positions = np.arange(x.shape[0]) * rotation.position_scale
    frequency = rotation.theta ** (-2.0 * np.arange(rotation.size // 2) / rotation.size)
    if rotation.factors:
        frequency = frequency / source.floats(rotation.factors)
    angle = positions[:, None] * frequency
    cos = rotation.magnitude * np.cos(angle)[:, None, :]
    sin = rotation.magnitude * np.sin(angle)[:, None, :]
    if rotation.is_interleaved:
        even, odd = x[..., 0::2], x[..., 1::2]
        pairs = np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
        rotary = pairs.reshape(x.shape)
    else:
        first, second = np.split(x, 2, axis=-1)
        rotary = np.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return np.asarray(np.concatenate([rotary, rest], axis=-1), np.float32)


def _softmax(x: Floats) -> Floats:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True), np.float32)


def _projections(source: Weights, layer: int, x: Floats) -> list[Floats]:
    """Project [S, hidden] to queries, keys and values, each [S, heads, head size]."""
    shape, prefix = source.shape, f"blk.{layer}"
    sizes = np.cumsum([shape.heads, shape.kv_heads]) * shape.head_size
    if f"{prefix}.attn_qkv.weight" in source.names:
        products = np.split(x @ source.floats(f"{prefix}.attn_qkv.weight").T, sizes, axis=-1)
    else:
        products = [x @ source.floats(f"{prefix}.attn_{part}.weight").T for part in "qkv"]
    projections = []
    for part, product in zip("qkv", products, strict=True):
        name = f"{prefix}.attn_{part}"
        bias = source.floats(f"{name}.bias") if f"{name}.bias" in source.names else np.float32(0)
        heads = np.asarray(product + bias, np.float32).reshape(len(x), -1, shape.head_size)
        if f"{name}_norm.weight" in source.names:
            heads = _rms_norm(heads, source.floats(f"{name}_norm.weight"), shape.rms_epsilon)
        projections.append(heads)
    return projections


def _attention(source: Weights, layer: int, x: Floats) -> Floats:
    shape, length = source.shape, x.shape[0]
    q, k, v = _projections(source, layer, x)
    rotation, window = shape.rotation_of(layer), shape.window_of(layer)
    q, k = _rotate(q, rotation, source), _rotate(k, rotation, source)
    # Grouped-query attention: several queries share a key and a value.
    group = shape.heads // shape.kv_heads
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("shd,thd->hst", q, k) * np.float32(shape.attention_scale)
    mask = np.tri(length, dtype=bool)
    if window:
        mask &= ~np.tri(length, k=-window.positions, dtype=bool)
    scores = np.where(mask, scores, np.float32(-np.inf))
    heads = np.einsum("hst,thd->shd", _softmax(scores), v).reshape(length, -1)
    return np.asarray(heads @ source.floats(f"blk.{layer}.attn_output.weight").T, np.float32)


def _mlp(source: Weights, layer: int, x: Floats) -> Floats:
    prefix = f"blk.{layer}"
    up = x @ source.floats(f"{prefix}.ffn_up.weight").T
    if f"{prefix}.ffn_gate.weight" in source.names:
        gate = x @ source.floats(f"{prefix}.ffn_gate.weight").T
    else:
        gate, up = np.split(up, 2, axis=-1)
    if source.shape.activation == "gelu":
        # The tanh approximation of Hendrycks and Gimpel (arXiv:1606.08415), with which Gemma is
        # trained.
        active = gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    else:
        active = gate / (1 + np.exp(-gate))
    return np.asarray((active * up) @ source.floats(f"{prefix}.ffn_down.weight").T, np.float32)


def reference_states(source: Weights, ids: Sequence[int]) -> Floats:
    """Return the normalised states after the last layer, the head's input, [len(ids), hidden]."""

    def norm(name: str, x: Floats) -> Floats:
        return _rms_norm(x, source.floats(f"{name}.weight"), source.shape.rms_epsilon)

    def post_norm(name: str, x: Floats) -> Floats:
        return norm(name, x) if f"{name}.weight" in source.names else x

    x = source.floats("token_embd.weight", list(ids)) * np.float32(source.shape.embedding_scale)
    for layer in range(source.shape.layers):
        prefix = f"blk.{layer}"
        attention = _attention(source, layer, norm(f"{prefix}.attn_norm", x))
        x = x + post_norm(f"{prefix}.post_attention_norm", attention)
        mlp = _mlp(source, layer, norm(f"{prefix}.ffn_norm", x))
        x = x + post_norm(f"{prefix}.post_ffw_norm", mlp)
    return norm("output_norm", x)


def reference_head(source: Weights, states: Floats) -> Floats:
    """Return the logits of states [S, hidden] of `reference_states`, [S, vocabulary]."""
    name = "output.weight" if "output.weight" in source.names else "token_embd.weight"
    starts = range(0, source.shape.vocab_size, _HEAD_ROWS)
    parts = [states @ source.floats(name, slice(at, at + _HEAD_ROWS)).T for at in starts]
    return np.concatenate(parts, axis=-1, dtype=np.float32)


def reference_logits(source: Weights, ids: Sequence[int]) -> Floats:
    """Return the logits after each token, [len(ids), vocabulary]."""
    return reference_head(source, reference_states(source, ids))


def divergence(reference: Floats, logits: Floats) -> Divergence:
    """Return the divergence of logits from the reference's, both [S, vocabulary]."""
    starts = range(0, len(reference), _POSITIONS)
    parts = [
        _divergence(reference[at : at + _POSITIONS], logits[at : at + _POSITIONS]) for at in starts
    ]
    return mean(parts)


def mean(parts: Sequence[Divergence]) -> Divergence:
    """Combine the divergences of the parts of a text into that of the whole text."""
    tokens = sum(part.tokens for part in parts)
    return Divergence(
        tokens=tokens,
        kl=sum(part.kl * part.tokens for part in parts) / tokens,
        top1=sum(part.top1 * part.tokens for part in parts) / tokens,
    )


def _divergence(reference: Floats, logits: Floats) -> Divergence:

    def log_softmax(x: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        shifted_x = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
        return np.asarray(shifted_x - np.log(np.exp(shifted_x).sum(axis=-1, keepdims=True)))

    p, q = log_softmax(reference), log_softmax(logits)
    kl = float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1)))
    top1 = float(np.mean(reference.argmax(axis=-1) == logits.argmax(axis=-1)))
    return Divergence(tokens=len(reference), kl=kl, top1=top1)
