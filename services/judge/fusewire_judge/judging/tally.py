"""Tally the verdicts of all judges: who was named how often, and which verdicts count. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from fusewire.contracts import CONTROL, ParseStage, PlannedJudge, Verdict, VerdictKind
from fusewire_judge.judging.parse import UnreadableVerdict
from fusewire_judge.judging.prompts import Lineup, verdict_schema
from fusewire_judge.learning.judged_model import EDGE

PARSE_STAGES: tuple[ParseStage, ...] = ("strict", "repaired", "reasked", "fallback")
"""From the best to the worst."""


@dataclass(frozen=True)
class JudgeCall:
    """One call of one judge, and the line-up that it shows."""

    name: str
    juror: PlannedJudge
    lineup: Lineup
    control: str | None
    """The kind of the control candidate in the line-up; None if it holds none."""

    @property
    def is_by_margin(self) -> bool:
        """Whether the judge decides by log probabilities, and writes nothing."""
        return self.juror.by_margin

    @property
    def schema(self) -> dict[str, Any]:
        """What a written verdict must satisfy."""
        return verdict_schema(self.lineup.labels)


@dataclass(frozen=True)
class Choice:
    """The winner that one judge call named."""

    winner: str
    reason: str
    parse_stage: ParseStage
    logprobs: tuple[float, ...] = ()
    """From a judge by margin: the mean log probability per token of each answer shown."""


@dataclass(frozen=True)
class Tally:
    """The verdicts of all judges together."""

    wins: Mapping[str, float] = field(default_factory=dict)
    """By member that was judged: the verdicts that named it, each weighed by its judge's edge."""
    appearances: Mapping[str, float] = field(default_factory=dict)
    """By member that was judged: those that could have. Empty if no verdict counts."""
    edges: Mapping[str, float] = field(default_factory=dict)
    """By judge whose verdicts count: the log odds by which these speak for what they name."""
    verdicts: tuple[Verdict, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    """By member: the first judge's reason for it."""
    lineup: tuple[str, ...] = ()
    """Members in the first order shown."""
    parse_stage: ParseStage | None = None
    """The worst at which a verdict that counts was parsed."""
    faults: tuple[str, ...] = ()
    """Why verdicts do not count."""

    def leaders(self, odds: Mapping[str, float] | None = None) -> list[str]:
        """The members that are most probably right, given the verdicts; several on a tie.

        By Bayes: to the logarithm of a member's odds come the judges' edges together, times the
        share of the verdicts, weighed by their judges' edges, that named the member.

        Args:
            odds: by member, of being right whatever the judges say; missing ones are 1. Without
                any, those lead that were named most often.

        Returns:
            Empty if no verdict counts.
        """
        if not self.appearances:
            return []
        log_odds = self._log_odds(odds or {})
        edge = sum(self.edges.values())
        scores = {}
        for member, weight in self.appearances.items():
            scores[member] = edge * self.wins[member] / weight + log_odds[member]
        best = max(scores.values())
        # Equal scores may differ in their last digit.
        return [member for member, score in scores.items() if score > best - 1e-9]

    def _log_odds(self, odds: Mapping[str, float]) -> dict[str, float]:
        # A judge by margin has weighed the odds already.
        if any(verdict.logprobs for verdict in self._valid_verdicts):
            odds = {}
        return {member: math.log(odds.get(member, 1.0)) for member in self.appearances}

    @property
    def _valid_verdicts(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.winner and not verdict.void]

    @property
    def follows_place(self) -> bool:
        """Whether each verdict that counts named the answer it was shown first.

        Verdicts by margin are left out, since such a judge sees no order.
        """
        verdicts = [v for v in self.verdicts if not v.void and not v.logprobs]
        return bool(verdicts) and all(v.winner == v.shown[0] for v in verdicts)

    def plus(self, other: "Tally") -> "Tally":
        """Add another tally. The line-up and the reasons of this one come first."""
        members = dict.fromkeys((*self.appearances, *other.appearances))
        return Tally(
            wins={m: self.wins.get(m, 0) + other.wins.get(m, 0) for m in members},
            appearances={
                m: self.appearances.get(m, 0) + other.appearances.get(m, 0) for m in members
            },
            edges={**self.edges, **other.edges},
            verdicts=(*self.verdicts, *other.verdicts),
            reasons={**other.reasons, **self.reasons},
            lineup=self.lineup,
            parse_stage=worst_stage((self.parse_stage, other.parse_stage)),
            faults=tuple(dict.fromkeys((*self.faults, *other.faults))),
        )


def tally_choices(
    calls_by_judge: Sequence[Sequence[JudgeCall]],
    choices: Mapping[str, Choice | UnreadableVerdict],
    kind: VerdictKind,
) -> Tally:
    """Tally the choices of all judges.

    Args:
        calls_by_judge: the calls of each judge; none for a judge that could not vote.
        choices: by the name of the call.
        kind: of the verdicts, for the record.
    """
    tallies = [_tally_judge(calls, choices, kind) for calls in calls_by_judge if calls]
    return reduce(Tally.plus, tallies) if tallies else Tally()


def _tally_judge(
    calls: Sequence[JudgeCall], choices: Mapping[str, Choice | UnreadableVerdict], kind: VerdictKind
) -> Tally:
    """Tally one judge. If it named a control, none of its verdicts count."""
    verdicts = [_verdict(call, choices[call.name], kind) for call in calls]
    winners = [verdict.winner for verdict in verdicts if verdict.winner]
    lineup = tuple(member for member in calls[0].lineup.members if member != CONTROL)
    if CONTROL in winners:
        return Tally(verdicts=_void(verdicts), lineup=lineup, faults=("picked_control",))
    is_consistent = _is_consistent(calls, winners)
    verdicts = [v.model_copy(update={"is_consistent": is_consistent}) for v in verdicts]
    edge = _edge_of(calls[0].juror)
    wins, appearances = _weigh_wins(calls, choices, edge)
    return Tally(
        wins=wins,
        appearances=appearances,
        edges={calls[0].juror.model: edge} if winners else {},
        verdicts=tuple(verdicts),
        reasons=_first_reasons(calls, choices),
        lineup=lineup,
        parse_stage=worst_stage(verdict.rung for verdict in verdicts),
        faults=_faults(calls, verdicts),
    )


def _edge_of(juror: PlannedJudge) -> float:
    """What a verdict says; what is learned of written ones holds for no judge by margin."""
    if juror.verdict_edge is None or juror.by_margin:
        return EDGE
    return juror.verdict_edge


def _void(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    return tuple(v.model_copy(update={"void": v.void or "picked_control"}) for v in verdicts)


def _weigh_wins(
    calls: Sequence[JudgeCall], choices: Mapping[str, Choice | UnreadableVerdict], edge: float
) -> tuple[dict[str, float], dict[str, float]]:
    """By member: the choices that named it, and those that could have, times the edge."""
    wins: dict[str, float] = {}
    appearances: dict[str, float] = {}
    for call in calls:
        choice = choices[call.name]
        if isinstance(choice, UnreadableVerdict):
            continue
        members = [member for member in call.lineup.members if member != CONTROL]
        for member in members:
            appearances[member] = appearances.get(member, 0.0) + edge
            wins[member] = wins.get(member, 0.0) + edge * (member == choice.winner)
    return wins, appearances


def _first_reasons(
    calls: Sequence[JudgeCall], choices: Mapping[str, Choice | UnreadableVerdict]
) -> dict[str, str]:
    """By member that was named: the first reason."""
    reasons: dict[str, str] = {}
    for call in calls:
        choice = choices[call.name]
        if isinstance(choice, Choice):
            reasons.setdefault(choice.winner, choice.reason)
    return reasons


def worst_stage(stages: Iterable[ParseStage | None]) -> ParseStage | None:
    """The worst of some parse stages; None without any."""
    known_stages = [stage for stage in stages if stage]
    return max(known_stages, key=PARSE_STAGES.index, default=None)


def _faults(calls: Sequence[JudgeCall], verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    """Why verdicts of a judge do not count, or count for less: only one of two orders is left."""
    faults = [verdict.void for verdict in verdicts if verdict.void]
    if _is_swapped(calls) and len(faults) == 1:
        faults.append("one_order")
    return tuple(dict.fromkeys(faults))


def _is_consistent(calls: Sequence[JudgeCall], winners: Sequence[str]) -> bool | None:
    """Whether a judge named the same winner in both orders; None if it did not see or name both."""
    if not _is_swapped(calls) or len(winners) < 2:
        return None
    return winners[0] == winners[1]


def _is_swapped(calls: Sequence[JudgeCall]) -> bool:
    """Whether a judge saw the same answers in two opposite orders."""
    if len(calls) != 2:
        return False
    return calls[0].lineup.members == calls[1].lineup.members[::-1]


def _verdict(call: JudgeCall, choice: Choice | UnreadableVerdict, kind: VerdictKind) -> Verdict:
    winner, parse_stage, void = None, None, None
    logprobs: tuple[float, ...] = ()
    if isinstance(choice, Choice):
        winner, parse_stage, logprobs = choice.winner, choice.parse_stage, choice.logprobs
    else:
        void = choice.reason
    return Verdict(
        call=call.name,
        kind=kind,
        judge_model=call.juror.model,
        shown=call.lineup.members,
        chars=tuple(len(answer.content) for answer in call.lineup.answers),
        control=call.control,
        winner=winner,
        rung=parse_stage,
        logprobs=logprobs,
        void=void,
    )
