"""The reply to a request that cannot be served."""

from typing import Any, NotRequired

# Pydantic reads no other before Python 3.12.
from typing_extensions import TypedDict


class ErrorDetail(TypedDict):
    """What went wrong, and how to fix it."""

    message: str
    type: str
    param: str | None
    code: str | int
    """An error code; at OpenRouter's addresses the HTTP status, with the code in `metadata`."""
    metadata: NotRequired[dict[str, Any]]
    fusion: NotRequired[dict[str, Any]]


class Error(TypedDict):
    """Every reply with a status of 400 or more."""

    error: ErrorDetail
