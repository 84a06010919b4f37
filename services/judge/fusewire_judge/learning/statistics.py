"""Vote weights, latency percentiles and judge quarantine, learned from stored outcomes. Pure."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fusewire.contracts import ExcludedMember, Plan, PlannedJudge, PlannedMember
from fusewire_judge.learning.agreement_model import NO_WEIGHTS, AgreementModel, Pattern, fit
from fusewire_judge.learning.check_model import CheckEvidence, learn_edges
from fusewire_judge.learning.judged_model import (
    EDGE,
    Preference,
    VerdictResult,
    learn_verdict_edge,
    odds_weights,
)
from fusewire_judge.learning.weights import (
    MIN_OBSERVATIONS,
    SuccessCount,
    record_weights,
    vote_weights,
)

OUTCOME_WINDOW = 1000
"""Newest outcomes of a pool that are learned from: models and prompts change."""
CONTROL_WINDOW = 50
"""Newest line-ups with a control that are looked at, of one judge, within the last day."""
QUARANTINE_PICKS = 2
QUARANTINE_SHARE = 0.05
"""A judge is quarantined that picked at least so many controls, and more than this share."""

OPEN = "open"

PoolKind = tuple[str, str]
"""A pool, and a kind of answer."""
PoolJudge = tuple[str, str]
"""A pool, and the model of a judge."""
Opinion = TypeVar("Opinion", Preference, VerdictResult)
"""What a verdict is counted as."""


@dataclass(frozen=True)
class StoredAnswer:
    """One member's answer in one stored outcome."""

    pool: str
    fusion_id: str
    kind: str
    member: str
    is_right: bool | None
    """By its label; None without one."""
    vote_group: int | None
    """Equal answers to one prompt have the same; None if it had no vote."""
    latency_ms: float | None


@dataclass(frozen=True)
class StoredVerdict:
    """What a judge that saw an order named in one stored outcome."""

    pool: str
    fusion_id: str
    kind: str
    judge_model: str
    shown: tuple[str, ...]
    winner: str


@dataclass(frozen=True)
class StoredCheck:
    """Whether a judge passed one member's answer in one stored outcome."""

    pool: str
    fusion_id: str
    kind: str
    judge_model: str
    member: str
    is_pass: bool


