"""The check of a batch's whole input, before any of its lines is submitted."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fusewire.contracts import Prompt
from fusewire_ingest.admission.admit import PoolRule
from fusewire_ingest.admission.estimate import Catalogue, estimate
from fusewire_ingest.admission.jsonl import located_lines
from fusewire_ingest.admission.refusal import RefusedError
from fusewire_ingest.admission.rules import default_pool
from fusewire_ingest.intake import Intake
from fusewire_ingest.openai import batch_line
from fusewire_ingest.repository.batches import Batch, Batches
from fusewire_ingest.repository.files import File, Files
from fusewire_ingest.repository.lines import BatchLines, HeldLine

GROUP = 500
"""Lines that are committed at once."""
TURN = 5
"""Lines that are read before other tasks of the event loop have their turn."""
MOST_FAULTS = 20
"""The check stops after so many faults."""

Fault = dict[str, Any]
"""One of OpenAI's `errors.data`: `code`, `line`, `message`, `param`."""


@dataclass(frozen=True)
class LineRules:
    """Rules for the lines of batches."""

    pools: Callable[[str], Mapping[str, PoolRule]]
    """By tenant, the pools that it may use."""
    line_bytes: int
    """The most bytes of a line."""
    most_lines: int
    """The most lines of a batch."""


class Reader:
    """Makes prompts of a batch's lines, in the same way at the check and at the submission."""

    def __init__(self, intake: Intake, rules: LineRules) -> None:
        self._intake = intake
        self.rules = rules

    def read(self, batch: Batch, number: int, data: bytes) -> tuple[Prompt, Sequence[str]]:
        """Make a prompt of a line; returns it with warnings.

        Its deadline is at the latest when its batch expires. Raises RefusedError.
        """
        options, rules = batch.parsed_options.get("x_fusewire", {}), self.rules
        pools = rules.pools(batch.tenant)
        line = batch_line.read(
            data,
            rules.line_bytes,
            pools,
            default_pool(pools),
            pool=options.get("pool"),
            mode=options.get("mode"),
            endpoint=batch.endpoint,
        )
        changes: dict[str, Any] = {"batch_id": batch.batch_id, "custom_id": line.custom_id}
        if line.submission.priority is None:
            changes["priority"] = batch.priority
        prompt = self._intake.admit(
            line.submission.model_copy(update=changes),
            tenant=batch.tenant,
            fallback_id=f"line-{number}",
            key_id=batch.key_id,
        )
        deadline_at = min(prompt.deadline_at, batch.expires_at)
        return prompt.model_copy(update={"deadline_at": deadline_at}), line.warnings


class InputCheck:
    """Reads an input once, a line at a time, and stores the place of each line in it."""

    def __init__(
        self,
        files: Files,
        batches: Batches,
        lines: BatchLines,
        *,
        reader: Reader,
        book: Callable[[], Awaitable[Catalogue]],
        clock: Callable[[], datetime],
    ) -> None:
        self._files = files
        self._batches = batches
        self._lines = lines
        self._reader = reader
        self._book = book
        self._clock = clock

    async def run(self, batch: Batch) -> tuple[int, list[Fault]]:
        """Check a batch's input, and store its lines as held.

        Returns:
            How many lines were read, and the first faults, at most MOST_FAULTS.

        Raises:
            Transient: the check must begin again.
        """
        file = await self._files.get(batch.tenant, batch.input_file_id, self._clock())
        if file is None:
            message = f"there is no file '{batch.input_file_id}' any more"
            return 0, [_fault(None, RefusedError("unknown_file", message))]
        book = await self._book() if batch.max_cost_usd is not None else None
        total, faults = await self._check_lines(batch, file, book)
        if not total:
            faults.append(_fault(None, RefusedError("invalid_request", "the file has no lines")))
        return total, faults[:MOST_FAULTS]

    async def _check_lines(
        self, batch: Batch, file: File, book: Catalogue | None
    ) -> tuple[int, list[Fault]]:
        rules = self._reader.rules
        total = 0
        faults: list[Fault] = []
        group: dict[str, HeldLine] = {}
        async for number, offset, data in located_lines(
            self._files.content(file), rules.line_bytes
        ):
            total += 1
            try:
                _check_count(total, rules.most_lines)
                line = self._check_line(batch, number, offset, data, book)
                _add_to(group, line)
            except RefusedError as exc:
                faults.append(_fault(number, exc))
            if len(faults) >= MOST_FAULTS or total > rules.most_lines:
                break
            if len(group) >= GROUP:
                faults += await self._store_group(batch, group)
            if total % TURN == 0:
                await asyncio.sleep(0)
        faults += await self._store_group(batch, group)
        return total, faults

    def _check_line(
        self, batch: Batch, number: int, offset: int, data: bytes, book: Catalogue | None
    ) -> HeldLine:
        """Check one line; returns its place in the input. Raises RefusedError."""
        prompt, warnings = self._reader.read(batch, number, data)
        if book:
            _check_price(prompt, book)
        warnings_json = json.dumps(warnings) if warnings else None
        # Its place and not its text, which the file has already (docs/decisions/0021).
        return HeldLine(number, prompt.custom_id, offset, len(data), warnings_json)

    async def _store_group(self, batch: Batch, group: dict[str, HeldLine]) -> list[Fault]:
        """Store a group of lines and clear it; returns a fault for each custom_id used before."""
        lines = dict(group)
        group.clear()
        if not lines:
            return []
        conflicts = await self._lines.add(batch.batch_id, list(lines.values()))
        # A sign of life: without it another process begins the check again.
        await self._batches.change(batch.batch_id, touched_at=self._clock())
        return [
            _fault(lines[custom_id].line, _custom_id_conflict(custom_id, other_line))
            for custom_id, other_line in conflicts.items()
        ]


def _add_to(group: dict[str, HeldLine], line: HeldLine) -> None:
    """Add a line by its custom_id. Raises RefusedError if another line of the group has it."""
    if twin := group.get(line.custom_id):
        raise _custom_id_conflict(line.custom_id, twin.line)
    group[line.custom_id] = line


def _check_count(total: int, most: int) -> None:
    if total > most:
        raise RefusedError("file_too_large", f"a batch has at most {most} lines; split the file")


def _check_price(prompt: Prompt, book: Catalogue) -> None:
    unpriced_models = estimate(prompt, book).unpriced
    if unpriced_models:
        names = ", ".join(f"'{model}'" for model in unpriced_models)
        raise RefusedError(
            "price_unknown",
            f"the price of {names} is not known, so max_cost_usd cannot be kept; the operator can "
            "set input_usd_per_mtok and output_usd_per_mtok for it (0 where it costs nothing)",
        )


def _custom_id_conflict(custom_id: str, other_line: int) -> RefusedError:
    return RefusedError(
        "custom_id_conflict",
        f"'{custom_id}' stands in line {other_line} already; give each line its own",
        "custom_id",
    )


def _fault(line: int | None, error: RefusedError) -> Fault:
    return {"code": error.code, "line": line, "message": error.message, "param": error.param}
