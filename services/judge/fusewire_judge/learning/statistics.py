"""Vote weights, latency percentiles and judge quarantine, learned from stored outcomes. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from fusewire.contracts import ExcludedMember, Plan, PlannedMember
from fusewire_judge.learning.weights import MIN_OBSERVATIONS, SuccessCount, learn_weights

OUTCOME_WINDOW = 1000
"""Newest outcomes of a pool that are learned from: models and prompts change."""
CONTROL_WINDOW = 50
"""Newest line-ups with a control that are looked at, of one judge, within the last day."""
QUARANTINE_PICKS = 2
QUARANTINE_SHARE = 0.05
"""A judge is quarantined that picked at least so many controls, and more than this share."""

PoolKind = tuple[str, str]
"""A pool, and a kind of answer."""


@dataclass(frozen=True)
class StoredAnswer:
    """One member's answer in one stored outcome."""

    pool: str
    fusion_id: str
    kind: str
    member: str
    agreed: bool | None
    is_right: bool | None
    vote_group: int | None
    latency_ms: float | None

    @property
    def was_right(self) -> bool | None:
        """Whether it was right by its label, or else by the majority of the other members.

        Members that are wrong together teach a wrong lesson, which only labels cure
        (docs/decisions/0011).
        """
        return self.is_right if self.is_right is not None else self.agreed


@dataclass(frozen=True)
class Statistics:
    """What the judge has learned when it takes a plan."""

    weights: Mapping[PoolKind, Mapping[str, float]] = field(default_factory=dict)
    """By pool and kind of answer, then by member."""
    latencies: Mapping[tuple[str, str], Sequence[float]] = field(default_factory=dict)
    """By pool and member, milliseconds, ascending."""
    quarantined: frozenset[str] = frozenset()
    """Models of judges that picked controls."""

    def snapshot_onto(self, plan: Plan, *, may_hedge: bool, is_replay: bool = False) -> Plan:
        """Copy the statistics onto a plan, so that later ones do not change its fusion.

        Args:
            plan: as the dispatcher made it.
            may_hedge: whether the pool's budget allows second calls.
            is_replay: whether its answers are recorded; these bring their own weights.
        """
        members = plan.members
        if not is_replay:
            hedge = plan.policy.hedge if may_hedge else 0.0
            members = tuple(self._snapshot_onto_member(plan, m, hedge) for m in members)
        plan = plan.model_copy(update={"members": members})
        return self._without_quarantined_judges(plan)

    def _snapshot_onto_member(
        self, plan: Plan, member: PlannedMember, hedge: float
    ) -> PlannedMember:
        """Copy a member's weights and the time after which it is hedged onto it."""
        weights = {
            kind: by_member[member.name]
            for (pool, kind), by_member in self.weights.items()
            if pool == plan.pool and member.name in by_member
        }
        hedge_after_s = self._hedge_after_s(plan.pool, member, hedge)
        if (weights, hedge_after_s) == (member.learned, member.hedge_after_s):
            return member  # a needless copy would take as long as all else here
        return member.model_copy(update={"learned": weights, "hedge_after_s": hedge_after_s})

    def _hedge_after_s(self, pool: str, member: PlannedMember, hedge: float) -> float | None:
        """Return the latency that a share of a member's calls exceeds, if enough are known.

        Args:
            pool: the pool.
            member: its member.
            hedge: the share of the slowest calls; 0 if none may be hedged.
        """
        latencies_ms = self.latencies.get((pool, member.name), ())
        if not hedge or member.is_replay_only or len(latencies_ms) < MIN_OBSERVATIONS:
            return None
        place = min(int(len(latencies_ms) * (1 - hedge)), len(latencies_ms) - 1)
        return latencies_ms[place] / 1000

    def _without_quarantined_judges(self, plan: Plan) -> Plan:
        """Exclude quarantined judges; the first juror that is left stands in for the judge."""
        models = [judge.model for judge in (plan.judge, *plan.jury) if judge]
        if self.quarantined.isdisjoint(models):
            return plan
        jury = tuple(juror for juror in plan.jury if juror.model not in self.quarantined)
        judge = plan.judge
        if judge and judge.model in self.quarantined:
            judge = next(iter(jury), None)
        excluded = tuple(
            ExcludedMember(name=_judge_name(plan, model), reason="quarantined")
            for model in dict.fromkeys(reversed(models))
            if model in self.quarantined
        )
        return plan.model_copy(
            update={"judge": judge, "jury": jury, "excluded": (*plan.excluded, *excluded)}
        )


def _judge_name(plan: Plan, model: str) -> str:
    """Return the name under which a plan excludes the judge of a model."""
    return "judge" if plan.judge and plan.judge.model == model else f"juror-{model}"


def learn_statistics(
    answers: Sequence[StoredAnswer], control_picks: Mapping[str, Sequence[bool]]
) -> Statistics:
    """Learn from stored outcomes.

    Args:
        answers: those of the newest outcomes, of all pools.
        control_picks: by judge, whether it picked the control, the newest first.
    """
    latencies: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for answer in answers:
        if answer.latency_ms is not None:
            latencies[answer.pool, answer.member].append(answer.latency_ms)
    return Statistics(
        weights=_learn_weights_by_kind(answers),
        latencies={key: sorted(latencies_ms) for key, latencies_ms in latencies.items()},
        quarantined=frozenset(
            judge for judge, picks in control_picks.items() if _is_broken(picks[:CONTROL_WINDOW])
        ),
    )


def _learn_weights_by_kind(answers: Iterable[StoredAnswer]) -> dict[PoolKind, dict[str, float]]:
    tallies: defaultdict[PoolKind, defaultdict[str, list[int]]] = defaultdict(
        lambda: defaultdict(lambda: [0, 0])
    )
    """By member, how often it was right, and how often wrong."""
    wrong_groups: defaultdict[tuple[PoolKind, str], list[int]] = defaultdict(list)
    """By fusion, the vote groups of its wrong answers."""
    for answer in answers:
        was_right = answer.was_right
        if was_right is None:
            continue
        key = answer.pool, answer.kind
        tallies[key][answer.member][0 if was_right else 1] += 1
        if not was_right and answer.vote_group is not None:
            wrong_groups[key, answer.fusion_id].append(answer.vote_group)
    collisions = _count_collisions(wrong_groups)
    weights: dict[PoolKind, dict[str, float]] = {}
    for key, by_member in tallies.items():
        counts = {member: SuccessCount(*tally) for member, tally in by_member.items()}
        weights[key] = learn_weights(counts, collisions.get(key, SuccessCount()))
    return weights


def _count_collisions(
    wrong_groups: Mapping[tuple[PoolKind, str], Sequence[int]],
) -> dict[PoolKind, SuccessCount]:
    """Count the pairs of wrong answers to one prompt that are the same, and those that differ."""
    tallies: defaultdict[PoolKind, list[int]] = defaultdict(lambda: [0, 0])
    for (key, _fusion_id), groups in wrong_groups.items():
        for a, b in combinations(groups, 2):
            tallies[key][0 if a == b else 1] += 1
    return {key: SuccessCount(*tally) for key, tally in tallies.items()}


def _is_broken(picks: Sequence[bool]) -> bool:
    """Tell whether a judge picked too many controls."""
    return sum(picks) >= QUARANTINE_PICKS and sum(picks) > QUARANTINE_SHARE * len(picks)
