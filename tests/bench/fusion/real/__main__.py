"""What each way of fusing is worth on recorded answers of real small models.

Cross-validated: what is learned or chosen comes from other folds than the question it is used on.
Prints a table and writes build/bench-fusion-real.json. Without --data it reads what is recorded
here; else a folder with suite.jsonl and replay.jsonl, as `fusewire eval run` takes them.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import eq
from pathlib import Path
from statistics import fmean
from typing import Any

from fusion import stats

from .dataset import HERE, OPEN, OPEN_REPLAY, Question, load
from .replaying import best_member, fold_of, fuse, is_fusion_right, learn

OUT = Path(__file__).parents[4] / "build" / "bench-fusion-real.json"
FOLDS, REPEATS, RESAMPLES = 5, 4, 2000
LEAST = 20
"""Fewer prompts of a kind have no row of their own."""
BEST, EQUAL, LABELLED, UNLABELLED = "best member", "equal weights", "labels", "no labels"
EXPECTED, WRONGLY = "no labels, weights by size", "no labels, weights reversed"
KIND_BEST, RANDOM, ORACLE = "best member by kind", "random member", "oracle"
AIMS = {
    LABELLED: ("at most 1 point below the best member (lower 95 % bound)", -0.01),
}
RANDOM_AIM = "not below a random member"
WEIGHTS = {"large": 2.0, "small": 1.0, "tiny": 0.5}
"""What an operator who knows the sizes of the models recorded here would configure."""

Shares = dict[str, float]
"""By scheme, the share of the repetitions in which it is right on one question."""


def measure(questions: Sequence[Question], seed: str, repeats: int = REPEATS) -> list[Shares]:
    """By question, how often each scheme is right, over partitions into folds."""
    equal = [fuse(question, {}) for question in questions]
    shares = [_fixed(question, is_fusion_right(question, outcome))
               for question, outcome in zip(questions, equal, strict=True)]  # fmt: skip
    for repeat in range(repeats):
        folds = [fold_of(question, FOLDS, f"{seed}/{repeat}") for question in questions]
        for fold in range(FOLDS):
            known = [n for n, own in enumerate(folds) if own != fold]
            schemes = Schemes([questions[n] for n in known], [equal[n] for n in known])
            for number, own in enumerate(folds):
                if own == fold:
                    for name, is_right in schemes.apply(questions[number]).items():
                        shares[number][name] = shares[number].get(name, 0.0) + is_right / repeats
    return shares


def _fixed(question: Question, is_equal_right: bool) -> Shares:
    """What nothing is learned for."""
    rights = [question.is_right(answer.member) for answer in question.answers]
    return {EQUAL: float(is_equal_right), RANDOM: fmean(rights), ORACLE: float(any(rights))}


class Schemes:
    """What is learned and chosen on the training folds."""

    def __init__(self, questions: Sequence[Question], outcomes: Sequence[Any]) -> None:
        pairs = list(zip(questions, outcomes, strict=True))
        self.best = best_member(questions)
        by_kind: dict[str, list[Question]] = {}
        for question in questions:
            by_kind.setdefault(question.kind, []).append(question)
        self.best_by_kind = {kind: best_member(own) for kind, own in by_kind.items()}
        self.weights = {
            LABELLED: learn(pairs, labels=True),
            UNLABELLED: learn(pairs, labels=False),
        }
        if {answer.member for answer in questions[0].answers} == WEIGHTS.keys():
            reverse = {member: 1 / weight for member, weight in WEIGHTS.items()}
            for name, weights in ((EXPECTED, WEIGHTS), (WRONGLY, reverse)):
                self.weights[name] = learn(pairs, labels=False, configured_weights=weights)

    def apply(self, question: Question) -> dict[str, bool]:
        """Whether each scheme is right on a question of another fold."""
        kind_best = self.best_by_kind.get(question.kind, self.best)
        rights = {BEST: question.is_right(self.best), KIND_BEST: question.is_right(kind_best)}
        for name, weights in self.weights.items():
            rights[name] = is_fusion_right(question, fuse(question, weights))
        return rights


def report(questions: Sequence[Question], seed: str, repeats: int = REPEATS) -> dict[str, Any]:
    """All figures: overall and by kind of prompt."""
    shares = measure(questions, seed, repeats)
    counts = Counter(question.kind for question in questions)
    kinds = {"overall": range(len(questions))} | {
        kind: [n for n, q in enumerate(questions) if q.kind == kind]
        for kind, count in sorted(counts.items())
        if count >= LEAST and len(counts) > 1
    }
    return {
        kind: _figures([questions[n] for n in own], [shares[n] for n in own], seed)
        for kind, own in kinds.items()
    }


def report_open(questions: Sequence[Question]) -> dict[str, Any]:
    """Whose answers are chosen where none is right: as most like the others, and by the judge."""
    judged = [question for question in questions if question.logprobs]
    alike = [fuse(question, {}).winner for question in judged]
    preferred = [fuse(question, {}, is_judged=True).winner for question in judged]
    return {
        "n": len(judged),
        "most like the others": Counter(map(str, alike)),
        "preferred by the judge": Counter(map(str, preferred)),
        "the same": sum(map(eq, alike, preferred)),
    }


def _figures(questions: Sequence[Question], shares: Sequence[Shares], seed: str) -> dict[str, Any]:
    n = len(questions)
    members = sorted({answer.member for q in questions for answer in q.answers})
    figures: dict[str, Any] = {
        "n": n,
        "members": {m: round(fmean(q.is_right(m) for q in questions), 4) for m in members},
        "accuracy": {name: round(fmean(c[name] for c in shares), 4) for name in shares[0]},
    }
    names = (LABELLED, UNLABELLED, EXPECTED, WRONGLY, EQUAL, RANDOM, KIND_BEST, ORACLE)
    for name in (name for name in names if name in shares[0]):
        figures[f"{name} less {BEST}"] = _difference(shares, name, BEST, seed)
    figures[f"{EQUAL} less {RANDOM}"] = _difference(shares, EQUAL, RANDOM, seed)
    return figures


def _difference(shares: Sequence[Shares], name: str, base: str, seed: str) -> stats.Figure:
    """Paired, with the bootstrap's interval."""
    rows = [(own[name] - own[base],) for own in shares]
    value, ci = stats.bootstrap(rows, _mean, f"{seed}/{name}/{base}", RESAMPLES)
    if base == RANDOM:
        return stats.figure(value, ci, len(rows), RANDOM_AIM, value >= 0)
    aim, least = AIMS.get(name, ("", 0.0))
    return stats.figure(value, ci, len(rows), aim, ci[0] >= least if aim else None)


