"""Reasons for which an outcome is degraded are written and read in one way."""

import json

import pytest

from fusewire.contracts.degraded import DegradedReason

REASONS = [
    (DegradedReason("schema_unmet"), "schema_unmet", "schema_unmet", None),
    (DegradedReason("failed", "gpt", "busy"), "failed:gpt:busy", "failed", "gpt"),
    (DegradedReason("missing", "gpt", "0.33:quorum"), "missing:gpt:0.33:quorum", "missing", "gpt"),
    (DegradedReason("judge_failed", "timeout"), "judge_failed:timeout", "judge_failed", "timeout"),
]


@pytest.mark.parametrize(("reason", "text", "code", "subject"), REASONS)
def test_a_reason_is_its_text(
    reason: DegradedReason, text: str, code: str, subject: str | None
) -> None:
    assert reason == text
    assert json.dumps([reason]) == json.dumps([text])
    stored = DegradedReason.parse(text)
    assert (stored, stored.code, stored.subject) == (text, code, subject)


def test_a_reason_of_another_version_is_read() -> None:
    assert DegradedReason.parse("tired:gpt").code == "tired"
