"""What stored outcomes teach: how much a member's vote counts, when it is late, which judge is broken. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from fusewire.contracts import ExcludedMember, Plan, PlannedJudge, PlannedMember
from fusewire_judge.learning.weights import LEAST_SEEN, SuccessCount, learned

REMEMBERED = 1000
"""Outcomes of a pool that are looked at, the newest: what a member did long ago says little of it now."""
CONTROLS_REMEMBERED = 50
"""Line-ups with a control, of one judge, within the last day."""
PICKS = 2
PICK_SHARE = 0.05
"""A judge that picked a control at least so often, and in more than this share, is not asked any more that day."""


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


@dataclass(frozen=True)
class Statistics:
    """What the judge knows when it takes a plan."""

    weights: Mapping[tuple[str, str], Mapping[str, float]] = field(default_factory=dict)
    """By pool and kind of answer, then by member."""
    latencies: Mapping[tuple[str, str], Sequence[float]] = field(default_factory=dict)
    """By pool and member, milliseconds, ascending."""
    quarantined: frozenset[str] = frozenset()
    """Judges that picked controls."""

    def stamp(self, plan: Plan, *, may_hedge: bool, is_replay: bool = False) -> Plan:
        """The plan with what is known now, so that its fusion is decided by it to the end.

        Args:
            plan: as dispatcher made it.
            may_hedge: whether the pool's budget allows second calls.
            is_replay: whether its answers are recorded; their weights are then those that they bring.
        """
        hedge = plan.policy.hedge if may_hedge else 0.0
        members = (
            plan.members
            if is_replay
            else tuple(self._stamped(plan, m, hedge) for m in plan.members)
        )
        judges = [one for one in (plan.judge, *plan.jury) if one and one.model in self.quarantined]
        if not judges:
            return plan.model_copy(update={"members": members})
        jury = tuple(one for one in plan.jury if one.model not in self.quarantined)
        judge: PlannedJudge | None = (
            plan.judge if plan.judge not in judges else next(iter(jury), None)
        )
        named = {
            one.model: "judge" if one == plan.judge else f"juror-{one.model}"
            for one in reversed(judges)
        }
        out = tuple(ExcludedMember(name=name, reason="quarantined") for name in named.values())
        return plan.model_copy(
            update={
                "members": members,
                "judge": judge,
                "jury": jury,
                "excluded": (*plan.excluded, *out),
            }
        )

    def _stamped(self, plan: Plan, member: PlannedMember, hedge: float) -> PlannedMember:
        known = {
            kind: w[member.name]
            for (pool, kind), w in self.weights.items()
            if pool == plan.pool and member.name in w
        }
        times = self.latencies.get((plan.pool, member.name), ())
        after = None
        if hedge and not member.is_replay_only and len(times) >= LEAST_SEEN:
            after = times[min(int(len(times) * (1 - hedge)), len(times) - 1)] / 1000
        if (known, after) == (member.learned, member.hedge_after_s):
            return member  # to copy it for nothing would take as long as all else here
        return member.model_copy(update={"learned": known, "hedge_after_s": after})


def remember(seen: Iterable[StoredAnswer], controls: Mapping[str, Sequence[bool]]) -> Statistics:
    """Learn from stored outcomes.

    A label says whether an answer is right. Without one, what most of the others said stands
    in for it: members that are wrong together teach a wrong lesson, which only labels cure.

    Args:
        seen: the newest outcomes' answers.
        controls: by judge, whether it picked the control, the newest first.
    """
    standings: defaultdict[tuple[str, str], defaultdict[str, list[int]]] = defaultdict(
        lambda: defaultdict(lambda: [0, 0])
    )
    wrong: defaultdict[tuple[str, str, str], list[int]] = defaultdict(list)
    latencies: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for one in seen:
        if one.latency_ms is not None:
            latencies[one.pool, one.member].append(one.latency_ms)
        was_right = one.is_right if one.is_right is not None else one.agreed
        if was_right is None:
            continue
        standings[one.pool, one.kind][one.member][0 if was_right else 1] += 1
        if not was_right and one.vote_group is not None:
            wrong[one.pool, one.kind, one.fusion_id].append(one.vote_group)
    alike: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for (pool, kind, _), groups in wrong.items():
        for a, b in combinations(groups, 2):
            alike[pool, kind][0 if a == b else 1] += 1
    return Statistics(
        weights={
            key: learned(
                {name: SuccessCount(*s) for name, s in members.items()}, SuccessCount(*alike[key])
            )
            for key, members in standings.items()
        },
        latencies={key: sorted(times) for key, times in latencies.items()},
        quarantined=frozenset(
            judge for judge, picks in controls.items() if _is_broken(picks[:CONTROLS_REMEMBERED])
        ),
    )


def _is_broken(picks: Sequence[bool]) -> bool:
    return sum(picks) >= PICKS and sum(picks) > PICK_SHARE * len(picks)
