"""The KV cache of running sequences, and the prefix cache of earlier prompts."""

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusewire_worker_edge.engine.sampling import Floats

_FLOAT_BYTES = 4

KeyValues = list[Floats]
"""The keys and values of one sequence, by layer in turn: [heads, length, head size] each."""


class KvCache:
    """Keys and values of several sequences, one in each slot, a batch row.

    The machine allocates memory when a position is first written; releasing a slot frees it.

    Args:
        layers: layers of the model.
        heads: key-value heads of a layer.
        head_size: elements of a head.
        slots: how many sequences there is room for.
        positions: the longest sequence.
    """

    def __init__(self, layers: int, heads: int, head_size: int, slots: int, positions: int) -> None:
        self.slots = slots
        self._heads = heads
        self._position_bytes = head_size * _FLOAT_BYTES
        # Every head of every slot begins on a memory page.
        unit = mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, self._position_bytes)
        slot_positions = -(-positions // unit) * unit
        self._head_bytes = slot_positions * self._position_bytes
        self._slot_bytes = heads * self._head_bytes
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        size = (slots + 1) * self._slot_bytes
        self._maps = [mmap.mmap(-1, size, private) for _ in range(2 * layers)]
        shape = (slots + 1, heads, slot_positions, head_size)
        self.rows: KeyValues = [
            np.frombuffer(memory, np.float32).reshape(shape) for memory in self._maps
        ]
        """Keys and values of each layer in turn, [1 + slots, heads, positions, head size]: a spare
        row, then a row for each slot."""
        self.arrays: KeyValues = [rows[1:] for rows in self.rows]
        """Those of the slots, [slots, heads, positions, head size]."""

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""
        for array in self.arrays:
            array[target, :, :length] = array[source, :, :length]
        self._trim(target, length)

    def swap(self, slots: tuple[int, int], lengths: tuple[int, int]) -> None:
        """Exchange the sequences of two slots, which have these lengths."""
        (first, second), (first_length, second_length) = slots, lengths
        for array in self.arrays:
            copy = array[first, :, :first_length].copy()
            array[first, :, :second_length] = array[second, :, :second_length]
            array[second, :, :first_length] = copy
        self._trim(first, second_length)
        self._trim(second, first_length)

    def keep(self, slot: int, length: int) -> KeyValues:
        """Return a copy of the first `length` positions of a slot."""
        return [array[slot, :, :length].copy() for array in self.arrays]

    def restore(self, slot: int, key_values: KeyValues, length: int) -> None:
        """Write the first `length` positions of a copy to a slot."""
        for array, part in zip(self.arrays, key_values, strict=True):
            array[slot, :, :length] = part[:, :length]

    def release(self, slot: int) -> None:
        """Return the memory of a slot to the operating system."""
        for memory in self._maps:
            memory.madvise(mmap.MADV_DONTNEED, self._start(slot), self._slot_bytes)

    def _start(self, slot: int) -> int:
        """Where the row of a slot begins, in bytes; the spare row is slot -1."""
        return (slot + 1) * self._slot_bytes

    def _trim(self, slot: int, length: int) -> None:
        """Return the memory beyond the first `length` positions of a slot, in whole pages."""
        kept_bytes = -(-length * self._position_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        if kept_bytes >= self._head_bytes:
            return
        for memory in self._maps:
            for head in range(self._heads):
                start = self._start(slot) + head * self._head_bytes + kept_bytes
                memory.madvise(mmap.MADV_DONTNEED, start, self._head_bytes - kept_bytes)


def common_prefix(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Return the length of the longest common prefix of two sequences of ids.

    >>> common_prefix(np.array([1, 2, 3]), np.array([1, 2, 9, 9]))
    2
    """
    length = min(len(a), len(b))
    differences = np.flatnonzero(a[:length] != b[:length])
    return int(differences[0]) if len(differences) else length


@dataclass(frozen=True, eq=False)
class _CachedPrefix:
    ids: NDArray[np.int64]
    key_values: KeyValues


class PrefixCache:
    """Keys and values of earlier prompts. Forgets the least recently used first."""

    def __init__(self) -> None:
        # The least recently used first.
        self._entries: list[_CachedPrefix] = []

    @property
    def tokens(self) -> int:
        """Positions of all entries together."""
        return sum(len(entry.ids) for entry in self._entries)

    def match(self, ids: Sequence[int]) -> tuple[int, KeyValues]:
        """Find the entry with the longest common prefix with `ids`.

        Returns:
            the prefix's length, 0 if there is none, and the entry's keys and values, which may be
            longer than the prefix.
        """
        array = np.asarray(ids, np.int64)
        best, length = None, 0
        for entry in self._entries:
            if (common := common_prefix(entry.ids, array)) > length:
                best, length = entry, common
        if best is None:
            return 0, []
        self._entries.remove(best)
        self._entries.append(best)
        return length, best.key_values

    def holds(self, ids: Sequence[int]) -> bool:
        """Whether `ids` is an entry or the beginning of one."""
        array = np.asarray(ids, np.int64)
        return any(common_prefix(entry.ids, array) == len(array) for entry in self._entries)

    def add(self, ids: Sequence[int], key_values: KeyValues) -> None:
        """Add a prompt, and drop the entries that it begins with: it serves in their place."""
        array = np.asarray(ids, np.int64)
        self._entries = [
            entry for entry in self._entries if common_prefix(entry.ids, array) < len(entry.ids)
        ]
        self._entries.append(_CachedPrefix(array, key_values))

    def shrink(self, tokens: int) -> None:
        """Drop the least recently used entries until at most `tokens` positions remain."""
        while self._entries and self.tokens > tokens:
            del self._entries[0]
