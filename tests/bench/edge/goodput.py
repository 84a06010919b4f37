"""A queue of prompts of all lengths, some of which are cancelled: what is answered, and when."""

import argparse
import asyncio
import functools
import inspect
import random
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edge.models import gguf, model_folder, thread_count
from edge.sides import Reply, Side, our_side, their_side
from fusewire_worker_edge.engine.api import RequestCancelledError
from fusewire_worker_edge.engine.generation import read_vocabulary
from fusewire_worker_edge.folder import verify

SHORTEST = 20
_MOST_CHARACTERS = 4
"""Characters of a token of the text, at the most."""
SLOTS = 4
_CANCEL_EVERY = 10
_SLOT_CONTEXT = 2304

Which = Literal["ours", "theirs"]


@dataclass(frozen=True)
class Workload:
    """What is submitted: how many prompts, the longest, and the answers' length, in tokens."""

    prompts: int = 200
    longest: int = 2000
    answer_tokens: int = 32


def prompt_texts(folder: Path, workload: Workload) -> list[str]:
    """Texts of about `SHORTEST` tokens and more, as many of each order of length, in mixed order.

    Always the same ones. No two begin alike.
    """
    vocabulary = read_vocabulary(folder, verify(folder))
    text = inspect.getsource(argparse) + inspect.getsource(inspect)
    rng = random.Random(7)
    texts = []
    for number in range(workload.prompts):
        part = number / (workload.prompts - 1)
        tokens = SHORTEST * (workload.longest / SHORTEST) ** part
        # Tokens differ in length from place to place: the piece itself tells how many it has.
        start = rng.randrange(len(text) - workload.longest * _MOST_CHARACTERS)
        piece = text[start : start + int(tokens) * _MOST_CHARACTERS]
        size = int(len(piece) * tokens / len(vocabulary.ids(piece)))
        texts.append(f"{number}. Explain: {piece[:size]}")
    rng.shuffle(texts)
    return texts


def _ignore() -> None:
    """Go on after the first piece."""


@dataclass
class _Queue:
    """The requests of one run, and what became of them."""

    side: Side
    answer_tokens: int
    tasks: list[asyncio.Task[Reply]] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    cancelled: int = 0
    lost: int = 0

    def submit(self, texts: list[str]) -> None:
        """Submit all prompts at once."""
        for number, text in enumerate(texts):
            # Of those to cancel, every other one has begun its answer by then.
            is_cut = number % (2 * _CANCEL_EVERY) == 0
            on_first = functools.partial(self._cancel, number) if is_cut else _ignore
            ask = self.side.ask(text, self.answer_tokens, on_first)
            self.tasks.append(asyncio.create_task(ask))

    def _cancel(self, number: int) -> None:
        self.tasks[number].cancel()

    async def drain(self) -> None:
        """Wait for the end of every request; cancel the waiting ones after the first answer."""
        await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in self.tasks[_CANCEL_EVERY :: 2 * _CANCEL_EVERY]:
            task.cancel()
        for result in await asyncio.gather(*self.tasks, return_exceptions=True):
            if isinstance(result, Reply):
                self.replies.append(result)
            elif isinstance(result, asyncio.CancelledError | RequestCancelledError):
                self.cancelled += 1
            else:
                self.lost += 1


@asynccontextmanager
async def _side(name: str, which: Which) -> AsyncIterator[Side]:
    threads = thread_count()
    if which == "ours":
        async with our_side(model_folder(name), SLOTS, threads) as side:
            yield side
    else:
        async with their_side(gguf(name), SLOTS, threads, _SLOT_CONTEXT) as side:
            yield side


async def _run(name: str, which: Which, workload: Workload) -> dict[str, Any]:
    texts = prompt_texts(model_folder(name), workload)
    async with _side(name, which) as side:
        queue = _Queue(side, workload.answer_tokens)
        began = time.perf_counter()
        queue.submit(texts)
        await queue.drain()
        seconds = time.perf_counter() - began
        # Nothing may hold a slot any more.
        after = await side.ask("Hello", 1, lambda: None)
    first = sorted(reply.first_s for reply in queue.replies if reply.first_s is not None)
    return {
        "goodput_tok_s": sum(reply.tokens for reply in queue.replies) / seconds,
        "first_token_p50_s": statistics.median(first),
        "first_token_p95_s": first[int(0.95 * (len(first) - 1))],
        "prompts": len(texts),
        "answered": len(queue.replies),
        "cancelled": queue.cancelled,
        "lost": queue.lost,
        "answers_after": bool(after.tokens),
        "seconds": seconds,
    }


def run(name: str, which: Which, workload: Workload) -> dict[str, Any]:
    """Tokens of complete answers a second, and the first token's time with the wait in the queue.

    Args:
        name: a model of the catalogue.
        which: the side that answers.
        workload: what is submitted at once; a tenth of it is cancelled.
    """
    return asyncio.run(_run(name, which, workload))
