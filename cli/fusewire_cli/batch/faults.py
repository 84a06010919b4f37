"""What is wrong with an input."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from fusewire_cli.screen import fail, note


@dataclass(frozen=True)
class LineFault:
    """Why a line cannot be sent."""

    line: int
    path: str | None
    reason: str

    def __str__(self) -> str:
        if not self.path:
            return f"line {self.line}: {self.reason}"
        # Some reasons begin with the path already.
        reason = self.reason.removeprefix(f"'{self.path}': ")
        return f"line {self.line}, {self.path}: {reason}"


def refuse(source: Path | str, faults: Sequence[LineFault], count: int) -> NoReturn:
    """Say what is wrong with an input, and end."""
    for fault in faults:
        note(str(fault))
    if count > len(faults):
        note(f"and {count - len(faults)} more")
    fail(f"{source} has {count} faults; nothing was sent", "mend these lines and run it again")
