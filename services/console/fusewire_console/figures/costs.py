"""What outcomes and answers cost, from sums. Pure.

The figures are those of `fusewire report cost`: amounts are of what has a price, and what has none
is counted beside them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusewire.analysis.measures import LEAST_N


@dataclass(frozen=True)
class CostTotals:
    """What the outcomes of a pool or a day cost, or the answers of a model or a tier."""

    key: tuple[str, ...]
    n: int
    """Outcomes, or answers."""
    unpriced: int
    """Those whose cost is unknown: they are not in `usd`."""
    usd: float | None
    """None where nothing is priced."""
    share: float | None = None
    """Of all that is priced."""

    @property
    def usd_each(self) -> float | None:
        """The mean of what is priced; None under LEAST_N of these."""
        n_priced = self.n - self.unpriced
        return self.usd / n_priced if self.usd is not None and n_priced >= LEAST_N else None


def cost_sums(rows: Sequence[Mapping[str, Any]], *keys: str) -> list[CostTotals]:
    """One sum for each row, in their order.

    Args:
        rows: `n`, `unpriced`, `usd`, and the columns named by `keys`.
        keys: what they are sums of.
    """
    total_usd = sum(float(row["usd"] or 0.0) for row in rows)
    return [_cost_sum(row, keys, total_usd) for row in rows]


def _cost_sum(row: Mapping[str, Any], keys: Sequence[str], total_usd: float) -> CostTotals:
    n, n_unpriced, usd = int(row["n"]), int(row["unpriced"]), float(row["usd"] or 0.0)
    # Failures may have a cost of 0 where nothing is known of what an answer costs.
    is_known = n_unpriced < n or bool(usd)
    share = usd / total_usd if is_known and total_usd else None
    return CostTotals(
        tuple(str(row[key]) for key in keys), n, n_unpriced, usd if is_known else None, share
    )


def add_up(sums: Sequence[CostTotals], key: str) -> CostTotals:
    """All of them as one."""
    amounts = [row.usd for row in sums if row.usd is not None]
    return CostTotals(
        (key,),
        sum(row.n for row in sums),
        sum(row.unpriced for row in sums),
        sum(amounts) if amounts else None,
    )
