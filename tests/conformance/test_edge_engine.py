"""Both engines on the real SmolLM2-135M, pulled on first use to $FUSEWIRE_MODELS or the cache."""

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import pytest_asyncio
from tokenizers import Tokenizer

from fusewire.contracts import Message
from fusewire_worker_edge.engine.api import (
    Completion,
    Engine,
    GenerateRequest,
    RequestCancelledError,
)
from fusewire_worker_edge.engine.generation import Generator, read_vocabulary
from fusewire_worker_edge.engine.options import EngineName, EngineOptions
from fusewire_worker_edge.engine.process import ProcessEngine
from fusewire_worker_edge.folder import verify
from fusewire_worker_edge.pull import pull

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENGINES: tuple[EngineName, ...] = ("onnxruntime", "genai")
NAME_IT = "Name the capital of France."
"""Its answer is the same on all processors: "What is the capital of France?" is answered by this
small model in French or in English, by the last bits of its activations."""
CAREFUL = "You are a careful assistant who answers in a sentence or two. "
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 30},
        "country": {"enum": ["France", "Japan", "Peru"]},
        "population": {"type": "integer", "minimum": 0, "maximum": 100_000_000},
    },
    "required": ["city", "country", "population"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def folder() -> Path:
    root = os.environ.get("FUSEWIRE_MODELS")
    return pull("smollm2-135m", Path(root) if root else None)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=ENGINES)
