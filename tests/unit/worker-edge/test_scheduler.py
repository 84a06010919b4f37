"""The scheduler on the tiny model, and on a fake one that records what it is asked."""

import itertools
import mmap
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusewire.contracts import Message
from fusewire_worker_edge.engine.api import (
    Completion,
    EngineError,
    GenerateRequest,
    RequestCancelledError,
    RequestRefusedError,
)
from fusewire_worker_edge.engine.cache import KeyValues, KvCache, PrefixCache
from fusewire_worker_edge.engine.comparison import Comparison
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.jobs import AnswerJob, ComparisonJob, Event
from fusewire_worker_edge.engine.model import OnnxModel
from fusewire_worker_edge.engine.scheduler import (
    CHUNK,
    MOST_PASSED_OVER,
    SHARED_CHUNK,
    WORTH_KEEPING,
    Scheduler,
    chunk_size,
)
from fusewire_worker_edge.engine.speculation import PromptLookup

SYSTEM = "You answer in one short sentence and never in two of them."


def request(name: str, content: str, *, system: str = "", **fields: Any) -> GenerateRequest:
    system_messages = [Message(role="system", content=system)] if system else []
    messages = (*system_messages, Message(role="user", content=content))
    return GenerateRequest(id=name, messages=messages, **{"max_tokens": 12, **fields})


@pytest.fixture
def generator(tiny_generator: Generator) -> Iterator[Generator]:
    """With nothing kept from other tests."""
    tiny_generator.scheduler = Scheduler(
        tiny_generator.model, tiny_generator.model.budget, itertools.count().__next__
    )
    yield tiny_generator
    assert not tiny_generator.scheduler.is_busy


def drain(generator: Generator) -> list[Event]:
    events = []
    while generator.scheduler.is_busy:
        events += generator.scheduler.step()
    return events


def completions(events: Sequence[Event]) -> dict[str, Completion]:
    return {e.id: e.completion for e in events if e.completion}


# -- on the tiny model --------------------------------------------------------------------


def random_request(chance: random.Random, number: int) -> GenerateRequest:
    return request(
        str(number),
        "".join(chance.choices("abcdefgh ", k=chance.choice([1, 5, 40, 130, 300]))),
        system=SYSTEM * chance.randrange(3),
        max_tokens=chance.randrange(1, 40),
        temperature=chance.choice([0.0, 0.0, 1.0]),
        seed=number,
        stop=chance.choice([(), ("e",)]),
        top_logprobs=0,
    )


def submit_with_cancels(
    generator: Generator,
    requests: Sequence[GenerateRequest],
    cancelled_ids: set[str],
    chance: random.Random,
) -> list[Event]:
    """Submit requests, with steps and cancels in between."""
    events: list[Event] = []
    for next_request in requests:
        generator.submit(next_request)
        for _ in range(chance.randrange(3)):
            events += generator.scheduler.step()
        if cancelled_ids and chance.random() < 0.4:
            generator.scheduler.cancel(chance.choice(sorted(cancelled_ids)))
    return events


def assert_same_alone(
    generator: Generator, requests: Sequence[GenerateRequest], together: dict[str, Completion]
) -> None:
    """Each completion is bit for bit that of its request alone, without cached prompts."""
    for next_request in requests:
        generator.scheduler.prefixes = PrefixCache()
        alone = generator.generate(next_request)
        assert alone.cached_tokens == 0
        assert together[next_request.id].text == alone.text
        assert together[next_request.id].logprobs == alone.logprobs


