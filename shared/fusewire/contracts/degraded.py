"""Why an outcome did not come about as it should have."""

from dataclasses import dataclass
from typing import Literal, Self, cast, get_args

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
CODES: tuple[str, ...] = get_args(DegradedCode)


@dataclass(frozen=True)
class DegradedReason:
    """One reason; its text is what tables, replies and messages hold.

    >>> str(DegradedReason("missing", "gpt", "0.33:deadline"))
    'missing:gpt:0.33:deadline'
    >>> DegradedReason.parse("missing:gpt:0.33:deadline").subject
    'gpt'
    """

    code: DegradedCode
    subject: str | None = None
    """What it is about: a member, a limit, or how a step failed."""
    detail: str | None = None

    def __str__(self) -> str:
        return ":".join(part for part in (self.code, self.subject, self.detail) if part)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reason's text. Raises ValueError where its code is unknown."""
        code, _, rest = text.partition(":")
        if code not in CODES:
            raise ValueError(f"'{code}' is no reason for which an outcome is degraded")
        subject, _, detail = rest.partition(":")
        return cls(cast("DegradedCode", code), subject or None, detail or None)
