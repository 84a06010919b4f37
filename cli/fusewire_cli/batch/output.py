"""Writes the results of a batch to stdout, or to a file that a later run continues."""

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fusewire.contracts import ANSWERED
from fusewire_cli.batch.custom_ids import Ids
from fusewire_cli.client import Form, Order
from fusewire_cli.screen import fail

STDOUT = Path("-")
UNSETTLED = ("batch_cancelled",)
"""Error codes of lines that a stopped batch did not reach: they can still be answered."""
MEND = "choose another output file, or delete this one"


class Output:
    """The file or stream that result lines are written to, as the API sent them."""

    def __init__(self, file: BinaryIO, name: str, *, order: Order, form: Form) -> None:
        self._file = file
        # One byte per line of the input: 1 if the file held its result when it was opened.
        self._present_lines = bytearray()
        self.name = name
        self.order = order
        self.form = form
        self.after = 0
        """The last result that is written: a line number, or a settled number (`seq`)."""
        self.lines = 0
        self.failed = 0

    def go_on(self, size: int, ids: Ids) -> None:
        """Check the results that the file holds already, and continue after them.

        An incomplete last line is cut off.

        Args:
            size: the size of the file, bytes.
            ids: the custom_ids of the batch's lines.

        Raises:
            SystemExit: it belongs to another batch, or has another form or order.
        """
        whole_bytes = last = 0
        is_sorted = True
        for raw in iter(self._file.readline, b""):
            if not raw.endswith(b"\n"):
                break
            whole_bytes += len(raw)
            index = self._check_line(raw, ids)
            is_sorted = is_sorted and index > last
            last = max(last, index)
            self._count(json.loads(raw))
            self._present_lines.extend(bytes(max(0, index + 1 - len(self._present_lines))))
            self._present_lines[index] = 1
        if whole_bytes < size:
            self._file.truncate(whole_bytes)
        self._file.seek(whole_bytes)
        if self.order == "line":
            if not is_sorted or ids.up_to(last) != self.lines:
                fail(
                    f"{self.name} is in the order in which lines settled",
                    f"add --as-completed; or {MEND}",
                )
            self.after = last

    def _check_line(self, raw: bytes, ids: Ids) -> int:
        """Check that a result belongs here. Returns its line number."""
        try:
            line = json.loads(raw)
            index = int(line["index"])
            custom_id = str(line["custom_id"])
            form: Form = "openai" if "response" in line else "outcome"
        except (ValueError, KeyError, TypeError):
            fail(f"{self.name} holds something else", MEND)
        if ids.line(custom_id) != index or self._has(index):
            fail(
                f"{self.name} belongs to another input: it has '{custom_id}' for line {index}", MEND
            )
        if form != self.form:
            fail(f"{self.name} was written with --output-format {form}", f"add that; or {MEND}")
        return index

    def take(self, raw: bytes, line: dict[str, Any]) -> None:
        """Write a result that the API sent, unless it is written already."""
        index = int(line["index"])
        self.after = index if self.order == "line" else int(line["seq"])
        if not self._has(index):
            self._file.write(raw + b"\n")
            self._count(line)

    def _has(self, index: int) -> bool:
        return index < len(self._present_lines) and bool(self._present_lines[index])

    def _count(self, line: dict[str, Any]) -> None:
        self.lines += 1
        self.failed += is_failed(line)

    def flush(self) -> None:
        """Make what was written visible to other processes."""
        self._file.flush()

    def keep(self) -> None:
        """Sync the file to disk, so that it survives a crash of the machine."""
        self._file.flush()
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())


def is_failed(line: dict[str, Any]) -> bool:
    """Whether a result holds no answer."""
    if "response" in line:
        return (
            line["error"] is not None
            or line["response"] is None
            or line["response"]["status_code"] >= 400
        )
    return line["status"] not in ANSWERED


def is_unsettled(line: dict[str, Any]) -> bool:
    """Whether a result only says that the batch was stopped before this line."""
    error = line.get("error")
    code = error.get("code") if isinstance(error, dict) else line.get("error_code")
    return code in UNSETTLED


@contextlib.contextmanager
def open_output(path: Path, ids: Ids, *, order: Order, form: Form) -> Iterator[Output]:
    """An output, positioned after the results that it holds already.

    Raises:
        SystemExit: see `Output.go_on`; or another process writes to it, or it cannot be written.
    """
    if path == STDOUT:
        yield Output(sys.stdout.buffer, "stdout", order=order, form=form)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as exc:
        fail(f"{path} cannot be written: {exc.strerror}", "choose another output file")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            fail(
                f"{path} is being written by another run",
                "wait for it, or choose another output file",
            )
        output = Output(file, str(path), order=order, form=form)
        file.seek(0)
        output.go_on(path.stat().st_size, ids)
        yield output
        output.keep()
