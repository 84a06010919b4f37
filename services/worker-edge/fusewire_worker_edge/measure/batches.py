"""What sequences in one batch gain and wait for, counted through the scheduler's steps."""

import time
from collections.abc import Sequence

from fusewire.contracts import Message
from fusewire_worker_edge.engine.answer import AnswerTokens
from fusewire_worker_edge.engine.api import GenerateRequest
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.jobs import AnswerJob
from fusewire_worker_edge.engine.scheduler import SHARED_CHUNK

PREFIX_TOKENS = 500
_PROMPT_TOKENS = 24
_STEPS = 24
_LONG_CHUNKS = 8
"""Chunks of the prompt that is being read when another one joins."""


def _answer_job(
    generator: Generator, name: str, prompt: Sequence[int], max_tokens: int
) -> AnswerJob:
    """A job whose answer has `max_tokens` tokens, as no token ends it."""
    messages = (Message(role="user", content=name),)
    request = GenerateRequest(id=name, messages=messages, max_tokens=max_tokens)
    answer = AnswerTokens(request, generator.vocabulary.text_stream(), None, ())
    job = AnswerJob(id=name, prompt=prompt, answer=answer, max_tokens=max_tokens)
    generator.scheduler.submit(job)
    return job


def _step_until_first_token(generator: Generator, jobs: Sequence[AnswerJob]) -> int:
    """Advance until each job has a token. Return the number of steps."""
    steps = 0
    while not all(job.answer.tokens for job in jobs):
        generator.scheduler.step()
        steps += 1
    return steps


def _finish(generator: Generator) -> None:
    while generator.scheduler.is_busy:
        generator.scheduler.step()


def batch_speed(generator: Generator, text: Sequence[int], sequences: int) -> float:
    """Return the tokens a second of sequences that decode together, of all of them.

    Args:
        generator: the model, with at least as many slots.
        text: the ids of a text, whose parts are the prompts.
        sequences: how many there are.
    """
    jobs = []
    for number in range(sequences):
        prompt = text[number : number + _PROMPT_TOKENS]
        # The first ones decode while the others' prompts are read.
        room = 2 * sequences + _STEPS
        jobs.append(_answer_job(generator, f"batch-{number}", prompt, room))
    _step_until_first_token(generator, jobs)
    before = sum(job.answer.tokens for job in jobs)
    began = time.perf_counter()
    for _ in range(_STEPS):
        generator.scheduler.step()
    seconds = time.perf_counter() - began
    tokens = sum(job.answer.tokens for job in jobs) - before
    _finish(generator)
    return tokens / seconds


def late_join_steps(generator: Generator, text: Sequence[int]) -> int:
    """Return how many steps a late request waits for its first token, beyond its own chunk.

    It joins while two sequences decode and a prompt of `_LONG_CHUNKS` chunks is being read, and its
    own prompt is one chunk.

    Args:
        generator: the model, with at least four slots.
        text: the ids of a text, whose parts are the prompts.
    """
    early = [
        _answer_job(generator, f"early-{i}", text[i : i + _PROMPT_TOKENS], 2 * _STEPS)
        for i in range(2)
    ]
    _step_until_first_token(generator, early)
    _answer_job(generator, "long", text[2 : 2 + _LONG_CHUNKS * SHARED_CHUNK], 1)
    generator.scheduler.step()
    late = _answer_job(generator, "late", text[3 : 3 + _PROMPT_TOKENS], 1)
    steps = _step_until_first_token(generator, [late])
    _finish(generator)
    return steps - 1


def prefix_reuse(generator: Generator, text: Sequence[int]) -> float:
    """Return the CPU time of a prompt that begins like an earlier one, over the earlier one's.

    They have `PREFIX_TOKENS` tokens in common and then some of their own; the time is that until
    the first token.

    Args:
        generator: the model, in whose prefix cache no prompt begins like `text`.
        text: the ids of a text, longer than the two prompts.
    """
    prefix, ends = text[:PREFIX_TOKENS], text[PREFIX_TOKENS:]
    first = _prompt_cpu(generator, [*prefix, *ends[:8]])
    return _prompt_cpu(generator, [*prefix, *ends[8:16]]) / first


def _prompt_cpu(generator: Generator, prompt: Sequence[int]) -> float:
    """Seconds of CPU, of all threads, until a prompt's first token."""
    began = time.process_time()
    _answer_job(generator, "prefix", prompt, 1)
    _finish(generator)
    return time.process_time() - began
