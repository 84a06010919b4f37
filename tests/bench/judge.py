"""How often an edge judge prefers the right one of two answers. `make bench-judge`; writes build/bench-judge.json.

| figure | how |
|---|---|
| right | pairs of a right and a wrong answer in which the right one has the greater mean margin over both orders |
| one order | the same by one order alone, mean of both: what the order costs |
| same | pairs in which both orders prefer the same answer |

288 pairs of twelve kinds, written as small models write them, none of them of the demo. Half of them (`dev`) are there
to choose a wording on, the other half (`test`) to measure what was chosen, once; this measures the shipped wording on
both.
"""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion import stats

from fusewire import ids
from fusewire.testing.factories import make_prompt
from fusewire_judge.fusion.case import Said
from fusewire_judge.fusion.wording import choice, rotations
from fusewire_worker_edge.engine.api import GenerateRequest
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.folder import verify
from fusewire_worker_edge.pull import DEFAULT_ROOT

BUILD = Path(__file__).parents[2] / "build"
PAIRS = Path(__file__).parent / "judge_pairs.jsonl"
MODELS = ("smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b")
RIGHT, WRONG = "right", "wrong"


@dataclass(frozen=True)
class Pair:
    """A question, and two answers to it."""

    id: str
    kind: str
    split: str
    question: str
    right: str
    wrong: str


def margins(generator: Generator, pair: Pair) -> list[float]:
    """By order, how much more probable the right answer's letter is than the wrong one's, in nats."""
    prompt = make_prompt(pair.question)
    said = [Said(RIGHT, 1.0, pair.right, 0), Said(WRONG, 1.0, pair.wrong, 0)]
    found = []
    for number, shown in enumerate(rotations(said, ids.seed(pair.id), "verdict-1")):
        request = GenerateRequest(
            id=f"{pair.id}-{number}", messages=choice(prompt, shown, None), max_tokens=1, choices=shown.labels
        )
        scores = dict(zip(shown.members, generator.generate(request).choice_logprobs, strict=True))
        found.append(scores[RIGHT] - scores[WRONG])
    return found


def measured(found: list[list[float]]) -> dict[str, Any]:
    """The figures of so many pairs."""
    right = sum(sum(one) > 0 for one in found)
    rate, (low, high) = stats.share(right, len(found))
    return {
        "pairs": len(found),
        "right": right,
        "share": rate,
        "interval": [low, high],
        "one_order": sum(margin > 0 for one in found for margin in one) / (2 * len(found)),
        "same": sum(one[0] * one[1] > 0 for one in found) / len(found),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Measure edge judges on pairs of a right and a wrong answer.")
    parser.add_argument("--models", type=Path, default=DEFAULT_ROOT, help="where the models' folders are")
    parser.add_argument("--pairs", type=int, default=None, help="of each half; all without")
    options = parser.parse_args()
    pairs = [Pair(**json.loads(line)) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    figures: dict[str, Any] = {}
    for name in MODELS:
        folder = options.models.expanduser() / name
        if not folder.is_dir():
            print(f"{name}: not here; `fusewire model pull {name}`")
            continue
        generator = Generator(folder, verify(folder), EngineOptions(threads=len(os.sched_getaffinity(0)), slots=1))
        for split in ("dev", "test"):
            chosen = [pair for pair in pairs if pair.split == split][: options.pairs]
            found = figures.setdefault(name, {})[split] = measured([margins(generator, pair) for pair in chosen])
            low, high = found["interval"]
            told = f"right {found['right']}/{found['pairs']} = {found['share']:.0%} [{low:.0%}, {high:.0%}]"
            print(
                f"{name:20} {split:5} {told}, one order {found['one_order']:.0%}, same {found['same']:.0%}", flush=True
            )
    BUILD.mkdir(exist_ok=True)
    (BUILD / "bench-judge.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
