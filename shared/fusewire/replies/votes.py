"""People's votes for the answers of an outcome."""

from typing import Literal

# Pydantic reads no other before Python 3.12.
from typing_extensions import TypedDict


class Vote(TypedDict):
    """A vote as it stands."""

    object: Literal["vote"]
    outcome_id: str
    choice: str
    """A member, `fused` (the outcome's own answer), `tie` or `none`."""
    created_at: str
    """When the voter first voted for the outcome."""
    changed_at: str
    """When the voter chose this."""
    is_new: bool
    """Whether it is the voter's first for the outcome."""
    is_changed: bool
    """Whether this request replaced an earlier choice."""


class VoteCounts(TypedDict):
    """`GET /v1/outcomes/{id}/votes`."""

    object: Literal["vote_counts"]
    outcome_id: str
    n: int
    """All votes."""
    counts: dict[str, int]
    """By each valid choice; empty for an outcome without an answer."""
