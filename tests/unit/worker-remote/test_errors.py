import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire_worker_remote.backoff import MOST_WAIT_S
from fusewire_worker_remote.errors import classify

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


def openai(message: str = "", code: Any = None, kind: str | None = None) -> bytes:
    return json.dumps(
        {"error": {"message": message, "type": kind, "param": None, "code": code}}
    ).encode()


def anthropic(kind: str, message: str = "no") -> bytes:
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()


def google(code: int, status: str, message: str = "no", *details: dict[str, Any]) -> bytes:
    return json.dumps(
        {"error": {"code": code, "status": status, "message": message, "details": details}}
    ).encode()


def mistral(message: Any, kind: str, code: str = "1000") -> bytes:
    return json.dumps(
        {"object": "error", "message": message, "type": kind, "param": None, "code": code}
    ).encode()


BAD_KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
PER_DAY = {"violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]}
TOO_MANY = "The input token count (2) exceeds the maximum number of tokens allowed (1)."
PROMPT_TOO_LONG = "Prompt contains 4 tokens, too large for model with 3 maximum context length"
QUOTA = openai("You exceeded your current quota", "insufficient_quota", "insufficient_quota")
VLLM = {
    "object": "error",
    "message": "This model's maximum context length is 4096 tokens.",
    "type": "BadRequestError",
}
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
    (
        400,
        openai("prompt is too long: 210000 tokens > 200000 maximum"),
        "context_length_exceeded",
        False,
        False,
    ),
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
    (
        400,
        openai("temperature is wrong", "invalid_value", "invalid_request_error"),
        "bad_request",
        False,
        False,
    ),
    (
        422,
        json.dumps({"detail": [{"msg": "field required"}]}).encode(),
        "bad_request",
        False,
        False,
    ),
    (302, b"", "bad_request", False, False),
    (200, openai("Provider returned error", 502), "server_error", True, False),
    (200, openai("Rate limited upstream", 429), "rate_limited", True, False),
    (200, openai("Rate limited upstream", "rate_limit_exceeded"), "rate_limited", True, False),
    (200, openai("Out of credits", "402"), "insufficient_quota", False, False),
    (200, openai("Upstream timed out", 504), "timeout", True, True),
    (200, openai("something", "odd"), "server_error", True, False),
    (200, b'{"error": "plain words"}', "server_error", True, False),
    (529, anthropic("overloaded_error"), "server_error", True, False),
    (429, anthropic("rate_limit_error"), "rate_limited", True, False),
    (401, anthropic("authentication_error"), "unauthorized", False, False),
    (403, anthropic("permission_error"), "unauthorized", False, False),
    (404, anthropic("not_found_error"), "model_not_found", False, False),
    (413, anthropic("request_too_large"), "context_length_exceeded", False, False),
    (504, anthropic("timeout_error"), "timeout", True, True),
    (
        400,
        anthropic("invalid_request_error", "Your credit balance is too low"),
        "insufficient_quota",
        False,
        False,
    ),
    (
        400,
        anthropic("invalid_request_error", "Blocked by content filtering policy"),
        "refused",
        False,
        False,
    ),
    # In a stream that had begun with 200:
    (200, anthropic("overloaded_error"), "server_error", True, False),
    (200, anthropic("api_error"), "server_error", True, False),
    (200, anthropic("rate_limit_error"), "rate_limited", True, False),
    (200, anthropic("timeout_error"), "timeout", True, True),
    (200, anthropic("billing_error"), "insufficient_quota", False, False),
    (200, google(503, "UNAVAILABLE"), "server_error", True, False),
    (429, google(429, "RESOURCE_EXHAUSTED"), "rate_limited", True, False),
    (429, google(429, "RESOURCE_EXHAUSTED", "no", PER_DAY), "insufficient_quota", False, False),
    (400, google(400, "INVALID_ARGUMENT"), "bad_request", False, False),
    (400, google(400, "INVALID_ARGUMENT", "no", BAD_KEY), "unauthorized", False, False),
    (400, google(400, "INVALID_ARGUMENT", TOO_MANY), "context_length_exceeded", False, False),
    (400, google(400, "FAILED_PRECONDITION"), "bad_request", False, False),
    (403, google(403, "PERMISSION_DENIED"), "unauthorized", False, False),
    (404, google(404, "NOT_FOUND"), "model_not_found", False, False),
    (500, google(500, "INTERNAL"), "server_error", True, False),
    (504, google(504, "DEADLINE_EXCEEDED"), "timeout", True, True),
    (
        429,
        mistral("Requests rate limit exceeded", "rate_limited", "1300"),
        "rate_limited",
        True,
        False,
    ),
    (
        429,
        mistral("Capacity exceeded", "service_tier_capacity_exceeded", "3505"),
        "rate_limited",
        True,
        False,
    ),
    (
        400,
        mistral(PROMPT_TOO_LONG, "invalid_request_error", "3051"),
        "context_length_exceeded",
        False,
        False,
    ),
    (
        422,
        mistral({"detail": [{"msg": "Extra inputs"}]}, "invalid_request_error"),
        "bad_request",
        False,
        False,
    ),
    (401, b'{"detail": "Unauthorized"}', "unauthorized", False, False),
    # Context length in the words of vLLM, sglang, TGI, xAI, Kimi, Copilot, DashScope, LM Studio,
    # MiniMax, Bedrock.
    *(
        (400, openai(words), "context_length_exceeded", False, False)
        for words in (
            (
                "This model's maximum context length is 4096 tokens. "
                "However, you requested 5000 tokens."
            ),
            "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
            "Requested token count exceeds the model's maximum context length of 4096 tokens.",
            (
                "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. "
                "Given: 5000"
            ),
            "This model's maximum prompt length is 131072 but the request contains 140000 tokens.",
            "Invalid request: Your request exceeded model token limit: 8192",
            "prompt token count of 70000 exceeds the limit of 64000",
            "Range of input length should be [1, 30720]",
            (
                "Trying to keep the first 5000 tokens when context the overflows. "
                "The model has a context length of 4096"
            ),
            "invalid params, context window exceeds limit",
            "Input is too long for requested model.",
        )
    ),
    (
        400,
        openai("no", "model_max_prompt_tokens_exceeded"),
        "context_length_exceeded",
        False,
        False,
    ),
    (403, openai("Your team has used all available credits"), "insufficient_quota", False, False),
    (
        429,
        openai("Insufficient balance", "exceeded_current_quota_error"),
        "insufficient_quota",
        False,
        False,
    ),
    (403, openai("Content violates usage guidelines"), "refused", False, False),
    (
        400,
        openai("Output data may contain inappropriate content", "data_inspection_failed"),
        "refused",
        False,
        False,
    ),
    (
        200,
        b'{"base_resp": {"status_code": 1002, "status_msg": "rate limit"}}',
        "rate_limited",
        True,
        False,
    ),
]


