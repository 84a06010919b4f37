"""How many second calls a pool may make. Pure but for the count that it keeps."""

from collections.abc import Iterable

from fusewire.contracts import Plan, Round
from fusewire.contracts.call_names import is_hedge


class HedgeBudget:
    """How many second calls a pool may still make: a share of its first ones, saved up a little.

    Each process has its own and begins with nothing. Each replica keeps to the share, so all
    together do.
    """

    # Bounded, or what was saved over many fusions would be spent on a few.
    SAVED = 10.0

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}

    def grant(self, plan: Plan) -> bool:
        """Count a plan's calls, and tell whether it may make second ones."""
        income = plan.policy.hedge * len(plan.members)
        self._credit[plan.pool] = min(self._credit.get(plan.pool, 0.0) + income, self.SAVED)
        return self._credit[plan.pool] >= 1

    def spend(self, rounds: Iterable[Round]) -> None:
        """Count the second calls of rounds. A budget that is in debt grants nothing."""
        for round_ in rounds:
            hedges = sum(is_hedge(call.name) for call in round_.calls)
            self._credit[round_.pool] = self._credit.get(round_.pool, 0.0) - hedges
