"""Deficit round robin between tenants: decides whose lines are submitted next. Pure.

M. Shreedhar, G. Varghese: Efficient Fair Queuing Using Deficit Round-Robin, SIGCOMM 1995. The cost
of a line is its length in bytes; a tenant's quantum is proportional to its share. The deficit of a
tenant with nothing waiting is reset.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

QUANTUM = 4096
"""What a tenant with a share of 1 gains in each round, in bytes."""


@dataclass(frozen=True)
class PendingLine:
    """A line that could be submitted."""

    batch_id: str
    line: int
    cost: int
    """Its length in bytes."""


@dataclass
class FairQueue:
    """The tenants' turns and deficits. Keep it between calls: lines are shared fairly over time.

    >>> long_queue = [PendingLine("x", number, 4096) for number in range(1, 9)]
    >>> waiting = {"a": long_queue, "b": [PendingLine("y", 1, 4096)]}
    >>> [line.batch_id for line in FairQueue().choose(waiting, 3, {})]
    ['y', 'x', 'x']
    """

    _deficits: dict[str, float] = field(default_factory=dict)
    _round: deque[str] = field(default_factory=deque)

    def choose(
        self, waiting: Mapping[str, Sequence[PendingLine]], room: int, shares: Mapping[str, float]
    ) -> list[PendingLine]:
        """Choose the lines to submit now.

        Args:
            waiting: by tenant, in the tenant's own order; at least `room` lines of each, or all.
            room: how many lines may be submitted.
            shares: by tenant, if other than 1.

        Returns:
            At most `room` lines; fewer only if there are no more.
        """
        queues = {tenant: deque(lines) for tenant, lines in waiting.items() if lines}
        self._update_tenants(queues)
        chosen_lines: list[PendingLine] = []
        while queues and len(chosen_lines) < room:
            tenant = self._round[0]
            queue = queues[tenant]
            if self._deficits[tenant] < queue[0].cost:
                self._round.rotate(-1)
                self._add_quantum(shares)
                continue
            self._deficits[tenant] -= queue[0].cost
            chosen_lines.append(queue.popleft())
            # If the room is used up, the tenant may have more lines waiting: its deficit stays
            # (docs/decisions/0022).
            if not queue and len(chosen_lines) < room:
                del queues[tenant]
                self._remove(tenant)
                self._add_quantum(shares)
        return chosen_lines

    def _add_quantum(self, shares: Mapping[str, float]) -> None:
        """Add to the deficit of the tenant whose turn it is now."""
        if self._round:
            self._deficits[self._round[0]] += QUANTUM * shares.get(self._round[0], 1.0)

    def _update_tenants(self, tenants: Iterable[str]) -> None:
        """Remove tenants with nothing waiting, and append new ones."""
        active_tenants = set(tenants)
        for idle_tenant in [tenant for tenant in self._round if tenant not in active_tenants]:
            self._remove(idle_tenant)
        for tenant in sorted(active_tenants.difference(self._deficits)):
            self._deficits[tenant] = 0.0
            self._round.append(tenant)

    def _remove(self, tenant: str) -> None:
        self._round.remove(tenant)
        del self._deficits[tenant]
