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
from fusewire_worker_edge.importers.repack import Floats, Packed


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

    def floats(self, name: str) -> Floats:
        """A tensor."""
        ...


class AsStored:
    """The weights of a source as the conversion stores them, its own rounding included."""

    def __init__(self, source: GgufFile) -> None:
        self._source = source
        self.shape, self.names = source.shape, source.names

    def floats(self, name: str) -> Floats:
        """See `Weights.floats`."""
        weights = self._source.floats(name)
        if weights.ndim == 1:
            return weights
        stored = self._source.matrix(name, weights.shape[1])
        return stored.dequantize() if isinstance(stored, Packed) else stored


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


def reference_logits(source: Weights, ids: Sequence[int]) -> Floats:
    """The logits after each token, [len(ids), vocabulary]."""
    epsilon = source.shape.rms_epsilon
    embedding = source.floats("token_embd.weight")
    x = embedding[np.asarray(ids)]
    for layer in range(source.shape.layers):
        x = x + _attention(source, layer, _rms_norm(x, source.floats(f"blk.{layer}.attn_norm.weight"), epsilon))
        x = x + _mlp(source, layer, _rms_norm(x, source.floats(f"blk.{layer}.ffn_norm.weight"), epsilon))
    x = _rms_norm(x, source.floats("output_norm.weight"), epsilon)
    head = source.floats("output.weight") if "output.weight" in source.names else embedding
    return np.asarray(x @ head.T, np.float32)


def divergence(reference: Floats, measured: Floats) -> Divergence:
    """Compare two sets of logits, both [positions, vocabulary]."""

    def log_softmax(x: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        shifted = x.astype(np.float64) - x.max(axis=-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))

    p, q = log_softmax(reference), log_softmax(measured)
    kl = float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1)))
    top1 = float(np.mean(reference.argmax(axis=-1) == measured.argmax(axis=-1)))
    return Divergence(tokens=len(reference), kl=kl, top1=top1)
