"""What the judge has learned from stored outcomes, and learns anew from time to time."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog
from sqlalchemy import Connection

from fusewire.contracts import ContractError, Plan, Prompt
from fusewire.store.engine import Store
from fusewire_judge.learning.comparisons import ComparedOutcome, compare, mean_prices
from fusewire_judge.learning.prompt_features import Features, prompt_features
from fusewire_judge.learning.route_choice import choose_route
from fusewire_judge.learning.router import Router, learn_router
from fusewire_judge.learning.statistics import (
    OUTCOME_WINDOW,
    Statistics,
    StoredHistory,
    learn_statistics,
)
from fusewire_judge.repository.comparisons import newest_comparisons, prompt_bodies
from fusewire_judge.repository.history import (
    control_picks,
    newest_answers,
    newest_checks,
    newest_verdicts,
)

log = structlog.get_logger(__name__)

QUARANTINE = timedelta(days=1)
"""How long a judge that picked controls is left out, and how far back they are looked for."""
NEWS = 20
"""So many new outcomes of a pool are worth learning its route anew."""


@dataclass(frozen=True)
class RoutedPool:
    """A pool whose members are chosen for each prompt.

    Attributes:
        name: of the pool.
        models: its members and their models, in its order.
        loss: what a route may lose against asking all, 0 to 1.
    """

    name: str
    models: tuple[tuple[str, str], ...]
    loss: float


@dataclass
class _LearnedRoute:
    """What a pool's route was learned from, and what came of it."""

    fusion_ids: frozenset[str] = frozenset()
    router: Router | None = None
    features: dict[str, Features] = field(default_factory=dict)
    """By fusion, so that no prompt is read twice. What is erased is forgotten."""


@dataclass(frozen=True)
class _StoredRoute:
    """What is read of a pool: outcomes, and the prompts of those that were not read before."""

    outcomes: Sequence[ComparedOutcome]
    bodies: Mapping[str, str]


class Learner:
    """Statistics and routes of all pools, learned from their newest outcomes.

    Args:
        store: where the outcomes are.
        clock: the time.
        pools: the pools to learn statistics of, with the configured weight of each member.
        routed_pools: those of them to learn routes of.
    """

    def __init__(
        self,
        store: Store,
        clock: Callable[[], datetime],
        pools: Mapping[str, Mapping[str, float]],
        routed_pools: Iterable[RoutedPool] = (),
    ) -> None:
        self._store = store
        self._clock = clock
        self._configured_weights = pools
        self._routes = {pool: _LearnedRoute() for pool in routed_pools}
        self._statistics = Statistics()

    async def update(self) -> None:
        """Learn anew from the newest stored outcomes."""
        since = self._clock() - QUARANTINE
        pools = tuple(self._configured_weights)

        def read(connection: Connection) -> StoredHistory:
            return StoredHistory(
                answers=newest_answers(connection, pools, OUTCOME_WINDOW),
                verdicts=newest_verdicts(connection, pools, OUTCOME_WINDOW),
                control_picks=control_picks(connection, since),
                checks=newest_checks(connection, pools, OUTCOME_WINDOW),
                configured_weights=self._configured_weights,
            )

        data = await self._store.run(read, write=False)
        # In a thread: a fit takes tenths of a second for a pool of many members.
        statistics = await asyncio.to_thread(learn_statistics, data, self._statistics.votes)
        for judge in statistics.quarantined - self._statistics.quarantined:
            log.warning("judge.quarantined", model=judge)
        self._statistics = statistics
        for pool, route in self._routes.items():
            await self._update_route(pool, route)

    def stamp(self, plan: Plan, prompt: Prompt, *, may_hedge: bool) -> Plan:
        """Copy what is known now onto a plan, so that later outcomes do not change its fusion.

        Args:
            plan: as the dispatcher made it.
            prompt: that it answers.
            may_hedge: whether the pool's budget allows second calls.
        """
        plan = self._statistics.snapshot_onto(
            plan, may_hedge=may_hedge, is_replay=bool(prompt.recorded)
        )
        routers = {pool.name: route.router for pool, route in self._routes.items()}
        return choose_route(plan, prompt, routers.get(plan.pool))

    async def _update_route(self, pool: RoutedPool, route: _LearnedRoute) -> None:
        """Learn a pool's route anew, if enough is new or anything was erased."""

        def read(connection: Connection) -> _StoredRoute:
            outcomes = newest_comparisons(connection, pool.name, pool.models, OUTCOME_WINDOW)
            keys = {outcome.fusion_id for outcome in outcomes} - route.features.keys()
            return _StoredRoute(outcomes, prompt_bodies(connection, keys))

        stored_route = await self._store.run(read, write=False)
        fusion_ids = frozenset(outcome.fusion_id for outcome in stored_route.outcomes)
        route.features = {
            key: features for key, features in route.features.items() if key in fusion_ids
        }
        route.features |= await asyncio.to_thread(_read_features, stored_route.bodies)
        is_smaller = len(fusion_ids) < len(route.fusion_ids)
        if len(fusion_ids - route.fusion_ids) < NEWS and not is_smaller:
            return
        route.router = await asyncio.to_thread(
            _learn, pool, stored_route.outcomes, route.features, self._statistics
        )
        route.fusion_ids = fusion_ids
        bound = route.router.bound if route.router else None
        log.info(
            "judge.route_learned",
            pool=pool.name,
            outcomes=len(fusion_ids),
            is_open=bound is not None,
        )


def _read_features(bodies: Mapping[str, str]) -> dict[str, Features]:
    features: dict[str, Features] = {}
    for fusion_id, body in bodies.items():
        try:
            features[fusion_id] = prompt_features(Prompt.decode(body))
        except ContractError:
            # Of another version; without its features its outcome teaches nothing.
            features[fusion_id] = ()
    return features


def _learn(
    pool: RoutedPool,
    outcomes: Sequence[ComparedOutcome],
    features: Mapping[str, Features],
    statistics: Statistics,
) -> Router | None:
    comparisons = [
        compare(pool.name, outcome, features[outcome.fusion_id], statistics)
        for outcome in outcomes
        if features.get(outcome.fusion_id)
    ]
    return learn_router(
        tuple(member for member, _ in pool.models),
        [comparison for comparison in comparisons if comparison is not None],
        mean_prices(outcomes),
        loss=pool.loss,
    )