@pytest.mark.parametrize("seed", range(3))
def test_sixteen_at_once_with_cancels_answer_what_each_does_alone(
    generator: Generator, seed: int
) -> None:
    """To the last bit: text, and the probabilities of its tokens."""
    chance = random.Random(seed)
    requests = [random_request(chance, i) for i in range(16)]
    cancelled = set(chance.sample([r.id for r in requests], 5))
    events = submit_with_cancels(generator, requests, cancelled, chance)
    for name in cancelled:
        generator.scheduler.cancel(name)
    events += drain(generator)
    together = completions(events)
    errors = {e.id for e in events if e.error}

    assert together.keys() | errors == {r.id for r in requests}
    assert not together.keys() & errors
    assert errors <= cancelled
    assert any(completion.cached_tokens for completion in together.values())
    assert_same_alone(generator, [r for r in requests if r.id in together], together)


def test_a_repeated_system_prompt_is_computed_once(generator: Generator) -> None:
    first = generator.generate(request("a", "one", system=SYSTEM))
    second = generator.generate(request("b", "two", system=SYSTEM))

    assert first.cached_tokens == 0
    assert len(SYSTEM) * 0.8 < second.cached_tokens < second.prompt_tokens


def test_a_prompt_is_used_again_while_its_request_still_runs(generator: Generator) -> None:
    generator.submit(request("a", "one", system=SYSTEM, max_tokens=30))
    while not generator.scheduler.decoding:
        generator.scheduler.step()
    generator.submit(request("b", "two", system=SYSTEM, max_tokens=3))
    completions_by_id = completions(drain(generator))

    assert list(completions_by_id) == ["b", "a"]
    assert completions_by_id["b"].cached_tokens > len(SYSTEM) * 0.8


def test_the_same_prompt_again_leaves_two_tokens_to_compute(generator: Generator) -> None:
    first = generator.generate(request("a", "x" * 50))
    second = generator.generate(request("b", "x" * 50))

    assert second.cached_tokens == first.prompt_tokens - 2
    assert second.text == first.text


def test_a_late_joiner_has_its_first_token_within_one_step(generator: Generator) -> None:
    generator.submit(request("a", "hello", max_tokens=60, is_streamed=True))
    while not generator.scheduler.decoding:
        generator.scheduler.step()
    for _ in range(10):
        generator.scheduler.step()
    generator.submit(request("b", "x", max_tokens=60, is_streamed=True, top_logprobs=0))
    generator.scheduler.step()
    token_count = generator.scheduler.decoding[1].answer.tokens
    drain(generator)

    assert token_count >= 1


def test_the_memory_of_a_slot_is_given_back(generator: Generator) -> None:
    generator.generate(request("a", "x" * 500))

    assert isinstance(generator.model, OnnxModel)
    assert not np.any(generator.model._cache.arrays[0][0])


@pytest.mark.parametrize("before", [0, 3])
def test_what_runs_beside_a_comparison_changes_nothing(generator: Generator, before: int) -> None:
    comparison_request = request(
        "compared", "one", system=SYSTEM, choices=("yes " * 30, "no", "x" * 70)
    )
    alone = generator.generate(comparison_request)
    other_requests = [
        request(f"other-{i}", "x" * (5 * i + 3), max_tokens=4 + 3 * i, top_logprobs=0)
        for i in range(4)
    ]
    apart = {next_request.id: generator.generate(next_request) for next_request in other_requests}
    events = []
    for next_request in other_requests[:before]:
        generator.submit(next_request)
        events += generator.scheduler.step()
    generator.submit(comparison_request)
    for next_request in other_requests[before:]:
        generator.submit(next_request)
    completions_by_id = completions([*events, *drain(generator)])

    assert completions_by_id["compared"].choice_logprobs == alone.choice_logprobs
    assert {name: completions_by_id[name].logprobs for name in apart} == {
        name: next_request.logprobs for name, next_request in apart.items()
    }


def test_a_comparison_s_prompt_is_computed_once(generator: Generator) -> None:
    first = generator.generate(request("a", "one", system=SYSTEM, choices=("yes", "no")))
    second = generator.generate(request("b", "two", system=SYSTEM))

    assert first.cached_tokens == 0
    assert second.cached_tokens > len(SYSTEM) * 0.8


