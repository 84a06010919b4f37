"""Keys and values: the memory that a sequence's past is kept in, and pasts kept for later."""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusewire_worker_edge.engine.sampling import Floats

_FLOAT = 4
_PAGE = 128
"""Positions of a slot are a multiple of this, so that slots begin on pages of memory."""

Kept = list[Floats]
"""The keys and values of one sequence, by layer and part: [heads, length, head size] each."""


class KvCache:
    """Keys and values of several sequences side by side.

    Memory is taken where a position is first written, and given back when its slot is released.

    Args:
        layers, heads, head_size: of the model.
        slots: how many sequences.
        positions: of one sequence at most.
    """

    def __init__(self, layers: int, heads: int, head_size: int, slots: int, positions: int) -> None:
        self.slots = slots
        rounded = -(-positions // _PAGE) * _PAGE
        self._row = heads * rounded * head_size * _FLOAT
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._maps = [mmap.mmap(-1, slots * self._row, private) for _ in range(2 * layers)]
        shape = (slots, heads, rounded, head_size)
        self.arrays: Kept = [
            np.frombuffer(memory, np.float32).reshape(shape) for memory in self._maps
        ]
        """Keys and values of each layer in turn, [slots, heads, positions, head size]."""

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first positions of one slot over those of another."""
        for array in self.arrays:
            array[target, :, :length] = array[source, :, :length]

    def keep(self, slot: int, length: int) -> Kept:
        """A copy of the first positions of a slot."""
        return [array[slot, :, :length].copy() for array in self.arrays]

    def restore(self, slot: int, kept: Kept, length: int) -> None:
        """Write the first positions of a copy into a slot."""
        for array, part in zip(self.arrays, kept, strict=True):
            array[slot, :, :length] = part[:, :length]

    def release(self, slot: int) -> None:
        """Give the memory of a slot back to the machine."""
        for memory in self._maps:
            memory.madvise(mmap.MADV_DONTNEED, slot * self._row, self._row)


def common_prefix(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """How many ids two sequences begin with alike."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length


@dataclass(frozen=True, eq=False)
class _CachedPrefix:
    ids: NDArray[np.int64]
    kept: Kept


class PrefixCache:
    """Prompts that were computed before, the least recently used first."""

    def __init__(self) -> None:
        self._entries: list[_CachedPrefix] = []

    @property
    def tokens(self) -> int:
        """Positions that are kept."""
        return sum(len(e.ids) for e in self._entries)

    def match(self, ids: Sequence[int]) -> tuple[int, Kept]:
        """The longest beginning of `ids` that is kept: its length, 0 if there is none, and its keys and values."""
        wanted = np.asarray(ids, np.int64)
        best, length = None, 0
        for entry in self._entries:
            if (common := common_prefix(entry.ids, wanted)) > length:
                best, length = entry, common
        if best is None:
            return 0, []
        self._entries.remove(best)
        self._entries.append(best)
        return length, best.kept

    def holds(self, ids: Sequence[int]) -> bool:
        """Whether all of `ids` is kept, as a prompt or the beginning of one."""
        wanted = np.asarray(ids, np.int64)
        return any(common_prefix(e.ids, wanted) == len(wanted) for e in self._entries)

    def add(self, ids: Sequence[int], kept: Kept) -> None:
        """Keep a prompt; those that it begins with are no longer needed."""
        added = np.asarray(ids, np.int64)
        self._entries = [e for e in self._entries if common_prefix(e.ids, added) < len(e.ids)]
        self._entries.append(_CachedPrefix(added, kept))

    def shrink(self, tokens: int) -> None:
        """Forget the least recently used until at most so many positions are kept."""
        while self._entries and self.tokens > tokens:
            del self._entries[0]
