"""Make the prompts: the same ones for the same seed. Pure."""

import json
import random
from collections.abc import Callable, Iterable, Iterator
from datetime import date, timedelta
from itertools import chain, islice
from typing import Any

from . import facts
from .stories import EXAMPLES, INSTRUCTION, STORIES

Line = dict[str, Any]
"""One line of a suite of `fusewire eval run`; an open prompt has neither `answer` nor `match`."""
Maker = Callable[[random.Random], Iterator[Line]]

ARITHMETIC_TOKENS, OTHER_TOKENS = 100, 60
COUNTS = {"arithmetic": 300, "choice": 50, "label": 58, "json": 40, "fact": 40, "date": 24,
          "code": 28}  # fmt: skip
"""How many prompts of each kind; beside them all of `facts.OPEN`."""
LETTERS = "ABCD"
ALONE = "Answer with {} alone, nothing else."
BRIEF = "Be brief."


def suite(seed: str) -> list[Line]:
    """All prompts with a right answer, kinds mixed, so that every beginning is a fair sample."""
    kinds = {"arithmetic": _arithmetic, "choice": _choices, "label": _labels, "json": _extractions,
             "fact": _facts, "date": _dates, "code": _outputs}  # fmt: skip
    lines = chain.from_iterable(_numbered(kind, kinds[kind], seed) for kind in COUNTS)
    return _shuffle(lines, seed)


def open_prompts(seed: str) -> list[Line]:
    """All prompts without one right answer."""
    lines = [
        _line(BRIEF, text, custom_id=f"open-{number:03}")
        for number, text in enumerate(facts.OPEN, start=1)
    ]
    return _shuffle(lines, f"{seed}/open")


def _shuffle(lines: Iterable[Line], seed: str) -> list[Line]:
    shuffled = list(lines)
    random.Random(f"{seed}/order").shuffle(shuffled)
    return shuffled


def _numbered(kind: str, maker: Maker, seed: str) -> Iterator[Line]:
    """The first `COUNTS` different prompts of a kind."""
    unique = _unique(maker(random.Random(f"{seed}/{kind}")))
    for number, line in enumerate(islice(unique, COUNTS[kind]), start=1):
        yield {"custom_id": f"{kind}-{number:03}", **line}


def _unique(lines: Iterator[Line]) -> Iterator[Line]:
    texts = set()
    for line in lines:
        text = line["messages"][-1]["content"]
        if text not in texts:
            texts.add(text)
            yield line


def _line(
    instruction: str,
    text: str,
    answer: str = "",
    match: str = "",
    max_tokens: int = OTHER_TOKENS,
    **more: Any,
) -> Line:
    """A prompt whose instruction is its system message: an engine computes it once for a kind."""
    messages = [
        {"role": "system", "content": instruction},
        {"role": "user", "content": text},
    ]
    gold = {"answer": answer, "match": match} if match else {}
    return {**more, "messages": messages, "max_tokens": max_tokens, **gold}


def _arithmetic(rng: random.Random) -> Iterator[Line]:
    while True:
        for story in STORIES:
            text, answer = story.tell(rng)
            line = _line(INSTRUCTION, text, str(answer), "number", ARITHMETIC_TOKENS)
            system, question = line["messages"]
            yield line | {"messages": [system, *_examples(), question]}


def _examples() -> Iterator[dict[str, str]]:
    for question, answer in EXAMPLES:
        yield {"role": "user", "content": question}
        yield {"role": "assistant", "content": answer}


def _choices(rng: random.Random) -> Iterator[Line]:
    for question, *options in facts.CHOICES:
        shown = rng.sample(options, len(options))
        rows = [f"{letter}) {option}" for letter, option in zip(LETTERS, shown, strict=True)]
        text = "\n".join((question, *rows))
        letter = LETTERS[shown.index(options[0])]
        yield _line(ALONE.format("the letter"), text, letter, "choice")


