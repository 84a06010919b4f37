"""A worker's query after a redelivery, and the judge's reply. Both travel on core NATS."""

from typing import ClassVar

from pydantic import Field

from fusewire.contracts.base import Wire


class StoredQuery(Wire):
    """`fw.stored.<fusion>`: asks which of these calls need not be made any more."""

    contract: ClassVar[str] = "stored-query"

    fusion_id: str
    round: int = Field(ge=0)
    calls: tuple[str, ...]


class StoredReply(Wire):
    """The calls whose candidates are stored; all of them if the fusion is over."""

    contract: ClassVar[str] = "stored-reply"

    calls: tuple[str, ...]
