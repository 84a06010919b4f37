import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from fusewire.contracts import Message
from fusewire_worker_edge.engine.api import (
    Completion,
    GenerateRequest,
    RequestCancelledError,
    RequestRefusedError,
)
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.model import OnnxModel
from fusewire_worker_edge.engine.scheduler import CHUNK

SCHEMA = {
    "type": "object",
    "properties": {
        "verdict": {"enum": ["yes", "no"]},
        "sure": {"type": "boolean"},
        "why": {"type": "string", "maxLength": 5},
    },
    "required": ["verdict", "sure", "why"],
    "additionalProperties": False,
}


def request(content: str = "hello", **fields: Any) -> GenerateRequest:
    return GenerateRequest(
        id="r", messages=(Message(role="user", content=content),), **{"max_tokens": 20, **fields}
    )


def never() -> bool:
    return False


class StepLimit:
    """A cancel after so many steps, which counts its calls."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.call_count = 0

    def __call__(self) -> bool:
        self.call_count += 1
        return self.call_count > self.steps


def run(generator: Generator, **fields: Any) -> Completion:
    return generator.generate(request(**fields), never)


def test_greedy_text_is_that_of_a_fresh_slot_each_time(tiny_generator: Generator) -> None:
    first = run(tiny_generator)
    run(tiny_generator, content="something else that is longer")
    assert run(tiny_generator).text == first.text
    assert (first.finish_reason, first.completion_tokens) == ("length", 20)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_prompt_costs_the_product_of_one_row_or_two(
    tiny_generator: Generator, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_generator.model
    assert isinstance(model, OnnxModel)
    monkeypatch.setattr(model, "avoids_one_row", rows == 2)
    prompt = tiny_generator.vocabulary.ids("a prompt of some length")
    all_logits = model.advance(0, prompt, 0)
    assert all_logits.shape == (len(prompt), tiny_generator.manifest.vocab_size)
    last_logits = model._advance(0, prompt, 0, last_rows=rows)
    assert last_logits.shape == (rows, tiny_generator.manifest.vocab_size)
    assert last_logits[-1] == pytest.approx(all_logits[-1], abs=1e-4)
    assert np.array_equal(model.prefill(0, prompt, 0), last_logits[-1])


def test_no_row_is_computed_alone_where_that_rounds_otherwise(
    tiny_generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever this processor does, the logits are the same as those of rows in company."""
    model = tiny_generator.model
    assert isinstance(model, OnnxModel)
    monkeypatch.setattr(model, "avoids_one_row", True)
    sizes = []
    run_model = model._run

    def count(start: int, stop: int, ids: Any, *args: Any, **options: Any) -> Any:
        sizes.append(ids.size)
        return run_model(start, stop, ids, *args, **options)

    monkeypatch.setattr(model, "_run", count)
    prompt = tiny_generator.vocabulary.ids("a prompt of some length")
    for slot in (0, 1):
        model.prefill(slot, prompt, 0)
    together = model.decode([7, 8], [len(prompt)] * 2)
    alone = model.decode([7], [len(prompt)])
    single = model.advance(0, [7], len(prompt))
    first = model.prefill(1, prompt[:1], 0)

    assert min(sizes) == 2
    assert np.array_equal(alone[0], together[0])
    assert single.shape == (1, tiny_generator.manifest.vocab_size)
    assert single[0] == pytest.approx(alone[0], abs=0.5)
    assert np.array_equal(first, model.prefill(0, prompt[:1], 0))


def test_the_spare_row_holds_no_sequence(tiny_generator: Generator) -> None:
    """A full batch has a spare row too, and what it holds is nobody's."""
    model = tiny_generator.model
    assert isinstance(model, OnnxModel)
    assert [rows.shape[0] for rows in model._cache.rows] == [model.slots + 1] * len(
        model._cache.arrays
    )
    assert all(
        np.shares_memory(rows[1:], slots)
        for rows, slots in zip(model._cache.rows, model._cache.arrays, strict=True)
    )


def test_greedy_steps_equal_one_pass_over_the_text(tiny_generator: Generator) -> None:
    prompt = tiny_generator.vocabulary.prompt([Message(role="user", content="hello")])
    ids = tiny_generator.greedy(prompt, 20)
    rows = tiny_generator.logits([*prompt, *ids])[len(prompt) - 1 : -1]
    assert rows.argmax(axis=-1).tolist() == ids


