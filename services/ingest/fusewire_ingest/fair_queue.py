"""Whose lines go next: deficit round robin between tenants. Pure.

M. Shreedhar, G. Varghese: Efficient Fair Queuing Using Deficit Round-Robin, SIGCOMM 1995. The cost of a line is its
length; a tenant's quantum is its share. A tenant that has nothing waiting saves nothing up.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

QUANTUM = 4096
"""What a tenant with a share of 1 gains in each round, bytes."""


@dataclass(frozen=True)
class PendingLine:
    """A line that could go."""

    batch_id: str
    line: int
    cost: int
    """Its length, bytes."""


@dataclass
class FairQueue:
    """Who is next, and what each has in hand. Lives as long as its owner: fairness is over time."""

    _deficits: dict[str, float] = field(default_factory=dict)
    _round: deque[str] = field(default_factory=deque)

    def choose(
        self, waiting: Mapping[str, Sequence[PendingLine]], room: int, shares: Mapping[str, float]
    ) -> list[PendingLine]:
        """Choose lines.

        Args:
            waiting: by tenant, in the tenant's own order; of each at least `room` lines, or all it has.
            room: how many lines may go.
            shares: of tenants that have another than 1.

        Returns:
            At most `room` lines; fewer only if there are no more.
        """
        queues = {tenant: deque(lines) for tenant, lines in waiting.items() if lines}
        self._join(queues)
        chosen: list[PendingLine] = []
        while queues and len(chosen) < room:
            tenant = self._round[0]
            queue = queues[tenant]
            if self._deficits[tenant] < queue[0].cost:
                self._round.rotate(-1)
                self._gain(shares)
                continue
            self._deficits[tenant] -= queue[0].cost
            chosen.append(queue.popleft())
            # Where the room has ended, more of it may wait: what it has in hand stays until the next call.
            if not queue and len(chosen) < room:
                del queues[tenant]
                self._leave(tenant)
                self._gain(shares)
        return chosen

    def _gain(self, shares: Mapping[str, float]) -> None:
        if self._round:
            self._deficits[self._round[0]] += QUANTUM * shares.get(self._round[0], 1.0)

    def _join(self, tenants: Iterable[str]) -> None:
        here = set(tenants)
        for gone in [tenant for tenant in self._round if tenant not in here]:
            self._leave(gone)
        for tenant in sorted(here.difference(self._deficits)):
            self._deficits[tenant] = 0.0
            self._round.append(tenant)

    def _leave(self, tenant: str) -> None:
        self._round.remove(tenant)
        del self._deficits[tenant]
