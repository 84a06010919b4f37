import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire_worker_remote.errors import classify

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


def openai(message: str = "", code: Any = None, kind: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


QUOTA = openai("You exceeded your current quota", "insufficient_quota", "insufficient_quota")
VLLM = {"object": "error", "message": "This model's maximum context length is 4096 tokens.", "type": "BadRequestError"}
CASES: list[tuple[int, bytes, str, bool, bool]] = [
    # status, body, code, retryable, ambiguous
    (429, openai("Slow down", "rate_limit_exceeded", "requests"), "rate_limited", True, False),
    (429, b"", "rate_limited", True, False),
    (429, QUOTA, "insufficient_quota", False, False),
    (402, openai("Insufficient credits", 402), "insufficient_quota", False, False),
    (500, b"oops", "server_error", True, False),
    (502, b"<html>", "server_error", True, False),
    (503, openai("overloaded"), "server_error", True, False),
    (529, openai("overloaded", None, "overloaded_error"), "server_error", True, False),
    (504, b"", "timeout", True, True),
    (524, b"", "timeout", True, True),
    (408, b"", "server_error", True, False),
    (409, b"", "server_error", True, False),
    (400, openai("too long", "context_length_exceeded"), "context_length_exceeded", False, False),
    (400, json.dumps(VLLM).encode(), "context_length_exceeded", False, False),
    (400, openai("prompt is too long: 210000 tokens > 200000 maximum"), "context_length_exceeded", False, False),
    (413, b"", "context_length_exceeded", False, False),
    (400, openai("flagged", "content_filter"), "refused", False, False),
    (400, openai("flagged", "ResponsibleAIPolicyViolation"), "refused", False, False),
    (403, openai("input was flagged by moderation", 403), "refused", False, False),
    (401, openai("Incorrect API key", "invalid_api_key"), "unauthorized", False, False),
    (403, b"", "unauthorized", False, False),
    (400, openai("no", "invalid_api_key"), "unauthorized", False, False),
    (404, openai("gone", "model_not_found"), "model_not_found", False, False),
    (410, b"", "model_not_found", False, False),
    (400, openai("unknown model", "model_not_found"), "model_not_found", False, False),
    (400, openai("temperature is wrong", "invalid_value", "invalid_request_error"), "bad_request", False, False),
    (422, json.dumps({"detail": [{"msg": "field required"}]}).encode(), "bad_request", False, False),
    (302, b"", "bad_request", False, False),
    (200, openai("Provider returned error", 502), "server_error", True, False),
    (200, openai("Rate limited upstream", 429), "rate_limited", True, False),
    (200, openai("Rate limited upstream", "rate_limit_exceeded"), "rate_limited", True, False),
    (200, openai("Out of credits", "402"), "insufficient_quota", False, False),
    (200, openai("Upstream timed out", 504), "timeout", True, True),
    (200, openai("something", "odd"), "server_error", True, False),
    (200, b'{"error": "plain words"}', "server_error", True, False),
]


@pytest.mark.parametrize(("status", "body", "code", "retryable", "ambiguous"), CASES)
def test_each_failure_has_its_class(status: int, body: bytes, code: str, retryable: bool, ambiguous: bool) -> None:
    failure = classify(status, {}, body, NOW)
    assert (failure.code, failure.retryable, failure.ambiguous) == (code, retryable, ambiguous)
    assert not failure.billed


def test_a_rate_limit_carries_the_wait_that_is_asked_for() -> None:
    assert classify(429, {"retry-after": "12"}, b"", NOW).retry_after_s == 12
    assert classify(503, {"retry-after": "3"}, b"", NOW).retry_after_s == 3


def test_a_provider_that_says_not_to_retry_is_believed() -> None:
    failure = classify(500, {"x-should-retry": "false"}, b"", NOW)
    assert (failure.code, failure.retryable) == ("server_error", False)


def test_a_message_names_the_providers_code() -> None:
    body = openai("x", "context_length_exceeded", "invalid_request_error")
    assert classify(400, {}, body, NOW).message == "HTTP 400 (context_length_exceeded, invalid_request_error)"


def test_a_message_never_repeats_what_the_provider_wrote() -> None:
    secret = "sk-live-0123456789"
    prompt = "The patient's name is Ada"
    echoes = [
        openai(f"{prompt} {secret}", secret, prompt),
        json.dumps({"error": {"message": prompt, "param": prompt, "code": secret}}).encode(),
        json.dumps({"error": f"{prompt} {secret}"}).encode(),
        json.dumps({"detail": prompt}).encode(),
        f"{prompt} {secret}".encode(),
    ]
    for status in (200, 400, 401, 403, 404, 429, 500):
        for body in echoes:
            shown = repr(classify(status, {}, body, NOW))
            assert "Ada" not in shown
            assert "0123456789" not in shown


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["error", "code", "type"]), inner),
    max_leaves=8,
)


@given(status=st.integers(100, 999), body=JSON.map(lambda v: json.dumps(v).encode()) | st.binary())
def test_any_bytes_are_classified(status: int, body: bytes) -> None:
    failure = classify(status, {}, body, NOW)
    assert failure.message


def test_nesting_beyond_pythons_stack_is_classified() -> None:
    assert classify(500, {}, b"[" * 200_000, NOW).code == "server_error"
