"""The check of a whole input, before anything of it is sent."""

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
KNOWN_THERE = ("unknown_pool", "model_not_found")
"""What a Fusewire elsewhere may know though this configuration does not."""


@dataclass(frozen=True)
class LineRules:
    """What a line must keep to."""

    pools: dict[str, PoolRule]
    limit: int
    """The most bytes of a line."""
    now: datetime
    most_lines: int
    pool: str | None = None
    mode: str | None = None
    is_elsewhere: bool = False
    """Whether the pools are those of another configuration; it then judges them by itself."""


@dataclass
class CheckReport:
    """What the check of an input found."""

    digest: str = ""
    """SHA-256 of the file."""
    endpoint: str = batch_line.CHAT_URL
    """Of the batch, by its first line."""
    count: int = 0
    unnamed: int = 0
    """Lines without a custom_id: theirs is `line-<number>`."""
    forms: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    """What lines ask for and what happens in its place, and how many do."""
    faults: list[LineFault] = field(default_factory=list)
    """The first of them."""
    n_faults: int = 0

    def blame(self, fault: LineFault) -> None:
        """Note a fault."""
        self.n_faults += 1
        if len(self.faults) < MOST_SHOWN:
            self.faults.append(fault)

    def warn(self, warnings: Iterable[str]) -> None:
        """Note what a line is warned of."""
        for warning in warnings:
            if warning in self.warnings or len(self.warnings) < MOST_SHOWN:
                self.warnings[warning] += 1


def check(
    path: Path, rules: LineRules, ids: Ids, visit: Callable[[Prompt], None] | None = None
) -> CheckReport:
    """Read a JSONL file whole, a line at a time.

    Args:
        path: the file.
        rules: what its lines must keep to.
        ids: takes their custom_ids.
        visit: is shown each good line as the prompt that it will be.
    """
    found = CheckReport()
    with path.open("rb") as file:
        hashed = _HashingReader(file)
        for number, data in lines(hashed, rules.limit):
            found.count += 1
            if found.count > rules.most_lines:
                found.blame(
                    LineFault(
                        number,
                        None,
                        f"a batch has at most {rules.most_lines} lines; split the file",
                    )
                )
                break
            if found.count == 1:
                found.endpoint = batch_line.url_of(data)
            try:
                prompt = _read(number, data, rules, ids, found)
            except RefusedError as exc:
                found.blame(LineFault(number, exc.param, exc.message))
                continue
            if prompt and visit:
                visit(prompt)
        found.digest = hashed.digest.hexdigest()
    return found


def _read(
    number: int, data: bytes, rules: LineRules, ids: Ids, found: CheckReport
) -> Prompt | None:
    """The prompt; None where only the Fusewire that it is for can tell. Raises RefusedError."""
    submission = None
    try:
        line = batch_line.read(
            data,
            rules.limit,
            rules.pools,
            DEFAULT_POOL,
            pool=rules.pool,
            mode=rules.mode,
            endpoint=found.endpoint,
        )
        given, submission = line.custom_id, line.submission
        found.forms[line.form] += 1
        found.warn(line.warnings)
    except RefusedError as exc:
        if not _is_known_there(exc, rules):
            raise
        given = json.loads(data).get("custom_id")
    found.unnamed += given is None
    custom_id = given or f"line-{number}"
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
        if not _is_known_there(exc, rules):
            raise
        return None


def _is_known_there(fault: RefusedError, rules: LineRules) -> bool:
    return rules.is_elsewhere and fault.code in KNOWN_THERE


class _HashingReader:
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def readline(self, size: int) -> bytes:
        """As of a file."""
        data = self._file.readline(size)
        self.digest.update(data)
        return data
