"""Admission: what is let in, what is refused, and what the refusal says."""

import contextlib
import json
import string
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire import ids
from fusewire.contracts import Message, Prompt
from fusewire.testing.factories import T0
from fusewire_ingest.admission.admit import (
    PoolRule,
    RefusedError,
    Submission,
    admit,
    body_hash,
    parse,
)
from fusewire_ingest.admission.model_names import ModelNames

LIMIT = 10_000
POOLS = {
    "default": PoolRule("best-of", "any", 60, 86_400),
    "private": PoolRule("merge", "edge-only", 30, 3_600),
}
GRIN_HALF = "\\ud83d"


def admit_body(
    body: dict[str, Any] | None = None, *, tenant: str = "default", fallback_id: str = "given"
) -> Prompt:
    submission = parse(json.dumps({"prompt": "Why?", **(body or {})}), LIMIT)
    return admit(submission, tenant=tenant, fallback_id=fallback_id, pools=POOLS, now=T0)


def refusal(data: bytes | str) -> RefusedError:
    with pytest.raises(RefusedError) as exc_info:
        admit(parse(data, LIMIT), tenant="default", fallback_id="given", pools=POOLS, now=T0)
    return exc_info.value


def nested(depth: int, inner: str = "1") -> str:
    return '{"a":' * depth + inner + "}" * depth


