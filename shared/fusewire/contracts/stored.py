"""A question of a worker that has tasks delivered again, and the judge's answer. Both travel on core NATS."""

from typing import ClassVar

from pydantic import Field

from fusewire.contracts.base import Wire


class StoredQuery(Wire):
    """`fw.stored.<fusion>`: which of these calls need not be made any more?"""

    contract: ClassVar[str] = "stored-query"

    fusion_id: str
    round: int = Field(ge=0)
    calls: tuple[str, ...]


class StoredReply(Wire):
    """The answer: those whose candidates have come; all of them where the fusion is over."""

    contract: ClassVar[str] = "stored-reply"

    calls: tuple[str, ...]