def _mean(rows: Sequence[tuple[float, ...]]) -> float:
    return fmean(row[0] for row in rows)


def show(results: Mapping[str, Any]) -> None:
    """Print a table for each kind of prompts."""
    for kind, figures in results.items():
        members = ", ".join(f"{m} {p:.1%}" for m, p in figures["members"].items())
        print(f"\n{kind}: {figures['n']} prompts. Alone: {members}")
        accuracy = figures["accuracy"]
        print(f"  {BEST + ', chosen on the other folds':42}{accuracy[BEST]:>7.1%}")
        for path, entry in figures.items():
            if isinstance(entry, dict) and "ci" in entry:
                low, high = (100 * bound for bound in entry["ci"])
                aim = ""
                if "aim" in entry:
                    aim = f"{'met' if entry['met'] else 'MISSED'} ({entry['aim']})"
                share = accuracy[path.split(" less ")[0]]
                points = f"{100 * entry['value']:+.1f} ({low:+.1f} to {high:+.1f})"
                print(f"  {path:42}{share:>7.1%}  {points:24}{aim}")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="bench-fusion-real", description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="partitions into folds")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    try:
        questions = load(options.data)
    except FileNotFoundError as exc:
        parser.error(str(exc))
    results = report(questions, options.seed, options.repeats)
    show(results)
    if (options.data / OPEN).exists():
        results["open"] = report_open(load(options.data, OPEN, OPEN_REPLAY))
        print(f"\nopen: {results['open']}")
    settings = {"seed": options.seed, "folds": FOLDS, "repeats": options.repeats}
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(settings | results, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
