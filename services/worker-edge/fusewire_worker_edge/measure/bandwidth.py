"""How fast this machine reads memory, and how much of a model one step reads."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnx
from onnx import TensorProto

_ARRAY_BYTES = 512 << 20
"""Far more than the processor's caches hold."""
_PARTS = 32
"""Parts of each thread's half: with one part each, the slower thread would be waited for."""
_PASSES = 3
_ROW_READERS = frozenset(
    {"Gather", "GatherBlockQuantized", "GroupQueryAttention", "RotaryEmbedding"}
)
"""Operators that read of their tables, embeddings and rotations, only the row of a token."""


class MemoryReader:
    """Reads an array that no cache holds, with as many threads as the model has.

    Each thread takes the largest byte of its parts: numpy's vector instructions for that wait for
    the memory alone. A reader in C with AVX-512 was not faster.

    Args:
        threads: how many threads read.
    """

    def __init__(self, threads: int) -> None:
        self._parts = np.array_split(np.ones(_ARRAY_BYTES, np.uint8), threads * _PARTS)
        self._pool = ThreadPoolExecutor(threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._pool.shutdown()

    def measure(self) -> float:
        """Return bytes a second, the median of `_PASSES` passes over the array."""
        speeds = []
        for _ in range(_PASSES):
            began = time.perf_counter()
            list(self._pool.map(np.max, self._parts))
            speeds.append(_ARRAY_BYTES / (time.perf_counter() - began))
        return statistics.median(speeds)


def step_bytes(graph: Path) -> int:
    """Return the bytes of weights that a step for one token reads, as the model folder stores them.

    Every weight of a matrix product, once. Not counted: the rows of tables that other tokens have
    (embeddings, rotations), keys and values, and what onnxruntime adds to weights when it packs
    them.

    Args:
        graph: the ONNX graph of a model folder.
    """
    model = onnx.load(graph, load_external_data=False).graph
    read_names: set[str] = set()
    for node in model.node:
        if node.op_type not in _ROW_READERS:
            read_names.update(node.input)
    return sum(_size(tensor) for tensor in model.initializer if tensor.name in read_names)


def _size(tensor: TensorProto) -> int:
    """The bytes of a tensor, in the graph or beside it."""
    for entry in tensor.external_data:
        if entry.key == "length":
            return int(entry.value)
    return len(tensor.raw_data)