REFUSED = [
    # what, body, code, param, part of the message
    ("empty", "", "invalid_json", None, "column 1"),
    ("no JSON", "Why?", "invalid_json", None, "column 1"),
    ("cut off", '{"prompt": "Why', "invalid_json", None, "column"),
    ("not UTF-8", b'{"prompt": "\xff"}', "invalid_json", None, "not valid JSON"),
    (
        "on its third line",
        '{"prompt":\n "x",\n  temperature: 1}',
        "invalid_json",
        None,
        "line 3, column 3: expecting property",
    ),
    ("two objects", '{"prompt": "x"} {}', "invalid_json", None, "column 17: extra data"),
    ("where UTF-8 ends", b'{"prompt": "ab\xff"}', "invalid_json", None, "from byte 15 on"),
    (
        "a surrogate in bytes",
        b'{"prompt": "\xed\xa0\xbd"}',
        "invalid_json",
        None,
        "not UTF-8 from byte 13",
    ),
    ("a surrogate in a text", '{"prompt": "\ud83d"}', "invalid_json", None, "surrogate"),
    ("a byte order mark", b'\xef\xbb\xbf{"prompt": "x"}', "invalid_json", None, "without one"),
    ("a mark in a text", '\ufeff{"prompt": "x"}', "invalid_json", None, "byte order mark"),
    ("UTF-16", '{"prompt": "x"}'.encode("utf-16"), "invalid_json", None, "byte order mark"),
    (
        "UTF-16 without a mark",
        '{"prompt": "x"}'.encode("utf-16-le"),
        "invalid_json",
        None,
        "not valid JSON",
    ),
    ("a line's end in a text", '{"prompt": "a\nb"}', "invalid_json", None, "column 14"),
    ("NaN", '{"prompt": "x", "temperature": NaN}', "invalid_json", None, "NaN is not valid JSON"),
    ("Infinity", '{"prompt": "x", "deadline_s": -Infinity}', "invalid_json", None, "-Infinity"),
    (
        "a number too large for one",
        '{"prompt":"x","response_schema":{"maximum":1e999}}',
        "invalid_json",
        None,
        "too large",
    ),
    (
        "a key twice",
        '{"prompt": "x", "prompt": "y"}',
        "invalid_json",
        None,
        "'prompt' stands twice",
    ),
    (
        "a key twice inside",
        '{"prompt":"x","response_schema":{"a":1,"a":2}}',
        "invalid_json",
        None,
        "'a' stands twice",
    ),
    ("half a surrogate pair", f'{{"prompt": "{GRIN_HALF}"}}', "invalid_json", None, "surrogate"),
    (
        "half a pair as a key",
        f'{{"prompt":"x","response_schema":{{"{GRIN_HALF}":1}}}}',
        "invalid_json",
        None,
        "surrog",
    ),
    ("NUL", '{"prompt": "a\\u0000b"}', "invalid_request", None, "NUL"),
    ("NUL in an id", '{"prompt": "x", "custom_id": "a\\u0000"}', "invalid_request", None, "NUL"),
    ("NUL after backslashes", '{"prompt": "a\\\\\\\\\\u0000b"}', "invalid_request", None, "NUL"),
    ("an array", '[{"prompt": "x"}]', "invalid_request", None, "JSON object"),
    ("a string", '"x"', "invalid_request", None, "JSON object"),
    ("nothing to ask", "{}", "invalid_request", "messages", "either `prompt` or `messages`"),
    (
        "asked twice",
        '{"prompt":"x","messages":[{"role":"user","content":"y"}]}',
        "invalid_request",
        "messages",
        "either",
    ),
    ("empty prompt", '{"prompt": ""}', "invalid_request", "prompt", "at least 1"),
    ("no messages", '{"messages": []}', "invalid_request", "messages", "at least 1"),
    (
        "unknown role",
        '{"messages":[{"role":"wizard","content":"x"}]}',
        "invalid_request",
        "messages.0.role",
        "developer, system, user",
    ),
    (
        "no content",
        '{"messages":[{"role":"user"}]}',
        "invalid_request",
        "messages.0.content",
        "a text, or a list of",
    ),
    (
        "a key misspelt",
        '{"prompt":"x","temprature":1}',
        "invalid_request",
        "temprature",
        "did you mean 'temperature'",
    ),
    (
        "a key not known",
        '{"prompt":"x","zzz":1}',
        "invalid_request",
        "zzz",
        "known are custom_id, batch_id",
    ),
    (
        "too hot",
        '{"prompt":"x","temperature":2.1}',
        "invalid_request",
        "temperature",
        "less than or equal to 2",
    ),
    ("no top_p", '{"prompt":"x","top_p":0}', "invalid_request", "top_p", "greater than 0"),
    (
        "no tokens",
        '{"prompt":"x","max_tokens":0}',
        "invalid_request",
        "max_tokens",
        "greater than or equal to 1",
    ),
    ("no time", '{"prompt":"x","deadline_s":0}', "invalid_request", "deadline_s", "greater than 0"),
    ("a year", '{"prompt":"x","deadline_s":31536000}', "invalid_request", "deadline_s", "604800"),
    (
        "five stops",
        '{"prompt":"x","stop":["1","2","3","4","5"]}',
        "invalid_request",
        "stop",
        "at most 4",
    ),
    ("empty id", '{"prompt":"x","custom_id":""}', "invalid_request", "custom_id", "at least 1"),
    (
        "long id",
        f'{{"prompt":"x","custom_id":"{"i" * 257}"}}',
        "invalid_request",
        "custom_id",
        "at most 256",
    ),
    (
        "batch with a blank",
        '{"prompt":"x","batch_id":"a b"}',
        "invalid_request",
        "batch_id",
        "pattern",
    ),
    (
        "unknown residency",
        '{"prompt":"x","residency":"moon"}',
        "invalid_request",
        "residency",
        "'edge-only'",
    ),
    (
        "unknown priority",
        '{"prompt":"x","priority":"urgent"}',
        "invalid_request",
        "priority",
        "'high'",
    ),
    (
        "unknown pool",
        '{"prompt":"x","pool":"defualt"}',
        "unknown_pool",
        "pool",
        "did you mean 'default'? known: default",
    ),
    (
        "no such pool",
        '{"prompt":"x","pool":"zzz"}',
        "unknown_pool",
        "pool",
        "no pool 'zzz'; known: default, private",
    ),
    (
        "unknown mode",
        '{"prompt":"x","mode":"bestof"}',
        "unknown_mode",
        "mode",
        "did you mean 'best-of'?",
    ),
    (
        "empty mode",
        '{"prompt":"x","mode":"vote"}',
        "unknown_mode",
        "mode",
        "known: best-of, debate, merge",
    ),
]


