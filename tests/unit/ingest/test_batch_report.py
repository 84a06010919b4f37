"""Lines of a batch's output: OpenAI's shape, and outcomes as the API shows them."""

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from fusewire.contracts import Answer, Outcome
from fusewire.store.queries import FusionStatus, as_reply
from fusewire.testing.factories import make_outcome
from fusewire_ingest.openai.batch_report import is_answered, is_retryable, report


def answer(status: str = "ok", error_code: str | None = None, **more: Any) -> Answer:
    fields = {
        "member": "a",
        "model": "m-a",
        "tier": "edge",
        "status": status,
        "error_code": error_code,
    }
    return Answer.model_validate({**fields, **more})


def stored(outcome: Outcome) -> dict[str, Any]:
    return dict(json.loads(outcome.encode()))


ANSWERED = make_outcome(batch_id="b1", answers=(answer(), answer(member="b", model="m-b")))
FAILED = make_outcome(
    status="failed",
    is_degraded=True,
    content=None,
    winner=None,
    error="every member failed (timeout)",
    answers=(answer("error", "timeout"),),
)
EXPIRED = {"code": "batch_expired", "message": "the window closed before it was asked"}


def test_an_answer_is_openais_line() -> None:
    made = report(7, "one", ANSWERED.fusion_id, stored(ANSWERED), None, "openai")

    assert list(made) == ["id", "custom_id", "response", "error", "index"]
    assert (made["custom_id"], made["error"], made["index"]) == ("one", None, 7)
    assert made["response"]["status_code"] == 200
    assert made["response"]["request_id"] == ANSWERED.fusion_id
    body = ChatCompletion.model_validate(made["response"]["body"], strict=True)
    assert body.choices[0].message.content == "Paris."
    assert body.created == int(ANSWERED.finished_at.timestamp())
    assert body.model == "fusewire/default"
    assert made["response"]["body"]["fusion"]["outcome_id"] == ANSWERED.fusion_id


def test_one_models_answer_bears_its_name() -> None:
    alone = ANSWERED.model_copy(update={"answers": (answer(),)})
    made = report(1, "one", alone.fusion_id, stored(alone), None, "openai")

    assert made["response"]["body"]["model"] == "m-a"


def test_a_failure_says_the_same_twice() -> None:
    made = report(2, "one", FAILED.fusion_id, stored(FAILED), None, "openai")

    assert made["error"] == {
        "code": "all_panels_failed",
        "message": made["response"]["body"]["error"]["message"],
        "param": None,
        "retryable": True,
        "stage": "panel",
        "model": "m-a",
        "attempts": None,
    }
    assert made["response"]["status_code"] == 424
    assert made["response"]["body"]["error"]["code"] == "all_panels_failed"


def test_a_line_without_an_outcome_has_only_its_error() -> None:
    made = report(3, "one", None, None, {**EXPIRED, "stage": "panel", "attempts": 0}, "openai")

    assert made["response"] is None
    assert (made["error"]["code"], made["error"]["retryable"], made["error"]["attempts"]) == (
        "batch_expired",
        True,
        0,
    )
    refused = report(
        3,
        "one",
        None,
        None,
        {"code": "model_not_found", "message": "m", "param": "body.model"},
        "openai",
    )
    assert (refused["error"]["param"], refused["error"]["retryable"]) == ("body.model", False)
    assert made["id"] == "batch_req_3"


def test_the_flat_form_is_what_the_api_shows() -> None:
    made = report(4, "one", ANSWERED.fusion_id, stored(ANSWERED), None, "outcome")
    standing = FusionStatus(ANSWERED.fusion_id, "b1", "one", ANSWERED.submitted_at, ANSWERED)

    assert made == {**as_reply(standing), "index": 4}
    assert list(made)[:3] == ["is_degraded", "degraded_reasons", "status"]


@pytest.mark.parametrize(
    ("code", "status"),
    [("batch_expired", "expired"), ("batch_cancelled", "cancelled"), ("model_not_found", "failed")],
)
def test_the_flat_form_of_a_line_without_an_outcome(code: str, status: str) -> None:
    made = report(5, "one", None, None, {"code": code, "message": "m", "param": "p"}, "outcome")

    assert list(made)[:3] == ["is_degraded", "degraded_reasons", "status"]
    assert (made["status"], made["error"], made["error_code"], made["error_param"]) == (
        status,
        "m",
        code,
        "p",
    )
    assert (made["id"], made["custom_id"], made["index"]) == (None, "one", 5)
    assert report(5, "one", None, None, None, "outcome")["status"] == "running"


def test_every_line_is_one_line_of_json() -> None:
    for outcome, error in ((stored(ANSWERED), None), (stored(FAILED), None), (None, EXPIRED)):
        for form in ("openai", "outcome"):
            made = report(1, "a\nb", "f1", outcome, error, form)
            assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_an_answer_is_never_retried() -> None:
    assert is_answered(stored(ANSWERED))
    assert not is_retryable(stored(ANSWERED))
    assert not is_answered(stored(FAILED))
    assert is_retryable(stored(FAILED))


def test_an_outcome_of_an_older_version_is_read() -> None:
    old = {
        name: value
        for name, value in stored(ANSWERED).items()
        if name not in ("closed_by", "answer_kind", "tool_calls", "judge_model", "degraded_reasons")
    }
    old["answers"] = [{"member": "a", "model": "m-a", "tier": "edge", "status": "ok"}]
    body = report(1, "one", "f1", old, None, "openai")["response"]["body"]

    ChatCompletion.model_validate(body, strict=True)
    assert body["fusion"]["members"][0]["prompt_tokens"] is None
