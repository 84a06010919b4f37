"""Vote weights learned from labels by cross-validation. Pure.

A weight is never learned from the question that it is used on.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from fusewire import ids
from fusewire_cli.eval.suite import MemberReply, Question
from fusewire_judge.learning.weights import SuccessCount, learn_weights
from fusewire_judge.scoring.answers import canonical
from fusewire_judge.scoring.gold import is_right

FOLDS = 5


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question with its scored answers; `right` holds the members that answered."""

    fold: int
    right: Mapping[str, bool]
    same: int
    """Pairs of wrong answers that are the same."""
    different: int
    """Pairs of wrong answers that differ."""


def fold(custom_id: str) -> int:
    """The fold of a question, 0 to 4; the same in every run and every suite."""
    return int.from_bytes(ids.digest("fold", custom_id)[:8], "big") % FOLDS


def label(question: Question, replies: Iterable[MemberReply]) -> AnsweredQuestion:
    """Score the answers to a question."""
    answers = [reply.recorded for reply in replies if reply.recorded.content is not None]
    right = {answer.member: is_right(answer.content, question.gold) for answer in answers}
    schema = question.body.get("response_schema")
    wrong = [
        canonical(answer.content or "", schema) for answer in answers if not right[answer.member]
    ]
    # An answer without a canonical form (None) counts as different from every other.
    pairs = Counter(a is not None and a == b for a, b in combinations(wrong, 2))
    return AnsweredQuestion(fold(question.custom_id), right, pairs[True], pairs[False])


def cross_validate(questions: Sequence[AnsweredQuestion]) -> list[dict[str, float]]:
    """By fold, the members' weights as learned from the other folds."""
    weights = []
    for left_out in range(FOLDS):
        training = [question for question in questions if question.fold != left_out]
        weights.append(_learn(training))
    return weights


def _learn(training: Sequence[AnsweredQuestion]) -> dict[str, float]:
    right_counts: Counter[str] = Counter()
    wrong_counts: Counter[str] = Counter()
    for question in training:
        for member, right in question.right.items():
            counts = right_counts if right else wrong_counts
            counts[member] += 1
    by_member = {
        member: SuccessCount(right_counts[member], wrong_counts[member])
        for member in sorted(right_counts | wrong_counts)
    }
    same = sum(question.same for question in training)
    different = sum(question.different for question in training)
    return learn_weights(by_member, SuccessCount(same, different))