def test_a_comparison_can_be_cancelled_in_the_middle(generator: Generator) -> None:
    generator.submit(request("a", "one", choices=("x" * 200, "no")))
    generator.scheduler.step()
    generator.scheduler.step()
    generator.scheduler.cancel("a")
    (event,) = drain(generator)

    assert isinstance(event.error, RequestCancelledError)


# -- on a fake model ----------------------------------------------------------------------


VOCABULARY = 10


class FakeModel:
    """A fake. Its logits are the sum of the sequence; it checks what each slot should hold."""

    def __init__(self, slots: int = 4, positions: int = 1000) -> None:
        self.slots = slots
        self.positions = positions
        self.sequences: dict[int, list[int]] = {}
        self.log: list[str] = []

    def prefill(self, slot: int, ids: Sequence[int], past: int) -> Any:
        assert len(self.sequences.setdefault(slot, [])) == past
        assert len(ids) != 1 or past == 0
        self.sequences[slot] += ids
        self.log.append(f"prefill {slot} {len(ids)}")
        return np.full(VOCABULARY, sum(self.sequences[slot]), np.float32)

    def advance(self, slot: int, ids: Sequence[int], past: int) -> Any:
        assert len(ids) > 1
        self.sequences[slot] = [*self.sequences[slot][:past], *ids]
        assert len(self.sequences[slot]) <= self.positions
        self.log.append(f"advance {slot} {past} {len(ids)}")
        sums = np.cumsum(self.sequences[slot], dtype=np.float32)[past:]
        return np.repeat(sums[:, None], VOCABULARY, axis=1)

    def decode(self, tokens: Sequence[int], lengths: Sequence[int]) -> Any:
        self.log.append(f"decode {len(tokens)}")
        for slot, (token, length) in enumerate(zip(tokens, lengths, strict=True)):
            # There may be more, of a draft that was not accepted.
            assert len(self.sequences[slot]) >= length
            self.sequences[slot] = [*self.sequences[slot][:length], token]
        return np.array([[sum(self.sequences[slot])] for slot in range(len(tokens))], np.float32)

    def move(self, source: int, target: int, length: int) -> None:
        moved, present = self.sequences.get(source, [])[:length], self.sequences.get(target, [])
        assert len(moved) == length
        # A whole sequence, or the beginning of a prompt of which the target has less already.
        assert length == len(self.sequences.get(source, [])) or present == moved[: len(present)]
        self.sequences[target] = moved

    def swap(self, slots: tuple[int, int], lengths: tuple[int, int]) -> None:
        first, second = slots
        assert lengths == tuple(len(self.sequences.get(slot, ())) for slot in slots)
        self.log.append(f"swap {first} {second}")
        second_sequence = self.sequences[second]
        self.sequences[second] = self.sequences.get(first, [])
        self.sequences[first] = second_sequence

    def keep(self, slot: int, length: int) -> Any:
        return list(self.sequences[slot][:length])

    def restore(self, slot: int, key_values: Any, length: int) -> None:
        present = self.sequences.get(slot, [])
        assert present == key_values[: len(present)]
        self.sequences[slot] = key_values[:length]

    def release(self, slot: int) -> None:
        self.sequences.pop(slot, None)


class FakeAnswer:
    """A fake. Ends after so many tokens; remembers the logits that it was given."""

    def __init__(self, tokens: int, error: EngineError | None = None) -> None:
        self.remaining = tokens
        self.error = error
        self.error_at = 0
        self.first_logits: list[float] = []
        self.tokens = 0
        self.finish_reason: str | None = None
        self.text = ""
        self.tool_calls = ()
        self.choice_logprobs = ()
        self.mean_logprob = self.min_logprob = -1.0
        self.mean_margin = self.min_margin = None
        self.logprobs: list[Any] = []

    def piece(self) -> str:
        return f"{self.tokens}"

    def take(self, logits: Any) -> int:
        if self.error and self.tokens >= self.error_at:
            raise self.error
        self.first_logits.append(float(logits[0]))
        self.tokens += 1
        self.remaining -= 1
        if not self.remaining:
            self.finish_reason = "stop"
        return self.tokens


