"""Random schedules on a tiny model: what runs together never changes an answer.

`make test-edge` runs 200 of them, `make test` a few.
"""

import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from fusewire.contracts import Message, Tool
from fusewire_worker_edge.engine.api import Completion, EngineError, GenerateRequest
from fusewire_worker_edge.engine.cache import PrefixCache
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.jobs import AnswerJob, ComparisonJob, Job
from fusewire_worker_edge.engine.scheduler import CHUNK, SHARED_CHUNK, Scheduler

SCHEDULES = int(os.environ.get("SCHEDULES", "10"))
PROMPTS = 16
CANCELS = 4
SYSTEMS = (
    "",
    "You answer in one short sentence and never in two of them.",
    "You are one of three advisers. Name your reason first. " * 4,
)
HISTORY = (
    Message(role="user", content="Is a whale a fish? " * 5),
    Message(role="assistant", content="It is a mammal. " * 5),
)
SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"enum": ["yes", "no"]}, "why": {"type": "string", "maxLength": 8}},
    "required": ["verdict", "why"],
    "additionalProperties": False,
}
TOOL = Tool(
    name="weather",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 6}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
GUIDANCE: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"stop": ("e",)},
    {"response_schema": SCHEMA},
    {"response_schema": {"enum": ["yes", "no", "perhaps"]}},
    {"tools": (TOOL,), "tool_choice": "required"},
    {"tools": (TOOL,), "tool_choice": "auto"},
    {"choices": ("yes", "no " * 20)},
)


@pytest.fixture
def generator(tiny_generator: Generator) -> Iterator[Generator]:
    yield tiny_generator
    assert not tiny_generator.scheduler.is_busy


def random_request(chance: random.Random, name: str) -> GenerateRequest:
    system = chance.choice(SYSTEMS)
    messages = (
        *([Message(role="system", content=system)] if system else []),
        *chance.choice([(), (), HISTORY]),
        Message(
            role="user",
            content="".join(chance.choices("abcdefgh ", k=chance.choice([1, 5, 40, 130, 300]))),
        ),
    )
    return GenerateRequest(
        id=name,
        messages=messages,
        max_tokens=chance.randrange(1, 40),
        rank=chance.randrange(3),
        is_streamed=chance.random() < 0.3,
        top_logprobs=0,
        **chance.choice(GUIDANCE),
    )


@dataclass
class Schedule:
    """Requests that join and leave at random steps, and what came of them."""

    seed: int
    completions: dict[str, Completion] = field(default_factory=dict)
    errors: dict[str, EngineError] = field(default_factory=dict)
    pieces: dict[str, str] = field(default_factory=dict)
    most_decoding: int = 0
    most_prefilling: int = 0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.requests = [random_request(self.chance, str(i)) for i in range(PROMPTS)]
        self.joins = {r.id: self.chance.randrange(40) for r in self.requests}
        cancelled = self.chance.sample(self.requests, CANCELS)
        self.cancels = {r.id: self.joins[r.id] + self.chance.randrange(60) for r in cancelled}

    def run(self, generator: Generator) -> None:
        """Submit and cancel each request at its step, and step until all have ended."""
        for step in itertools.count():
            for request in self.requests:
                if self.joins[request.id] == step:
                    generator.submit(request)
                if self.cancels.get(request.id) == step:
                    generator.scheduler.cancel(request.id)
            self.step(generator.scheduler)
            is_last = step > max(*self.joins.values(), *self.cancels.values())
            if is_last and not generator.scheduler.is_busy:
                return

    def step(self, scheduler: Scheduler) -> None:
        decoding = {job: job.answer.tokens for job in scheduler.decoding}
        computed = {job: _computed_tokens(job) for job in scheduler.prefilling}
        for event in scheduler.step():
            if event.piece:
                self.pieces[event.id] = self.pieces.get(event.id, "") + event.piece
            ended = event.completion or event.error
            if ended:
                assert event.id not in self.completions.keys() | self.errors.keys()
            if event.completion:
                self.completions[event.id] = event.completion
            if event.error:
                self.errors[event.id] = event.error
        self.most_decoding = max(self.most_decoding, len(scheduler.decoding))
        self.most_prefilling = max(self.most_prefilling, len(scheduler.prefilling))
        self._check_nothing_stalled(scheduler, decoding, computed)

    def _check_nothing_stalled(
        self, scheduler: Scheduler, decoding: dict[AnswerJob, int], computed: dict[Job, int]
    ) -> None:
        """Each answer under way got its token, beside at most one chunk of one prompt."""
        still_decoding = [job for job in decoding if job in scheduler.decoding]
        for job in still_decoding:
            assert job.answer.tokens == decoding[job] + 1
        running: list[Job] = [*scheduler.decoding, *scheduler.prefilling]
        chunks = [
            _computed_tokens(job) - computed.get(job, 0) for job in running if job not in decoding
        ]
        assert sum(size > 0 for size in chunks) <= 1
        assert sum(chunks) <= (SHARED_CHUNK if still_decoding else CHUNK)


def _computed_tokens(job: Job) -> int:
    """How many tokens of its prompt, and of its choices, were computed for it."""
    of_prompt = min(job.length, len(job.prompt)) - job.cached_tokens
    return of_prompt + (job.read_tokens if isinstance(job, ComparisonJob) else 0)


def alone(generator: Generator, request: GenerateRequest) -> Completion:
    """The completion of a request that nothing runs beside, without cached prompts."""
    generator.scheduler.prefixes = PrefixCache()
    return generator.generate(request)


@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_sixteen_prompts_at_once_answer_what_each_does_alone(
    generator: Generator, seed: int
) -> None:
    """With joins, cancels, grammars and priorities: the same tokens, and the same probabilities."""
    schedule = Schedule(seed)
    # In the smaller memory some wait for their turn, and kept prompts make way.
    budget = schedule.chance.choice([generator.model.positions, generator.model.budget])
    generator.scheduler = Scheduler(generator.model, budget, itertools.count().__next__)
    schedule.run(generator)

    assert schedule.completions.keys() | schedule.errors.keys() == set(schedule.joins)
    assert schedule.errors.keys() <= schedule.cancels.keys()
    assert schedule.most_decoding > 1
    assert schedule.most_prefilling > 1
    assert any(completion.cached_tokens for completion in schedule.completions.values())
    for request in schedule.requests:
        together = schedule.completions.get(request.id)
        if together is None:
            continue
        expected = alone(generator, request)
        assert _words(together) == _words(expected)
        # Chunks of another length may round in another order (docs/decisions/0028).
        assert _logprobs(together) == pytest.approx(_logprobs(expected), abs=1e-5, rel=0)
        if request.is_streamed and not together.tool_calls and not request.choices:
            assert schedule.pieces.get(request.id, "") == together.text


def _words(completion: Completion) -> dict[str, Any]:
    """The tokens, and what follows from them. Probabilities may round otherwise."""
    fields = {"text", "tool_calls", "finish_reason", "prompt_tokens", "completion_tokens"}
    return {
        **completion.model_dump(include=fields),
        "tokens": [entry.token for entry in completion.logprobs],
    }


def _logprobs(completion: Completion) -> list[float]:
    """The log probabilities of its tokens, or of its choices."""
    return [*(entry.logprob for entry in completion.logprobs), *completion.choice_logprobs]
