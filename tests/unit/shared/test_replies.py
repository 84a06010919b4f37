"""What the API says of an outcome is what an outcome has."""

from typing import Any

from fusewire import replies
from fusewire.contracts import Answer, Outcome, ToolCall, Usage, Verdict

ONLY_HERE = {"id", "latency_ms", "is_repetition", "is_cancelled"}
ONLY_THERE = {"v", "fusion_id"}


def test_a_fusion_has_every_field_of_an_outcome() -> None:
    assert (
        set(replies.fusions.Fusion.__annotations__) - ONLY_HERE
        == set(Outcome.model_fields) - ONLY_THERE
    )


def test_its_parts_have_every_field_of_theirs() -> None:
    pairs: dict[Any, Any] = {
        replies.fusions.FusionAnswer: Answer,
        replies.fusions.FusionVerdict: Verdict,
        replies.fusions.PlainCall: ToolCall,
        replies.fusions.PlainUsage: Usage,
    }
    for reply, part in pairs.items():
        assert set(reply.__annotations__) == set(part.model_fields), part
