"""Real answers of four models to 300 labelled questions, where they are at hand: the vote against the best of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusewire import ids
from fusewire_judge.scoring.answers import canonical

from . import stats
from .voting import Ballot, elected, learn

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
        one = json.loads(line)
        by_id.setdefault(one["custom_id"], []).append(one)
    return [
        Recorded(
            custom_id,
            {
                one["model"]: one["content"]
                for one in sorted(lines, key=lambda one: str(one["model"]))
            },
            {one["model"]: bool(one["is_correct"]) for one in lines},
        )
        for custom_id, lines in sorted(by_id.items())
    ]


def _chosen(questions: Sequence[Recorded], *, labels: bool) -> dict[str, bool]:
    """By question: whether the vote is right, with weights learned from the other folds."""
    found = {}
    for fold in range(FOLDS):
        train = [q for q in questions if q.fold != fold]
        is_right = (lambda number, name, train=train: train[number].right[name]) if labels else None
        weights = learn([q.ballot for q in train], is_right)
        for q in questions:
            if q.fold == fold:
                winner = elected(q.ballot, weights)
                found[q.custom_id] = winner is not None and q.right[winner]
    return found


def report(questions: Sequence[Recorded]) -> dict[str, Any]:
    """The vote less the best member in hindsight, paired."""
    n = len(questions)
    members = list(questions[0].ballot)
    alone = {name: sum(q.right[name] for q in questions) / n for name in members}
    best = max(members, key=alone.__getitem__)
    oracle = sum(any(q.right.values()) for q in questions) / n
    equal = {q.custom_id: elected(q.ballot, {}) for q in questions}
    schemes = {
        "label_learned": _chosen(questions, labels=True),
        "learned": _chosen(questions, labels=False),
        "equal": {
            q.custom_id: (w := equal[q.custom_id]) is not None and q.right[w] for q in questions
        },
    }
    figures: dict[str, Any] = {}
    for name, chosen in schemes.items():
        value, ci = stats.mean([chosen[q.custom_id] - q.right[best] for q in questions])
        accuracy = sum(chosen.values()) / n
        aim, met = (AIM, value >= 0) if name == "label_learned" else ("", None)
        figures[name] = stats.figure(
            value, ci, n, aim, met, accuracy=accuracy, to_oracle=oracle - accuracy
        )
    weights = learn(
        [q.ballot for q in questions], lambda number, name: questions[number].right[name]
    )
    return figures | {
        "members": {name: round(p, 4) for name, p in alone.items()},
        "best": best,
        "oracle": round(oracle, 4),
        "open_answers": sum(
            canonical(text, None) is None for q in questions for text in q.ballot.values()
        ),
        "weights": {
            kind: {name: round(w, 3) for name, w in known.items()}
            for kind, known in weights.items()
        },
    }
