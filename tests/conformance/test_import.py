"""Converted models beside llama.cpp's reading of the same file, for each architecture."""

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusewire.testing.eventually import PATIENCE_S
from fusewire.testing.llama_server import llama_server
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.importers.convert import import_model

MakeGguf = Callable[..., Path]

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama with factors of rotation": {"rope_factors": True, "pre": "llama-bpe"},
    "qwen2": {"architecture": "qwen2", "pre": "qwen2"},
    "qwen3": {"architecture": "qwen3", "pre": "qwen2"},
    "phi3": {"architecture": "phi3", "pre": "gpt-4o", "hidden": 128},
    "gemma3": {"architecture": "gemma3", "tokenizer": "llama"},
}
PROMPT_TOKENS, ANSWER_TOKENS = 60, 24
"""More than Gemma's window in the tiny model."""


def answered(url: str, prompt: list[int]) -> list[dict[str, Any]]:
    """llama.cpp's most probable tokens, each with the five best there were."""
    body = {
        "prompt": prompt,
        "n_predict": ANSWER_TOKENS,
        "temperature": 0,
        "n_probs": 5,
        "ignore_eos": True,
    }
    request = urllib.request.Request(
        f"{url}/completion", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
        return list(json.loads(reply.read())["completion_probabilities"])


@pytest.mark.parametrize("metadata", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_a_conversion_computes_what_llama_cpp_does(
    make_gguf: MakeGguf, tmp_path: Path, metadata: dict[str, Any]
) -> None:
    file = make_gguf({"": "F32"}, metadata=metadata)
    generator = Generator(tmp_path / "model", import_model(file, tmp_path / "model"))
    random = np.random.default_rng(1)
    prompt = [int(i) for i in random.integers(10, generator.manifest.vocab_size, PROMPT_TOKENS)]
    with llama_server(file) as url:
        theirs = answered(url, prompt)

    text = [*prompt, *(step["id"] for step in theirs)]
    logits = generator.logits(text).astype(np.float64)[PROMPT_TOKENS - 1 : -1]
    ours = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    assert len(theirs) == ANSWER_TOKENS
    for step, row in zip(theirs, ours, strict=True):
        for best in step["top_logprobs"]:
            # Its cache of keys and values has 16 bits.
            assert row[best["id"]] == pytest.approx(best["logprob"], abs=0.02)
