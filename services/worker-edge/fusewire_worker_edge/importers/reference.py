"""The forward pass in plain float32 numpy: what a conversion is measured against.

It reads the GGUF's own weights, dequantised, and shares no code with the graph.
Architecture: Touvron et al., "LLaMA" (arXiv:2302.13971); rotary embedding as ggml stores it,
pairs of neighbouring elements (Su et al., arXiv:2104.09864).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fusewire_worker_edge.importers.gguf import GgufFile, LlamaShape
from fusewire_worker_edge.importers.repack import Floats, Packed, Rows

_HEAD_ROWS = 8192
"""Of the vocabulary's matrix at a time: whole it would be the largest thing in memory by far."""
_POSITIONS = 32
"""Compared at a time, for the same reason."""


class Weights(Protocol):
    """Where the reference has its weights from."""

    @property
    def shape(self) -> LlamaShape:
        """The sizes."""
        ...

    @property
    def names(self) -> set[str]:
        """The names of the tensors."""
        ...

    def floats(self, name: str, rows: Rows = slice(None)) -> Floats:
        """A tensor; of a matrix those rows."""
        ...


class AsStored:
    """The weights of a source as the conversion stores them, its own rounding included."""

    def __init__(self, source: GgufFile) -> None:
        self._source = source
        self.shape, self.names = source.shape, source.names
        self._last: tuple[str, Packed | Floats] | None = None

    def floats(self, name: str, rows: Rows = slice(None)) -> Floats:
        """See `Weights.floats`."""
        columns = self._source.columns(name)
        if columns is None:
            return self._source.floats(name)
        if self._last is None or self._last[0] != name:
            self._last = (name, self._source.matrix(name, columns))
        stored = self._last[1]
        return stored.take(rows).dequantize() if isinstance(stored, Packed) else stored[rows]


@dataclass(frozen=True)
class Divergence:
    """How far logits are from the reference's, over every position of a text."""

    tokens: int
    kl: float
    """Mean Kullback-Leibler divergence of the next-token distribution from the reference's, in nats."""
    top1: float
    """The share of positions with the same most probable token."""


def _rms_norm(x: Floats, gain: Floats, epsilon: float) -> Floats:
    scale = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(epsilon))
    return np.asarray(x / scale * gain, np.float32)


def _rotate(x: Floats, source: Weights) -> Floats:
    """Rotary embedding. [S, heads, size] -> the same."""
    positions, half = np.arange(x.shape[0]), np.arange(x.shape[-1] // 2)
    frequency = source.shape.rope_theta ** (-2.0 * half / x.shape[-1])
    if "rope_freqs.weight" in source.names:
        frequency = frequency / source.floats("rope_freqs.weight")
    angle = positions[:, None] * frequency
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    if source.shape.rotary_interleaved:
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)
    else:
        first, second = np.split(x, 2, axis=-1)
        turned = np.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return np.asarray(turned, np.float32)


def _softmax(x: Floats) -> Floats:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True), np.float32)


def _projected(source: Weights, name: str, x: Floats) -> Floats:
    product = x @ source.floats(f"{name}.weight").T
    return product + source.floats(f"{name}.bias") if f"{name}.bias" in source.names else product


def _attention(source: Weights, layer: int, x: Floats) -> Floats:
    shape, length = source.shape, x.shape[0]
    q, k, v = (_projected(source, f"blk.{layer}.attn_{name}", x) for name in "qkv")
    q = _rotate(q.reshape(length, shape.heads, shape.head_size), source)
    k = _rotate(k.reshape(length, shape.kv_heads, shape.head_size), source)
    v = v.reshape(length, shape.kv_heads, shape.head_size)
    group = shape.heads // shape.kv_heads
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("shd,thd->hst", q, k) / np.float32(np.sqrt(shape.head_size))
    scores = np.where(np.tri(length, dtype=bool), scores, np.float32(-np.inf))
    mixed = np.einsum("hst,thd->shd", _softmax(scores), v).reshape(length, -1)
    return np.asarray(mixed @ source.floats(f"blk.{layer}.attn_output.weight").T, np.float32)


def _mlp(source: Weights, layer: int, x: Floats) -> Floats:
    gate = x @ source.floats(f"blk.{layer}.ffn_gate.weight").T
    up = x @ source.floats(f"blk.{layer}.ffn_up.weight").T
    return np.asarray((gate / (1 + np.exp(-gate)) * up) @ source.floats(f"blk.{layer}.ffn_down.weight").T, np.float32)


def reference_states(source: Weights, ids: Sequence[int]) -> Floats:
    """What the head is given after each token, [len(ids), hidden]."""
    epsilon = source.shape.rms_epsilon
    x = source.floats("token_embd.weight", list(ids))
    for layer in range(source.shape.layers):
        x = x + _attention(source, layer, _rms_norm(x, source.floats(f"blk.{layer}.attn_norm.weight"), epsilon))
        x = x + _mlp(source, layer, _rms_norm(x, source.floats(f"blk.{layer}.ffn_norm.weight"), epsilon))
    return _rms_norm(x, source.floats("output_norm.weight"), epsilon)


def reference_head(source: Weights, states: Floats) -> Floats:
    """The logits of such states, [positions, vocabulary]."""
    name = "output.weight" if "output.weight" in source.names else "token_embd.weight"
    starts = range(0, source.shape.vocab_size, _HEAD_ROWS)
    parts = [states @ source.floats(name, slice(at, at + _HEAD_ROWS)).T for at in starts]
    return np.concatenate(parts, axis=-1, dtype=np.float32)


def reference_logits(source: Weights, ids: Sequence[int]) -> Floats:
    """The logits after each token, [len(ids), vocabulary]."""
    return reference_head(source, reference_states(source, ids))


def divergence(reference: Floats, measured: Floats) -> Divergence:
    """Compare two sets of logits, both [positions, vocabulary]."""
    starts = range(0, len(reference), _POSITIONS)
    parts = [_divergence(reference[at : at + _POSITIONS], measured[at : at + _POSITIONS]) for at in starts]
    return mean(parts)


def mean(parts: Sequence[Divergence]) -> Divergence:
    """Of several pieces of a text, as if it had been compared whole."""
    tokens = sum(part.tokens for part in parts)
    return Divergence(
        tokens=tokens,
        kl=sum(part.kl * part.tokens for part in parts) / tokens,
        top1=sum(part.top1 * part.tokens for part in parts) / tokens,
    )


def _divergence(reference: Floats, measured: Floats) -> Divergence:

    def log_softmax(x: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        shifted = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))

    p, q = log_softmax(reference), log_softmax(measured)
    kl = float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1)))
    top1 = float(np.mean(reference.argmax(axis=-1) == measured.argmax(axis=-1)))
    return Divergence(tokens=len(reference), kl=kl, top1=top1)
