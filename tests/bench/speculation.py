"""Measure speculation by prompt lookup: the same greedy answers with and without, side by side.

One thread, and CPU seconds: what else runs on the machine disturbs them least.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from fusewire.contracts import Message
from fusewire_worker_edge.engine.api import Completion, GenerateRequest
from fusewire_worker_edge.engine.cache import PrefixCache
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.engine.scheduler import Scheduler
from fusewire_worker_edge.folder import verify
from fusewire_worker_edge.pull import DEFAULT_ROOT

BUILD = Path(__file__).parents[2] / "build"
CODE = """\
def read_orders(path):
    orders = []
    with open(path) as file:
        for line in file:
            number, customer, amount = line.strip().split(",")
            orders.append({"number": number, "customer": customer, "amount": float(amount)})
    return orders


def total_by_customer(orders):
    totals = {}
    for order in orders:
        totals[order["customer"]] = totals.get(order["customer"], 0.0) + order["amount"]
    return totals
"""
LETTER = (
    "Dear Ms. Okafor, thank you for your order 48213 of 14 March. We have sent two desk lamps of"
    " the type Halden and one bookcase of the type Norrland to Lindenstrasse 12 in 10969 Berlin."
    " The amount of 318.40 euros is due on 30 April. For questions, write to"
    " service@nordmoebel.example or call Jonas Weber at 030 5550123."
)
ARTICLE = (
    "The lighthouse on the northern cape was built in 1871, after three ships had run aground in"
    " one winter. Its lamp burned rapeseed oil at first, paraffin from 1902, and was converted to"
    " electricity in 1957. The last keeper, Ingrid Solberg, left in 1989, when the light became"
    " automatic. Since 2010 the keeper's house has been a small museum, which about four thousand"
    " people visit each summer. The municipality plans to repair the tower's granite base next"
    " year, since frost has opened cracks in it that let in sea water."
)
SCHEMA = {
    "type": "object",
    "properties": {
        key: {"type": "string", "maxLength": 60}
        for key in ("recipient", "order_number", "address", "amount", "due", "contact", "email")
    },
    "required": ["recipient", "order_number", "address", "amount", "due", "contact", "email"],
    "additionalProperties": False,
}
PROMPTS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "free text": (
        ("Explain to a child in two paragraphs why the sky is blue.", {}),
        ("Write a short story about a fox who learns to swim.", {}),
    ),
    "code edit": (
        (f"Rename the variable totals to sums, and print the whole file.\n\n{CODE}", {}),
        (f"Add a docstring to each function, and print the whole file.\n\n{CODE}", {}),
    ),
    "extraction": (
        (f"Extract the facts of this letter as JSON.\n\n{LETTER}", {"response_schema": SCHEMA}),
        (f"List all names, numbers and addresses of this letter, one a line.\n\n{LETTER}", {}),
    ),
    "summary": (
        (f"Summarize this article in two sentences.\n\n{ARTICLE}", {}),
        (f"State the three most important points of this article.\n\n{ARTICLE}", {}),
    ),
    "arithmetic": (
        ("What is 17 * 23? Compute it step by step.", {}),
        ("A train goes 84 km in 70 minutes. How far does it go in 5 hours? Show the steps.", {}),
    ),
}


def answer(generator: Generator, request: GenerateRequest, speculate: str) -> Completion:
    """Answer alone, with nothing kept from the request before."""
    generator.speculate = "prompt" if speculate == "prompt" else "off"
    generator.scheduler.prefixes = PrefixCache()
    return generator.generate(request)


def measured(generator: Generator, request: GenerateRequest, rounds: int) -> dict[str, Any]:
    """Answer in turn with and without speculation, each round in the opposite order."""
    seconds: dict[str, list[float]] = {"off": [], "prompt": []}
    completions: dict[str, Completion] = {}
    for number in range(rounds):
        for speculate in sorted(seconds, reverse=bool(number % 2)):
            completion = completions[speculate] = answer(generator, request, speculate)
            tokens = max(completion.completion_tokens, 1)
            seconds[speculate].append(completion.decode_s / tokens)
    pairs = zip(seconds["off"], seconds["prompt"], strict=True)
    off, prompt = completions["off"], completions["prompt"]
    return {
        "speedups": [without / with_drafts for without, with_drafts in pairs],
        "tokens": prompt.completion_tokens,
        "drafted": prompt.drafted_tokens,
        "accepted": prompt.accepted_tokens,
        "is_same": off.text == prompt.text,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Measure speculation by prompt lookup.")
    parser.add_argument("names", nargs="+", help="the models' folders below --models")
    parser.add_argument("--models", type=Path, default=DEFAULT_ROOT)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=160, help="most tokens of an answer")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for name in options.names:
        folder = options.models.expanduser() / name
        generator = Generator(folder, verify(folder), EngineOptions(threads=1, slots=1))
        budget = generator.model.budget
        generator.scheduler = Scheduler(generator.model, budget, time.process_time)
        for kind, prompts in PROMPTS.items():
            results = []
            for text, fields in prompts:
                message = Message(role="user", content=text)
                request = GenerateRequest(
                    id=kind, messages=(message,), max_tokens=options.tokens, **fields
                )
                results.append(measured(generator, request, options.rounds))
            figures.setdefault(name, {})[kind] = results
            speedups = [speedup for result in results for speedup in result["speedups"]]
            drafted, accepted, tokens, same = (
                sum(result[key] for result in results)
                for key in ("drafted", "accepted", "tokens", "is_same")
            )
            print(
                f"{name:20} {kind:11} {statistics.median(speedups):.2f}"
                f" ({min(speedups):.2f} to {max(speedups):.2f}), {tokens} tokens,"
                f" {drafted} drafted, {accepted} accepted, {same}/{len(results)} same",
                flush=True,
            )
    BUILD.mkdir(exist_ok=True)
    (BUILD / "bench-speculation.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
