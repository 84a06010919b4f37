"""Fidelity of a model to its file, tool calls, and speeds beside llama.cpp on the same file."""

import json
import random
import unicodedata
import urllib.request
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tool_tasks import rates

from edge.models import gguf, model_folder, thread_count
from fusewire.testing.llama_server import llama_server
from fusewire_worker_edge.engine.generation import Generator, read_vocabulary
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.folder import verify
from fusewire_worker_edge.measure import (
    ANSWER_TOKENS,
    PROMPT_TOKENS,
    Measurement,
    compare,
    measure,
)

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


def fidelity(name: str, tokens: int, *, has_tools: bool) -> dict[str, Any]:
    """Divergence from the file's own weights, its tokenizer's ids, and right tool calls."""
    file, folder, threads = gguf(name), model_folder(name), thread_count()
    with llama_server(file, threads=threads) as url:
        agreement = tokenizer_agreement(folder, url)
    generator = Generator(folder, verify(folder), EngineOptions(threads=threads, slots=1))
    divergence = compare(generator, file, tokens)
    called = rates(generator) if has_tools else {}
    return {**asdict(divergence), **called, "tokenizer_agreement": agreement}


def speeds(name: str, rounds: int) -> dict[str, Any]:
    """The figures of `measure`, and prompt and answer over llama.cpp's, round by round."""
    file, folder, threads = gguf(name), model_folder(name), thread_count()
    ours: list[Measurement] = []
    theirs: list[tuple[float, float]] = []
    with llama_server(file, context=4096, threads=threads) as url:
        for _ in range(rounds):
            ours.append(measure(folder, threads=threads))
            theirs.append(llama_speeds(url))
    figures: dict[str, Any] = {"threads": threads}
    for figure in fields(Measurement):
        values = [getattr(measurement, figure.name) for measurement in ours]
        if None not in values:
            figures[figure.name] = values
    pairs = list(zip(ours, theirs, strict=True))
    figures["prefill_over_llama"] = [one.prefill_tok_s / prefill for one, (prefill, _) in pairs]
    figures["decode_over_llama"] = [one.decode_tok_s / decode for one, (_, decode) in pairs]
    # Only the first engine of a process shows its memory: a later one uses again what that freed.
    figures["rss_over_weights"] = ours[0].rss_over_weights
    return figures