async def engine(folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    started = ProcessEngine(folder, EngineOptions(engine=request.param))
    yield started
    await started.aclose()


async def ask(engine: Engine, content: str, **fields: Any) -> Completion:
    message = Message(role="user", content=content)
    return await engine.generate(
        GenerateRequest(id="r", messages=(message,), **{"max_tokens": 48, **fields})
    )


async def test_a_greedy_answer_knows_the_capital_of_france(engine: Engine) -> None:
    completion = await ask(engine, NAME_IT)
    assert "Paris" in completion.text
    assert "<|im_end|>" not in completion.text
    assert completion.finish_reason == "stop"
    assert completion.prompt_tokens == 36


async def test_the_golden_answer_comes_out_again(engine: Engine, folder: Path) -> None:
    manifest = verify(folder)
    golden = manifest.golden
    completion = await ask(engine, golden.message, max_tokens=len(golden.ids))
    stream = read_vocabulary(folder, manifest).text_stream()
    for token in golden.ids:
        stream.append(token)
    assert completion.text == stream.text
    # It may have been cut off: which one it is depends on the processor that converted the model.
    has_ended = golden.ids[-1] in manifest.end_tokens
    assert completion.completion_tokens == len(golden.ids) - has_ended
    assert completion.finish_reason == ("stop" if has_ended else "length")


async def test_a_seed_settles_the_text(engine: Engine) -> None:
    texts = [
        (
            await ask(
                engine, "Tell me something about the sea.", temperature=0.9, top_p=0.95, seed=seed
            )
        ).text
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("seed", range(3))
async def test_an_answer_under_a_schema_satisfies_it(engine: Engine, seed: int) -> None:
    completion = await ask(
        engine,
        "Name a large city.",
        temperature=1.2,
        seed=seed,
        max_tokens=120,
        response_schema=SCHEMA,
    )
    assert completion.finish_reason == "stop"
    jsonschema.validate(json.loads(completion.text), SCHEMA)


async def test_text_ends_before_a_stop_string(engine: Engine) -> None:
    completion = await ask(engine, NAME_IT, stop=("Paris",))
    assert (completion.text, completion.finish_reason) == ("The capital of France is ", "stop")


async def test_a_cancel_frees_the_slot(engine: Engine) -> None:
    tokens = 4000
    began = time.perf_counter()
    long = asyncio.create_task(
        engine.generate(
            GenerateRequest(
                id="long",
                messages=(Message(role="user", content="Count for ever."),),
                max_tokens=tokens,
                response_schema={"type": "string", "minLength": 100_000},
            )
        )
    )
    await asyncio.sleep(0.3)
    engine.cancel("long")
    with pytest.raises(RequestCancelledError):
        await long
    after = await ask(engine, NAME_IT)
    whole = tokens * after.decode_s / after.completion_tokens
    # Had the long request run on, this one would have waited for all of it.
    assert time.perf_counter() - began < whole / 2


# onnxruntime-genai has one slot: its requests never run beside each other.
@pytest.mark.parametrize("engine", ["onnxruntime"], indirect=True)
async def test_sixteen_prompts_at_once_with_cancels_answer_what_each_does_alone(
    engine: Engine,
) -> None:
    """Greedy: the same tokens, and the same probabilities but for rounding."""
    chance = random.Random(5)
    subjects = ["copper", "the sea", "chess", "Peru", "glass", "rain", "a fugue", "yeast"]
    requests = [
        GenerateRequest(
            id=str(i),
            messages=(
                Message(role="system", content=CAREFUL * (i % 3)),
                Message(
                    role="user", content=f"Tell me about {subjects[i % 8]}{' in short' * (i // 8)}."
                ),
            ),
            max_tokens=chance.randrange(4, 40),
        )
        for i in range(16)
    ]
    cancelled = {"3", "8", "13"}

    async def together(one: GenerateRequest) -> Completion | None:
        answer = asyncio.create_task(engine.generate(one))
        if one.id in cancelled:
            await asyncio.sleep(chance.random() * 2)
            engine.cancel(one.id)
        try:
            return await answer
        except RequestCancelledError:
            return None

    answers = await asyncio.gather(*(together(one) for one in requests))
    assert all(
        answer for one, answer in zip(requests, answers, strict=True) if one.id not in cancelled
    )
    for one, answer in zip(requests, answers, strict=True):
        if answer:
            alone = await engine.generate(one)
            assert answer.text == alone.text
            assert answer.mean_logprob == pytest.approx(alone.mean_logprob, abs=1e-5, rel=0)


async def test_the_conversion_is_faithful(folder: Path) -> None:
    manifest = verify(folder)
    assert manifest.fidelity is not None
    assert manifest.fidelity.tokens > 30
    assert manifest.fidelity.kl < 0.02
    assert manifest.fidelity.top1 > 0.9


async def test_decoding_step_by_step_computes_what_one_pass_does(folder: Path) -> None:
    generator = Generator(folder, verify(folder))
    prompt = generator.vocabulary.prompt([Message(role="user", content="Name three colours.")])
    ids = generator.greedy(prompt, 24)
    rows = generator.logits([*prompt, *ids])[len(prompt) - 1 : -1]
    agreement = float(np.mean(rows.argmax(axis=-1) == np.array(ids)))
    # One token and many take different kernels, whose sums round differently.
    assert agreement > 0.9


LLAMA_CPP = {
    "12345 and 6.78e9, room 101": "33 34 35 36 37 284 216 38 30 39 40 85 41 28 3589 216 33 32 33",
    "it's don't WE'LL I'm you've": "269 506 1326 982 26587 23 16421 339 5248 346 3543",
    "\n\n\tdef f(x):\n    return x**2 # comment\r\n": (
        "1116 197 1604 275 24 104 727 472 1003 1792 828 34 907 5189 2738"
    ),
    "a\xa0b\u2003c": "81 15442 82 321 221 83",
    "Ⅷ ½ ² ٣٤٥ १२३": (
        "173 223 117 216 16738 216 19133 216 164 113 164 114 164 115 216 9310 117 9310 118 9310 119"
    ),
    "한국어 텍스트": "33085 246 181 130 251 183 240 129 48138 223 231 183 228 114 184 228 133",
    "ǅ ß ı İ": "146 223 5549 249 216 20335 24488 125",
}
"""The ids that llama.cpp makes of these texts with the same weights file."""


@pytest.mark.parametrize("text", LLAMA_CPP)
async def test_text_is_split_as_llama_cpp_splits_it(folder: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode(text, add_special_tokens=False).ids == [
        int(i) for i in LLAMA_CPP[text].split()
    ]