def job(name: str, prompt: Sequence[int] = (7, 7), tokens: int = 3, **fields: Any) -> AnswerJob:
    answer: Any = FakeAnswer(tokens, fields.pop("error", None))
    return AnswerJob(
        id=name, prompt=list(prompt), answer=answer, **{"max_tokens": tokens, **fields}
    )


def scheduler(model: FakeModel, budget: int = 10_000) -> Scheduler:
    return Scheduler(model, budget, itertools.count().__next__)


def run(batch: Scheduler) -> list[Event]:
    events = []
    while batch.is_busy:
        events += batch.step()
    return events


def ends(events: Sequence[Event]) -> list[str]:
    return [e.id for e in events if e.completion or e.error]


def test_the_more_urgent_is_admitted_first_and_else_the_older() -> None:
    batch = scheduler(FakeModel(slots=1))
    for name, rank in (("a", 2), ("b", 1), ("c", 0), ("d", 1)):
        batch.submit(job(name, rank=rank))

    assert ends(run(batch)) == ["c", "b", "d", "a"]


def test_no_more_run_at_once_than_there_are_slots() -> None:
    model = FakeModel(slots=3)
    batch = scheduler(model)
    for i in range(9):
        batch.submit(job(str(i), tokens=5))
    run(batch)

    assert "decode 3" in model.log
    assert "decode 4" not in model.log


def test_what_could_never_fit_is_refused_at_once() -> None:
    batch = scheduler(FakeModel(positions=10))

    with pytest.raises(RequestRefusedError, match="8 tokens and the answer may have 3") as error:
        batch.submit(job("a", [1] * 8, tokens=3))
    assert error.value.code == "context_length_exceeded"
    batch.submit(job("b", [1] * 8, tokens=2))
    assert ends(run(batch)) == ["b"]


@pytest.mark.parametrize(("positions", "budget"), [(10, 20), (20, 10)])
def test_what_fits_either_the_positions_or_the_budget_alone_is_refused(
    positions: int, budget: int
) -> None:
    """It would wait for ever, and everything behind it."""
    batch = scheduler(FakeModel(positions=positions), budget)

    with pytest.raises(RequestRefusedError, match="together they exceed the 10 ") as error:
        batch.submit(job("a", [1] * 8, tokens=3))
    assert error.value.code == "context_length_exceeded"
    batch.submit(job("b", [1] * 8, tokens=2))
    assert ends(run(batch)) == ["b"]


def test_what_does_not_fit_now_waits_until_it_does() -> None:
    model = FakeModel()
    batch = scheduler(model, budget=20)
    for name in "abc":
        batch.submit(job(name, [1] * 5, tokens=5))
    batch.step()
    batch.step()

    assert [j.id for j in batch.decoding] == ["a", "b"]
    batch.step()
    assert batch.prefilling == []
    assert ends(run(batch)) == ["a", "b", "c"]
    assert "decode 3" not in model.log


def test_a_long_prompt_is_computed_in_chunks_and_others_decode_between_them() -> None:
    model = FakeModel()
    batch = scheduler(model)
    batch.submit(job("a", [1] * 4, tokens=50))
    batch.step()
    batch.submit(job("b", [2] * (2 * SHARED_CHUNK + 1)))
    for _ in range(3):
        batch.step()

    assert model.log[2:] == [
        "prefill 1 32", "decode 1", "prefill 1 31", "decode 1", "prefill 1 2", "decode 2",
    ]  # fmt: skip
    run(batch)


def steps_until_first_token(batch: Scheduler, job: AnswerJob) -> int:
    """Submit a job, and count the steps up to its first token."""
    batch.submit(job)
    for count in itertools.count(1):
        batch.step()
        if job.answer.tokens:
            return count
    raise AssertionError


