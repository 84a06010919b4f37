"""Tool calls: what comes out always parses and validates, and text never looks like a call."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.contracts import Message, Tool, ToolCall
from fusewire_worker_edge.engine.api import Completion, GenerateRequest, RequestRefusedError
from fusewire_worker_edge.engine.dialects import (
    FENCED,
    HERMES,
    MISTRAL_LIST,
    MISTRAL_SPACED_LIST,
    MISTRAL_V11,
    MISTRAL_V13,
    PHI,
    Dialect,
    check_results,
    dialect_of_template,
    short_id,
)
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.wording import conversation, signature, spell_out_tools

DIALECTS = {
    "hermes": HERMES,
    "fenced": FENCED,
    "phi": PHI,
    "list": MISTRAL_LIST,
    "spaced list": MISTRAL_SPACED_LIST,
    "v11": MISTRAL_V11,
    "v13": MISTRAL_V13,
}
WEATHER = Tool(
    name="get_weather",
    description="Weather of a city.",
    parameters={
        "type": "object",
        "properties": {
            "city": {"$ref": "#/$defs/City"},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["city", "days"],
        "$defs": {"City": {"enum": ["Paris", "Lima"]}},
    },
)
CLOCK = Tool(name="now")
TOOLS = (WEATHER, CLOCK)


@pytest.fixture(params=list(DIALECTS.values()), ids=list(DIALECTS))
def dialect(request: pytest.FixtureRequest) -> Dialect:
    param: Dialect = request.param
    return param


def ask(generator: Generator, **fields: Any) -> Completion:
    request_fields: dict[str, Any] = {
        "id": "r",
        "max_tokens": 400,
        "tools": TOOLS,
        "temperature": 1.0,
        **fields,
    }
    return generator.generate(
        GenerateRequest(messages=(Message(role="user", content="hi"),), **request_fields)
    )


def valid(completion: Completion) -> list[str]:
    """The names of its calls, each of which fits its schema."""
    tools = {tool.name: tool for tool in TOOLS}
    for call in completion.tool_calls:
        jsonschema.validate(json.loads(call.arguments), tools[call.name].parameters)
    return [call.name for call in completion.tool_calls]


@pytest.mark.parametrize("seed", range(3))
def test_what_must_call_calls(
    tiny_generator: Generator, dialect: Dialect, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_generator.vocabulary, "dialect", dialect)
    completion = ask(tiny_generator, tool_choice="required", parallel_tool_calls=False, seed=seed)

    assert (completion.finish_reason, completion.text) == ("tool_calls", "")
    assert len(valid(completion)) == 1


@pytest.mark.parametrize("is_parallel", [True, False])
def test_several_calls_are_made_at_once_where_that_is_allowed(
    tiny_generator: Generator, dialect: Dialect, is_parallel: bool
) -> None:
    own_id = f"{dialect.call_id}abcDEF123" if dialect.call_id else ""
    call = f"now{own_id}{dialect.args}{{}}" if dialect.args else '{"name": "now", "arguments": {}}'
    request = GenerateRequest(
        id="r",
        messages=(Message(role="user", content="x"),),
        max_tokens=1,
        tools=TOOLS,
        parallel_tool_calls=is_parallel,
    )

    def is_allowed(text: str) -> bool:
        constraint = tiny_generator._grammars.of_tools(dialect, request)
        for token in tiny_generator.vocabulary._encode(text, literal=False):
            if not constraint.allowed_tokens()[token]:
                return False
            constraint.accept(token)
        end = tiny_generator.manifest.end_tokens[0]
        return constraint.is_complete or bool(constraint.allowed_tokens()[end])

    assert is_allowed(f"{dialect.first}{call}{dialect.last}")
    assert is_allowed(f"{dialect.first}{call}{dialect.between}{call}{dialect.last}") == is_parallel
    assert not is_allowed(f"{dialect.first}{call}{dialect.between}")
    assert not is_allowed(f"{dialect.first}{dialect.last}")


def test_a_named_tool_is_the_one_that_is_called(tiny_generator: Generator) -> None:
    assert valid(ask(tiny_generator, tool_choice="now", parallel_tool_calls=False)) == ["now"]


def test_a_choice_that_names_no_tool_is_refused(tiny_generator: Generator) -> None:
    with pytest.raises(RequestRefusedError, match="names none of the tools"):
        ask(tiny_generator, tool_choice="unheard_of")


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_text_is_text_and_cannot_spell_a_call(tiny_generator: Generator, choice: str) -> None:
    for seed in range(6):
        completion = ask(tiny_generator, tool_choice=choice, seed=seed, max_tokens=60)
        assert completion.tool_calls == () or choice == "auto"
        assert HERMES.marker not in completion.text
    constraint = tiny_generator._grammars.of_tools(
        HERMES,
        GenerateRequest(
            id="r", messages=(Message(role="user", content="x"),), max_tokens=1, tools=TOOLS
        ),
    )
    tokens = tiny_generator.vocabulary._encode("a <tool_call", literal=False)
    for token in tokens:
        assert constraint.allowed_tokens()[token]
        constraint.accept(token)
    assert not constraint.allowed_tokens()[tiny_generator.vocabulary._encode(">", literal=False)[0]]


def test_an_answer_that_may_call_may_also_be_under_a_schema(tiny_generator: Generator) -> None:
    schema = {"enum": ["yes", "no"]}
    for seed in range(6):
        completion = ask(tiny_generator, response_schema=schema, seed=seed)
        assert valid(completion) or json.loads(completion.text) in ("yes", "no")


def test_stop_strings_end_text(tiny_generator: Generator) -> None:
    whole = ask(tiny_generator, tool_choice="none", temperature=0.0, max_tokens=20).text
    completion = ask(
        tiny_generator, tool_choice="none", temperature=0.0, max_tokens=20, stop=(whole[5:7],)
    )

    assert (completion.text, completion.finish_reason) == (whole[: whole.index(whole[5:7])], "stop")


def test_a_call_that_is_cut_is_no_call(tiny_generator: Generator) -> None:
    completion = ask(tiny_generator, tool_choice="required", max_tokens=5)

    assert (completion.tool_calls, completion.text, completion.finish_reason) == ((), "", "length")


def test_pieces_are_told_of_text_and_never_of_calls(tiny_generator: Generator) -> None:
    for choice in ("none", "required"):
        pieces: list[str] = []
        request = GenerateRequest(
            id="r",
            messages=(Message(role="user", content="x"),),
            max_tokens=300,
            tools=TOOLS,
            tool_choice=choice,
        )
        completion = tiny_generator.generate(request, on_piece=pieces.append)
        assert "".join(pieces) == completion.text
        assert bool(pieces) == (choice == "none")


@pytest.mark.parametrize("keyword", [{"type": "array", "uniqueItems": True}, {"type": 5}])
def test_a_tool_whose_schema_cannot_be_enforced_is_named(
    tiny_generator: Generator, keyword: dict[str, Any]
) -> None:
    odd = Tool(name="odd", parameters={"type": "object", "properties": {"a": keyword}})
    with pytest.raises(RequestRefusedError, match="parameters of the tool 'odd'") as error:
        ask(tiny_generator, tools=(WEATHER, odd))
    assert error.value.code == "bad_request"


NAMES = st.from_regex(r"[a-zA-Z0-9_-]{1,12}", fullmatch=True)
ARGUMENTS = st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(), max_size=3)


@given(
    st.lists(st.tuples(NAMES, ARGUMENTS), min_size=1, max_size=4),
    st.sampled_from(list(DIALECTS.values())),
)
def test_what_is_written_is_read_back(
    calls: list[tuple[str, dict[str, Any]]], dialect: Dialect
) -> None:
    call_texts = []
    for name, arguments in calls:
        body = json.dumps(arguments, ensure_ascii=False)
        head = f"{name}{dialect.call_id and dialect.call_id + 'a1b2c3d4e'}{dialect.args}"
        call_texts.append(
            f"{head}{body}" if dialect.args else json.dumps({"name": name, "arguments": arguments})
        )
    text = dialect.first + dialect.between.join(call_texts) + dialect.last
    read = dialect.parse(text)

    assert read is not None
    assert [(c.name, json.loads(c.arguments)) for c in read] == calls
    assert dialect.parse(text[:-1]) is None or not dialect.last
    assert dialect.parse(text + " ") is None


def test_the_dialect_is_told_from_the_template() -> None:
    assert dialect_of_template("{% if tools %}[TOOL_CALLS]{% endif %}") is MISTRAL_LIST
    assert dialect_of_template("{% if tools %}<tool_call>{% endif %}") is HERMES
    assert dialect_of_template("{% if tools %}<|tool_call|>{% endif %}") is PHI
    assert dialect_of_template("{% for message in messages %}") is None


# -- conversations ------------------------------------------------------------------------

ASKED = Message(
    role="assistant",
    content="",
    tool_calls=(
        ToolCall(id="call_1", name="get_weather", arguments='{"city": "Lima", "days": 1}'),
        ToolCall(id="call_2", name="now", arguments=""),
    ),
)


def result(call_id: str) -> Message:
    return Message(role="tool", content="{}", tool_call_id=call_id)


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([ASKED], "2 tool calls have no result"),
        ([ASKED, result("call_1")], "1 tool calls have no result"),
        (
            [ASKED, result("call_1"), Message(role="user", content="x"), result("call_2")],
            "1 tool calls",
        ),
        ([result("call_1")], "messages.0 is the result of no call"),
        ([ASKED, result("call_1"), result("call_1")], "messages.2 is the result of no call"),
        ([ASKED, result("call_1"), result("call_2"), result("call_3")], "messages.3"),
        ([Message(role="tool", content="x")], "messages.0"),
    ],
)
def test_missing_and_stray_results_are_refused(messages: list[Message], fault: str) -> None:
    with pytest.raises(RequestRefusedError, match=fault):
        check_results(messages)


def test_results_may_come_in_any_order() -> None:
    check_results(
        [
            Message(role="user", content="x"),
            ASKED,
            result("call_2"),
            result("call_1"),
            ASKED,
            *map(result, ("call_1", "call_2")),
        ]
    )


def test_a_conversation_that_lacks_a_result_is_refused_by_the_engine(
    tiny_generator: Generator,
) -> None:
    with pytest.raises(RequestRefusedError, match="no result"):
        tiny_generator.generate(GenerateRequest(id="r", messages=(ASKED,), max_tokens=1))


@given(st.text(max_size=40))
def test_any_id_becomes_nine_letters_and_digits(call_id: str) -> None:
    short_call_id = short_id(call_id)
    assert len(short_call_id) == 9
    assert short_call_id.isascii()
    assert short_call_id.isalnum()
    assert short_id(short_call_id) == short_call_id


def test_different_ids_stay_different() -> None:
    assert len({short_id(f"call_{i}") for i in range(10_000)}) == 10_000


def test_templates_get_arguments_as_objects() -> None:
    turn = conversation([ASKED])[0]
    assert [call["function"]["arguments"] for call in turn["tool_calls"]] == [
        {"city": "Lima", "days": 1},
        {},
    ]


def test_without_a_template_for_tools_they_are_put_in_words() -> None:
    system = Message(role="system", content="Be brief.")
    turns = conversation([system, ASKED, result("call_1"), result("call_2")])
    text_turns = spell_out_tools(turns, [signature(CLOCK)])

    assert [turn["role"] for turn in text_turns] == ["system", "assistant", "user"]
    assert text_turns[0]["content"].startswith("Be brief.\n\n# Tools")
    assert '"name": "now"' in text_turns[0]["content"]
    assert text_turns[1]["content"].count("<tool_call>") == 2
    assert text_turns[2]["content"].count("<tool_response>") == 2
    assert HERMES.parse(text_turns[1]["content"]) is not None
    assert spell_out_tools(turns[1:], [signature(CLOCK)])[0]["role"] == "system"
    assert spell_out_tools(turns[1:], [])[0]["role"] == "assistant"
