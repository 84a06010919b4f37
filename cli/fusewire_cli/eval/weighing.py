"""Vote weights learned from labels by cross-validation. Pure.

A weight is never learned from the question that it is used on.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fusewire import ids
from fusewire_cli.eval.suite import MemberReply, Question
from fusewire_judge.learning.agreement_model import Pattern, fit
from fusewire_judge.learning.weights import vote_weights
from fusewire_judge.scoring.answers import canonical
from fusewire_judge.scoring.gold import is_right

FOLDS = 5


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question with its scored answers."""

    fold: int
    pattern: Pattern
    """Which members gave the same answer, and which of the answers is right."""


def fold(custom_id: str) -> int:
    """The fold of a question, 0 to 4; the same in every run and every suite."""
    return int.from_bytes(ids.digest("fold", custom_id)[:8], "big") % FOLDS


def label(question: Question, replies: Iterable[MemberReply]) -> AnsweredQuestion:
    """Score the answers to a question.

    An answer without a canonical form is equal to no other.
    """
    groups: dict[str, list[str]] = {}
    right_values = []
    for reply in replies:
        member, content = reply.recorded.member, reply.recorded.content
        if content is None:
            continue
        value = canonical(content, question.body.get("response_schema")) or f"open:{member}"
        groups.setdefault(value, []).append(member)
        if is_right(content, question.gold):
            right_values.append(value)
    right = list(groups).index(right_values[0]) if right_values else -1
    pattern = Pattern(tuple(map(tuple, groups.values())), right)
    return AnsweredQuestion(fold(question.custom_id), pattern)


def cross_validate(questions: Sequence[AnsweredQuestion]) -> list[dict[str, float]]:
    """By fold, the members' weights as learned from the other folds."""
    weights = []
    for left_out in range(FOLDS):
        patterns = Counter(q.pattern for q in questions if q.fold != left_out and q.pattern.groups)
        weights.append(vote_weights(fit(patterns), patterns))
    return weights