@dataclass(frozen=True)
class StoredHistory:
    """What is learned from."""

    answers: Sequence[StoredAnswer] = ()
    verdicts: Sequence[StoredVerdict] = ()
    """Of judges that saw an order."""
    control_picks: Mapping[str, Sequence[bool]] = field(default_factory=dict)
    """By judge, whether it picked the control, the newest first."""
    checks: Sequence[StoredCheck] = ()
    configured_weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By pool and member. A member that is missing has 1."""


@dataclass(frozen=True)
class VoteRecord:
    """Who agreed with whom in the votes of one pool on one kind of answer, and what fits it."""

    patterns: Mapping[Pattern, int]
    model: AgreementModel


@dataclass(frozen=True)
class Statistics:
    """What the judge has learned when it takes a plan."""

    weights: Mapping[PoolKind, Mapping[str, float]] = field(default_factory=dict)
    """By pool and kind of answer, then by member."""
    votes: Mapping[PoolKind, VoteRecord] = field(default_factory=dict)
    """By pool and kind of answer: what the weights for votes were learned from."""
    latencies: Mapping[tuple[str, str], Sequence[float]] = field(default_factory=dict)
    """By pool and member, milliseconds, ascending."""
    check_edges: Mapping[PoolJudge, CheckEvidence] = field(default_factory=dict)
    """By pool and judge, what its checks say."""
    verdict_edges: Mapping[PoolJudge, float] = field(default_factory=dict)
    """By pool and judge, the log odds by which its verdict speaks for the answer that it names."""
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
        judges = {} if is_replay else self._judges(plan)
        plan = plan.model_copy(update={"members": members, **judges})
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

    def _judges(self, plan: Plan) -> dict[str, Any]:
        """The judges of a plan, with what their checks and their verdicts say."""
        keys = {(plan.pool, juror.model) for juror in plan.jurors}
        if keys.isdisjoint(self.check_edges) and keys.isdisjoint(self.verdict_edges):
            return {}
        return {
            "judge": plan.judge and self._snapshot_onto_judge(plan.pool, plan.judge),
            "jury": tuple(self._snapshot_onto_judge(plan.pool, juror) for juror in plan.jury),
        }

    def _snapshot_onto_judge(self, pool: str, judge: PlannedJudge) -> PlannedJudge:
        key = pool, judge.model
        edges: dict[str, float | None] = {"verdict_edge": self.verdict_edges.get(key)}
        checks = self.check_edges.get(key)
        if checks is not None:
            edges |= {"pass_edge": checks.passing, "fail_edge": checks.failing}
        return judge.model_copy(update=edges)

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
    data: StoredHistory, earlier: Mapping[PoolKind, VoteRecord] | None = None
) -> Statistics:
    """Learn from stored outcomes.

    Args:
        data: what is stored of the newest outcomes of all pools.
        earlier: the records of votes that were learned last, which take less time to go on from.
    """
    answers = data.answers
    latencies: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for answer in answers:
        if answer.latency_ms is not None:
            latencies[answer.pool, answer.member].append(answer.latency_ms)
    votes = learn_votes(answers, earlier or {}, data.configured_weights)
    weights = _learn_record_weights(answers)
    verdict_edges = _learn_verdict_edges(answers, data.verdicts)
    weights |= _learn_odds(answers, data.verdicts, verdict_edges)
    for key, record in votes.items():
        member_weights = data.configured_weights.get(key[0], NO_WEIGHTS)
        weights[key] = vote_weights(record.model, record.patterns, member_weights)
    return Statistics(
        weights=weights,
        votes=votes,
        check_edges=_learn_check_edges(data, votes),
        verdict_edges=verdict_edges,
        latencies={key: sorted(latencies_ms) for key, latencies_ms in latencies.items()},
        quarantined=frozenset(
            judge
            for judge, picks in data.control_picks.items()
            if _is_broken(picks[:CONTROL_WINDOW])
        ),
    )


def learn_votes(
    answers: Iterable[StoredAnswer],
    earlier: Mapping[PoolKind, VoteRecord],
    configured_weights: Mapping[str, Mapping[str, float]],
) -> dict[PoolKind, VoteRecord]:
    """Fit the model of agreement to the votes of each pool on each kind of answer.

    Args:
        answers: stored ones; those that had no vote are left out.
        earlier: the records that were learned last, with the same configured weights.
        configured_weights: by pool and member.
    """
    records = {}
    for key, patterns in _count_patterns(answers).items():
        last = earlier.get(key)
        if last is None or last.patterns != patterns:
            start = last.model if last else None
            member_weights = configured_weights.get(key[0], NO_WEIGHTS)
            last = VoteRecord(patterns, fit(patterns, start, member_weights))
        records[key] = last
    return records


def _count_patterns(answers: Iterable[StoredAnswer]) -> dict[PoolKind, Counter[Pattern]]:
    by_fusion: defaultdict[tuple[PoolKind, str], list[StoredAnswer]] = defaultdict(list)
    for answer in answers:
        if answer.vote_group is not None:
            by_fusion[(answer.pool, answer.kind), answer.fusion_id].append(answer)
    patterns: defaultdict[PoolKind, Counter[Pattern]] = defaultdict(Counter)
    for (key, _fusion_id), voters in by_fusion.items():
        patterns[key][_pattern(voters)] += 1
    return patterns


def _pattern(voters: Iterable[StoredAnswer]) -> Pattern:
    groups: defaultdict[int | None, list[str]] = defaultdict(list)
    right_group, is_labelled = None, False
    for voter in sorted(voters, key=lambda answer: answer.member):
        groups[voter.vote_group].append(voter.member)
        is_labelled = is_labelled or voter.is_right is not None
        if voter.is_right and right_group is None:
            right_group = voter.vote_group
    right = list(groups).index(right_group) if right_group is not None else -1
    return Pattern(tuple(map(tuple, groups.values())), right if is_labelled else None)


def _learn_record_weights(answers: Iterable[StoredAnswer]) -> dict[PoolKind, dict[str, float]]:
    return {
        key: record_weights(labels)
        for key, labels in _count_labels(answers).items()
        if key[1] != OPEN
    }


def _learn_verdict_edges(
    answers: Sequence[StoredAnswer], verdicts: Iterable[StoredVerdict]
) -> dict[PoolJudge, float]:
    """By pool and judge, where all answers that it was shown have a label."""
    labels = {(a.fusion_id, a.member): a.is_right for a in answers if a.is_right is not None}
    counts: defaultdict[PoolJudge, Counter[VerdictResult]] = defaultdict(Counter)
    for verdict in verdicts:
        lineup = [labels.get((verdict.fusion_id, member)) for member in verdict.shown]
        if None in lineup:
            continue
        is_right = bool(lineup[verdict.shown.index(verdict.winner)])
        opinion = VerdictResult(lineup.count(True), lineup.count(False), is_right)
        counts[verdict.pool, verdict.judge_model][opinion] += 1
    return {judge: learn_verdict_edge(_halve(by_verdict)) for judge, by_verdict in counts.items()}


def _learn_odds(
    answers: Sequence[StoredAnswer],
    verdicts: Iterable[StoredVerdict],
    edges: Mapping[PoolJudge, float],
) -> dict[PoolKind, dict[str, float]]:
    """By pool, the weights for open prompts. A label is believed over the verdicts beside it."""
    labels = {key: counts for key, counts in _count_labels(answers).items() if key[1] == OPEN}
    labelled_fusions = {answer.fusion_id for answer in answers if answer.is_right is not None}
    preferences: defaultdict[PoolKind, Counter[Preference]] = defaultdict(Counter)
    for verdict in verdicts:
        if verdict.kind == OPEN and verdict.fusion_id not in labelled_fusions:
            edge = edges.get((verdict.pool, verdict.judge_model), EDGE)
            preference = Preference(tuple(sorted(verdict.shown)), verdict.winner, edge)
            preferences[verdict.pool, OPEN][preference] += 1
    keys = {*labels, *preferences}
    return {key: odds_weights(_halve(preferences[key]), labels.get(key, {})) for key in keys}


def _halve(counts: Mapping[Opinion, int]) -> dict[Opinion, float]:
    """A judge sees two orders, whose verdicts are one opinion."""
    return {opinion: count / 2 for opinion, count in counts.items()}


def _count_labels(
    answers: Iterable[StoredAnswer],
) -> dict[PoolKind, dict[str, SuccessCount]]:
    tallies: defaultdict[PoolKind, defaultdict[str, list[int]]] = defaultdict(
        lambda: defaultdict(lambda: [0, 0])
    )
    """By member, how often it was right, and how often wrong."""
    for answer in answers:
        if answer.is_right is not None:
            tallies[answer.pool, answer.kind][answer.member][0 if answer.is_right else 1] += 1
    return {key: _as_counts(by_member) for key, by_member in tallies.items()}


def _as_counts(tallies: Mapping[str, Sequence[int]]) -> dict[str, SuccessCount]:
    return {member: SuccessCount(*tally) for member, tally in tallies.items()}


def _learn_check_edges(
    data: StoredHistory, votes: Mapping[PoolKind, VoteRecord]
) -> dict[PoolJudge, CheckEvidence]:
    """By pool and judge, what its checks say, where something is known of the answers."""
    if not data.checks:
        return {}
    chances = _chances_of_right(data.answers, votes)
    passes: defaultdict[PoolJudge, defaultdict[tuple[str, str], list[bool]]] = defaultdict(
        lambda: defaultdict(list)
    )
    """By pool and judge, then by fusion and member."""
    for check in data.checks:
        answer = check.fusion_id, check.member
        if answer in chances:
            passes[check.pool, check.judge_model][answer].append(check.is_pass)
    edges = {}
    for judge, by_answer in passes.items():
        checks = [(chances[answer], sum(flags) / len(flags)) for answer, flags in by_answer.items()]
        edges[judge] = learn_edges(checks)
    return edges


def _chances_of_right(
    answers: Iterable[StoredAnswer], votes: Mapping[PoolKind, VoteRecord]
) -> dict[tuple[str, str], float]:
    """By fusion and member, the chance that its answer is right: by label, else by agreement."""
    chances: dict[tuple[str, str], float] = {}
    voters: defaultdict[tuple[PoolKind, str], list[StoredAnswer]] = defaultdict(list)
    for answer in answers:
        if answer.is_right is not None:
            chances[answer.fusion_id, answer.member] = float(answer.is_right)
        elif answer.vote_group is not None:
            voters[(answer.pool, answer.kind), answer.fusion_id].append(answer)
    for (key, fusion_id), panel in voters.items():
        pattern = _pattern(panel)
        for group, chance in zip(
            pattern.groups, votes[key].model.chances(pattern.groups), strict=True
        ):
            chances |= {(fusion_id, member): chance for member in group}
    return chances


def _is_broken(picks: Sequence[bool]) -> bool:
    """Tell whether a judge picked too many controls."""
    return sum(picks) >= QUARANTINE_PICKS and sum(picks) > QUARANTINE_SHARE * len(picks)