@pytest.mark.parametrize("before", range(6))
@pytest.mark.parametrize("chunks", range(1, 4))
def test_a_late_joiner_waits_for_one_step_of_a_long_prefill_at_most(
    before: int, chunks: int
) -> None:
    model = FakeModel(positions=3000)
    batch = scheduler(model)
    batch.submit(job("decodes", tokens=500))
    batch.step()
    batch.submit(job("long", [1] * 2000))
    for _ in range(before):
        batch.step()
    late = job("late", [2] * (30 + SHARED_CHUNK * (chunks - 1)), tokens=90)

    assert steps_until_first_token(batch, late) <= chunks + 1
    assert [j.id for j in batch.decoding] == ["decodes", "late"]
    assert [j.id for j in batch.prefilling] == ["long"]
    assert model.log.count("swap 1 2") == 1
    run(batch)


def test_a_long_prompt_is_not_starved_by_short_ones() -> None:
    model = FakeModel(positions=3000)
    batch = scheduler(model)
    batch.submit(job("decodes", tokens=500))
    batch.step()
    long = job("long", [1] * 10 * SHARED_CHUNK)
    batch.submit(long)
    for number in range(10 * (MOST_PASSED_OVER + 1)):
        assert not long.answer.tokens
        batch.submit(job(f"short {number}", [number] * 30, tokens=1, rank=0))
        batch.step()

    assert long.answer.tokens
    run(batch)


def test_the_more_urgent_prompt_is_prefilled_before_a_shorter_one() -> None:
    batch = scheduler(FakeModel())
    for name, length, rank in (("a", 500, 1), ("b", 200, 2), ("c", 300, 0)):
        batch.submit(job(name, [1] + [ord(name)] * length, rank=rank, tokens=1))

    assert ends(run(batch)) == ["c", "a", "b"]


def test_prompts_that_begin_alike_and_come_together_share_their_beginning() -> None:
    model = FakeModel()
    batch = scheduler(model)
    jobs = [job(str(i), [1] * 400 + [i + 2] * 10, tokens=1 + i % 2) for i in range(4)]
    for each in jobs:
        batch.submit(each)
    run(batch)

    assert [j.cached_tokens for j in jobs] == [0, 400, 400, 400]


def test_what_a_longer_prompt_in_prefill_has_computed_is_used_again() -> None:
    batch = scheduler(FakeModel())
    long, short = job("long", [1] * 300 + [2] * 300), job("short", [1] * 300 + [3] * 10)
    batch.submit(long)
    batch.step()
    batch.submit(short)
    run(batch)

    # The short one computes the rest of what they share, and the long one copies that in its turn.
    assert (short.cached_tokens, long.cached_tokens) == (CHUNK, 300 - CHUNK)


def test_a_cancel_in_prefill_leaves_the_others_what_they_have() -> None:
    batch = scheduler(FakeModel())
    first, second = job("a", [1] * 600), job("b", [2] * 400)
    batch.submit(first)
    batch.step()
    batch.submit(second)
    batch.step()
    assert [j.length for j in batch.prefilling] == [CHUNK, CHUNK]
    batch.cancel("a")
    run(batch)

    answer: Any = second.answer
    assert answer.first_logits[0] == sum(second.prompt)


def test_a_kept_prompt_is_used_again_by_what_needs_its_memory() -> None:
    batch = scheduler(FakeModel(), budget=200)
    batch.submit(job("a", [1] * 100, tokens=1))
    run(batch)
    late = job("b", [1] * 100 + [2] * 95, tokens=5)
    batch.submit(late)
    run(batch)

    assert late.cached_tokens == 100


def test_alone_a_prompt_is_computed_in_larger_chunks() -> None:
    model = FakeModel()
    batch = scheduler(model)
    batch.submit(job("a", [1] * (CHUNK + 10)))
    run(batch)

    assert model.log[:2] == ["prefill 0 128", "prefill 0 10"]