@pytest.mark.parametrize(("status", "body", "code", "retryable", "ambiguous"), CASES)
def test_each_failure_has_its_class(
    status: int, body: bytes, code: str, retryable: bool, ambiguous: bool
) -> None:
    failure = classify(status, {}, body, NOW)
    assert (failure.code, failure.retryable, failure.ambiguous) == (code, retryable, ambiguous)
    assert not failure.billed


def test_a_rate_limit_carries_the_wait_that_is_asked_for() -> None:
    assert classify(429, {"retry-after": "12"}, b"", NOW).retry_after_s == 12
    assert classify(503, {"retry-after": "3"}, b"", NOW).retry_after_s == 3


def test_googles_wait_is_in_the_body() -> None:
    retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"}
    body = google(429, "RESOURCE_EXHAUSTED", "no", retry)
    assert classify(429, {}, body, NOW).retry_after_s == 34.5
    assert classify(429, {"retry-after": "3"}, body, NOW).retry_after_s == 3
    absurd = google(429, "X", "no", {**retry, "retryDelay": "9" * 400 + "s"})
    assert classify(429, {}, absurd, NOW).retry_after_s == MOST_WAIT_S
    assert classify(429, {}, b"[" + body + b"]", NOW).retry_after_s == 34.5
    assert (
        classify(
            429, {}, google(429, "X", "no", {**retry, "retryDelay": "soon"}), NOW
        ).retry_after_s
        is None
    )


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Rate limit reached for m. Limit 3, Used 3. Please try again in 20s.", 20),
        ("Rate limit reached. Please try again in 1.5s", 1.5),
        ("Please try again in 250ms. Visit the page.", 0.25),
        ("Requests have exceeded the limit. Please retry after 46 seconds.", 46),
        ("Please try again in 250 milliseconds", 0.25),
        ("Please try again in 2 minutes", 120),
        ("Please try again in 999999 minutes", MOST_WAIT_S),
        ("Please try again later, in version 2", None),
    ],
)
def test_a_wait_in_words_is_read(message: str, seconds: float | None) -> None:
    assert classify(429, {}, openai(message, "rate_limit_exceeded"), NOW).retry_after_s == seconds


