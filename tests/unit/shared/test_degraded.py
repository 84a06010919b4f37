"""Reasons for which an outcome is degraded are written and read in one way."""

import pytest

from fusewire.contracts.degraded import DegradedReason

REASONS = [
    (DegradedReason("schema_unmet"), "schema_unmet"),
    (DegradedReason("failed", "gpt", "rate_limited"), "failed:gpt:rate_limited"),
    (DegradedReason("missing", "gpt", "0.33:deadline"), "missing:gpt:0.33:deadline"),
    (DegradedReason("judge_failed", "no_answer"), "judge_failed:no_answer"),
]


@pytest.mark.parametrize(("reason", "text"), REASONS)
def test_a_reason_is_its_text(reason: DegradedReason, text: str) -> None:
    assert str(reason) == text
    assert DegradedReason.parse(text) == reason


@pytest.mark.parametrize("text", ["", "tired", "tired:gpt", ":gpt"])
def test_what_is_no_reason_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no reason"):
        DegradedReason.parse(text)
