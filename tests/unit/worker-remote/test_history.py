"""Conversations that began elsewhere, in the form that each provider takes."""

from typing import Any

import pytest

from fusewire.contracts import Message, Sampling, Tool, ToolCall
from fusewire.settings import RemoteModel
from fusewire.testing.factories import make_task
from fusewire_worker_remote.errors import Failure
from fusewire_worker_remote.providers import PROVIDERS
from fusewire_worker_remote.providers.schema import is_strict

ODD_ID = "functions.weather:0/" + "x" * 60
CALL = ToolCall(id=ODD_ID, name="weather", arguments='{"city": "Rome"}')
CLOCK = Tool(name="clock")
ASKED = Message(role="user", content="Hot?")
CALLED = Message(role="assistant", content="", tool_calls=(CALL,))
RESULT = Message(role="tool", content="21 °C", tool_call_id=ODD_ID)


def payload_of(provider: str, *messages: Message, **changes: Any) -> dict[str, Any]:
    model = RemoteModel(kind="remote", provider=provider, base_url="http://x", model="m")
    task = make_task(messages=messages, **changes)
    request = PROVIDERS[provider].request(task, model)
    assert not isinstance(request, Failure)
    return dict(request.payload)


def ids_in(value: Any) -> list[str]:
    """Ids of calls and of results, in their order."""
    ids: list[str] = []
    if isinstance(value, dict):
        keys = ("id", "tool_call_id", "tool_use_id")
        ids += [value[key] for key in keys if isinstance(value.get(key), str)]
        value = list(value.values())
    for inner in value if isinstance(value, list) else ():
        ids += ids_in(inner)
    return ids


@pytest.mark.parametrize(
    ("provider", "longest", "punctuation"),
    [("openai", 40, None), ("anthropic", 64, "_-"), ("mistral", 9, "")],
)
def test_ids_of_calls_are_ones_that_it_takes_and_still_fit_their_results(
    provider: str, longest: int, punctuation: str | None
) -> None:
    first, second = ids_in(payload_of(provider, ASKED, CALLED, RESULT)["messages"])

    assert first == second
    assert len(first) <= longest
    assert punctuation is None or all(c.isalnum() or c in punctuation for c in first)


def test_mistral_takes_no_user_after_a_result_and_no_empty_assistant() -> None:
    empty = Message(role="assistant", content="")
    roles = [
        m["role"] for m in payload_of("mistral", ASKED, CALLED, RESULT, empty, ASKED)["messages"]
    ]

    assert roles == ["user", "assistant", "tool", "assistant", "user"]


def test_deepseek_gets_back_what_was_thought_before_a_call_since_the_user_last_spoke() -> None:
    with_thought = CALLED.model_copy(update={"reasoning": "I need the weather."})
    messages = payload_of(
        "deepseek", ASKED, with_thought, RESULT, ASKED, with_thought, RESULT, CALLED, RESULT
    )["messages"]

    assert [m.get("reasoning_content") for m in messages if m["role"] == "assistant"] == [
        None,
        "I need the weather.",
        "",
    ]
    assert "reasoning_content" not in str(payload_of("openai", ASKED, with_thought, RESULT))


def test_mistral_goes_on_from_an_answer_that_is_begun() -> None:
    messages = payload_of("mistral", ASKED, Message(role="assistant", content="It is"))["messages"]

    assert messages[-1] == {"role": "assistant", "content": "It is", "prefix": True}


def test_mistral_wants_parameters_of_every_function() -> None:
    (tool,) = payload_of("mistral", ASKED, tools=(CLOCK,))["tools"]

    assert tool["function"]["parameters"] == {"type": "object", "properties": {}}


def test_claude_takes_no_blank_text_and_no_last_word_of_its_own() -> None:
    turns = payload_of("anthropic", ASKED, Message(role="assistant", content=" \n"), ASKED)[
        "messages"
    ]
    assert [turn["role"] for turn in turns] == ["user"]
    assert [part["text"] for part in turns[0]["content"]] == ["Hot?", "Hot?"]

    turns = payload_of("anthropic", ASKED, Message(role="assistant", content="It is"))["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]

    blank = payload_of("anthropic", ASKED, CALLED, RESULT.model_copy(update={"content": ""}))[
        "messages"
    ]
    assert "content" not in blank[-1]["content"][0]


def test_gemini_matches_results_by_id_or_in_the_order_of_calls() -> None:
    calls = (CALL, ToolCall(id="c2", name="clock", arguments="{}"))
    call_turn = Message(role="assistant", content="", tool_calls=calls)
    by_order = [
        Message(role="tool", content=text, tool_call_id="lost") for text in ("21 °C", "noon")
    ]
    by_id = [
        Message(role="tool", content="noon", tool_call_id="c2"),
        Message(role="tool", content="21 °C", tool_call_id=ODD_ID),
    ]
    for results, names in ((by_order, ["weather", "clock"]), (by_id, ["clock", "weather"])):
        turns = payload_of("gemini", ASKED, call_turn, *results)["contents"]
        assert [part["functionResponse"]["name"] for part in turns[-1]["parts"]] == names


def test_gemini_takes_five_stops() -> None:
    stops = tuple("abcdefg")
    assert payload_of("gemini", ASKED, sampling=Sampling(stop=stops))["generationConfig"][
        "stopSequences"
    ] == list("abcde")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "string"}},
        {"anyOf": [{"type": "string"}, {"type": "number"}]},
        {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/A"}},
            "required": ["a"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {"a": {"oneOf": [{"type": "string"}]}},
            "required": ["a"],
            "additionalProperties": False,
        },
    ],
)
def test_what_openai_s_strict_mode_refuses_is_not_strict(schema: dict[str, Any]) -> None:
    assert not is_strict(schema)