def test_openrouter_s_wait_is_among_the_headers_of_its_provider() -> None:
    metadata = {
        "headers": {
            "X-RateLimit-Remaining": "0",
            "X-RateLimit-Reset": str(int(NOW.timestamp() * 1000) + 7000),
        }
    }
    body = json.dumps({"error": {"code": 429, "message": "no", "metadata": metadata}}).encode()
    assert classify(429, {}, body, NOW).retry_after_s == 7


def test_googles_word_for_it_is_named() -> None:
    assert (
        classify(429, {}, google(429, "RESOURCE_EXHAUSTED"), NOW).message
        == "HTTP 429 (resource_exhausted)"
    )


def test_a_provider_that_says_not_to_retry_is_believed() -> None:
    failure = classify(500, {"x-should-retry": "false"}, b"", NOW)
    assert (failure.code, failure.retryable) == ("server_error", False)


def test_a_message_names_the_providers_code() -> None:
    body = openai("x", "context_length_exceeded", "invalid_request_error")
    assert (
        classify(400, {}, body, NOW).message
        == "HTTP 400 (context_length_exceeded, invalid_request_error)"
    )


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
            text = repr(classify(status, {}, body, NOW))
            assert "Ada" not in text
            assert "0123456789" not in text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "code", "type", "details"]), inner)
    ),
    max_leaves=8,
)


@given(status=st.integers(100, 999), body=JSON.map(lambda v: json.dumps(v).encode()) | st.binary())
def test_any_bytes_are_classified(status: int, body: bytes) -> None:
    failure = classify(status, {}, body, NOW)
    assert failure.message


def test_nesting_beyond_pythons_stack_is_classified() -> None:
    assert classify(500, {}, b"[" * 200_000, NOW).code == "server_error"


@pytest.mark.parametrize(
    ("status", "body", "fields"),
    [
        (
            400,
            json.dumps(
                {"error": {"code": "unsupported_value", "param": "messages[0].role"}}
            ).encode(),
            (400, "unsupported_value", "messages[0].role"),
        ),
        (429, google(429, "RESOURCE_EXHAUSTED"), (429, "429", None)),
        (529, anthropic("overloaded_error"), (529, "overloaded_error", None)),
        (200, openai("Provider returned error", 502), (502, "502", None)),
        (500, b"oops", (500, None, None)),
        (
            400,
            json.dumps({"error": {"code": "The patient's name", "param": "Ada Lovelace"}}).encode(),
            (400, None, None),
        ),
    ],
)
def test_what_the_provider_says_is_kept_where_it_cannot_hold_the_prompt(
    status: int, body: bytes, fields: tuple[int, str | None, str | None]
) -> None:
    failure = classify(status, {}, body, NOW)
    assert (failure.status, failure.provider_code, failure.param) == fields