def test_a_prompt_of_several_chunks_is_one_prompt(
    tiny_generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tiny_generator.vocabulary.prompt([Message(role="user", content="x" * 100)])
    assert CHUNK > len(prompt) > 100
    whole = tiny_generator.greedy(prompt, 10)
    monkeypatch.setattr("fusewire_worker_edge.engine.generation.CHUNK", 16)
    assert tiny_generator.greedy(prompt, 10) == whole


def test_a_seed_settles_the_text(tiny_generator: Generator) -> None:
    texts = [run(tiny_generator, temperature=1.0, top_p=0.95, seed=seed).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_tokens_are_counted(tiny_generator: Generator) -> None:
    completion = run(tiny_generator, max_tokens=7)
    prompt = tiny_generator.vocabulary.prompt([Message(role="user", content="hello")])
    assert (completion.prompt_tokens, completion.completion_tokens) == (len(prompt), 7)


def test_text_ends_before_a_stop_string(tiny_generator: Generator) -> None:
    whole = run(tiny_generator).text
    stop = whole[4:6]
    completion = run(tiny_generator, stop=("never there", "", stop))
    assert completion.finish_reason == "stop"
    assert completion.text == whole[: whole.index(stop)]


def test_an_end_token_ends_the_answer_and_is_not_counted(tiny_generator: Generator) -> None:
    greedy = tiny_generator.greedy(tiny_generator.vocabulary.prompt(request().messages), 4)
    manifest = tiny_generator.manifest
    tiny_generator.manifest = manifest.model_copy(update={"end_tokens": (greedy[3],)})
    try:
        completion = run(tiny_generator)
    finally:
        tiny_generator.manifest = manifest
    assert (completion.finish_reason, completion.completion_tokens) == (
        "stop",
        greedy.index(greedy[3]),
    )


@pytest.mark.parametrize("seed", range(5))
def test_an_answer_under_a_schema_satisfies_it(tiny_generator: Generator, seed: int) -> None:
    fields: dict[str, Any] = {"max_tokens": 200, "temperature": 1.5, "seed": seed, "stop": ('"',)}
    steps = StepLimit(1_000_000)
    completion = tiny_generator.generate(request(response_schema=SCHEMA, **fields), steps)
    assert completion.finish_reason == "stop"
    # The first step gives two; none is spent on an end token that has to come.
    assert steps.call_count == completion.completion_tokens - 1
    jsonschema.validate(json.loads(completion.text), SCHEMA)


def test_an_answer_under_a_schema_may_be_cut_by_its_length(tiny_generator: Generator) -> None:
    completion = run(tiny_generator, response_schema=SCHEMA, max_tokens=3)
    assert (completion.finish_reason, completion.completion_tokens) == ("length", 3)
    assert completion.text.startswith("{")


@pytest.mark.parametrize(
    "schema", [{"type": 5}, {"$ref": "#/nowhere"}, {"type": "string", "format": "unheard-of"}]
)
def test_a_schema_that_cannot_be_enforced_is_refused(
    tiny_generator: Generator, schema: dict[str, Any]
) -> None:
    with pytest.raises(RequestRefusedError) as error:
        run(tiny_generator, response_schema=schema)
    assert error.value.code == "bad_request"


def test_what_does_not_fit_the_context_is_refused_before_a_step(tiny_generator: Generator) -> None:
    prompt = len(tiny_generator.vocabulary.prompt(request().messages))
    room = tiny_generator.manifest.context_length - prompt
    cancelled = StepLimit(0)
    with pytest.raises(RequestRefusedError, match=f"{prompt} tokens") as error:
        tiny_generator.generate(request(max_tokens=room + 1), cancelled)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(RequestCancelledError):  # what just fits is begun
        tiny_generator.generate(request(max_tokens=room), cancelled)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_cancel_is_seen_before_the_next_step(tiny_generator: Generator, steps: int) -> None:
    cancelled = StepLimit(steps)
    with pytest.raises(RequestCancelledError):
        tiny_generator.generate(request(max_tokens=1000), cancelled)
    assert cancelled.call_count == steps + 1


def test_a_cancel_is_seen_between_the_chunks_of_a_prompt(tiny_generator: Generator) -> None:
    cancelled = StepLimit(2)
    with pytest.raises(RequestCancelledError):
        tiny_generator.generate(request(content="x" * (5 * CHUNK)), cancelled)
    assert cancelled.call_count == 3


def test_the_golden_answer_is_recognised(tiny_generator: Generator) -> None:
    assert tiny_generator.golden_agreement() == 1
    manifest = tiny_generator.manifest
    golden = manifest.golden.model_copy(update={"ids": tuple(i + 1 for i in manifest.golden.ids)})
    other = manifest.golden.model_copy(update={"prompt_ids": (1, 2, 3)})
    try:
        for changed_golden in (golden, other):
            tiny_generator.manifest = manifest.model_copy(update={"golden": changed_golden})
            assert tiny_generator.golden_agreement() < 0.5
    finally:
        tiny_generator.manifest = manifest


def test_mean_and_least_log_probability_are_those_of_the_chosen_tokens(
    tiny_generator: Generator,
) -> None:
    prompt = tiny_generator.vocabulary.prompt([Message(role="user", content="hello")])
    ids = tiny_generator.greedy(prompt, 20)
    rows = tiny_generator.logits([*prompt, *ids])[len(prompt) - 1 : -1].astype(np.float64)
    p = np.exp(rows - rows.max(axis=-1, keepdims=True))
    token_probabilities = (p / p.sum(axis=-1, keepdims=True))[np.arange(len(ids)), ids]

    completion = run(tiny_generator)
    assert completion.mean_logprob == pytest.approx(np.log(token_probabilities).mean(), rel=1e-4)
    assert completion.min_logprob == pytest.approx(np.log(token_probabilities).min(), rel=1e-4)
    assert completion.logprobs == ()
    highest = np.sort(rows, axis=-1)[:, -2:]
    margins = highest[:, 1] - highest[:, 0]
    assert completion.mean_margin == pytest.approx(margins.mean(), rel=1e-3)
    assert completion.min_margin == pytest.approx(margins.min(), abs=1e-4)


def test_a_margin_counts_only_tokens_about_which_there_was_a_choice(
    tiny_generator: Generator,
) -> None:
    settled = run(tiny_generator, response_schema={"const": "yes"})
    assert (settled.mean_margin, settled.min_margin) == (None, None)
    chosen = run(tiny_generator, response_schema={"enum": ["yes", "no"]})
    assert chosen.mean_margin == chosen.min_margin
    assert chosen.mean_margin is not None
    assert chosen.mean_margin > 0


def test_logprobs_are_told_of_each_token_and_its_alternatives(tiny_generator: Generator) -> None:
    completion = run(tiny_generator, top_logprobs=3)

    assert len(completion.logprobs) == completion.completion_tokens
    assert "".join(t.token for t in completion.logprobs) == completion.text
    for entry in completion.logprobs:
        assert len(entry.top) == 3
        assert entry.top[0] == (entry.token, entry.logprob)
        assert entry.top[0][1] >= entry.top[1][1] >= entry.top[2][1]
    assert completion.mean_logprob == pytest.approx(
        np.mean([t.logprob for t in completion.logprobs])
    )
    assert run(tiny_generator, top_logprobs=0).logprobs[0].top == ()


def run_streamed(generator: Generator, **fields: Any) -> tuple[list[str], Completion]:
    pieces: list[str] = []
    return pieces, generator.generate(request(**fields), never, pieces.append)


def test_the_pieces_of_an_answer_are_its_text(tiny_generator: Generator) -> None:
    pieces, completion = run_streamed(tiny_generator)

    assert len(pieces) > 10
    assert all(pieces)
    assert "".join(pieces) == completion.text == run(tiny_generator).text


def test_the_first_piece_comes_with_the_first_token(tiny_generator: Generator) -> None:
    """Each piece comes before the next step; after the first step, of the prompt, comes a token."""
    steps_by_then: list[int] = []
    steps = StepLimit(1000)
    tiny_generator.generate(request(), steps, lambda _: steps_by_then.append(steps.call_count))

    assert steps_by_then[0] == 1
    assert steps_by_then[1:] == sorted(set(steps_by_then))


def test_no_piece_holds_what_a_stop_string_takes_back(tiny_generator: Generator) -> None:
    whole = run(tiny_generator).text
    stop = whole[4:9]
    assert whole.index(stop) == 4
    pieces, completion = run_streamed(tiny_generator, stop=(stop,))

    assert "".join(pieces) == completion.text == whole[:4]


def test_what_began_like_a_stop_string_and_was_none_comes_in_the_end(
    tiny_generator: Generator,
) -> None:
    whole = run(tiny_generator).text
    # The text ends within it, and goes on otherwise within it.
    stops = (whole[-3:] + "never", whole[4:8] + "\x01")
    pieces, completion = run_streamed(tiny_generator, stop=stops)

    assert completion.finish_reason == "length"
    assert "".join(pieces) == completion.text == whole
    assert len(pieces[-1]) >= 3


@pytest.mark.parametrize("seed", range(5))
def test_pieces_are_whole_characters_and_of_any_text_its_text(
    tiny_generator: Generator, seed: int
) -> None:
    fields: dict[str, Any] = {
        "max_tokens": 60,
        "temperature": 5.0,
        "seed": seed,
        "stop": ("the", "\ufffd\ufffd"),
    }
    pieces, completion = run_streamed(tiny_generator, **fields)

    assert "".join(pieces) == completion.text == run(tiny_generator, **fields).text
    assert "".join(pieces).encode().decode() == completion.text


def test_under_a_schema_no_stop_string_holds_anything_back(tiny_generator: Generator) -> None:
    fields: dict[str, Any] = {
        "max_tokens": 200,
        "temperature": 1.5,
        "stop": ('{"verdict":"yes or no',),
    }
    pieces, completion = run_streamed(tiny_generator, response_schema=SCHEMA, **fields)

    assert "".join(pieces) == completion.text
    assert pieces[0] == completion.text[: len(pieces[0])]
    assert len(pieces[0]) < 5


def test_a_cancelled_answer_is_told_no_further(tiny_generator: Generator) -> None:
    pieces: list[str] = []
    with pytest.raises(RequestCancelledError):
        tiny_generator.generate(request(max_tokens=1000), StepLimit(5), pieces.append)

    assert 0 < len(pieces) <= 6


def score(generator: Generator, comparison_request: GenerateRequest, choice: str) -> float:
    """The mean log probability of a text's tokens and of an end, in one run over everything."""
    vocabulary, ends = generator.vocabulary, list(generator.manifest.end_tokens)
    prompt, text = vocabulary.prompt(comparison_request.messages), vocabulary.ids(choice)
    rows = generator.logits([*prompt, *text])[len(prompt) - 1 :].astype(np.float64)
    rows = rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))
    by_token = [rows[place, token] for place, token in enumerate(text)]
    return float(np.mean([*by_token, np.log(np.exp(rows[-1, ends]).sum())]))


