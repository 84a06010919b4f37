"""The token: a piece of an answer that is being written."""

from typing import ClassVar

from pydantic import Field

from fusewire.contracts.base import Wire


class Token(Wire):
    """`fw.token.<fusion>`: a worker to clients that stream. Not stored: losing one is harmless.

    The outcome holds the whole text. Readers detect lost pieces and aborted attempts by `offset`.
    """

    contract: ClassVar[str] = "token"

    fusion_id: str
    round: int = Field(ge=0)
    call: str
    attempt: int = Field(default=1, ge=1)
    """Counts calls of the same task; each attempt writes its text from the beginning."""
    offset: int = Field(ge=0)
    """Characters of this attempt's text before this piece."""
    text: str
