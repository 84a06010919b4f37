"""The check of a batch's input: all of it, before anything of it is spent."""

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
from fusewire_ingest.intake import Intake
from fusewire_ingest.openai import batch_line
from fusewire_ingest.repository.batches import Batch, Batches
from fusewire_ingest.repository.files import Files
from fusewire_ingest.repository.lines import BatchLines, HeldLine

GROUP = 500
"""Lines that are committed at once."""
TURN = 25
"""Lines that are read before others have their turn."""
MOST_FAULTS = 20

Fault = dict[str, Any]
"""One of OpenAI's `errors.data`: `code`, `line`, `message`, `param`."""


@dataclass(frozen=True)
class LineRules:
    """What lines must keep to."""

    pools: Mapping[str, PoolRule]
    default_pool: Callable[[str], str]
    """Of a tenant."""
    line_bytes: int
    most_lines: int


class Reader:
    """Makes prompts of a batch's lines: the same at the check and at the release."""

    def __init__(self, intake: Intake, rules: LineRules) -> None:
        self._intake = intake
        self.rules = rules

    def read(self, batch: Batch, number: int, data: bytes) -> tuple[Prompt, Sequence[str]]:
        """The prompt of a line, due when its batch expires at the latest, and warnings. Raises RefusedError."""
        asked, rules = batch.asked.get("x_fusewire", {}), self.rules
        line = batch_line.read(
            data,
            rules.line_bytes,
            rules.pools,
            rules.default_pool(batch.tenant),
            pool=asked.get("pool"),
            mode=asked.get("mode"),
            endpoint=batch.endpoint,
        )
        changes: dict[str, Any] = {"batch_id": batch.batch_id, "custom_id": line.custom_id}
        if line.submission.priority is None:
            changes["priority"] = batch.priority
        found = self._intake.admit(
            line.submission.model_copy(update=changes),
            tenant=batch.tenant,
            fallback_id=f"line-{number}",
        )
        prompt = found.model_copy(update={"deadline_at": min(found.deadline_at, batch.expires_at)})
        return prompt, line.warnings


class InputCheck:
    """Reads an input once, a line at a time, and notes where each line stands in it."""

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
        """Check it; returns how many lines it has and the first faults. Raises Transient."""
        file = await self._files.get(batch.tenant, batch.input_file_id, self._clock())
        if file is None:
            return 0, [
                _fault(None, "unknown_file", f"there is no file '{batch.input_file_id}' any more")
            ]
        rules = self._reader.rules
        book = await self._book() if batch.max_cost_usd is not None else None
        total = 0
        faults: list[Fault] = []
        group: dict[str, HeldLine] = {}
        async for number, offset, data in located_lines(self._files.content(file), rules.line_bytes):
            total += 1
            try:
                _check_count(total, rules.most_lines)
                prompt, warnings = self._reader.read(batch, number, data)
                if book:
                    _check_price(prompt, book)
                if other := group.get(prompt.custom_id):
                    raise _taken(prompt.custom_id, other.line)
                told = json.dumps(warnings) if warnings else None
                group[prompt.custom_id] = HeldLine(
                    number, prompt.custom_id, offset, len(data), told
                )
            except RefusedError as exc:
                faults.append(_fault(number, exc.code, exc.message, exc.param))
            if len(faults) >= MOST_FAULTS or total > rules.most_lines:
                break
            if len(group) >= GROUP:
                faults += await self._keep(batch, group)
            if total % TURN == 0:
                await asyncio.sleep(0)
        faults += await self._keep(batch, group)
        if not total:
            faults.append(_fault(None, "invalid_request", "the file has no lines"))
        return total, faults[:MOST_FAULTS]

    async def _keep(self, batch: Batch, group: dict[str, HeldLine]) -> list[Fault]:
        held = dict(group)
        group.clear()
        if not held:
            return []
        taken = await self._lines.add(batch.batch_id, list(held.values()))
        await self._batches.change(batch.batch_id, touched_at=self._clock())
        found = []
        for custom_id, line in taken.items():
            fault = _taken(custom_id, line)
            found.append(_fault(held[custom_id].line, fault.code, fault.message, fault.param))
        return found


def _check_count(total: int, most: int) -> None:
    if total > most:
        raise RefusedError("file_too_large", f"a batch has at most {most} lines; split the file")


def _check_price(prompt: Prompt, book: Catalogue) -> None:
    found = estimate(prompt, book)
    if found.unpriced:
        named = ", ".join(f"'{model}'" for model in found.unpriced)
        raise RefusedError(
            "price_unknown",
            f"the price of {named} is not known, so max_cost_usd cannot be kept; the operator can set "
            "input_usd_per_mtok and output_usd_per_mtok for it (0 where it costs nothing)",
        )


def _taken(custom_id: str, line: int) -> RefusedError:
    return RefusedError(
        "custom_id_conflict",
        f"'{custom_id}' stands in line {line} already; give each line its own",
        "custom_id",
    )


def _fault(line: int | None, code: str, message: str, param: str | None = None) -> Fault:
    return {"code": code, "line": line, "message": message, "param": param}
