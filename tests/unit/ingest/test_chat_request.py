"""Chat completions in OpenAI's and OpenRouter's form: members, refusals and warnings."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire_ingest.admission.admit import PoolRule, RefusedError
from fusewire_ingest.admission.model_names import ModelNames
from fusewire_ingest.openai.chat_request import ChatRequest, read, request_hash

NAMES = ModelNames.of(
    {"gpt": "vendor/gpt-5", "opus": "vendor/opus", "edge": None}, {"vendor/latest": "gpt"}
)
POOLS = {
    "default": PoolRule("merge", "any", 60, 86_400, NAMES),
    "small": PoolRule("best-of", "any", 60, 86_400, NAMES),
}
USER = {"role": "user", "content": "Why?"}
CLOCK = {"type": "function", "function": {"name": "clock"}}
FUSION_TOOL = {"type": "openrouter:fusion"}


def read_request(**body: Any) -> ChatRequest:
    return read({"model": "fusion", "messages": [USER], **body}, POOLS, "default")


def refusal(**body: Any) -> RefusedError:
    with pytest.raises(RefusedError) as exc_info:
        read_request(**body)
    return exc_info.value


@pytest.mark.parametrize(
    ("model", "pool", "members", "mode", "preset"),
    [
        ("fusion", "default", (), None, None),
        ("openrouter/fusion", "default", (), None, None),
        ("openrouter/openrouter/fusion", "default", (), None, None),
        ("openrouter/fusion-flash", "default", (), None, "fast"),
        ("fusewire/small", "small", (), None, None),
        ("edge", "default", ("edge",), "best-of", None),
        ("vendor/gpt-5", "default", ("gpt",), "best-of", None),
        ("~vendor/latest", "default", ("gpt",), "best-of", None),
        (None, "default", (), None, None),
    ],
)
def test_a_model_means(
    model: str | None, pool: str, members: tuple[str, ...], mode: str | None, preset: str | None
) -> None:
    request = read_request(model=model)

    assert request.model == (model or "fusewire/default")
    assert request.submission.pool == pool
    assert request.submission.members == members
    assert request.submission.mode == mode
    assert request.submission.preset == preset
    assert request.submission.judge is None
    assert request.warnings == ()


def test_a_pool_that_is_given_wins_over_the_model_and_loses_to_the_bodys_own() -> None:
    body = {"model": "gpt-of-somebody", "messages": [USER]}
    assert read(body, POOLS, "default", pool="small", mode="debate").submission.pool == "small"
    assert read(body, POOLS, "default", pool="small", mode="debate").submission.mode == "debate"

    own = read(
        {**body, "fusewire": {"pool": "default", "mode": "merge"}},
        POOLS,
        "default",
        pool="small",
        mode="debate",
    )
    assert (own.submission.pool, own.submission.mode) == ("default", "merge")


PLUGIN = {
    "analysis_models": ["vendor/opus", "edge"],
    "model": "vendor/latest",
    "max_completion_tokens": 300,
    "temperature": 0.3,
}


@pytest.mark.parametrize(
    "body",
    [
        {"plugins": [{"id": "fusion", "preset": "general-budget", **PLUGIN}]},
        {
            "plugins": [{"id": "fusion", "preset": "budget"}],
            "tools": [{**FUSION_TOOL, "parameters": PLUGIN}],
        },
    ],
)
def test_a_fusion_is_told_by_plugin_and_by_tool(body: dict[str, Any]) -> None:
    request = read_request(temperature=1.0, max_tokens=5000, **body).submission

    assert request.members == ("opus", "edge")
    assert request.judge == "gpt"
    assert (request.max_tokens, request.temperature, request.preset) == (300, 0.3, "budget")
    assert request.tools == ()


def test_the_shorter_of_two_lengths_holds() -> None:
    plugins = [{"id": "fusion", "max_completion_tokens": 300}]
    assert read_request(max_tokens=20, plugins=plugins).submission.max_tokens == 20
    assert read_request(max_tokens=20, max_completion_tokens=30).submission.max_tokens == 30


def test_the_outer_model_of_a_fusion_judges() -> None:
    for entry in ({"plugins": [{"id": "fusion"}]}, {"tools": [FUSION_TOOL]}):
        request = read_request(model="vendor/opus", **entry).submission
        assert (request.judge, request.members, request.mode) == ("opus", (), None)

    both = read_request(model="vendor/opus", plugins=[{"id": "fusion", "model": "gpt"}])
    assert both.submission.judge == "gpt"
    assert "'model' was ignored" in both.warnings[0]


def test_a_fusion_that_is_switched_off_is_none() -> None:
    off = read_request(
        model="gpt", plugins=[{"id": "fusion", "enabled": False, "analysis_models": ["edge"]}]
    ).submission
    assert (off.members, off.judge) == (("gpt",), None)
    none = read_request(model="gpt", tools=[FUSION_TOOL, CLOCK], tool_choice="none").submission
    assert (none.members, none.judge, none.tool_choice) == (("gpt",), None, "none")


def test_our_tool_is_taken_out_and_the_clients_stay() -> None:
    request = read_request(tools=[FUSION_TOOL, CLOCK], tool_choice="required").submission
    assert [tool.function.name for tool in request.tools] == ["clock"]
    assert request.tool_choice == "required"

    both = read_request(tools=[FUSION_TOOL, CLOCK], tool_choice=FUSION_TOOL).submission
    assert (len(both.tools), both.tool_choice) == (1, None)

    for choice in ("required", "auto", FUSION_TOOL):
        alone = read_request(tools=[FUSION_TOOL], tool_choice=choice).submission
        assert (alone.tools, alone.tool_choice) == ((), None)


def test_our_own_settings() -> None:
    own = {
        "pool": "small",
        "mode": "debate",
        "criteria": "Be brief.",
        "residency": "edge-only",
        "deadline_s": 9,
        "priority": "high",
        "cancel_on_disconnect": True,
    }
    request = read_request(fusewire=own, plugins=[{"id": "fusion", "mode": "merge"}])
    assert request.cancel_on_disconnect
    for name in ("pool", "mode", "criteria", "residency", "deadline_s", "priority"):
        assert getattr(request.submission, name) == own[name]
    assert not read_request().cancel_on_disconnect

    inner = {"pool": "small", "mode": "debate", "criteria": "Be brief.", "residency": "edge-only"}
    theirs = read_request(plugins=[{"id": "fusion", **inner}]).submission
    for name, value in inner.items():
        assert getattr(theirs, name) == value


def test_sampling() -> None:
    request = read_request(
        max_tokens=20,
        temperature=0,
        top_p=0.5,
        seed=7,
        stop="END",
        tools=[CLOCK],
        response_format={"type": "text"},
    ).submission
    assert (request.max_tokens, request.temperature, request.top_p, request.seed) == (20, 0, 0.5, 7)
    assert request.stop == ("END",)
    assert read_request(stop=["a", "b"]).submission.stop == ("a", "b")
    assert request.response_schema is None


def test_response_format() -> None:
    assert read_request(response_format={"type": "json_object"}).submission.response_schema == {
        "type": "object"
    }
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    response_format = {
        "type": "json_schema",
        "json_schema": {"name": "x", "strict": True, "schema": schema},
    }
    assert read_request(response_format=response_format).submission.response_schema == schema


def test_a_developer_speaks_as_the_system() -> None:
    request = read_request(
        messages=[{"role": "developer", "content": "Be brief."}, USER]
    ).submission
    assert request.messages is not None
    assert [turn.message().role for turn in request.messages] == ["system", "user"]


def test_streaming() -> None:
    assert not read_request().is_streamed
    plain, usage = (
        read_request(stream=True),
        read_request(stream=True, stream_options={"include_usage": True}),
    )
    assert (plain.is_streamed, plain.with_usage) == (True, False)
    assert (usage.is_streamed, usage.with_usage) == (True, True)
    assert not read_request(stream_options={"include_usage": True}).with_usage


HARMLESS = {
    "user": "u",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "auto",
    "safety_identifier": "x",
    "prompt_cache_key": "x",
    "seed": 1,
    "usage": {"include": True},
    "provider": {"order": ["a"]},
    "transforms": [],
    "route": "fallback",
    "session_id": "x",
    "n": 1,
    "logprobs": False,
    "presence_penalty": 0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "modalities": ["text"],
    "parallel_tool_calls": True,
    "audio": None,
    "whatever": None,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_nothing_is_taken_in_silence(name: str) -> None:
    assert read_request(**{name: HARMLESS[name]}).warnings == ()


UNDONE = [
    # body, code under strict, param
    ({"models": ["a"]}, "unsupported_parameter", "models"),
    ({"reasoning_effort": "high"}, "unsupported_parameter", "reasoning_effort"),
    ({"plugins": [{"id": "web"}]}, "unsupported_parameter", "plugins.0"),
    ({"tools": [{"type": "openrouter:web_search"}]}, "unsupported_tool", "tools.0"),
    (
        {"plugins": [{"id": "fusion", "max_tool_calls": 4}]},
        "unsupported_parameter",
        "plugins.0.max_tool_calls",
    ),
    (
        {"plugins": [{"id": "fusion", "tools": [{"type": "x"}]}]},
        "unsupported_tool",
        "plugins.0.tools",
    ),
    (
        {"tools": [{**FUSION_TOOL, "parameters": {"reasoning": {"effort": "low"}}}]},
        "unsupported_parameter",
        "tools.0.parameters.reasoning",
    ),
    (
        {"tools": [{**FUSION_TOOL, "parameters": {"cache_control": {"type": "ephemeral"}}}]},
        "unsupported_parameter",
        "tools.0.parameters.cache_control",
    ),
]


@pytest.mark.parametrize(("body", "code", "param"), UNDONE)
def test_what_is_not_done_is_told_or_refused_where_asked_to_be_strict(
    body: dict[str, Any], code: str, param: str
) -> None:
    (warning,) = read_request(**body).warnings
    assert warning.startswith(f"'{param}' was ignored: ")

    request = refusal(**body, fusewire={"strict": True})
    assert (request.code, request.param) == (code, param)
    assert "remove it" in request.message


def test_a_plugin_may_be_strict_too_and_no_tools_are_no_wish() -> None:
    assert (
        refusal(plugins=[{"id": "fusion", "strict": True, "max_tool_calls": 4}]).code
        == "unsupported_parameter"
    )
    assert read_request(plugins=[{"id": "fusion", "strict": True, "tools": []}]).warnings == ()


def test_a_model_named_twice_is_told_to_be_asked_once() -> None:
    request = read_request(plugins=[{"id": "fusion", "analysis_models": ["gpt", "vendor/latest"]}])
    assert "asked once" in request.warnings[0]


def test_how_to_sample_is_passed_on_to_whoever_takes_it() -> None:
    parameters = {
        "top_k": 40,
        "min_p": 0.1,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.5,
        "repetition_penalty": 1.2,
        "stop": "",
    }
    request = read_request(**parameters)
    assert request.submission.model_dump(include=set(parameters)) == {**parameters, "stop": ()}
    assert [warning.split("'")[1] for warning in request.warnings] == list(parameters)[:5]
    assert "others sample without it" in request.warnings[0]


def test_a_bias_goes_to_a_model_that_is_named_alone() -> None:
    bias = {"1": 2.0}
    alone = read_request(model="gpt", logit_bias=bias)
    assert (alone.submission.logit_bias, alone.warnings) == (bias, ())
    request = read_request(logit_bias=bias)
    assert request.submission.logit_bias is None
    assert "token ids are those of one model" in request.warnings[0]


REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    # body, code, param, part of the message
    ({"n": 2}, "unsupported_parameter", "n", "send the request n times"),
    ({"logprobs": True}, "unsupported_parameter", "logprobs", "`fusion`"),
    ({"presence_penalty": 3}, "invalid_request", "presence_penalty", "less than or equal to 2"),
    (
        {"presence_penalti": 1},
        "unsupported_parameter",
        "presence_penalti",
        "did you mean 'presence_penalty'?",
    ),
    ({"audio": {"voice": "x"}}, "unsupported_parameter", "audio", "only text"),
    ({"functions": [{"name": "f"}]}, "unsupported_parameter", "functions", "`tools`"),
    ({"prediction": {}}, "unsupported_parameter", "prediction", "remove it"),
    ({"web_search_options": {}}, "unsupported_parameter", "web_search_options", "looked up"),
    ({"temprature": 1}, "unsupported_parameter", "temprature", "did you mean 'temperature'?"),
    ({"modalities": ["text", "audio"]}, "unsupported_parameter", "modalities", "only text"),
    ({"model": "vendor/gpt-6"}, "model_not_found", "model", "'vendor/gpt-5'"),
    ({"model": 5}, "invalid_request", "model", "a text"),
    ({"model": "fusewire/smal"}, "unknown_pool", "model", "did you mean 'small'?"),
    ({"fusewire": {"pool": "x"}}, "unknown_pool", "fusewire.pool", "known: default, small"),
    ({"fusewire": {"mood": "x"}}, "invalid_request", "fusewire.mood", "did you mean 'mode'?"),
    ({"fusewire": {"mode": "x"}}, "invalid_request", "fusewire.mode", "'best-of'"),
    ({"fusewire": 5}, "invalid_request", "fusewire", "object"),
    ({"plugins": {"id": "fusion"}}, "invalid_request", "plugins", "a list"),
    ({"plugins": ["fusion"]}, "invalid_request", "plugins.0", '{"id": "fusion"}'),
    (
        {"plugins": [{"id": "fusion", "analysis_models": []}]},
        "invalid_request",
        "plugins.0.analysis_models",
        "least 1",
    ),
    (
        {"plugins": [{"id": "fusion", "analysis_models": ["gpt"] * 9}]},
        "invalid_request",
        "plugins.0.analysis_models",
        "at most 8",
    ),
    (
        {"plugins": [{"id": "fusion", "analysis_models": ["gpt", "nobody"]}]},
        "model_not_found",
        "plugins.0.analysis_models.1",
        "'nobody'",
    ),
    (
        {"plugins": [{"id": "fusion", "model": "nobody"}]},
        "model_not_found",
        "plugins.0.model",
        "'nobody'",
    ),
    (
        {"plugins": [{"id": "fusion", "preset": "general-hi"}]},
        "invalid_request",
        "plugins.0.preset",
        "general-high",
    ),
    (
        {"plugins": [{"id": "fusion", "panel": []}]},
        "invalid_request",
        "plugins.0.panel",
        "known are pool",
    ),
    (
        {"tools": [{**FUSION_TOOL, "parameters": {"temperature": 3}}]},
        "invalid_request",
        "tools.0.parameters.temperature",
        "equal to 2",
    ),
    ({"tools": [{"type": "custom"}]}, "unsupported_tool", "tools.0", "send functions"),
    (
        {"tools": [FUSION_TOOL, {"type": "function"}]},
        "invalid_request",
        "tools.1.function",
        "it is missing",
    ),
    ({"tools": [CLOCK], "tool_choice": "clok"}, "invalid_request", "tool_choice", "clock"),
    ({"tool_choice": "required"}, "invalid_request", "tool_choice", "no tools"),
    ({"max_completion_tokens": 0}, "invalid_request", "max_completion_tokens", "equal to 1"),
    ({"max_tokens": "9x"}, "invalid_request", "max_tokens", "a whole number"),
    (
        {"response_format": {"type": "grammar"}},
        "invalid_request",
        "response_format.type",
        "json_schema",
    ),
    (
        {"response_format": {"type": "json_schema"}},
        "invalid_request",
        "response_format.json_schema.schema",
        "object",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 5}}}},
        "invalid_request",
        "response_format",
        "no valid JSON Schema",
    ),
    ({"stream": "yes"}, "invalid_request", "stream", "true or false"),
    ({"stream_options": 5}, "invalid_request", "stream_options", "object"),
    ({"messages": None}, "invalid_request", "messages", "messages"),
    (
        {"messages": [{"role": "function", "content": "x"}]},
        "invalid_request",
        "messages.0.role",
        "developer",
    ),
]


@pytest.mark.parametrize(("body", "code", "param", "part"), REFUSED)
def test_it_is_refused(body: dict[str, Any], code: str, param: str, part: str) -> None:
    request = refusal(**body)

    assert (request.code, request.param) == (code, param)
    assert part in request.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
KNOWN = st.sampled_from(
    [
        "model",
        "messages",
        "tools",
        "tool_choice",
        "plugins",
        "fusewire",
        "stream",
        "stream_options",
        "stop",
        "seed",
        "response_format",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "models",
        "reasoning",
    ]
)
PARTS = JSON | st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["openrouter:fusion", "function", "openrouter:x"])},
        optional={
            "parameters": JSON,
            "function": JSON,
            "id": st.sampled_from(["fusion", "web"]),
            "role": JSON,
        },
    ),
    max_size=3,
)


@given(st.dictionaries(KNOWN, PARTS, max_size=6))
def test_no_body_raises_anything_but_a_refusal(body: dict[str, Any]) -> None:
    with contextlib.suppress(RefusedError):
        assert read({"messages": [USER], **body}, POOLS, "default").submission.pool in POOLS


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.randoms())
def test_the_hash_knows_no_order_and_no_way_of_travelling(
    body: dict[str, Any], random: Any
) -> None:
    items = list(body.items())
    random.shuffle(items)
    streamed_body = json.loads(
        json.dumps({**dict(items), "stream": True, "stream_options": {"include_usage": True}})
    )

    assert request_hash("a", "k", streamed_body) == request_hash("a", "k", body)
    assert request_hash("b", "k", body) != request_hash("a", "k", body)
    assert request_hash("a", None, body) != request_hash("a", "k", body)
    assert request_hash("a", "k", {**body, "something": 1}) != request_hash("a", "k", body)
