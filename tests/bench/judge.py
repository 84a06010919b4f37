"""How often an edge judge prefers the right one of two answers. `make bench-judge`.

Writes build/bench-judge.json.

288 pairs of a right and a wrong answer, of twelve kinds, written as small models write them, none
of them of the demo. Half of them (`dev`) are there to choose a way of judging on, the other half
(`test`) to measure what was chosen, once; this measures the shipped one on both.
"""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion import stats

from fusewire.testing.factories import make_prompt
from fusewire_judge.judging.prompts import conversation
from fusewire_worker_edge.engine.api import GenerateRequest
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.folder import verify
from fusewire_worker_edge.pull import DEFAULT_ROOT

BUILD = Path(__file__).parents[2] / "build"
PAIRS = Path(__file__).parent / "judge_pairs.jsonl"
MODELS = ("smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b")


@dataclass(frozen=True)
class Pair:
    """A question, and two answers to it."""

    id: str
    kind: str
    split: str
    question: str
    right: str
    wrong: str


def margin(generator: Generator, pair: Pair) -> float:
    """How much more probable the right answer is than the wrong one, in nats per token."""
    messages = conversation(make_prompt(pair.question), None)
    request = GenerateRequest(
        id=pair.id, messages=messages, max_tokens=1, choices=(pair.right, pair.wrong)
    )
    right, wrong = generator.generate(request).choice_logprobs
    return right - wrong


def measured(found: list[float]) -> dict[str, Any]:
    """The figures of so many pairs."""
    right = sum(one > 0 for one in found)
    rate, (low, high) = stats.share(right, len(found))
    return {"pairs": len(found), "right": right, "share": rate, "interval": [low, high]}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description="Measure edge judges on pairs of a right and a wrong answer."
    )
    parser.add_argument(
        "--models", type=Path, default=DEFAULT_ROOT, help="where the models' folders are"
    )
    parser.add_argument("--pairs", type=int, default=None, help="of each half; all without")
    options = parser.parse_args()
    pairs = [Pair(**json.loads(line)) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    figures: dict[str, Any] = {}
    for name in MODELS:
        folder = options.models.expanduser() / name
        if not folder.is_dir():
            print(f"{name}: not here; `fusewire model pull {name}`")
            continue
        generator = Generator(
            folder, verify(folder), EngineOptions(threads=len(os.sched_getaffinity(0)), slots=1)
        )
        for split in ("dev", "test"):
            chosen = [pair for pair in pairs if pair.split == split][: options.pairs]
            found = figures.setdefault(name, {})[split] = measured(
                [margin(generator, pair) for pair in chosen]
            )
            low, high = found["interval"]
            told = (
                f"right {found['right']}/{found['pairs']} = {found['share']:.0%} "
                f"[{low:.0%}, {high:.0%}]"
            )
            print(f"{name:20} {split:5} {told}", flush=True)
    BUILD.mkdir(exist_ok=True)
    (BUILD / "bench-judge.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
