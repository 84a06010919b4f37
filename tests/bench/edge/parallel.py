"""Our engine and llama.cpp's server with 1, 4 and 8 requests at once, on the same file."""

import asyncio
import statistics
import time
from typing import Any

from edge.models import gguf, model_folder, thread_count
from edge.sides import Side, our_side, their_side

REQUESTS = (1, 4, 8)
ANSWER_TOKENS = 64
_SLOT_CONTEXT = 1024
_TOPICS = ("sea", "forest", "desert", "mountain", "river", "city", "moon", "winter")
_PROMPT = (
    "Story {number}. Write a long story about the {topic}, with at least ten paragraphs. Describe"
    " first where it takes place and at what time of the year, then the people who live there, what"
    " they do all day and what they are afraid of, then the stranger who arrives one evening with"
    " a letter that nobody can read, and finally what becomes of all of them. Use plain words and"
    " short sentences, and begin with the weather."
)


async def _speed(side: Side, requests: int, first_number: int, answer_tokens: int) -> float:
    """Tokens a second of all answers, from the submission to the last answer's end."""
    # Another beginning each time: neither side may reuse a prompt.
    prompts = [
        _PROMPT.format(number=first_number + i, topic=_TOPICS[i % len(_TOPICS)])
        for i in range(requests)
    ]
    began = time.perf_counter()
    replies = await asyncio.gather(
        *(side.ask(prompt, answer_tokens, lambda: None) for prompt in prompts)
    )
    return sum(reply.tokens for reply in replies) / (time.perf_counter() - began)


async def _compare(name: str, rounds: int, answer_tokens: int) -> dict[str, Any]:
    folder, file, threads = model_folder(name), gguf(name), thread_count()
    slots = max(REQUESTS)
    speeds: dict[int, list[tuple[float, float]]] = {requests: [] for requests in REQUESTS}
    async with (
        our_side(folder, slots, threads) as ours,
        their_side(file, slots, threads, _SLOT_CONTEXT) as theirs,
    ):
        number = 0
        for _ in range(rounds):
            for requests in REQUESTS:
                # In turn: the one that is not asked waits without using a processor.
                pair = (
                    await _speed(ours, requests, number, answer_tokens),
                    await _speed(theirs, requests, number, answer_tokens),
                )
                speeds[requests].append(pair)
                number += requests
    figures: dict[str, Any] = {"threads": threads}
    for requests, pairs in speeds.items():
        figures[f"tok_s_{requests}"] = statistics.median(ours for ours, _ in pairs)
        figures[f"llama_tok_s_{requests}"] = statistics.median(theirs for _, theirs in pairs)
        figures[f"over_llama_{requests}"] = [ours / theirs for ours, theirs in pairs]
    return figures


def compare(name: str, rounds: int, answer_tokens: int = ANSWER_TOKENS) -> dict[str, Any]:
    """Tokens a second of both sides, and their ratio in each round, by requests at once."""
    return asyncio.run(_compare(name, rounds, answer_tokens))
