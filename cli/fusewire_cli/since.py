"""Reads `--since` for every command that has it."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from fusewire.analysis.period import FORMS, parse_time
from fusewire_cli.screen import fail

T = TypeVar("T")


def since_time(text: str | None) -> datetime | None:
    """The time that `--since` names; fails if it names none."""
    return None if text is None else read(lambda now: parse_time(text, now))


def read(parse: Callable[[datetime], T]) -> T:
    """What a parser makes of a period at this moment; its ValueError ends the command."""
    try:
        return parse(datetime.now(UTC))
    except ValueError as exc:
        fail(str(exc), f"--since takes {FORMS}")
