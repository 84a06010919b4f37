"""What is answered to a request that cannot be served."""

from typing import Any, NotRequired

# Pydantic reads no other before Python 3.12.
from typing_extensions import TypedDict


class ErrorDetail(TypedDict):
    """What went wrong, and how to mend it."""

    message: str
    type: str
    param: str | None
    code: str | int
    """A word; at OpenRouter's addresses the status, with the word in `metadata`."""
    metadata: NotRequired[dict[str, Any]]
    fusion: NotRequired[dict[str, Any]]


class Error(TypedDict):
    """Every answer with a status of 400 and more."""

    error: ErrorDetail
