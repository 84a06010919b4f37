"""The form of a provider's table of errors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fusewire.contracts import ErrorCode


@dataclass(frozen=True, slots=True)
class MessagePattern:
    """A wording of messages, for errors without a code."""

    code: ErrorCode
    pattern: re.Pattern[str]
    """Searched for in the message, which is in lower case."""
    statuses: frozenset[int]
    """The HTTP statuses with which the wording counts."""


@dataclass(frozen=True, slots=True)
class ErrorTable:
    """Codes, types, reasons and wordings of one provider."""

    codes: Mapping[str, ErrorCode] = field(default_factory=dict)
    """Its codes and types, in lower case."""
    statuses: Mapping[str, int] = field(default_factory=dict)
    """Statuses of its codes and types, for errors in a stream that had begun with 200."""
    numbers: Mapping[int, str] = field(default_factory=dict)
    """Codes of its numbers."""
    reasons: Mapping[str, ErrorCode] = field(default_factory=dict)
    """Its reasons and names of quotas, in the details of an error."""
    wordings: tuple[MessagePattern, ...] = ()


def wording(code: ErrorCode, *patterns: str, statuses: tuple[int, ...]) -> MessagePattern:
    """Return a wording that matches where any of the patterns does."""
    return MessagePattern(code, re.compile("|".join(patterns)), frozenset(statuses))
