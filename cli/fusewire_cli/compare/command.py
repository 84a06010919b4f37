"""`fusewire compare`: which of two models or two pools to ship."""

import asyncio
import dataclasses
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from fusewire.analysis.compare import Comparison, Names, Rules
from fusewire.analysis.compare import compare as compare_pairs
from fusewire.settings import Database
from fusewire.store.analyst import Analyst, QueryError, comparisons
from fusewire_cli.compare import terminal
from fusewire_cli.screen import EXIT_SOME_FAILED, fail, note
from fusewire_cli.session import settings
from fusewire_cli.since import since_time

TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Output:
    """How the result is given."""

    as_json: bool = False
    html: Path | None = None
    fail_if: str | None = None


def select(
    models: bool, pools: bool, *, pool: str | None, judge: str | None, since: str | None
) -> comparisons.Selection:
    """What the options choose; fails if they contradict each other."""
    if models and pools:
        fail("--models and --pools contradict each other", "leave one out")
    kind: comparisons.Kind | None = "models" if models else None
    return comparisons.Selection("pools" if pools else kind, pool, judge, since_time(since))


def run(a: str, b: str, selection: comparisons.Selection, rules: Rules, output: Output) -> None:
    """Compare, and print; exit code 3 if `fail_if` holds."""
    if output.fail_if not in {None, "skip"}:
        fail(f"--fail-if knows no '{output.fail_if}'", "write --fail-if skip")
    comparison = asyncio.run(compare(settings().database, a, b, selection, rules))
    if output.html:
        from fusewire_cli.compare import html

        try:
            output.html.write_text(html.render(comparison), encoding="utf-8")
        except OSError as exc:
            fail(f"{output.html} cannot be written: {exc.strerror}", "name another file")
        note(f"fusewire: wrote {output.html}")
    print(as_json(comparison) if output.as_json else terminal.render(comparison))
    if output.fail_if and comparison.is_skip:
        raise SystemExit(EXIT_SOME_FAILED)


async def compare(
    database: Database, a: str, b: str, selection: comparisons.Selection, rules: Rules
) -> Comparison:
    """Read what is stored, and compare; fails with exit code 2 if there is nothing to compare."""
    try:
        async with Analyst(database, timeout_s=TIMEOUT_S, trusted=True) as analyst:
            names = await comparisons.find_names(analyst.fetch, a, b, selection.kind)
            reading = await comparisons.read(analyst.fetch, names, selection)
    except QueryError as exc:
        fail(exc.what, exc.mend)
    if reading.is_cut:
        note(f"fusewire: only the newest {comparisons.MOST_OUTCOMES:,} outcomes are compared")
    if not reading.pairs:
        _fail_empty(names, selection)
    return compare_pairs(names, rules, reading.pairs, reading.votes)


def _fail_empty(names: Names, selection: comparisons.Selection) -> NoReturn:
    mend = "fuse the same prompts with both pools"
    if names.kind == "models":
        mend = "fuse prompts with a pool of both"
    if selection.since or selection.pool:
        mend += ", or leave out --since and --pool"
    fail(f"no prompt has outcomes of both {names.a} and {names.b}", mend)


def as_json(comparison: Comparison) -> str:
    """The comparison as one JSON document."""
    document = dataclasses.asdict(comparison) | {"is_skip": comparison.is_skip}
    return json.dumps(document, default=_plain, ensure_ascii=False)


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
