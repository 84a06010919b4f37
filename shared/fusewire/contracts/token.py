"""The token: a piece of an answer that is being written."""

from typing import ClassVar

from pydantic import Field

from fusewire.contracts.base import Wire


class Token(Wire):
    """`fw.token.<fusion>`: a worker to whoever reads along. Not stored: losing one harms nobody.

    The outcome is what counts. Pieces that are lost, or of an attempt that broke off, show by `offset`.
    """

    contract: ClassVar[str] = "token"

    fusion_id: str
    round: int = Field(ge=0)
    call: str
    attempt: int = Field(default=1, ge=1)
    """A call that is made again writes from its beginning."""
    offset: int = Field(ge=0)
    """Characters of this attempt's text before this piece."""
    text: str
