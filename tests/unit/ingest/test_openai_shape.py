"""Tools and tool messages in OpenAI's form: what they become, and how they are refused."""

import json
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.contracts import Image, Message, Prompt, Tool, ToolCall
from fusewire.testing.factories import T0
from fusewire_ingest.admission.admit import PoolRule, RefusedError, admit, body_hash, parse

LIMIT = 100_000
POOLS = {"default": PoolRule("best-of", "any", 60, 86_400)}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def admit_body(body: dict[str, Any]) -> Prompt:
    fields = body if "messages" in body else {"prompt": "Weather?", **body}
    return admit(
        parse(json.dumps(fields), LIMIT), tenant="default", fallback_id="one", pools=POOLS, now=T0
    )


def refusal(body: dict[str, Any]) -> RefusedError:
    with pytest.raises(RefusedError) as exc_info:
        admit_body(body)
    return exc_info.value


def tool(name: str = "weather", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def call(
    id_: str = "c1", name: str = "weather", arguments: Any = '{"city": "Paris"}'
) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


USER = {"role": "user", "content": "Weather?"}
CALLS = {"role": "assistant", "content": None, "tool_calls": [call()]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "21 °C"}


def test_tools_become_the_prompts() -> None:
    prompt = admit_body(
        {"tools": [tool(description="Now.", parameters=CITY, strict=True), tool("clock")]}
    )

    assert prompt.tools == (
        Tool(name="weather", description="Now.", parameters=CITY),
        Tool(name="clock"),
    )
    assert prompt.tool_choice == "auto"
    assert Prompt.decode(prompt.encode()) == prompt


@pytest.mark.parametrize(
    ("choice", "stored_choice"),
    [
        (None, "auto"),
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        (tool("clock"), "clock"),
    ],
)
def test_a_choice_is_a_word_or_names_a_tool(choice: Any, stored_choice: str) -> None:
    assert (
        admit_body({"tools": [tool(), tool("clock")], "tool_choice": choice}).tool_choice
        == stored_choice
    )


def test_as_many_tools_as_openai_takes_are_let_in() -> None:
    assert len(admit_body({"tools": [tool(f"t{i}") for i in range(128)]}).tools) == 128


def test_a_conversation_with_tools_is_kept() -> None:
    turn = {**CALLS, "content": "Let me look.", "tool_calls": [call(), call("c2", arguments="{}")]}
    prompt = admit_body({"messages": [USER, turn, RESULT, {**RESULT, "tool_call_id": "c2"}]})

    calls = (
        ToolCall(id="c1", name="weather", arguments='{"city": "Paris"}'),
        ToolCall(id="c2", name="weather", arguments="{}"),
    )
    assert prompt.messages == (
        Message(role="user", content="Weather?"),
        Message(role="assistant", content="Let me look.", tool_calls=calls),
        Message(role="tool", content="21 °C", tool_call_id="c1"),
        Message(role="tool", content="21 °C", tool_call_id="c2"),
    )


def test_an_assistants_turn_that_calls_tools_may_say_nothing() -> None:
    for turn in (CALLS, {"role": "assistant", "tool_calls": [call()]}):
        prompt = admit_body({"messages": [USER, turn, RESULT]})
        assert prompt.messages[1].content == ""
        assert len(prompt.messages[1].tool_calls) == 1


def test_what_an_sdk_dumps_of_its_message_is_let_in() -> None:
    message = {
        "role": "assistant",
        "content": "Hi.",
        "refusal": None,
        "audio": None,
        "tool_calls": None,
        "name": "x",
    }

    assert admit_body({"messages": [USER, message]}).messages[1] == Message(
        role="assistant", name="x", content="Hi."
    )


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    # what, body, param, part of the message
    (
        "a name twice",
        {"tools": [tool(), tool()]},
        "tools",
        "two tools are called 'weather'; give each",
    ),
    (
        "a bad name",
        {"tools": [tool("get weather")]},
        "tools.0.function.name",
        "match pattern '^[a-zA-Z0-9_-]{1,64}$'",
    ),
    (
        "no name",
        {"tools": [{"type": "function", "function": {}}]},
        "tools.0.function.name",
        "it is missing",
    ),
    ("a long name", {"tools": [tool("n" * 65)]}, "tools.0.function.name", "pattern"),
    ("a name with a line's end", {"tools": [tool("n\n")]}, "tools.0.function.name", "pattern"),
    (
        "a name that is a choice",
        {"tools": [tool("auto")]},
        "tools.0.function.name",
        "no tool can be called 'auto'",
    ),
    ("no function", {"tools": [{"type": "custom", "custom": {}}]}, "tools.0.type", "'function'"),
    ("too many", {"tools": [tool(f"t{i}") for i in range(129)]}, "tools", "at most 128"),
    (
        "no schema",
        {"tools": [tool(parameters={"properties": 1})]},
        "tools.0.function.parameters",
        "at $.properties;",
    ),
    (
        "an unknown type",
        {"tools": [tool(parameters={"properties": {"a": {"type": "text"}}})]},
        "tools.0.function.parameters",
        "no valid JSON Schema (draft 2020-12) at $.properties.a.type",
    ),
    (
        "no object",
        {"tools": [tool(parameters={"type": "array"})]},
        "tools.0.function.parameters",
        "'object'",
    ),
    (
        "a schema in a text",
        {"tools": [tool(parameters="{}")]},
        "tools.0.function.parameters",
        "an object",
    ),
    (
        "a bad pattern",
        {"tools": [tool(parameters={"pattern": "("})]},
        "tools.0.function.parameters",
        "the pattern '(' in it",
    ),
    (
        "a reference out of it",
        {"tools": [tool(parameters={"$ref": "https://models.example/schema.json"})]},
        "tools.0.function.parameters",
        "leads out of the schema or nowhere; put",
    ),
    (
        "a reference to nowhere",
        {"tools": [tool(parameters={"properties": {"a": {"$ref": "#/$defs/none"}}})]},
        "tools.0.function.parameters",
        "nowhere",
    ),
    (
        "a reference into a number",
        {
            "tools": [
                tool(parameters={"minProperties": 1, "allOf": [{"$ref": "#/minProperties/a"}]})
            ]
        },
        "tools.0.function.parameters",
        "nowhere",
    ),
    (
        "a choice of no tool",
        {"tools": [tool()], "tool_choice": tool("clock")},
        "tool_choice",
        "the tools: weather",
    ),
    (
        "an unknown choice",
        {"tools": [tool()], "tool_choice": "any"},
        "tool_choice",
        "neither auto, none, required nor",
    ),
    (
        "a choice without a name",
        {"tools": [tool()], "tool_choice": {"type": "function"}},
        "tool_choice",
        '{"type": "',
    ),
    (
        "a choice that is a number",
        {"tools": [tool()], "tool_choice": 1},
        "tool_choice",
        "it must be a text",
    ),
    (
        "a choice without tools",
        {"tool_choice": "auto"},
        "tool_choice",
        "no tools to choose from; give `tools`",
    ),
    ("a choice among none", {"tools": [], "tool_choice": "none"}, "tool_choice", "no tools"),
    (
        "a result of nothing",
        {"messages": [USER, RESULT]},
        "messages",
        "message 1 answers a tool call that no earlier",
    ),
    (
        "a result before its call",
        {"messages": [USER, RESULT, CALLS]},
        "messages",
        "no earlier message",
    ),
    (
        "a result of another call",
        {"messages": [USER, CALLS, {**RESULT, "tool_call_id": "c9"}]},
        "messages",
        "message 2 answers",
    ),
    (
        "a result without its call's id",
        {"messages": [USER, CALLS, {"role": "tool", "content": "x"}]},
        "messages.2.tool_call_id",
        "must name the call",
    ),
    (
        "a result without content",
        {"messages": [USER, CALLS, {**RESULT, "content": None}]},
        "messages.2.content",
        "null only beside tool calls",
    ),
    (
        "arguments that are no text",
        {"messages": [USER, {**CALLS, "tool_calls": [call(arguments={"city": "Paris"})]}]},
        "messages.1.tool_calls.0.function.arguments",
        "it must be a text",
    ),
    (
        "a call without an id",
        {"messages": [USER, {**CALLS, "tool_calls": [call("")]}]},
        "messages.1.tool_calls.0.id",
        "",
    ),
    (
        "calls by a user",
        {"messages": [{**USER, "tool_calls": [call()]}]},
        "messages.0.tool_calls",
        "only an assistant",
    ),
    (
        "neither text nor calls",
        {"messages": [{**CALLS, "tool_calls": []}]},
        "messages.0.content",
        "null only beside",
    ),
]