@pytest.mark.parametrize(
    ("body", "code", "param", "part"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_it_is_refused(body: bytes | str, code: str, param: str | None, part: str) -> None:
    refused_error = refusal(body)

    assert (refused_error.code, refused_error.param) == (code, param)
    assert part in refused_error.message


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
def test_the_limit_counts_bytes(size: int) -> None:
    frame = len('{"prompt":""}')
    body = '{"prompt":"' + "é" * ((size - frame) // 2) + "x" * ((size - frame) % 2) + '"}'
    assert len(body.encode()) == size
    assert len(body) < LIMIT

    if size <= LIMIT:
        parse(body, LIMIT)
        parse(body.encode(), LIMIT)
    else:
        for data in (body, body.encode()):
            refused_error = refusal(data)
            assert refused_error.code == "prompt_too_large"
            assert str(size) in refused_error.message
            assert str(LIMIT) in refused_error.message


@pytest.mark.parametrize("depth", [1, 50, 100, 190, 200, 250, 260, 1_500])
def test_whatever_depth_is_let_in_every_service_can_read(depth: int) -> None:
    body = f'{{"prompt":"x","response_schema":{nested(depth)}}}'
    if depth > 50:
        assert "nested" in refusal(body).message
    else:
        prompt = admit(parse(body, LIMIT), tenant="default", fallback_id="one", pools=POOLS, now=T0)
        assert Prompt.decode(prompt.encode()) == prompt


def test_the_limit_of_depth() -> None:
    assert parse(f'{{"prompt":"x","response_schema":{nested(63)}}}', LIMIT).response_schema
    for body in (nested(64), nested(63, "[1]")):
        assert "more than 64 deep" in refusal(f'{{"prompt":"x","response_schema":{body}}}').message


@pytest.mark.parametrize("text", ["[" * 100_000, nested(2_000), '{"a":' * 5_000])
def test_nesting_without_end_is_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        parse(f'{{"prompt":"x","response_schema":{text}}}', 10**6)


def test_a_number_of_absurd_length_is_refused() -> None:
    assert refusal(f'{{"prompt":"x","seed":{"9" * 5_000}}}').code == "invalid_json"


@given(
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\x00"),
        min_size=1,
        max_size=200,
    )
)
def test_any_other_text_is_let_in_as_it_is(text: str) -> None:
    prompt = admit(
        parse(json.dumps({"prompt": text}), 10**6),
        tenant="default",
        fallback_id="one",
        pools=POOLS,
        now=T0,
    )

    assert Prompt.decode(prompt.encode()).messages == (Message(role="user", content=text),)


@pytest.mark.parametrize("text", [r"what is \u0000 in JSON?", r"C:\users\u0000", "\\", "\\\\u0000"])
def test_a_backslash_in_a_prompt_is_no_nul(text: str) -> None:
    assert admit_body({"prompt": text}).messages[0].content == text


@given(
    st.binary(max_size=60)
    | st.text(alphabet='{}[]":,0123456789.eE-untrfalse\\ ', max_size=40).map(str.encode)
)
def test_nothing_else_than_a_refusal_is_ever_raised(data: bytes) -> None:
    with contextlib.suppress(RefusedError):
        parse(data, LIMIT)


@given(st.text(alphabet=string.ascii_letters, min_size=12, max_size=30))
def test_a_refusal_never_repeats_the_prompt(text: str) -> None:
    for body in (
        {"prompt": text, "temperature": 9},
        {"prompt": {"x": text}},
        {"messages": [{"role": text}]},
    ):
        with pytest.raises(RefusedError) as exc_info:
            parse(json.dumps(body), LIMIT)
        assert text not in exc_info.value.message


@pytest.mark.parametrize("schema", [{"type": "objekt"}, {"$ref": "https://models.example/a.json"}])
def test_a_schema_that_nothing_can_be_checked_against_is_refused(schema: dict[str, Any]) -> None:
    assert (
        refusal(json.dumps({"prompt": "x", "response_schema": schema})).param == "response_schema"
    )


@pytest.mark.parametrize("seed", [-(2**63), 2**63 - 1])
def test_a_seed_has_64_bits(seed: int) -> None:
    assert admit_body({"seed": seed}).seed == seed
    assert refusal(json.dumps({"prompt": "x", "seed": seed * 2})).param == "seed"


NAMES = ModelNames.of({"gpt": "vendor/gpt-5", "edge": None})
NAMED = {"default": PoolRule("best-of", "any", 60, 86_400, NAMES)}


def admit_names(**body: Any) -> Prompt:
    submission = parse(json.dumps({"prompt": "x", **body}), LIMIT)
    return admit(submission, tenant="default", fallback_id="one", pools=NAMED, now=T0)


def test_members_and_judge_are_configured_models_and_each_is_asked_once() -> None:
    prompt = admit_names(members=["vendor/gpt-5", "edge", "gpt"], judge="~gpt", preset="fast")
    assert (prompt.members, prompt.judge, prompt.preset) == (("gpt", "edge"), "gpt", "fast")


@pytest.mark.parametrize(
    ("body", "code", "param", "part"),
    [
        ({"members": ["gpt", "nobody"]}, "model_not_found", "members", "'nobody'"),
        ({"judge": "nobody"}, "model_not_found", "judge", "nearest: "),
        ({"members": ["gpt"] * 17}, "invalid_request", "members", "at most 16"),
        ({"members": "gpt"}, "invalid_request", "members", "it must be a list"),
        ({"preset": "cheap"}, "invalid_request", "preset", "'budget'"),
        (
            {"members": ["gpt"], "recorded": [{"member": "a", "model": "m"}]},
            "invalid_request",
            None,
            "one or the other",
        ),
    ],
)
def test_models_are_refused(body: dict[str, Any], code: str, param: str | None, part: str) -> None:
    with pytest.raises(RefusedError) as exc_info:
        admit_names(**body)
    assert (exc_info.value.code, exc_info.value.param) == (code, param)
    assert part in exc_info.value.message


def test_a_refusal_moves_with_what_it_is_about() -> None:
    relocated_refusal = refusal('{"prompt":"x","temperature":9}').relocate(
        lambda path: f"body.{path}"
    )
    assert relocated_refusal.param == "body.temperature"
    assert relocated_refusal.message.startswith("'body.temperature': ")
    assert refusal("[]").relocate(lambda path: f"body.{path}").param is None


RESIDENCY = [
    # pool, asked, result: a submission may tighten, never loosen
    ("default", None, "any"),
    ("default", "any", "any"),
    ("default", "edge-only", "edge-only"),
    ("private", None, "edge-only"),
    ("private", "any", "edge-only"),
    ("private", "edge-only", "edge-only"),
]


@pytest.mark.parametrize(("pool", "own", "result"), RESIDENCY)
def test_residency_is_tightened_never_loosened(pool: str, own: str | None, result: str) -> None:
    assert admit_body({"pool": pool, "residency": own}).residency == result


def test_defaults_come_from_the_pool() -> None:
    prompt = admit_body({"pool": "private"})

    assert (prompt.mode, prompt.deadline_at) == ("merge", T0 + timedelta(seconds=30))
    assert (prompt.priority, prompt.custom_id, prompt.batch_id) == ("normal", "given", None)
    assert prompt.submitted_at == T0


def test_a_batch_has_low_priority_and_the_pools_batch_deadline() -> None:
    prompt = admit_body({"pool": "private", "batch_id": "night:1"})

    assert (prompt.priority, prompt.deadline_at) == ("low", T0 + timedelta(hours=1))


def test_what_the_client_says_wins() -> None:
    prompt = admit_body(
        {
            "custom_id": "mine",
            "batch_id": "b",
            "mode": "debate",
            "priority": "high",
            "deadline_s": 1.5,
            "seed": 3,
            "max_tokens": 5,
            "temperature": 0,
            "top_p": 0.5,
            "stop": ["END", ""],
            "top_k": 40,
            "min_p": 0.05,
            "frequency_penalty": 0.5,
            "presence_penalty": -0.5,
            "repetition_penalty": 1.1,
            "response_schema": {"type": "object"},
        }
    )

    assert (prompt.custom_id, prompt.mode, prompt.priority) == ("mine", "debate", "high")
    assert prompt.deadline_at == T0 + timedelta(seconds=1.5)
    assert prompt.seed == 3
    assert prompt.sampling.model_dump() == {
        "max_tokens": 5,
        "temperature": 0,
        "top_p": 0.5,
        "seed": 3,
        "stop": ("END",),
        "top_k": 40,
        "min_p": 0.05,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "repetition_penalty": 1.1,
        "logit_bias": None,
        "response_schema": {"type": "object"},
    }


def test_messages_are_kept_as_they_are() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Why? "}]
    submission = parse(json.dumps({"messages": messages}), LIMIT)

    prompt = admit(submission, tenant="default", fallback_id="one", pools=POOLS, now=T0)

    assert prompt.messages == tuple(Message.model_validate(m) for m in messages)
    assert [m.model_dump(exclude_defaults=True) for m in prompt.messages] == messages


def test_the_id_is_decided_by_tenant_batch_and_custom_id() -> None:
    prompt_b = admit_body({"custom_id": "q1", "batch_id": "b"}, tenant="acme")

    assert prompt_b.fusion_id == ids.fusion_id("acme", "b", "q1")
    assert (
        admit_body(
            {"custom_id": "q1", "batch_id": "b", "prompt": "Other?"}, tenant="acme"
        ).fusion_id
        == prompt_b.fusion_id
    )
    assert admit_body({"custom_id": "q1"}, tenant="acme").fusion_id != prompt_b.fusion_id
    assert (
        admit_body({"custom_id": "q1", "batch_id": "b"}, tenant="other").fusion_id
        != prompt_b.fusion_id
    )


def test_the_seed_is_derived_from_the_id_and_so_repeatable() -> None:
    assert admit_body().seed == admit_body().seed
    assert admit_body().seed != admit_body({"custom_id": "other"}).seed
    assert admit_body({"seed": 0}).seed == 0


@pytest.mark.parametrize("fallback_id", ["i" * 257, "a\x00b", ""])
def test_an_id_that_no_table_holds_is_refused_wherever_it_comes_from(fallback_id: str) -> None:
    with pytest.raises(RefusedError) as exc_info:
        admit_body(fallback_id=fallback_id)

    assert exc_info.value.code == "invalid_request"


def test_a_repetition_has_the_same_hash_whenever_it_comes() -> None:
    submission = Submission(prompt="Why?")

    def at(seconds: float) -> Prompt:
        now = T0 + timedelta(seconds=seconds)
        return admit(submission, tenant="default", fallback_id="one", pools=POOLS, now=now)

    assert body_hash(at(0)) == body_hash(at(3_600).model_copy(update={"store_id": "another"}))


CHANGES = [
    {"prompt": "Other?"},
    {"temperature": 0.1},
    {"mode": "merge"},
    {"pool": "private"},
    {"priority": "high"},
]


@pytest.mark.parametrize("change", CHANGES)
def test_another_wish_has_another_hash(change: dict[str, Any]) -> None:
    assert body_hash(admit_body(change)) != body_hash(admit_body())
