"""What edge models give on this machine, beside llama.cpp on the same file. `make bench-edge`.

Writes build/bench-edge.json, part by part: a run of some parts keeps the others' results.

- `fidelity`: KL and top-1 against the file's own weights in float32, over 2,048 tokens of prose
  and code; the ids of 200 strings beside llama.cpp's; right calls in 40 tasks with 8 tools, greedy.
- `speeds`: those of `fusewire model bench`, and prompt and answer over llama.cpp's, in turn.
- `loads`: prepacked weights over plain ones: CPU time, and memory of a second replica.
- `variants`: tokens a second with one thread, with pinned threads and with huge pages, in turn.
- `parallel`: tokens a second of answers with 1, 4 and 8 requests at once, over those of
  llama.cpp's server, in turn.
- `goodput`: 200 prompts of 20 to 2,000 tokens at once, a tenth cancelled: tokens of complete
  answers a second, and the time of the first token, the wait in the queue included.
- `goodput-llama`: the same, asked of llama.cpp's server.
- `random`, `random-loads`: `speeds` without llama.cpp, and `loads`, of a folder of Mistral 7B's
  shape with random weights, which is made for this.

It fails when something does not run, never for a figure. A list has one figure of each round.
"""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from edge import fidelity, goodput, parallel, variants
from edge.models import BUILD, MODELS, SMALLEST, model_folder, thread_count
from edge.random_weights import SHAPES
from fusewire_worker_edge.measure import measure, measure_loads

ROUNDS = 3
OUT = BUILD / "bench-edge.json"
AIMS = {
    "kl": "<= 0.02",
    "top1": ">= 0.95",
    "tokenizer_agreement": "1",
    "rss_over_weights": "<= 1.3",
    "guided_over_unguided": ">= 0.85",
    "decode_over_bandwidth": ">= 0.85",
    "slots4_over_1": ">= 2.0",
    "slots8_over_1": ">= 2.8",
    "late_join_steps": "<= 1",
    "prefix_reuse_cpu": "<= 0.1",
    "prepacked_over_plain_load": "<= 0.5",
    "replica_over_weights": "<= 0.3",
    "prefill_over_llama": ">= 1.2",
    "decode_over_llama": ">= 1.0",
    "over_llama_1": ">= 1.0",
    "over_llama_4": ">= 1.3",
    "over_llama_8": ">= 1.3",
    "lost": "0",
}

Part = Callable[[str, int, bool], dict[str, Any]]
"""Measures a model: its name, how many rounds, and whether only to see that it runs."""


def _fidelity(name: str, _rounds: int, quick: bool) -> dict[str, Any]:
    return fidelity.fidelity(name, 128 if quick else 2048, has_tools=not quick)


def _speeds(name: str, rounds: int, _quick: bool) -> dict[str, Any]:
    return fidelity.speeds(name, rounds)


def _loads(name: str, _rounds: int, _quick: bool) -> dict[str, Any]:
    return asdict(measure_loads(model_folder(name), threads=thread_count(), room=BUILD))


def _variants(name: str, rounds: int, _quick: bool) -> dict[str, Any]:
    return variants.compare(model_folder(name), rounds)


def _parallel(name: str, rounds: int, quick: bool) -> dict[str, Any]:
    return parallel.compare(name, rounds, 8 if quick else parallel.ANSWER_TOKENS)


def _goodput(which: goodput.Which) -> Part:
    def measure_goodput(name: str, _rounds: int, quick: bool) -> dict[str, Any]:
        return goodput.run(
            name, which, goodput.Workload(20, 80, 4) if quick else goodput.Workload()
        )

    return measure_goodput


def _random(name: str, _rounds: int, _quick: bool) -> dict[str, Any]:
    return asdict(measure(model_folder(name), threads=thread_count()))


LARGEST = MODELS[-1:]
PARTS: dict[str, tuple[Part, tuple[str, ...]]] = {
    "fidelity": (_fidelity, MODELS),
    "speeds": (_speeds, MODELS),
    "loads": (_loads, MODELS),
    "variants": (_variants, LARGEST),
    "parallel": (_parallel, LARGEST),
    "goodput": (_goodput("ours"), (SMALLEST, "qwen2.5-coder-0.5b")),
    "goodput-llama": (_goodput("theirs"), (SMALLEST,)),
    "random": (_random, ("random-7b",)),
    "random-loads": (_loads, ("random-7b",)),
}
"""The parts by name, and the models that each is for unless others are named."""


def _show(figures: dict[str, Any]) -> None:
    for figure, value in figures.items():
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(number, int | float) for number in values):
            continue
        spread = f" ({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else ""
        aim = f", aim {AIMS[figure]}" if figure in AIMS else ""
        print(f"  {figure:34} {statistics.median(values):10.4g}{spread}{aim}")


def _write(part: str, name: str, figures: dict[str, Any]) -> None:
    """Add a result to those of other parts and models."""
    results = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
    results["machine"] = {"cores": os.cpu_count(), "system": platform.platform()}
    results.setdefault("parts", {}).setdefault(part, {})[name] = figures
    OUT.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Measure edge models beside llama.cpp.")
    parser.add_argument("--parts", nargs="*", choices=PARTS, metavar="PART")
    parser.add_argument(
        "--models", nargs="*", choices=(*MODELS, *SHAPES), metavar="MODEL", help="all, if left out"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help="the smallest: does it run at all")
    options = parser.parse_args()
    for part in options.parts or PARTS:
        run, names = PARTS[part]
        if options.quick:
            names = ("random-tiny",) if part.startswith("random") else (SMALLEST,)
        for name in options.models or names:
            load = os.getloadavg()[0]
            print(f"{part} {name}, at a load of {load:.1f}", flush=True)
            figures = run(name, 1 if options.quick else options.rounds, options.quick)
            _show(figures)
            date = datetime.now(UTC).isoformat(timespec="seconds")
            _write(
                part, name, {**figures, "load_average": [load, os.getloadavg()[0]], "date": date}
            )
    print(f"written to {OUT}")


if __name__ == "__main__":
    main()
