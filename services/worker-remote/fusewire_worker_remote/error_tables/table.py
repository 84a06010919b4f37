"""What a provider's table of errors holds."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fusewire.contracts import ErrorCode


@dataclass(frozen=True, slots=True)
class MessagePattern:
    """What a message says where no code tells."""

    code: ErrorCode
    pattern: re.Pattern[str]
    """Found in the message, in lower case."""
    statuses: frozenset[int]
    """The HTTP statuses with which it is believed."""


@dataclass(frozen=True, slots=True)
class ErrorTable:
    """Codes, types, reasons and words of one provider."""

    codes: Mapping[str, ErrorCode] = field(default_factory=dict)
    """Its codes and types, in lower case."""
    statuses: Mapping[str, int] = field(default_factory=dict)
    """Its codes and types that stand for a status, for errors in a stream that had begun with 200."""
    numbers: Mapping[int, str] = field(default_factory=dict)
    """Its numbers, as codes."""
    reasons: Mapping[str, ErrorCode] = field(default_factory=dict)
    """What the details of an error give as the reason, or as the quota that is used up."""
    wordings: tuple[MessagePattern, ...] = ()


def wording(code: ErrorCode, *patterns: str, statuses: tuple[int, ...]) -> MessagePattern:
    """A wording of which any of the patterns is enough."""
    return MessagePattern(code, re.compile("|".join(patterns)), frozenset(statuses))
