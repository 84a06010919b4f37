"""Checks a whole input before anything of it is sent."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO

from fusewire.contracts import Prompt
from fusewire_cli.batch.custom_ids import Ids
from fusewire_cli.batch.faults import LineFault
from fusewire_cli.batch.inputs import lines
from fusewire_ingest.admission.admit import PoolRule, RefusedError, admit
from fusewire_ingest.openai import batch_line

MOST_SHOWN = 20
DEFAULT_POOL = "default"
TENANT = "default"
KNOWN_ELSEWHERE = ("unknown_pool", "model_not_found")
"""Error codes of names that a Fusewire elsewhere may know, though this configuration does not."""


@dataclass(frozen=True)
class LineRules:
    """The rules that a line is checked against."""

    pools: dict[str, PoolRule]
    limit: int
    """The most bytes of a line."""
    now: datetime
    most_lines: int
    pool: str | None = None
    mode: str | None = None
    is_elsewhere: bool = False
    """Whether another Fusewire runs the batch and checks pools and models itself."""


@dataclass
class CheckReport:
    """The result of checking an input."""

    digest: str = ""
    """SHA-256 of the file."""
    endpoint: str = batch_line.CHAT_URL
    """The endpoint of the batch: that of its first line."""
    count: int = 0
    count_without_id: int = 0
    """Lines without a custom_id: theirs is `line-<number>`."""
    forms: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    """How many lines have each warning: something asked for is not done, or done otherwise."""
    faults: list[LineFault] = field(default_factory=list)
    """The first 20 of them."""
    n_faults: int = 0

    def blame(self, fault: LineFault) -> None:
        """Record a fault."""
        self.n_faults += 1
        if len(self.faults) < MOST_SHOWN:
            self.faults.append(fault)

    def warn(self, warnings: Iterable[str]) -> None:
        """Record the warnings of a line."""
        for warning in warnings:
            if warning in self.warnings or len(self.warnings) < MOST_SHOWN:
                self.warnings[warning] += 1


def check(
    path: Path, rules: LineRules, ids: Ids, visit: Callable[[Prompt], None] | None = None
) -> CheckReport:
    """Read a whole JSONL file, a line at a time, and check every line.

    Args:
        path: the file.
        rules: what each line is checked against.
        ids: filled with the custom_ids of the lines.
        visit: called with the prompt of each good line.
    """
    report = CheckReport()
    with path.open("rb") as file:
        reader = _HashingReader(file)
        for number, line in lines(reader, rules.limit):
            report.count += 1
            if report.count > rules.most_lines:
                reason = f"a batch has at most {rules.most_lines} lines; split the file"
                report.blame(LineFault(number, None, reason))
                break
            if report.count == 1:
                report.endpoint = batch_line.url_of(line)
            try:
                prompt = _read(number, line, rules, ids, report)
            except RefusedError as exc:
                report.blame(LineFault(number, exc.param, exc.message))
                continue
            if prompt and visit:
                visit(prompt)
        report.digest = reader.digest.hexdigest()
    return report


def _read(
    number: int, raw: bytes, rules: LineRules, ids: Ids, report: CheckReport
) -> Prompt | None:
    """Parse and admit a line.

    Returns:
        The prompt; None where only the Fusewire that runs the batch can check it.

    Raises:
        RefusedError: the line is refused.
    """
    submission = None
    try:
        line = batch_line.read(
            raw,
            rules.limit,
            rules.pools,
            DEFAULT_POOL,
            pool=rules.pool,
            mode=rules.mode,
            endpoint=report.endpoint,
        )
        given_id, submission = line.custom_id, line.submission
        report.forms[line.form] += 1
        report.warn(line.warnings)
    except RefusedError as exc:
        if not _may_be_known_elsewhere(exc, rules):
            raise
        given_id = json.loads(raw).get("custom_id")
    report.count_without_id += given_id is None
    custom_id = given_id or f"line-{number}"
    earlier = ids.add(custom_id, number)
    if earlier is not None:
        reason = f"'{custom_id}' stands in line {earlier} already; give each line its own"
        raise RefusedError("custom_id_conflict", reason, "custom_id")
    if submission is None:
        return None
    try:
        return admit(
            submission, tenant=TENANT, fallback_id=custom_id, pools=rules.pools, now=rules.now
        )
    except RefusedError as exc:
        if not _may_be_known_elsewhere(exc, rules):
            raise
        return None


def _may_be_known_elsewhere(fault: RefusedError, rules: LineRules) -> bool:
    return rules.is_elsewhere and fault.code in KNOWN_ELSEWHERE


class _HashingReader:
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def readline(self, size: int) -> bytes:
        """Read like a file's `readline`."""
        chunk = self._file.readline(size)
        self.digest.update(chunk)
        return chunk
