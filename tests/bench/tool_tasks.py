"""Forty small tasks for models that call tools: what is asked, and the calls that are right."""

import json
from typing import Any

from fusewire.contracts import Message, Tool
from fusewire_worker_edge.engine.answer import AnswerTokens
from fusewire_worker_edge.engine.api import Completion, GenerateRequest
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.jobs import AnswerJob

MAX_TOKENS = 160


def _tool(name: str, description: str, **parameters: str) -> Tool:
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(parameters),
        "additionalProperties": False,
    }
    return Tool(name=name, description=description, parameters=schema)


TOOLS = (
    _tool("get_weather", "Current weather of a city.", city="string"),
    _tool("get_time", "Current local time of a city.", city="string"),
    _tool("set_timer", "Start a timer.", minutes="integer"),
    _tool("add", "Add two numbers.", a="number", b="number"),
    _tool(
        "convert_currency",
        "Convert an amount; currencies are ISO codes.",
        amount="number",
        source="string",
        target="string",
    ),
    _tool("search_web", "Search the web.", query="string"),
    _tool(
        "translate",
        "Translate a text; the language is its English name.",
        text="string",
        language="string",
    ),
    _tool("play_music", "Play music of an artist.", artist="string"),
)

Call = tuple[str, dict[str, Any]]
TASKS: tuple[tuple[str, tuple[Call, ...]], ...] = (
    ("What is the weather in Paris?", (("get_weather", {"city": "Paris"}),)),
    ("Is it raining in Oslo?", (("get_weather", {"city": "Oslo"}),)),
    ("Do I need an umbrella in Lima today?", (("get_weather", {"city": "Lima"}),)),
    ("How warm is it in Cairo?", (("get_weather", {"city": "Cairo"}),)),
    ("Tell me the weather in Berlin.", (("get_weather", {"city": "Berlin"}),)),
    ("What time is it in Tokyo?", (("get_time", {"city": "Tokyo"}),)),
    ("How late is it in Madrid?", (("get_time", {"city": "Madrid"}),)),
    ("Give me the local time in Sydney.", (("get_time", {"city": "Sydney"}),)),
    ("What is the time in Rome right now?", (("get_time", {"city": "Rome"}),)),
    ("Set a timer for 10 minutes.", (("set_timer", {"minutes": 10}),)),
    ("Remind me in 25 minutes.", (("set_timer", {"minutes": 25}),)),
    ("Start a 3 minute timer for my tea.", (("set_timer", {"minutes": 3}),)),
    ("Wake me up in half an hour.", (("set_timer", {"minutes": 30}),)),
    ("Set a timer for one hour.", (("set_timer", {"minutes": 60}),)),
    ("Add 17 and 25.", (("add", {"a": 17, "b": 25}),)),
    ("What is 108 plus 292?", (("add", {"a": 108, "b": 292}),)),
    ("Sum up 3.5 and 4.25.", (("add", {"a": 3.5, "b": 4.25}),)),
    ("Use the calculator: 1200 + 34.", (("add", {"a": 1200, "b": 34}),)),
    (
        "Convert 100 USD to EUR.",
        (("convert_currency", {"amount": 100, "source": "USD", "target": "EUR"}),),
    ),
    (
        "How many GBP are 50 EUR?",
        (("convert_currency", {"amount": 50, "source": "EUR", "target": "GBP"}),),
    ),
    (
        "Change 2000 JPY into USD.",
        (("convert_currency", {"amount": 2000, "source": "JPY", "target": "USD"}),),
    ),
    (
        "What are 75 CHF in EUR?",
        (("convert_currency", {"amount": 75, "source": "CHF", "target": "EUR"}),),
    ),
    (
        "Search the web for cheap flights to Rome.",
        (("search_web", {"query": "cheap flights to Rome"}),),
    ),
    (
        "Look up opening hours of the Louvre on the web.",
        (("search_web", {"query": "opening hours of the Louvre"}),),
    ),
    ("Find on the web: best hiking boots.", (("search_web", {"query": "best hiking boots"}),)),
    (
        "Translate 'good night' into French.",
        (("translate", {"text": "good night", "language": "French"}),),
    ),
    (
        "Translate 'thank you' to Spanish.",
        (("translate", {"text": "thank you", "language": "Spanish"}),),
    ),
    (
        "How do you say 'water' in Italian? Use the tool.",
        (("translate", {"text": "water", "language": "Italian"}),),
    ),
    ("Play something by Miles Davis.", (("play_music", {"artist": "Miles Davis"}),)),
    ("I want to hear Björk.", (("play_music", {"artist": "Björk"}),)),
    (
        "Weather in Lima and in Oslo?",
        (("get_weather", {"city": "Lima"}), ("get_weather", {"city": "Oslo"})),
    ),
    (
        "What time is it in Rome and in Tokyo?",
        (("get_time", {"city": "Rome"}), ("get_time", {"city": "Tokyo"})),
    ),
    (
        "Set timers for 5 and for 15 minutes.",
        (("set_timer", {"minutes": 5}), ("set_timer", {"minutes": 15})),
    ),
    (
        "Weather and time in Vienna, please.",
        (("get_weather", {"city": "Vienna"}), ("get_time", {"city": "Vienna"})),
    ),
    ("Add 1 and 2, and also 3 and 4.", (("add", {"a": 1, "b": 2}), ("add", {"a": 3, "b": 4}))),
    (
        "Set a timer for 8 minutes and play ABBA.",
        (("set_timer", {"minutes": 8}), ("play_music", {"artist": "ABBA"})),
    ),
    ("Who are you?", ()),
    ("Write one sentence about the sea.", ()),
    ("Thank you, that was all.", ()),
    ("Give me a synonym of 'quick'.", ()),
)


