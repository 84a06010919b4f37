"""Vote weights: learned without labels, learned with labels, equal, and optimal ones."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fusewire_judge.learning.statistics import StoredAnswer, StoredHistory, learn_statistics
from fusewire_judge.model import MemberAnswer
from fusewire_judge.scoring.answers import heaviest_group, kind_of, votes

from . import stats
from .world import Question, World

HISTORY = 500
HISTORIES = 40
NUMBER = "number"
EQUAL, UNLABELLED, LABELLED, OPTIMAL = "equal", "learned", "label_learned", "optimal"
AIM = "at most 1 point below the optimal vote (lower 95 % bound)"
BEST_AIM = "at most 1 point below the best member (lower 95 % bound)"

Ballot = Mapping[str, str]
"""What each member answered."""
Weights = Mapping[str, float]
ByKind = Mapping[str, Weights]
"""Weights by kind of answer; a kind or a member that is missing counts 1."""


def elect(ballot: Ballot, weights: ByKind) -> str | None:
    """A member that gave the answer that wins the vote.

    None if no answer has a vote.
    """
    kind_weights = weights.get(kind_of(list(ballot.values()), None), {})
    answers = [
        MemberAnswer(name, kind_weights.get(name, 1.0), text, 0) for name, text in ballot.items()
    ]
    groups = votes(answers, None)
    return heaviest_group(groups, answers)[0][0].member if groups else None


def learn(ballots: Sequence[Ballot], is_right: Callable[[int, str], bool] | None = None) -> ByKind:
    """The weights that the judge would learn from earlier answers.

    Args:
        ballots: the answers.
        is_right: by the number of the ballot and the member. None if there are no labels.
    """
    stored_answers = []
    for number, ballot in enumerate(ballots):
        groups = votes([MemberAnswer(name, 1.0, text, 0) for name, text in ballot.items()], None)
        group_of = _group_numbers(groups)
        kind = kind_of(list(ballot.values()), None)
        stored_answers += [
            StoredAnswer(
                pool="",
                fusion_id=str(number),
                kind=kind,
                member=name,
                is_right=is_right(number, name) if is_right else None,
                vote_group=group_of.get(name),
                latency_ms=None,
            )
            for name in ballot
        ]
    return {
        kind: weights
        for (_, kind), weights in learn_statistics(StoredHistory(stored_answers)).weights.items()
    }


def _group_numbers(groups: Mapping[str, Sequence[MemberAnswer]]) -> dict[str, int]:
    """By member: the number of its group of equal answers."""
    numbers: dict[str, int] = {}
    for number, group in enumerate(groups.values()):
        numbers |= {answer.member: number for answer in group}
    return numbers


def optimal(world: World) -> dict[str, float]:
    """The best weights if errors are independent: log(p / (1 - p)) - log(c).

    Source: Nitzan and Paroush, 1982.
    """
    return {
        m.name: max(math.log(m.accuracy / (1 - m.accuracy)) - math.log(world.collision), 1e-6)
        for m in world.members
    }


def ballots(world: World, start: int, stop: int) -> list[Ballot]:
    """What all members answer to some prompts."""
    return [_ballot(world.question(number)) for number in range(start, stop)]


def _ballot(question: Question) -> Ballot:
    return {member.name: question.answer(member) for member in question.world.members}


def _right(question: Question) -> dict[str, bool]:
    """By member: whether its answer is right."""
    return {member.name: question.claim(member) == 0 for member in question.world.members}


def learned_weights(world: World, history: int = HISTORY, *, start: int = 10_000_000) -> Weights:
    """The weights that the judge would learn without labels from earlier, closed answers."""
    return learn(ballots(world, start, start + history))[NUMBER]


def _looked_up(right: Sequence[Mapping[str, bool]], number: int, name: str) -> bool:
    return right[number][name]


Row = dict[str, float]
"""Share of right votes by scheme."""


def _is_vote_right(question: Question, weights: ByKind) -> bool:
    """Whether the vote is right; if no answer has a vote, whether the first member is."""
    ballot = _ballot(question)
    member = elect(ballot, weights) or question.world.members[0].name
    return question.is_right(ballot[member])


def rows(world: World, prompts: int, start: int, stop: int) -> list[Row]:
    """Histories of a slice, each learned from and followed by so many prompts."""
    results = []
    for history in range(start, stop):
        first = 20_000_000 + history * HISTORY
        earlier = ballots(world, first, first + HISTORY)
        questions = [world.question(first + n) for n in range(HISTORY)]
        right = [_right(question) for question in questions]
        weights: dict[str, ByKind] = {
            EQUAL: {},
            UNLABELLED: learn(earlier),
            LABELLED: learn(earlier, partial(_looked_up, right)),
            OPTIMAL: {NUMBER: optimal(world)},
        }
        hits = dict.fromkeys([*weights, "best"], 0)
        for question in map(world.question, range(history * prompts, (history + 1) * prompts)):
            for scheme, by_kind in weights.items():
                hits[scheme] += _is_vote_right(question, by_kind)
            hits["best"] += question.claim(world.best) == 0
        results.append({scheme: count / prompts for scheme, count in hits.items()})
    return results


def report(results: Sequence[Row], prompts: int) -> dict[str, Any]:
    """Each scheme less the optimal one, and less the best member; histories weigh alike."""
    figures: dict[str, Any] = {}
    for scheme in (UNLABELLED, LABELLED, EQUAL, "best"):
        value, ci = stats.mean([row[scheme] - row[OPTIMAL] for row in results])
        accuracy = sum(row[scheme] for row in results) / len(results)
        aim, is_met = (AIM, ci[0] >= -0.01) if scheme == UNLABELLED else ("", None)
        figures[scheme] = stats.figure(
            value, ci, len(results) * prompts, aim, is_met, accuracy=accuracy
        )
    for scheme in (UNLABELLED, LABELLED):
        value, ci = stats.mean([row[scheme] - row["best"] for row in results])
        figures[f"{scheme}_less_best"] = stats.figure(
            value, ci, len(results) * prompts, BEST_AIM, ci[0] >= -0.01
        )
    return figures