@pytest.mark.parametrize(
    ("body", "param", "part"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_it_is_refused(body: dict[str, Any], param: str, part: str) -> None:
    refused_error = refusal(body)

    assert (refused_error.code, refused_error.param) == ("invalid_request", param)
    assert part in refused_error.message


def test_references_within_a_schema_are_let_in() -> None:
    schema = {
        "type": "object",
        "properties": {"from": {"$ref": "#/$defs/place"}, "$ref": {"type": "string"}},
        "$defs": {"place": {"type": "object", "properties": {"near": {"$ref": "#/$defs/place"}}}},
    }

    assert admit_body({"tools": [tool(parameters=schema)]}).tools[0].parameters == schema


@pytest.mark.parametrize("pattern", [r"^(?!\.)[a-z]+$", r"^(a)\1$", r"^\p{L}{1,100}$", "^(a+)+$"])
def test_patterns_that_clients_write_are_let_in(pattern: str) -> None:
    admit_body({"tools": [tool(parameters={"pattern": pattern})]})


def test_no_address_in_a_schema_is_ever_fetched() -> None:
    """Its own `$schema` is no more than a remark: it is read as draft 2020-12 all the same."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/schema"
        admit_body({"tools": [tool(parameters={"$schema": url, "type": "object"})]})
        refusal({"tools": [tool(parameters={"$ref": url})]})
        with pytest.raises(BlockingIOError):
            server.accept()


def test_tools_are_part_of_what_the_client_decides() -> None:
    bodies: list[dict[str, Any]] = [
        {},
        {"tools": [tool()]},
        {"tools": [tool(parameters=CITY)]},
        {"tools": [tool()], "tool_choice": "required"},
    ]

    assert len({body_hash(admit_body(body)) for body in bodies}) == len(bodies)


KEYWORDS = st.sampled_from(
    [
        "$ref",
        "$id",
        "$anchor",
        "$schema",
        "$defs",
        "type",
        "properties",
        "allOf",
        "items",
        "pattern",
        "multipleOf",
    ]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from(["#", "#/$defs/a", "#a", "//[", "", "object"])
)
ANYTHING = st.recursive(
    LEAVES, lambda x: st.lists(x, max_size=2) | st.dictionaries(KEYWORDS, x, max_size=3)
)


def try_body(body: dict[str, Any]) -> Prompt | str | None:
    """The prompt, or where it was refused."""
    try:
        return admit_body(body)
    except RefusedError as exc:
        return exc.param


@given(st.dictionaries(KEYWORDS, ANYTHING, max_size=4))
def test_a_schema_is_let_in_or_refused_and_nothing_else(parameters: dict[str, Any]) -> None:
    fate = try_body({"tools": [tool(parameters=parameters)]})

    schema = fate.tools[0].parameters if isinstance(fate, Prompt) else fate
    assert schema in (parameters, "tools.0.function.parameters")


@given(st.lists(ANYTHING, max_size=3), ANYTHING)
def test_any_messages_and_tools_are_let_in_or_refused(messages: list[Any], other: Any) -> None:
    for body in ({"messages": [USER, *messages]}, {"tools": messages, "tool_choice": other}):
        fate = try_body(body)
        assert isinstance(fate, Prompt) or str(fate).split(".")[0] in body


PNG = "data:image/png;base64,aGk="
WEB = "https://example.org/a.png"


def parts(*content: Any, **turn: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content), **turn}]}


def text(value: Any) -> dict[str, Any]:
    return {"type": "text", "text": value}


def image(url: Any = WEB, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def test_images_stand_where_they_stood() -> None:
    (message,) = admit_body(
        parts(text("Ä "), image(), text("or"), image(PNG, detail="low"))
    ).messages
    assert message.content == "Ä or"
    assert message.images == (Image(url=WEB, at=2), Image(url=PNG, detail="low", at=4))
    (alone,) = admit_body(parts(image())).messages
    assert (alone.content, len(alone.images)) == ("", 1)


def test_tools_and_a_schema_go_together() -> None:
    """As most agents ask: the schema is that of the answer in the end."""
    prompt = admit_body({"messages": [USER], "tools": [tool()], "response_schema": CITY})
    assert (len(prompt.tools), prompt.sampling.response_schema) == (1, CITY)


@pytest.mark.parametrize("arguments", ["", "{city", "[1]", "[" * 50_000])
def test_what_a_model_once_wrote_as_arguments_is_kept(arguments: str) -> None:
    calls = {**CALLS, "tool_calls": [call(arguments=arguments)]}
    assert (
        admit_body({"messages": [USER, calls, RESULT]}).messages[1].tool_calls[0].arguments
        == arguments
    )


def test_texts_side_by_side_are_lines() -> None:
    """An image between two keeps its place, and makes no line."""
    image = {"type": "image_url", "image_url": {"url": "https://a.test/b.png"}}
    turn = admit_body(parts(text("one"), text("two"), image, text("three"))).messages[0]
    assert (turn.content, [image.at for image in turn.images]) == ("one\ntwothree", [7])


def test_what_a_model_refused_to_say_is_text() -> None:
    refusal_turn = {
        "role": "assistant",
        "content": [text("Well."), {"type": "refusal", "refusal": "I cannot."}],
    }
    assert (
        admit_body({"messages": [USER, refusal_turn, USER]}).messages[1].content
        == "Well.\nI cannot."
    )


def test_who_speaks_is_kept() -> None:
    turns = admit_body({"messages": [{**USER, "name": "ann"}, {**USER, "name": ""}]}).messages
    assert [turn.name for turn in turns] == ["ann", None]


def test_a_developers_message_is_the_systems() -> None:
    turn = {"messages": [{"role": "developer", "content": "Be brief."}, USER]}
    assert [m.role for m in admit_body(turn).messages] == ["system", "user"]


UNSUPPORTED_PARTS = [{"type": "input_audio", "input_audio": {}}, {"type": "file", "file": {}}]


@pytest.mark.parametrize("part", UNSUPPORTED_PARTS)
def test_other_parts_are_refused_by_their_name(part: dict[str, Any]) -> None:
    refused_error = refusal(parts(text("x"), part))
    assert (refused_error.code, refused_error.param) == (
        "unsupported_parameter",
        "messages.0.content.1",
    )
    assert f"parts of type '{part['type']}' are not supported" in refused_error.message


SECRET = "the-clients-own-words"
WRONG_PARTS: list[tuple[dict[str, Any], str, str]] = [
    # body, param, part of the message
    (parts(text("x"), {"type": SECRET}), "messages.0.content.1", "parts of this type"),
    (parts(SECRET), "messages.0.content.0", '{"type": "text"'),
    (parts({"text": SECRET}), "messages.0.content.0", '{"type": "text"'),
    (parts({"type": "text"}), "messages.0.content.0.text", "it is missing"),
    (parts(text({"x": SECRET})), "messages.0.content.0.text", "it must be a text"),
    (parts(image(f"http://{SECRET}")), "messages.0.content.0.image_url.url", "it must be https://"),
    (
        parts(image(f"data:image/tiff;base64,{SECRET}")),
        "messages.0.content.0.image_url.url",
        "it must be https://",
    ),
    (parts(image(PNG + "\n")), "messages.0.content.0.image_url.url", "it must be https://"),
    (parts({"type": "image_url"}), "messages.0.content.0.image_url", "it is missing"),
    (
        parts({"type": "image_url", "image_url": WEB}),
        "messages.0.content.0.image_url",
        "must be an object",
    ),
    (parts(image(detail=SECRET)), "messages.0.content.0.image_url.detail", "'auto'"),
    (parts(image(), role="system"), "messages.0.content", "only a user's message"),
    (parts(*[image()] * 65), "messages.0.content", "65 images, the limit is 64"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "a text, or a list"),
    (
        {"messages": [{"role": "user", "content": {"x": SECRET}}]},
        "messages.0.content",
        "a text, or a list",
    ),
    ({"messages": [SECRET]}, "messages.0", "must be an object"),
]


@pytest.mark.parametrize(("body", "param", "part"), WRONG_PARTS)
def test_a_wrong_part_is_named_and_never_repeated(
    body: dict[str, Any], param: str, part: str
) -> None:
    refused_error = refusal(body)
    assert refused_error.param == param
    assert part in refused_error.message
    assert SECRET not in refused_error.message
