"""What edge models give on this machine, beside llama.cpp on the same file. `make bench-edge`.

Writes build/bench-edge.json.

| figure | how |
|---|---|
| KL, top-1 | against the file's own weights in float32, over 2,048 tokens of prose and code |
| tokenizer | 200 strings of many scripts and forms, ids equal to llama.cpp's |
| RSS over weights | what loading and answering adds to a process |
| guided over unguided | decoding with a JSON Schema, and without |
| right tool, right arguments | shares of 40 tasks with 8 tools, greedy: constrained, and free |
| decode and prefill over llama.cpp's | the same file, threads and prompt, in turn; medians |

The files are downloaded once, into build/gguf. It fails when something does not run, never for a
figure.
"""

import argparse
import json
import os
import platform
import random
import statistics
import unicodedata
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tool_tasks import rates

from fusewire.testing.llama_server import llama_server
from fusewire_worker_edge.catalogue import CATALOGUE
from fusewire_worker_edge.engine.generation import Generator, read_vocabulary
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.folder import verify
from fusewire_worker_edge.importers.convert import import_model
from fusewire_worker_edge.measure import ANSWER_TOKENS, PROMPT_TOKENS, Measurement, measure
from fusewire_worker_edge.pull import weights

BUILD = Path(__file__).parents[2] / "build"
MODELS = ("smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b")
ROUNDS = 3
STRINGS = 200
TIMEOUT_S = 600
ALPHABETS = (
    "Basic",
    "äöüßéñç",
    "αβγδ",
    "привет",
    "你好世界",
    "こんにちは",
    "안녕하세요",
    "مرحبا",
    "🙂🚀👩‍🔬",
    "0123456789",
    "\t\n  ",
)
SPELLED = (
    "<|im_end|>",
    "don't",
    "I'LL",
    "x += 1;",
    "def f(a, b):\n    return a",
    '{"a": [1, 2]}',
)


def ask(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Post JSON, get JSON."""
    request = urllib.request.Request(
        f"{url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
        return dict(json.load(reply))


def strings(count: int) -> list[str]:
    """Texts of many scripts, spaces, marks and forms, always the same ones.

    Without `<tool_call>` and its like: llama.cpp makes tokens of them whoever spells them, which is
    a hole here.
    """
    rng = random.Random(7)
    found = []
    for _ in range(count):
        pieces = []
        for _ in range(rng.randint(1, 12)):
            source = rng.choice((*ALPHABETS, *SPELLED))
            if source in SPELLED:
                pieces.append(source)
            else:
                pieces.append("".join(rng.choice(source) for _ in range(rng.randint(1, 9))))
        found.append(unicodedata.normalize("NFC", rng.choice(("", " ")).join(pieces)))
    return found


def tokenizer_agreement(folder: Path, url: str) -> float:
    """The share of `STRINGS` texts with the same ids."""
    vocabulary = read_vocabulary(folder, verify(folder))
    texts = strings(STRINGS)
    same = 0
    for text in texts:
        body = {"content": text, "add_special": False, "parse_special": False}
        same += ask(url, "tokenize", body)["tokens"] == vocabulary.ids(text)
    return same / len(texts)


def llama_speeds(url: str) -> tuple[float, float]:
    """Tokens a second of prompt and of answer."""
    prompt = "The sea is wide and old. " * (PROMPT_TOKENS // 7)
    body = {
        "prompt": prompt,
        "n_predict": ANSWER_TOKENS,
        "cache_prompt": False,
        "temperature": 0,
        "ignore_eos": True,
    }
    timings = ask(url, "completion", body)["timings"]
    return float(timings["prompt_per_second"]), float(timings["predicted_per_second"])


def bench(name: str, *, rounds: int, tokens: int, has_tools: bool) -> dict[str, Any]:
    """All figures of one model."""
    threads = len(os.sched_getaffinity(0))
    file = weights(CATALOGUE[name], BUILD / "gguf" / name, lambda *_: None)
    folder = BUILD / "models" / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        import_model(file, folder)
    ours: list[Measurement] = []
    theirs: list[tuple[float, float]] = []
    with llama_server(file, context=4096, threads=threads) as url:
        agreement = tokenizer_agreement(folder, url)
        for number in range(rounds):
            # The long comparison once; speeds in turn.
            ours.append(
                measure(folder, file if number == 0 else None, tokens=tokens, threads=threads)
            )
            theirs.append(llama_speeds(url))
    generator = Generator(folder, verify(folder), EngineOptions(threads=threads, slots=1))
    called = rates(generator) if has_tools else {}
    prefill = statistics.median(one.prefill_tok_s for one in ours)
    decode = statistics.median(one.decode_tok_s for one in ours)
    return {
        **asdict(ours[0]),
        **called,
        "prefill_tok_s": prefill,
        "decode_tok_s": decode,
        "tokenizer_agreement": agreement,
        "prefill_over_llama_cpp": prefill / statistics.median(one[0] for one in theirs),
        "decode_over_llama_cpp": decode / statistics.median(one[1] for one in theirs),
        "threads": threads,
    }


AIMS = {
    "kl": "<= 0.02",
    "top1": ">= 0.95",
    "tokenizer_agreement": "1",
    "rss_over_weights": "<= 1.3",
    "guided_over_unguided": ">= 0.85",
    "right_tool": "none",
    "right_arguments": "none",
    "free_right_tool": "none",
    "free_right_arguments": "none",
    "decode_over_llama_cpp": ">= 0.9",
    "prefill_over_llama_cpp": ">= 1.2",
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Measure edge models beside llama.cpp.")
    parser.add_argument(
        "--quick", action="store_true", help="the smallest model, one round: does it run at all"
    )
    options = parser.parse_args()
    names, rounds, tokens = (MODELS[:1], 1, 128) if options.quick else (MODELS, ROUNDS, 2048)
    figures = {}
    for name in names:
        figures[name] = bench(name, rounds=rounds, tokens=tokens, has_tools=not options.quick)
        print(name)
        for figure, aim in AIMS.items():
            if figure in figures[name]:
                print(f"  {figure:26} {figures[name][figure]:8.4f}, aim {aim}", flush=True)
    out = BUILD / "bench-edge.json"
    machine = {"cores": os.cpu_count(), "system": platform.platform()}
    out.write_text(
        json.dumps({"models": figures, "machine": machine}, indent=2) + "\n", encoding="utf-8"
    )
    print(f"written to {out}")


if __name__ == "__main__":
    main()
