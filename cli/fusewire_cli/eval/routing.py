"""Whom a learned route would ask, by cross-validation on labelled questions. Pure.

A route is never learned from the question that it is used on.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fusewire.analysis.measures import paired_difference
from fusewire.contracts import Prompt
from fusewire_cli.eval.suite import MemberReply
from fusewire_cli.eval.table import Score
from fusewire_cli.eval.weighing import FOLDS, AnsweredQuestion
from fusewire_judge.learning.prompt_features import prompt_features
from fusewire_judge.learning.router import Comparison, Prices, Router, learn_router


@dataclass(frozen=True)
class RoutedQuestion:
    """A question with its scored replies.

    Attributes:
        prompt: as it would be submitted; None if it was not checked.
        labels: which members gave the same answer, and which of the answers is right.
        replies: of all members.
        is_right: whether the answer of asking all is.
    """

    prompt: Prompt | None
    labels: AnsweredQuestion
    replies: Sequence[MemberReply]
    is_right: bool


def choose_members(
    questions: Sequence[RoutedQuestion], members: Sequence[str], *, loss: float
) -> list[tuple[str, ...]]:
    """By question, the members that a route learned from the other folds would ask.

    All of them where too little is known, or where fewer are predicted to lose too much.

    Args:
        questions: in the order of the suite.
        members: in the order of the pool.
        loss: what a route may lose, 0 to 1.
    """
    comparisons = [_comparison(question) for question in questions]
    prices = _prices(questions)
    names = tuple(members)
    routers: list[Router | None] = []
    for left_out in range(FOLDS):
        training = [
            comparison
            for question, comparison in zip(questions, comparisons, strict=True)
            if question.labels.fold != left_out
        ]
        routers.append(learn_router(names, training, prices, loss=loss))
    choices = []
    for question, comparison in zip(questions, comparisons, strict=True):
        router = routers[question.labels.fold]
        prediction = router.predict(comparison.features, names, ()) if router else None
        choices.append(prediction.members if prediction else names)
    return choices


def _comparison(question: RoutedQuestion) -> Comparison:
    groups, right = question.labels.pattern.groups, question.labels.pattern.right
    chances = {reply.recorded.member: 0.0 for reply in question.replies}
    if right is not None and right >= 0:
        chances |= dict.fromkeys(groups[right], 1.0)
    return Comparison(
        features=prompt_features(question.prompt) if question.prompt else (),
        chances=chances,
        groups=groups,
        whole=float(question.is_right),
    )


def _prices(questions: Sequence[RoutedQuestion]) -> Prices:
    """The members' mean figures; a reply without a price makes its member's unknown."""
    costs: defaultdict[str, list[float | None]] = defaultdict(list)
    latencies: defaultdict[str, list[float]] = defaultdict(list)
    for question in questions:
        for reply in question.replies:
            member = reply.recorded.member
            costs[member].append(reply.cost_usd)
            latencies[member].append(reply.latency_ms or 0.0)
    return Prices(
        usd={member: _mean(values) for member, values in costs.items()},
        latency_ms={member: sum(values) / len(values) for member, values in latencies.items()},
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known_values = [value for value in values if value is not None]
    return sum(known_values) / len(values) if len(known_values) == len(values) else None


def note(
    choices: Sequence[Sequence[str]],
    members: Mapping[str, str],
    routed_scores: Sequence[Score],
    all_scores: Sequence[Score],
) -> str:
    """What a route would have asked, saved and lost, in a sentence or two.

    Args:
        choices: by question, the members that it asks.
        members: by member, its title.
        routed_scores: of asking these.
        all_scores: of asking all.
    """
    n = len(choices)
    counts = [f"{title} {_share(choices, m, n):.0%}" for m, title in members.items()]
    difference = paired_difference(
        [score.is_right for score in all_scores], [score.is_right for score in routed_scores]
    )
    text = (
        f"Learned route, from the other {FOLDS - 1} of {FOLDS} folds: asks"
        f" {sum(map(len, choices)) / n:.2f} of {len(members)} members a question"
        f" ({', '.join(counts)}); loses {difference.value * 100:.1f} points against asking all"
        f" ({difference.low * 100:.1f} to {difference.high * 100:.1f})"
    )
    routed_usd, all_usd = _sum(routed_scores), _sum(all_scores)
    if routed_usd is None or all_usd is None:
        return f"{text}; its cost is unknown."
    saving = f", {1 - routed_usd / all_usd:.0%} less" if all_usd else ""
    return f"{text}; costs {routed_usd:.4g} in place of {all_usd:.4g} USD{saving}."


def _share(choices: Sequence[Sequence[str]], member: str, n: int) -> float:
    return sum(member in choice for choice in choices) / n


def _sum(scores: Sequence[Score]) -> float | None:
    costs = [score.cost_usd for score in scores if score.cost_usd is not None]
    return sum(costs) if len(costs) == len(scores) else None
