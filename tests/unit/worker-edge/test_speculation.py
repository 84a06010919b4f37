"""Speculation: what is drafted, what it may cost, and that answers stay what they are."""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusewire.contracts import Message
from fusewire_worker_edge.engine.api import Completion, GenerateRequest, RequestCancelledError
from fusewire_worker_edge.engine.cache import PrefixCache
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.scheduler import Scheduler
from fusewire_worker_edge.engine.speculation import (
    DRAFT_COST,
    FIRST_DRAFT,
    MAX_DRAFT,
    TOKEN_ALLOWANCE,
    PromptLookup,
)

REPEATED = "abcdefgh " * 8
COPY = {"enum": [REPEATED, "abc"]}
"""A grammar by which a random model repeats its prompt."""
SCHEMAS: tuple[dict[str, Any] | None, ...] = (
    None, None, {"type": "string", "maxLength": 30}, COPY, {"const": REPEATED[:60]},
)  # fmt: skip


@pytest.fixture
def generator(tiny_generator: Generator) -> Iterator[Generator]:
    tiny_generator.scheduler = Scheduler(
        tiny_generator.model, tiny_generator.model.budget, itertools.count().__next__
    )
    tiny_generator.speculate = "prompt"
    yield tiny_generator
    tiny_generator.speculate = "off"
    assert not tiny_generator.scheduler.is_busy


# -- drafts -------------------------------------------------------------------------------


def drafted(lookup: PromptLookup, answer: Sequence[int]) -> list[list[int]]:
    """The drafts of an answer whose tokens are known, as the scheduler asks for them."""
    drafts, position = [], 0
    while position < len(answer):
        draft = lookup.draft(len(answer) - position - 1)
        drafts.append(draft)
        for guess in [*draft, None]:
            lookup.append(answer[position])
            position += 1
            if answer[position - 1] != guess:
                break
    return drafts


def test_a_draft_is_what_followed_the_last_occurrence() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 9, 1, 2, 3, 5, 6, 7, 8, 2, 3])

    assert lookup.draft(10) == [5, 6, 7, 8]


def test_the_longer_beginning_decides() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 9, 7, 2, 3, 5, 6, 0, 1, 2, 3])

    assert lookup.draft(1) == [4]


def test_what_never_occurred_is_not_guessed() -> None:
    assert PromptLookup([1, 2, 3, 4]).draft(10) == []
    assert PromptLookup([1]).draft(10) == []
    assert PromptLookup([]).draft(10) == []


def test_no_more_is_drafted_than_there_is_room_for() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 1, 2])

    assert lookup.draft(2) == [3, 4]
    assert lookup.draft(0) == []
    assert lookup.draft(-1) == []


def test_right_drafts_grow() -> None:
    text = list(range(100))
    drafts = drafted(PromptLookup([*text, 0, 1]), text[2:])

    assert [len(draft) for draft in drafts[:3]] == [FIRST_DRAFT, MAX_DRAFT, MAX_DRAFT]


def test_wrong_drafts_end() -> None:
    """Every pair of tokens occurred, and something else follows it now."""
    prompt = [token for number in range(300) for token in (1, 2, number + 3)]
    answer = [token for number in range(300) for token in (1, 2, number + 1000)]
    lookup = PromptLookup(prompt)
    drafted(lookup, answer)

    assert lookup.drafted_tokens > FIRST_DRAFT
    allowed_steps = FIRST_DRAFT * DRAFT_COST + TOKEN_ALLOWANCE * len(answer)
    # The two that are the same each time may be right.
    assert (lookup.drafted_tokens * DRAFT_COST - lookup.accepted_tokens) <= allowed_steps


@given(
    st.lists(st.integers(0, 3), max_size=60),
    st.lists(st.integers(0, 3), min_size=1, max_size=200),
)
def test_drafts_never_cost_more_than_they_may(prompt: list[int], answer: list[int]) -> None:
    lookup = PromptLookup(prompt)
    drafts = drafted(lookup, answer)

    assert lookup.drafted_tokens == sum(map(len, drafts))
    assert len(drafts) + lookup.accepted_tokens == len(answer)
    loss = lookup.drafted_tokens * DRAFT_COST - lookup.accepted_tokens
    assert loss <= (FIRST_DRAFT + 0.1) * DRAFT_COST + TOKEN_ALLOWANCE * len(answer)


# -- answers ------------------------------------------------------------------------------


def answers(generator: Generator, request: GenerateRequest) -> tuple[Completion, Completion]:
    """The completions of a request without and with speculation."""
    completions = []
    for speculate in ("off", "prompt"):
        generator.scheduler.prefixes = PrefixCache()
        generator.speculate = "prompt" if speculate == "prompt" else "off"
        completions.append(generator.generate(request))
    return completions[0], completions[1]


def words(completion: Completion) -> tuple[Any, ...]:
    return completion.text, completion.finish_reason, completion.completion_tokens


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False))
def test_an_answer_is_the_same_with_and_without(
    tiny_generator: Generator, chance: random.Random
) -> None:
    request = GenerateRequest(
        id="a",
        messages=(
            Message(role="user", content="".join(chance.choices("abcdefgh ", k=60)) + REPEATED),
        ),
        max_tokens=chance.randrange(1, 60),
        temperature=chance.choice([0.0, 0.0, 1.0]),
        seed=chance.randrange(1000),
        stop=chance.choice([(), ("e",)]),
        response_schema=chance.choice(SCHEMAS),
        top_logprobs=0,
    )
    without, with_drafts = answers(tiny_generator, request)
    tiny_generator.speculate = "off"

    assert words(with_drafts) == words(without)
    assert [t.token for t in with_drafts.logprobs] == [t.token for t in without.logprobs]
    assert without.drafted_tokens == 0


def test_a_repetition_takes_fewer_steps(generator: Generator) -> None:
    request = GenerateRequest(
        id="a",
        messages=(Message(role="user", content=REPEATED),),
        max_tokens=200,
        response_schema={"const": REPEATED},
        top_logprobs=0,
    )
    without, with_drafts = answers(generator, request)

    assert words(with_drafts) == words(without)
    assert with_drafts.accepted_tokens > 0.6 * without.completion_tokens
    assert with_drafts.drafted_tokens < 1.5 * with_drafts.accepted_tokens


def test_a_cancel_comes_between_two_drafts(generator: Generator) -> None:
    request = GenerateRequest(
        id="a",
        messages=(Message(role="user", content=REPEATED),),
        max_tokens=200,
        response_schema={"const": REPEATED},
    )
    steps = itertools.count()
    with pytest.raises(RequestCancelledError):
        generator.generate(request, lambda: next(steps) > 6)


def test_two_answers_at_once_are_those_of_each_alone(generator: Generator) -> None:
    """A draft is checked only while one runs alone; the other joins and leaves in the middle."""
    requests = [
        GenerateRequest(
            id=str(number),
            messages=(Message(role="user", content=REPEATED * (number + 1)),),
            max_tokens=80 - 60 * number,
            response_schema={"const": REPEATED},
            top_logprobs=0,
        )
        for number in range(2)
    ]
    alone = [answers(generator, each)[0] for each in requests]
    generator.speculate = "prompt"
    generator.submit(requests[0])
    for _ in range(8):
        generator.scheduler.step()
    generator.submit(requests[1])
    completions: dict[str, Completion] = {}
    while generator.scheduler.is_busy:
        for event in generator.scheduler.step():
            if event.completion:
                completions[event.id] = event.completion

    for request, expected in zip(requests, alone, strict=True):
        assert words(completions[request.id]) == words(expected)
    assert completions["0"].accepted_tokens > 0