@given(st.integers(1, 2000), st.integers(4, 200))
def test_no_chunk_but_a_whole_prompt_is_a_single_token(length: int, limit: int) -> None:
    sizes, remaining = [], length
    while remaining:
        sizes.append(chunk_size(remaining, limit))
        remaining -= sizes[-1]

    assert length == 1 or min(sizes) > 1
    assert max(sizes) <= limit


def test_a_cancel_ends_it_before_the_next_step_wherever_it_is() -> None:
    model = FakeModel(slots=2)
    batch = scheduler(model)
    for name, prompt in (("a", [1] * 4), ("b", [2] * 500), ("c", [3] * 4)):
        batch.submit(job(name, prompt, tokens=100))
    batch.step()
    batch.step()
    assert [[j.id for j in jobs] for jobs in (batch.decoding, batch.prefilling)] == [["a"], ["b"]]
    before = len(model.log)
    for name in ("a", "b", "c", "never heard of"):
        batch.cancel(name)
    events = batch.step()

    assert sorted(ends(events)) == ["a", "b", "c"]
    assert all(isinstance(e.error, RequestCancelledError) for e in events)
    assert len(model.log) == before
    assert not batch.is_busy
    assert model.sequences == {}


def test_a_failed_answer_harms_no_other() -> None:
    batch = scheduler(FakeModel())
    batch.submit(job("a", error=EngineError("the grammar")))
    batch.submit(job("b"))
    events = run(batch)

    assert {e.id: bool(e.error) for e in events if e.error or e.completion} == {
        "a": True,
        "b": False,
    }


def test_pieces_come_of_streamed_requests_only() -> None:
    batch = scheduler(FakeModel())
    batch.submit(job("a", is_streamed=True))
    batch.submit(job("b"))

    assert [(e.id, e.piece) for e in run(batch) if e.piece] == [("a", "1"), ("a", "2"), ("a", "3")]


def test_kept_prompts_and_running_answers_stay_within_the_budget() -> None:
    batch = scheduler(FakeModel(), budget=300)
    for i in range(20):
        batch.submit(job(str(i), [i] * 60, tokens=10))
    while batch.is_busy:
        batch.step()
        running = [*batch.decoding, *batch.prefilling]
        assert batch.prefixes.tokens + sum(j.reserved_positions for j in running) <= 300

    assert batch.prefixes.tokens > 100


