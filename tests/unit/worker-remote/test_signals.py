"""What each failure says about the model, its key and the load."""

import json
from datetime import UTC, datetime

import pytest

from fusewire.contracts import ErrorCode
from fusewire_worker_remote.breaker import Signal
from fusewire_worker_remote.errors import Failure, classify, content_refusal, truncation
from fusewire_worker_remote.signals import read_signals
from fusewire_worker_remote.transport import _break, _wire_failure

NOW = datetime(2026, 11, 30, tzinfo=UTC)
ANSWERED, FAILED, REJECTED = Signal.ANSWERED, Signal.FAILED, Signal.REJECTED
DOUBTFUL, UNCLEAR, NOTHING = Signal.DOUBTFUL, Signal.UNCLEAR, Signal.NOTHING


def http(status: int, code: str | int | None = None, message: str = "", **headers: str) -> Failure:
    body = {"error": {"message": message, "code": code}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return classify(status, named, json.dumps(body).encode(), NOW)


def google_quota(quota: str) -> Failure:
    detail = {"violations": [{"quotaId": quota}]}
    body = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": [detail]}}
    return classify(429, {}, json.dumps(body).encode(), NOW)


def cut() -> Failure:
    return Failure("deadline_exceeded", "", retryable=False, ambiguous=True, origin="connection")


CASES: dict[str, tuple[Failure, Signal, Signal, bool]] = {
    # An outage, and a server that has too much to do.
    "500": (http(500), FAILED, UNCLEAR, False),
    "502": (http(502), FAILED, UNCLEAR, False),
    "503": (http(503), FAILED, UNCLEAR, True),
    "529": (http(529), FAILED, UNCLEAR, True),
    "504": (http(504), FAILED, UNCLEAR, True),
    "408": (http(408), FAILED, UNCLEAR, False),
    "error in a 200": (http(200), FAILED, UNCLEAR, False),
    "not connected": (_wire_failure(OSError(), is_sent=False, timeout_s=1), FAILED, UNCLEAR, False),
    "no answer": (_wire_failure(TimeoutError(), is_sent=True, timeout_s=1), FAILED, UNCLEAR, True),
    "reset": (_wire_failure(OSError(), is_sent=True, timeout_s=1), FAILED, UNCLEAR, False),
    "cut connection": (_break("the connection closed"), FAILED, UNCLEAR, False),
    # A limit.
    "429": (http(429), FAILED, ANSWERED, True),
    "429 that says when": (http(429, retry_after="7"), UNCLEAR, ANSWERED, True),
    "429 for an hour": (http(429, retry_after="3600"), REJECTED, ANSWERED, True),
    # The key, the account, the model.
    "401": (http(401, "invalid_api_key"), NOTHING, REJECTED, False),
    "402": (http(402), NOTHING, REJECTED, False),
    "no credit": (http(429, "insufficient_quota"), NOTHING, REJECTED, False),
    "no credit, in words": (http(400, None, "credit balance is too low"), REJECTED, UNCLEAR, False),
    "quota of a model": (google_quota("RequestsPerDay"), REJECTED, UNCLEAR, False),
    "403": (http(403), DOUBTFUL, UNCLEAR, False),
    "404": (http(404), DOUBTFUL, UNCLEAR, False),
    "no such model": (http(404, "model_not_found"), REJECTED, UNCLEAR, False),
    "410": (http(410), REJECTED, UNCLEAR, False),
    # What a model answers is no failure of it.
    "refusal": (content_refusal(""), ANSWERED, ANSWERED, False),
    "filter": (http(400, "content_filter"), ANSWERED, ANSWERED, False),
    "filter with 403": (http(403, None, "flagged by moderation"), ANSWERED, ANSWERED, False),
    "too long": (http(400, "context_length_exceeded"), ANSWERED, ANSWERED, False),
    "413": (http(413), ANSWERED, ANSWERED, False),
    "400": (http(400), ANSWERED, ANSWERED, False),
    "409": (http(409), ANSWERED, ANSWERED, False),
    "no JSON": (truncation("the response is not whole JSON"), ANSWERED, ANSWERED, False),
    "cut at its length": (
        Failure("truncated", "", retryable=False, billed=True),
        ANSWERED,
        ANSWERED,
        False,
    ),
    # Nobody was called.
    "our store": (
        Failure("connect_error", "", retryable=True, origin="store"),
        NOTHING,
        NOTHING,
        False,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_failure_says(name: str) -> None:
    failure, model, key, is_overload = CASES[name]
    signals = read_signals(failure, duration_s=0.1, latency_s=None)
    assert (signals.model, signals.key, signals.is_overload) == (model, key, is_overload)


def test_an_answer_says_that_all_works() -> None:
    signals = read_signals(None, duration_s=0.1, latency_s=None)
    assert (signals.model, signals.key, signals.is_overload) == (ANSWERED, ANSWERED, False)


@pytest.mark.parametrize(
    ("duration_s", "latency_s", "signal"),
    [
        (29.0, None, UNCLEAR),
        (30.0, None, FAILED),
        (3.9, 1.0, UNCLEAR),
        (4.0, 1.0, FAILED),
        (60.0, 20.0, UNCLEAR),
    ],
)
def test_a_call_that_its_deadline_cut_off_counts_if_it_had_long_enough(
    duration_s: float, latency_s: float | None, signal: Signal
) -> None:
    signals = read_signals(cut(), duration_s=duration_s, latency_s=latency_s)
    assert (signals.model, signals.is_overload) == (signal, signal is FAILED)


@pytest.mark.parametrize("code", ErrorCode.__args__)  # type: ignore[attr-defined]
@pytest.mark.parametrize("origin", ["response", "connection", "store"])
def test_every_code_says_something(code: ErrorCode, origin: str) -> None:
    failure = Failure(code, "", retryable=False, origin=origin)  # type: ignore[arg-type]
    read_signals(failure, duration_s=1.0, latency_s=1.0)
