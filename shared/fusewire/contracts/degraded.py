"""Why an outcome did not come about as it should have."""

from typing import Literal, Self

DegradedCode = Literal[
    # A member did not take part.
    "excluded", "missing", "failed",
    # A member answered, and its answer does not count.
    "empty", "refused", "looped", "no_call", "off_schema", "invalid_call",
    # The answer that is returned falls short.
    "winner_cut", "schema_unmet", "merge_cut_at_length",
    # A step of the fusion failed, or was left out.
    "judge_failed", "verdict_void", "guard_failed", "analysis_failed", "merge_failed", "capped",
    # There was no fusion.
    "never_planned", "undecidable",
]  # fmt: skip


class DegradedReason(str):
    """A reason as tables, replies and messages hold it.

    It is the text `code`, `code:subject` or `code:subject:detail`.

    Args:
        code: what happened.
        subject: what it is about: a member, a limit, or how a step failed.
        detail: more about it.

    >>> DegradedReason("missing", "gpt", "0.33:deadline")
    'missing:gpt:0.33:deadline'
    >>> DegradedReason.parse("missing:gpt:0.33:deadline").subject
    'gpt'
    """

    __slots__ = ()

    def __new__(
        cls, code: DegradedCode, subject: str | None = None, detail: str | None = None
    ) -> Self:
        """Join the parts that are given."""
        return super().__new__(cls, ":".join(part for part in (code, subject, detail) if part))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a stored reason. Another version may have written a code that this one has not."""
        return super().__new__(cls, text)

    @property
    def code(self) -> str:
        """What happened."""
        return self.partition(":")[0]

    @property
    def subject(self) -> str | None:
        """What it is about: a member, a limit, or how a step failed."""
        return self.partition(":")[2].partition(":")[0] or None