PROMPTS = st.lists(st.sampled_from([2, 10, 40, 100, 180, 350]), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(PROMPTS, st.randoms(use_true_random=False), st.integers(1, 4), st.sampled_from([400, 1000]))
def test_whatever_comes_and_goes_each_answer_is_its_own(
    lengths: list[int], chance: random.Random, slots: int, budget: int
) -> None:
    """The fake's logits are the sum of a sequence: another's tokens would show in them."""
    batch = scheduler(FakeModel(slots=slots), budget)
    jobs = [
        job(
            str(i),
            [5] * (length // 2) + [i + 9] * (length - length // 2),
            tokens=chance.randrange(1, 9),
            rank=chance.randrange(3),
            # The answers are 1, 2, 3 …: some drafts are right to their end, others in part.
            lookup=chance.choice([None, PromptLookup([1, 2, 3, 4, 5, 0]), PromptLookup(range(20))]),
        )
        for i, length in enumerate(lengths)
    ]
    events: list[Event] = []
    for each in jobs:
        batch.submit(each)
        for _ in range(chance.randrange(4)):
            events += batch.step()
        if chance.random() < 0.3:
            batch.cancel(chance.choice(jobs).id)
    events += run(batch)

    assert sorted(ends(events)) == sorted(j.id for j in jobs)
    for each in jobs:
        answer: Any = each.answer
        total = sum(each.prompt)
        assert answer.first_logits == [
            total + sum(range(1, n + 1)) for n in range(len(answer.first_logits))
        ]


# -- speculation --------------------------------------------------------------------------


def speculating(name: str, known: Sequence[int], tokens: int, **fields: Any) -> AnswerJob:
    """A job whose answer is 1, 2, 3 …, and whose drafts come of what is known before it."""
    return job(name, tokens=tokens, lookup=PromptLookup(known), **fields)


def test_one_run_checks_a_draft_and_gives_one_token_more() -> None:
    model = FakeModel()
    batch = scheduler(model)
    counting = speculating("a", range(100), 30, is_streamed=True)
    batch.submit(counting)
    events = run(batch)

    # After one token there is nothing to look up yet.
    assert model.log == [
        "prefill 0 2", "decode 1", "advance 0 3 5", "advance 0 8 17", "advance 0 25 6",
    ]  # fmt: skip
    answer: Any = counting.answer
    assert answer.first_logits == [14 + sum(range(n + 1)) for n in range(30)]
    assert [e.piece for e in events if e.piece] == [str(n + 1) for n in range(30)]
    completion = completions(events)["a"]
    assert (completion.drafted_tokens, completion.accepted_tokens) == (25, 25)
    assert completion.completion_tokens == 30


def test_a_draft_counts_up_to_its_first_wrong_token() -> None:
    model = FakeModel()
    batch = scheduler(model)
    counting = speculating("a", [1, 2, 3, 4, 9, 9], 9)
    batch.submit(counting)
    completion = completions(run(batch))["a"]

    assert model.log[:4] == ["prefill 0 2", "decode 1", "advance 0 3 5", "decode 1"]
    assert (completion.drafted_tokens, completion.accepted_tokens) == (4, 2)
    answer: Any = counting.answer
    assert answer.first_logits == [14 + sum(range(n + 1)) for n in range(9)]


def test_a_draft_leaves_the_last_token_to_the_run_itself() -> None:
    model = FakeModel(positions=6)
    batch = scheduler(model)
    batch.submit(speculating("a", range(100), 4))
    run(batch)

    assert model.log == ["prefill 0 2", "decode 1", "advance 0 3 2"]


def test_nothing_is_drafted_beside_another_sequence() -> None:
    model = FakeModel()
    batch = scheduler(model)
    batch.submit(speculating("a", range(100), 60))
    batch.step()
    batch.submit(job("b", [2] * 100, tokens=5))
    run(batch)

    assert model.log[:11] == [
        "prefill 0 2", "decode 1",
        "prefill 1 32", "decode 1", "prefill 1 32", "decode 1", "prefill 1 32", "decode 1",
        "prefill 1 4", "decode 2", "decode 2",
    ]  # fmt: skip
    assert model.log[11:14] == ["decode 2", "decode 2", "advance 0 10 6"]


def test_an_answer_that_is_complete_within_a_draft_takes_no_more_of_it() -> None:
    model = FakeModel()
    batch = scheduler(model)
    stopped = speculating("a", range(100), 5, max_tokens=60)
    batch.submit(stopped)
    completion = completions(run(batch))["a"]

    assert model.log[-1] == "advance 0 3 5"
    assert completion.completion_tokens == 5
    assert (completion.drafted_tokens, completion.accepted_tokens) == (4, 3)
    assert model.sequences == {}


@pytest.mark.parametrize("failing_at", [3, 5])
def test_an_answer_that_fails_within_a_draft_ends_there(failing_at: int) -> None:
    model = FakeModel()
    batch = scheduler(model)
    failing = speculating("a", range(100), 60)
    answer: Any = failing.answer
    answer.error, answer.error_at = EngineError("the grammar"), failing_at
    batch.submit(failing)
    events = run(batch)

    assert [(e.id, str(e.error)) for e in events] == [("a", "the grammar")]
    assert answer.tokens == failing_at
    assert model.log[-1].startswith("advance")
    assert model.sequences == {}


# -- memory -------------------------------------------------------------------------------


def test_the_longest_kept_beginning_is_found_and_the_oldest_forgotten() -> None:
    cache = PrefixCache()
    key_values: list[KeyValues] = [[np.zeros(1, np.float32)] for _ in range(3)]
    cache.add([1, 2, 3], key_values[0])
    cache.add([1, 2, 9, 9], key_values[1])
    assert cache.match([1, 2, 9, 7]) == (3, key_values[1])
    assert cache.match([4]) == (0, [])
    assert cache.holds([1, 2])
    assert not cache.holds([1, 2, 3, 4])
    assert cache.match([1, 2, 3])[1] is key_values[0]
    cache.shrink(5)
    assert (cache.tokens, cache.match([1, 2, 9])[0]) == (3, 2)


def test_a_kept_prompt_makes_way_for_one_that_begins_with_it() -> None:
    cache = PrefixCache()
    cache.add([1, 2], [])
    cache.add([1, 2, 3], [])
    assert cache.tokens == 3


def test_slots_do_not_touch_each_other() -> None:
    cache = KvCache(layers=1, heads=2, head_size=8, slots=3, positions=100)
    for slot in range(3):
        cache.arrays[0][slot] = slot + 1
    key_values = cache.keep(1, 5)
    cache.release(1)
    assert [float(cache.arrays[0][slot].sum()) for slot in range(3)] == [
        2 * 128 * 8,
        0,
        3 * 2 * 128 * 8,
    ]
    cache.restore(0, key_values, 4)
    cache.move(0, 1, 3)
    assert cache.arrays[0][:, 0, :6, 0].tolist() == [
        [2, 2, 2, 2, 1, 1],
        [2, 2, 2, 0, 0, 0],
        [3] * 6,
    ]


def test_exchanged_and_moved_sequences_take_no_more_memory_than_their_length() -> None:
    cache = KvCache(layers=1, heads=2, head_size=64, slots=3, positions=100)
    page = mmap.PAGESIZE // (64 * 4)
    for slot, length in ((0, 100), (1, 3), (2, 40)):
        cache.arrays[0][slot, :, :length] = slot + 1
    cache.swap((0, 1), (100, 3))

    assert np.all(cache.arrays[0][0, :, :3] == 2)
    assert not np.any(cache.arrays[0][0, :, page:])
    assert np.all(cache.arrays[0][1, :, :100] == 1)
    cache.move(2, 1, 40)
    assert np.all(cache.arrays[0][1, :, :40] == 3)
    assert not np.any(cache.arrays[0][1, :, -(-40 // page) * page :])
    assert np.all(cache.arrays[0][2, :, :40] == 3)


def test_a_low_share_is_not_worth_keeping(generator: Generator) -> None:
    generator.generate(request("a", "x"))
    assert generator.scheduler.prefixes.tokens == 0
    generator.generate(request("b", "x" * WORTH_KEEPING))
    assert generator.scheduler.prefixes.tokens > 0


def test_a_sequence_that_takes_a_comparison_s_place_finds_it_moved_whole() -> None:
    model = FakeModel()
    batch = scheduler(model)
    batch.submit(job("a", tokens=4))
    batch.step()
    comparison = Comparison([7, 7], [[1] * (SHARED_CHUNK + 5), [2]], [0])
    batch.submit(
        ComparisonJob(id="b", prompt=[7, 7], comparison=comparison, choices=("long", "short"))
    )
    completions_by_id = completions(run(batch))

    # The first leaves while the second is read, in the slot after it.
    read = [line for line in model.log if line.startswith("advance")]
    assert read == ["advance 1 2 32", "advance 0 34 6", "advance 0 2 2"]
    assert completions_by_id["b"].choice_logprobs == pytest.approx([-np.log(VOCABULARY)] * 2)
