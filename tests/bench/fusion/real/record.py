"""Record what small models answer, through the worker that answers tasks on edge models.

    python -m fusion.real.record answers MEMBER   asks one member
    python -m fusion.real.record margins MODEL    asks a judge how probable answers are
    python -m fusion.real.record collect          writes what all members have answered

Interrupt it at will: each answer is written when it comes, and the same command goes on from there.
"""

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

from fusewire.contracts import Candidate, Message, Sampling, Task
from fusewire.settings import EdgeModel
from fusewire.testing.factories import make_prompt, make_task
from fusewire_judge.judging.prompts import clean, conversation
from fusewire_worker_edge.generate import EdgeGenerate

from . import prompts
from .dataset import HERE, MARGINS, OPEN, OPEN_REPLAY, REPLAY, SUITE, Line, read

MEMBERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("smollm2-135m", {}),
    "small": ("qwen2.5-coder-0.5b", {}),
    "small-warm": ("qwen2.5-coder-0.5b", {"temperature": 0.8}),
    "large": ("qwen2.5-coder-1.5b", {}),
}
"""By member, its model and how it samples. Members of one model are no strangers to each other."""
OPEN_EVERY = 9
"""After so many prompts with a right answer comes one without, so that each beginning is fair."""


def all_prompts(seed: str) -> list[Line]:
    """All prompts, in the order in which they are asked."""
    lines, open_lines = prompts.suite(seed), prompts.open_prompts(seed)
    mixed = []
    for number, line in enumerate(lines):
        mixed.append(line)
        if number % OPEN_EVERY == 0 and open_lines:
            mixed.append(open_lines.pop(0))
    return mixed + open_lines


def write(path: Path, lines: Iterable[Line]) -> None:
    """Write a JSONL file."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def _task(model: str, custom_id: str, messages: Sequence[Message], **fields: Any) -> Task:
    prompt = make_prompt(messages[-1].content, custom_id=custom_id)
    deadline = {"deadline_at": datetime.now(UTC) + timedelta(days=1)}
    shared = {"model": model, "tier": "edge", "messages": tuple(messages)}
    return make_task(prompt, model, **shared, **deadline, **fields)


def _messages(line: Line) -> tuple[Message, ...]:
    return tuple(Message(**turn) for turn in line["messages"])


async def _ask(
    model: str,
    lines: Sequence[Line],
    path: Path,
    options: argparse.Namespace,
    question: Callable[[Line], tuple[Task, Callable[[Candidate], Line]]],
) -> None:
    """Ask a model what is not in a file yet, as many at a time as it has slots."""
    known = {line["custom_id"] for line in read(path)}
    folder = options.models.expanduser() / model
    edge = EdgeModel(kind="edge", path=folder, slots=options.slots, max_tokens=200)
    worker = EdgeGenerate({model: edge}, lambda: datetime.now(UTC))
    free = asyncio.Semaphore(options.slots)

    async def ask(line: Line) -> None:
        async with free:
            task, as_line = question(line)
            answer = as_line(await worker.generate(task))
            with path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(answer, ensure_ascii=False) + "\n")

    asks: list[Awaitable[None]] = [ask(line) for line in lines if line["custom_id"] not in known]
    try:
        await asyncio.gather(*asks)
    finally:
        await worker.aclose()


def answers(options: argparse.Namespace) -> None:
    """Ask one member the first prompts."""
    member = options.who
    model, settings = MEMBERS[member]

    def question(line: Line) -> tuple[Task, Callable[[Candidate], Line]]:
        sampling = Sampling(
            max_tokens=line["max_tokens"], response_schema=line.get("response_schema"), **settings
        )
        task = _task(model, f"{member}/{line['custom_id']}", _messages(line), sampling=sampling)
        return task, lambda candidate: _answer(line["custom_id"], member, candidate)

    lines = all_prompts(options.seed)[: options.limit]
    asyncio.run(_ask(model, lines, options.to / f"{member}.jsonl", options, question))


def _answer(custom_id: str, member: str, candidate: Candidate) -> Line:
    """A line of a replay."""
    text: Line = {"content": candidate.content}
    if candidate.error:
        text = {"error_code": candidate.error.code}
    usage = candidate.usage
    tokens = {"completion_tokens": usage.completion_tokens} if usage else {}
    return {"custom_id": custom_id, "model": member, **text, "usage": tokens}


def margins(options: argparse.Namespace) -> None:
    """Ask a judge how probable it finds each answer, for prompts on which members differ."""
    by_id: dict[str, dict[str, str]] = {}
    for member in MEMBERS:
        for line in read(options.to / f"{member}.jsonl"):
            if line.get("content"):
                by_id.setdefault(line["custom_id"], {})[member] = line["content"]

    def question(line: Line) -> tuple[Task, Callable[[Candidate], Line]]:
        texts = by_id[line["custom_id"]]
        prompt = make_prompt(messages=_messages(line))
        task = _task(
            options.who,
            f"judge/{line['custom_id']}",
            conversation(prompt, None),
            kind="verdict",
            choices=tuple(clean(text) for text in texts.values()),
        )
        return task, lambda candidate: _margin(line["custom_id"], options.who, texts, candidate)

    lines = [
        line for line in all_prompts(options.seed) if len(set(by_id.get(line["custom_id"], ()))) > 1
    ]
    lines = [line for line in lines if "match" not in line][: options.limit]
    asyncio.run(_ask(options.who, lines, options.to / MARGINS, options, question))


def _margin(custom_id: str, judge: str, texts: Iterable[str], candidate: Candidate) -> Line:
    """By member, the mean log probability of its answer's tokens."""
    logprobs = [round(value, 5) for value in candidate.choice_logprobs]
    return {
        "custom_id": custom_id,
        "judge": judge,
        "logprobs": dict(zip(texts, logprobs, strict=False)),
    }


def collect(options: argparse.Namespace) -> None:
    """Write the prompts that all members answered or failed at, and the answers."""
    by_member = {member: read(options.to / f"{member}.jsonl") for member in MEMBERS}
    own = [{line["custom_id"] for line in lines} for lines in by_member.values() if lines]
    complete = set.intersection(*own)
    lines = list(chain.from_iterable(by_member.values()))
    made = {SUITE: prompts.suite(options.seed), OPEN: prompts.open_prompts(options.seed)}
    for source, target in ((SUITE, REPLAY), (OPEN, OPEN_REPLAY)):
        asked = [line for line in made[source] if line["custom_id"] in complete]
        places = {line["custom_id"]: place for place, line in enumerate(asked)}
        answered = [line for line in lines if line["custom_id"] in places]
        write(HERE / source, asked)
        write(HERE / target, sorted(answered, key=lambda line: places[line["custom_id"]]))
        print(f"{target}: {len(answered)} answers to {len(places)} prompts")
    write(HERE / MARGINS, sorted(read(options.to / MARGINS), key=lambda line: line["custom_id"]))


def main() -> None:
    """Read the command line."""
    steps = {"answers": answers, "margins": margins, "collect": collect}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=steps)
    parser.add_argument("who", nargs="?", help="the member, or the judge's model")
    parser.add_argument("--to", type=Path, default=HERE / "recording")
    parser.add_argument("--seed", default="real-1")
    parser.add_argument("--models", type=Path, default=Path("~/.cache/fusewire/models"))
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--limit", type=int, help="the first prompts only")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    steps[options.step](options)


if __name__ == "__main__":
    main()