def rates(generator: Generator) -> dict[str, float]:
    """The shares of tasks with the right tools, and with the right arguments too; greedy.

    Once with calls constrained, and once with the model left free: whatever JSON of a name and
    arguments it writes, wherever in its answer, counts as a call.
    """
    found = {}
    for prefix, answered in (("", _constrained), ("free_", _free)):
        names = arguments = 0
        for number, (ask, right) in enumerate(TASKS):
            message = Message(role="user", content=ask)
            request = GenerateRequest(
                id=f"{prefix}{number}", messages=(message,), tools=TOOLS, max_tokens=MAX_TOKENS
            )
            made = answered(generator, request)
            names += sorted(name for name, _ in made) == sorted(name for name, _ in right)
            arguments += _plain(made) == _plain(right)
        found[f"{prefix}right_tool"] = names / len(TASKS)
        found[f"{prefix}right_arguments"] = arguments / len(TASKS)
    return found


def _constrained(generator: Generator, request: GenerateRequest) -> list[Call]:
    return _calls(generator.generate(request))


def _free(generator: Generator, request: GenerateRequest) -> list[Call]:
    """What the scheduler makes of the same prompt without a grammar."""
    vocabulary = generator.vocabulary
    prompt = vocabulary.prompt(request.messages, request.tools)
    stream = vocabulary.text_stream(special=True)
    answer = AnswerTokens(
        request.model_copy(update={"tools": ()}), stream, None, generator.manifest.end_tokens, None
    )
    generator.scheduler.submit(
        AnswerJob(id=request.id, prompt=prompt, answer=answer, max_tokens=request.max_tokens)
    )
    while not any(event.completion for event in generator.scheduler.step()):
        pass
    return _written(answer.text)


def _written(text: str) -> list[Call]:
    """All JSON objects of a name and arguments in a text."""
    found: list[Call] = []
    at = 0
    while (at := text.find("{", at)) >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
        except ValueError:
            at += 1
            continue
        if isinstance(value, dict) and isinstance(value.get("arguments"), dict):
            found.append((str(value.get("name")), value["arguments"]))
            at = end
        else:
            at += 1
    return found


def _calls(completion: Completion) -> list[Call]:
    return [(call.name, json.loads(call.arguments)) for call in completion.tool_calls]


def _plain(calls: Any) -> list[str]:
    """Without the differences that are none: order, case, 10 and 10.0."""
    plain = [[name, {key: _value(value) for key, value in given.items()}] for name, given in calls]
    return sorted(json.dumps(call, sort_keys=True) for call in plain)


def _value(value: Any) -> Any:
    if isinstance(value, str):
        return value.casefold().strip("?.! ")
    # A model that is left free may write anything.
    return float(value) if isinstance(value, int | float) else value
