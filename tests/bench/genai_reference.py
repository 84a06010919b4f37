"""The edge engine beside onnxruntime-genai on one model folder: tokens, logits and speed.

`.venv/bin/python tests/bench/genai_reference.py FOLDER`

| figure | how |
|---|---|
| tokens | greedy, from the same prompt ids, by onnxruntime-genai's own loop and by our engine |
| logits | the largest difference in any step, as long as the tokens are the same |
| speed | our two engines in one process in turn, by processor time, with one thread; medians |

It fails when something does not run, never for a figure.
"""

import argparse
import statistics
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusewire.contracts import Message
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.options import EngineName, EngineOptions
from fusewire_worker_edge.engine.scheduler import CHUNK, chunk_size
from fusewire_worker_edge.folder import verify

TOKENS = 48
ROUNDS = 5
ENGINES: tuple[EngineName, ...] = ("onnxruntime", "genai")
PROMPTS = {
    "chat": "What is the capital of France, and what is it known for?",
    "code": "Write a Python function that returns the n-th Fibonacci number without recursion.",
    "german": "Erkläre in zwei Sätzen, warum der Himmel blau ist und abends rot wird.",
    "japanese": "日本の首都はどこですか。短く答えてください。",
    "long": "Sum this up in one sentence. "
    + " ".join(
        f"On day {day} the ship sailed {day * 7} miles to the {way}, and the crew wrote it down."
        for day, way in enumerate(("north", "east", "south", "west") * 3, 1)
    ),
}

Logits = NDArray[np.float32]
Step = tuple[int, Logits]
"""A token, and the logits that it was chosen by, [vocabulary]."""


@dataclass(frozen=True)
class Agreement:
    """How far two greedy answers agree."""

    prompt_tokens: int
    tokens: int
    """How many tokens are equal, from the first on."""
    logits: float
    """The largest difference of any logit up to there."""
    gap: float | None
    """Where the answers part, by how much our logits prefer our token; None if they do not part."""


def reference_model(folder: Path, threads: int) -> Any:
    """The folder, loaded by onnxruntime-genai as it is."""
    # After `fusewire_worker_edge`, which switches its telemetry off.
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    session = f'{{"intra_op_num_threads": {threads}, "log_severity_level": 3}}'
    config.overlay(f'{{"model": {{"decoder": {{"session_options": {session}}}}}}}')
    return og.Model(config)


def reference_steps(model: Any, prompt: Sequence[int], count: int) -> Iterator[Step]:
    """Greedy tokens by onnxruntime-genai's own loop, up to and including an end token."""
    import onnxruntime_genai as og

    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(prompt) + count)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array(prompt, np.int32))
    for _ in range(count):
        logits = generator.get_logits()[0, -1]
        generator.generate_next_token()
        yield int(generator.get_next_tokens()[0]), logits
        if generator.is_done():
            return


def engine_steps(
    generator: Generator, prompt: Sequence[int], count: int, ends: Collection[int]
) -> Iterator[Step]:
    """Greedy tokens by our engine, prefilled and decoded as its scheduler does."""
    past = 0
    logits = None
    while past < len(prompt):
        size = chunk_size(len(prompt) - past, CHUNK)
        logits = generator.model.prefill(0, prompt[past : past + size], past)
        past += size
    assert logits is not None
    for _ in range(count):
        token = int(logits.argmax())
        yield token, logits
        if token in ends:
            return
        logits = generator.model.decode([token], [past])[0]
        past += 1


def agreement(generator: Generator, model: Any, text: str, count: int = TOKENS) -> Agreement:
    """Compare the greedy answers to one message."""
    prompt = generator.vocabulary.prompt([Message(role="user", content=text)])
    ours = list(engine_steps(generator, prompt, count, generator.manifest.end_tokens))
    theirs = list(reference_steps(model, prompt, count))
    tokens, largest = 0, 0.0
    for (our_token, our_logits), (their_token, their_logits) in zip(ours, theirs, strict=False):
        largest = max(largest, float(np.abs(our_logits - their_logits).max()))
        if our_token != their_token:
            gap = float(our_logits[our_token] - our_logits[their_token])
            return Agreement(len(prompt), tokens, largest, gap)
        tokens += 1
    assert len(ours) == len(theirs), "an end token is another one to onnxruntime-genai"
    return Agreement(len(prompt), tokens, largest, None)


def speeds(generator: Generator, prompt: Sequence[int]) -> tuple[float, float]:
    """Tokens of a prompt and of its answer, per second of processor time."""
    steps = engine_steps(generator, prompt, TOKENS, ends=())
    began = time.process_time()
    next(steps)
    prefilled = time.process_time()
    decoded = len(list(steps))
    return len(prompt) / (prefilled - began), decoded / (time.process_time() - prefilled)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The edge engine beside onnxruntime-genai.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    manifest = verify(options.folder)
    generators = {
        engine: Generator(
            options.folder,
            manifest,
            EngineOptions(engine=engine, threads=options.threads, slots=1, kv_cache_mb=256),
        )
        for engine in ENGINES
    }
    model = reference_model(options.folder, options.threads)
    for name, text in PROMPTS.items():
        print(f"{name:10} {agreement(generators['onnxruntime'], model, text)}", flush=True)
    del model
    long = generators["onnxruntime"].vocabulary.prompt(
        [Message(role="user", content=PROMPTS["long"])]
    )
    measured: dict[str, list[tuple[float, float]]] = {engine: [] for engine in ENGINES}
    for _ in range(options.rounds):
        for engine in ENGINES:
            measured[engine].append(speeds(generators[engine], long))
    for column, what in enumerate(("prefill", "decode")):
        ours, theirs = (
            statistics.median(pair[column] for pair in measured[engine]) for engine in ENGINES
        )
        ratios = [
            b[column] / a[column]
            for a, b in zip(measured["onnxruntime"], measured["genai"], strict=True)
        ]
        print(
            f"{what:10} onnxruntime {ours:.1f}, genai {theirs:.1f} tokens a CPU second; genai"
            f" over ours {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