CHOICES = (
    "B",
    "a longer text, with more tokens than are read at once by this engine",
    "",
    "ünïcode <|im_end|>",
)


def test_how_probable_each_choice_is_as_the_answer_is_told(tiny_generator: Generator) -> None:
    comparison_request = request(choices=CHOICES)
    completion = tiny_generator.generate(comparison_request, never)
    expected = [score(tiny_generator, comparison_request, choice) for choice in CHOICES]

    assert completion.choice_logprobs == pytest.approx(expected, abs=1e-4)
    assert completion.text == CHOICES[int(np.argmax(expected))]
    assert (completion.finish_reason, completion.completion_tokens) == ("stop", 0)
    assert completion.mean_margin is None
    assert completion.mean_logprob == max(completion.choice_logprobs) >= completion.min_logprob
    text_token_count = sum(len(tiny_generator.vocabulary.ids(choice)) + 1 for choice in CHOICES)
    assert (
        completion.prompt_tokens
        == len(tiny_generator.vocabulary.prompt(comparison_request.messages)) + text_token_count
    )


def test_a_choice_that_is_longer_than_the_context_is_refused(tiny_generator: Generator) -> None:
    with pytest.raises(RequestRefusedError) as error:
        run(tiny_generator, choices=("x" * 10_000, "B"))
    assert error.value.code == "context_length_exceeded"