def _labels(rng: random.Random) -> Iterator[Line]:
    del rng
    for instruction, sentences in (
        ("Is this review positive, negative or neutral?", facts.SENTIMENTS),
        ("Which language is this?", facts.LANGUAGES),
        ("Is this sentence about sports, finance, health or technology?", facts.TOPICS),
    ):
        for label, texts in sentences.items():
            for text in texts:
                yield _line(f"{instruction} {ALONE.format('the one word')}", text, label, "exact")


def _extractions(rng: random.Random) -> Iterator[Line]:
    while True:
        person, city, job = map(rng.choice, (facts.PEOPLE, facts.CITIES, facts.JOBS))
        age = rng.randrange(21, 68)
        years = rng.randrange(2, 15)
        text = (
            f"{person}, who turned {age} last week, has worked as a {job} in {city} for {years} "
            "years."
        )
        yield _extraction(text, {"name": person, "age": age, "job": job, "city": city})
        goods, rival = rng.sample(facts.GOODS, 2)
        count, price = rng.randrange(2, 9), rng.randrange(15, 240, 5)
        text = (
            f"From: {person}\nHello, I first wanted a {rival}, but please send me {count} pieces "
            f"of the {goods} at {price} euros each, to {city}. Thanks!"
        )
        fields = {"item": goods, "quantity": count, "total_euros": count * price, "city": city}
        yield _extraction(text, fields)


def _extraction(text: str, fields: dict[str, Any]) -> Line:
    types = {str: "string", int: "integer"}
    schema = {
        "type": "object",
        "properties": {key: {"type": types[type(value)]} for key, value in fields.items()},
        "required": list(fields),
        "additionalProperties": False,
    }
    instruction = f"Extract from the text, as a JSON object with the keys {', '.join(fields)}."
    return _line(instruction, text, json.dumps(fields), "json", response_schema=schema)


def _facts(rng: random.Random) -> Iterator[Line]:
    del rng
    for question, answers, what in (
        ("What is the capital of {}?", facts.CAPITALS, "its name"),
        ("What is the chemical symbol of {}?", facts.SYMBOLS, "the symbol"),
        ("What is the plural of the noun '{}'?", facts.PLURALS, "the one word"),
    ):
        for key, answer in answers.items():
            yield _line(ALONE.format(what), question.format(key), answer, "exact")


def _dates(rng: random.Random) -> Iterator[Line]:
    form = ALONE.format("the date, in the form YYYY-MM-DD,")
    while True:
        day = date(2024, 1, 1) + timedelta(days=rng.randrange(900))
        written = f"{day.day} {facts.MONTHS[day.month - 1]} {day.year}"
        yield _line(form, f"Which date is {written}?", day.isoformat(), "exact")
        days = rng.randrange(3, 20)
        later = (day + timedelta(days=days)).isoformat()
        yield _line(form, f"Which date is {days} days after {day}?", later, "exact")
        weekday = (day + timedelta(days=days % 7)).strftime("%A")
        text = f"{day} is a {day:%A}. Which weekday is it {days % 7} days later?"
        yield _line(ALONE.format("the weekday"), text, weekday, "exact")


def _outputs(rng: random.Random) -> Iterator[Line]:
    while True:
        a, b, c = rng.randrange(3, 9), rng.randrange(2, 6), rng.randrange(10, 40)
        word = rng.choice(facts.CITIES)
        for code, result in (
            (f"print({c} // {a} + {c} % {a})", c // a + c % a),
            (f"print(sum(range({a})) * {b})", sum(range(a)) * b),
            (f"x = [{a}, {b}, {c}]\nx.append(x[0] + x[1])\nprint(x[-1] + len(x))", a + b + 4),
            (f"n = {b}\nfor i in range({a}):\n    n += i\nprint(n)", b + sum(range(a))),
            (f"print(len({word!r}) * {b})", len(word) * b),
            (f"f = lambda x: x * {a} - {b}\nprint(f({c}) + f(1))", c * a - b + a - b),
            (f"print(len(set('{word}'.lower())))", len(set(word.lower()))),
        ):
            instruction = f"What does this program print? {ALONE.format('the output')}"
            yield _line(instruction, code, str(result), "number")
