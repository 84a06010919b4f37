"""The vote against the best member, on real answers of four models to 300 labelled questions.

It is left out if the answers are not on this machine.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from fusewire import ids
from fusewire_judge.scoring.answers import canonical

from . import stats
from .voting import Ballot, ByKind, elect, learn

FOLDS = 5
AIM = "the vote is at least as good as the best member"


@dataclass(frozen=True)
class Recorded:
    """One question."""

    custom_id: str
    ballot: Ballot
    right: Mapping[str, bool]
    """By member, as the data's authors marked it."""

    @property
    def fold(self) -> int:
        """Which part it is tested in."""
        return ids.digest("fold", self.custom_id)[0] % FOLDS


def load(folder: Path) -> list[Recorded]:
    """Read replay.jsonl."""
    by_id: dict[str, list[dict[str, Any]]] = {}
    for line in (folder / "replay.jsonl").read_text(encoding="utf-8").splitlines():
        line_fields = json.loads(line)
        by_id.setdefault(line_fields["custom_id"], []).append(line_fields)
    return [_question(custom_id, lines) for custom_id, lines in sorted(by_id.items())]


def _question(custom_id: str, lines: Sequence[Mapping[str, Any]]) -> Recorded:
    by_model = sorted(lines, key=lambda line: str(line["model"]))
    return Recorded(
        custom_id,
        {line["model"]: line["content"] for line in by_model},
        {line["model"]: bool(line["is_correct"]) for line in lines},
    )


def _folded_votes(questions: Sequence[Recorded], *, labels: bool) -> dict[str, bool]:
    """By question: whether the vote is right, with weights learned from the other folds."""
    is_right_by_id = {}
    for fold in range(FOLDS):
        weights = _learn([q for q in questions if q.fold != fold], labels=labels)
        for question in (q for q in questions if q.fold == fold):
            is_right_by_id[question.custom_id] = _is_right(question, weights)
    return is_right_by_id


def _learn(questions: Sequence[Recorded], *, labels: bool) -> ByKind:
    ballots = [question.ballot for question in questions]
    if not labels:
        return learn(ballots)
    return learn(ballots, lambda number, name: questions[number].right[name])


def _is_right(question: Recorded, weights: ByKind) -> bool:
    """Whether the vote on a question is right."""
    winner = elect(question.ballot, weights)
    return winner is not None and question.right[winner]


def _accuracy(questions: Sequence[Recorded], name: str) -> float:
    return sum(question.right[name] for question in questions) / len(questions)


def report(questions: Sequence[Recorded]) -> dict[str, Any]:
    """The vote less the best member in hindsight, paired."""
    n = len(questions)
    members = list(questions[0].ballot)
    alone = {name: _accuracy(questions, name) for name in members}
    best = max(members, key=alone.__getitem__)
    oracle = sum(any(q.right.values()) for q in questions) / n
    schemes = {
        "label_learned": _folded_votes(questions, labels=True),
        "learned": _folded_votes(questions, labels=False),
        "equal": {q.custom_id: _is_right(q, {}) for q in questions},
    }
    figures: dict[str, Any] = {}
    for name, is_right_by_id in schemes.items():
        value, ci = stats.mean([is_right_by_id[q.custom_id] - q.right[best] for q in questions])
        accuracy = sum(is_right_by_id.values()) / n
        aim, is_met = (AIM, value >= 0) if name == "label_learned" else ("", None)
        figures[name] = stats.figure(
            value, ci, n, aim, is_met, accuracy=accuracy, to_oracle=oracle - accuracy
        )
    weights = _learn(questions, labels=True)
    texts = chain.from_iterable(question.ballot.values() for question in questions)
    return figures | {
        "members": {name: round(p, 4) for name, p in alone.items()},
        "best": best,
        "oracle": round(oracle, 4),
        "open_answers": sum(canonical(text, None) is None for text in texts),
        "weights": {kind: _rounded_weights(by_member) for kind, by_member in weights.items()},
    }


def _rounded_weights(weights: Mapping[str, float]) -> dict[str, float]:
    return {name: round(weight, 3) for name, weight in weights.items()}
