"""Weights that are learned from labels, without a look at the question they are used on. Pure."""

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
    """A question with what was answered to it: `right` has the members that answered."""

    fold: int
    right: Mapping[str, bool]
    same: int
    """Pairs of wrong answers that are the same."""
    different: int


def fold(custom_id: str) -> int:
    """The fold of a question, 0 to 4; the same in every run and every suite."""
    return int.from_bytes(ids.digest("fold", custom_id)[:8], "big") % FOLDS


def label(question: Question, replies: Iterable[MemberReply]) -> AnsweredQuestion:
    """Score the answers to a question."""
    said = [r.recorded for r in replies if r.recorded.content is not None]
    right = {one.member: is_right(one.content, question.gold) for one in said}
    schema = question.body.get("response_schema")
    # What cannot be brought into one spelling cannot coincide, so far as we can see.
    wrong = [canonical(one.content or "", schema) for one in said if not right[one.member]]
    pairs = Counter(a is not None and a == b for a, b in combinations(wrong, 2))
    return AnsweredQuestion(fold(question.custom_id), right, pairs[True], pairs[False])


def crossed(labelled: Sequence[AnsweredQuestion]) -> list[dict[str, float]]:
    """Per fold, the members' weights as learned from the other folds."""
    return [
        _learned([one for one in labelled if one.fold != left_out]) for left_out in range(FOLDS)
    ]


def _learned(training: Sequence[AnsweredQuestion]) -> dict[str, float]:
    yes: Counter[str] = Counter()
    no: Counter[str] = Counter()
    for one in training:
        for member, right in one.right.items():
            (yes if right else no)[member] += 1
    standings = {member: SuccessCount(yes[member], no[member]) for member in sorted(yes | no)}
    return learn_weights(
        standings, SuccessCount(sum(t.same for t in training), sum(t.different for t in training))
    )
