"""Which pool a page is about: the tab that its address names."""

from collections.abc import Mapping
from dataclasses import dataclass

from fusewire_console.access import Visitor
from fusewire_console.site import Site

RECENT_OUTCOMES = 2000
"""How many outcomes of a pool are read one by one, where no sums hold what a page shows."""
_POOLS = """SELECT pool, SUM(n) AS n FROM (
  SELECT pool, outcomes AS n FROM v_pool_day UNION ALL SELECT pool, 0 FROM v_judge_bias
) pools GROUP BY pool"""


@dataclass(frozen=True)
class PoolChoice:
    """The pools, and the one that is shown."""

    pools: tuple[str, ...]
    """Those that are configured, or have outcomes or verdicts, by name."""
    pool: str
    """The one that the address names, or else the one with the most outcomes."""

    @property
    def is_known(self) -> bool:
        """Whether there is such a pool."""
        return self.pool in self.pools


async def read(site: Site, visitor: Visitor, parameters: Mapping[str, str]) -> PoolChoice:
    """Choose a pool by the parameters of an address. Raises OperatorsOnlyError."""
    rows = await site.views.of_all(visitor, _POOLS)
    n_outcomes = dict.fromkeys(site.settings.pools, 0)
    n_outcomes |= {str(row["pool"]): int(row["n"]) for row in rows}
    pools = tuple(sorted(n_outcomes))
    name = parameters.get("pool", "").strip()
    if not name:
        name = max(
            pools, key=lambda pool: (n_outcomes[pool], pool in site.settings.pools), default=""
        )
    return PoolChoice(pools, name)
