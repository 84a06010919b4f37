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


def stored_json(outcome: Outcome) -> dict[str, Any]:
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
    report_line = report(7, "one", ANSWERED.fusion_id, stored_json(ANSWERED), None, "openai")

    assert list(report_line) == ["id", "custom_id", "response", "error", "index"]
    assert (report_line["custom_id"], report_line["error"], report_line["index"]) == (
        "one",
        None,
        7,
    )
    assert report_line["response"]["status_code"] == 200
    assert report_line["response"]["request_id"] == ANSWERED.fusion_id
    body = ChatCompletion.model_validate(report_line["response"]["body"], strict=True)
    assert body.choices[0].message.content == "Paris."
    assert body.created == int(ANSWERED.finished_at.timestamp())
    assert body.model == "fusewire/default"
    assert report_line["response"]["body"]["fusion"]["outcome_id"] == ANSWERED.fusion_id


def test_one_models_answer_bears_its_name() -> None:
    alone = ANSWERED.model_copy(update={"answers": (answer(),)})
    report_line = report(1, "one", alone.fusion_id, stored_json(alone), None, "openai")

    assert report_line["response"]["body"]["model"] == "m-a"


def test_a_failure_says_the_same_twice() -> None:
    report_line = report(2, "one", FAILED.fusion_id, stored_json(FAILED), None, "openai")

    assert report_line["error"] == {
        "code": "all_panels_failed",
        "message": report_line["response"]["body"]["error"]["message"],
        "param": None,
        "retryable": True,
        "stage": "panel",
        "model": "m-a",
        "attempts": None,
    }
    assert report_line["response"]["status_code"] == 424
    assert report_line["response"]["body"]["error"]["code"] == "all_panels_failed"


def test_a_line_without_an_outcome_has_only_its_error() -> None:
    report_line = report(
        3, "one", None, None, {**EXPIRED, "stage": "panel", "attempts": 0}, "openai"
    )

    assert report_line["response"] is None
    assert (
        report_line["error"]["code"],
        report_line["error"]["retryable"],
        report_line["error"]["attempts"],
    ) == (
        "batch_expired",
        True,
        0,
    )
    refused_line = report(
        3,
        "one",
        None,
        None,
        {"code": "model_not_found", "message": "m", "param": "body.model"},
        "openai",
    )
    assert (refused_line["error"]["param"], refused_line["error"]["retryable"]) == (
        "body.model",
        False,
    )
    assert report_line["id"] == "batch_req_3"


def test_the_flat_form_is_what_the_api_shows() -> None:
    report_line = report(4, "one", ANSWERED.fusion_id, stored_json(ANSWERED), None, "outcome")
    standing = FusionStatus(ANSWERED.fusion_id, "b1", "one", ANSWERED.submitted_at, ANSWERED)

    assert report_line == {**as_reply(standing), "index": 4}
    assert list(report_line)[:3] == ["is_degraded", "degraded_reasons", "status"]


@pytest.mark.parametrize(
    ("code", "status"),
    [("batch_expired", "expired"), ("batch_cancelled", "cancelled"), ("model_not_found", "failed")],
)
def test_the_flat_form_of_a_line_without_an_outcome(code: str, status: str) -> None:
    report_line = report(
        5, "one", None, None, {"code": code, "message": "m", "param": "p"}, "outcome"
    )

    assert list(report_line)[:3] == ["is_degraded", "degraded_reasons", "status"]
    assert (
        report_line["status"],
        report_line["error"],
        report_line["error_code"],
        report_line["error_param"],
    ) == (
        status,
        "m",
        code,
        "p",
    )
    assert (report_line["id"], report_line["custom_id"], report_line["index"]) == (None, "one", 5)
    assert report(5, "one", None, None, None, "outcome")["status"] == "running"


def test_every_line_is_one_line_of_json() -> None:
    for outcome, error in (
        (stored_json(ANSWERED), None),
        (stored_json(FAILED), None),
        (None, EXPIRED),
    ):
        for form in ("openai", "outcome"):
            report_line = report(1, "a\nb", "f1", outcome, error, form)
            assert json.loads(json.dumps(report_line, allow_nan=False)) == report_line


def test_an_answer_is_never_retried() -> None:
    assert is_answered(stored_json(ANSWERED))
    assert not is_retryable(stored_json(ANSWERED))
    assert not is_answered(stored_json(FAILED))
    assert is_retryable(stored_json(FAILED))


def test_an_outcome_of_an_older_version_is_read() -> None:
    old = {
        name: value
        for name, value in stored_json(ANSWERED).items()
        if name not in ("closed_by", "answer_kind", "tool_calls", "judge_model", "degraded_reasons")
    }
    old["answers"] = [{"member": "a", "model": "m-a", "tier": "edge", "status": "ok"}]
    body = report(1, "one", "f1", old, None, "openai")["response"]["body"]

    ChatCompletion.model_validate(body, strict=True)
    assert body["fusion"]["members"][0]["prompt_tokens"] is None
