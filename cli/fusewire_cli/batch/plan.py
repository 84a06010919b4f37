"""The dry run of a batch: its cost and time, estimated before anything is sent."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from fusewire.contracts import Prompt
from fusewire.errors import Transient
from fusewire.settings import Database, Settings
from fusewire.store.engine import Store
from fusewire_cli.batch.checking import CheckReport
from fusewire_cli.batch.command import checked_input
from fusewire_cli.batch.options import RunOptions
from fusewire_cli.session import settings
from fusewire_ingest.admission.estimate import Catalogue, Estimate, estimate
from fusewire_ingest.admission.rules import load_catalogue

FEWEST = 10
"""The fewest outcomes from which a rate is measured."""
_LAST_BATCH = """
SELECT submitted_at, finished_at FROM v_outcome
WHERE batch_id = (
    SELECT batch_id FROM v_outcome WHERE batch_id IS NOT NULL ORDER BY finished_at DESC LIMIT 1
)
ORDER BY finished_at DESC LIMIT 500
"""


Usd = tuple[float | None, float | None, float | None]
"""The least, the expected, the most; None where a price is unknown."""
NOTHING: Usd = (0.0, 0.0, 0.0)


class BatchEstimate:
    """The estimate of all lines together."""

    def __init__(self, book: Catalogue) -> None:
        self._book = book
        self._only = {name: _priced_only(book, name) for name in book.models}
        self.lines = 0
        self.calls = 0
        self.tokens_in = 0
        self.tokens_out = 0
        self.usd = NOTHING
        self.by_model: dict[str, Usd] = {}
        self.unpriced_models: set[str] = set()
        self.calls_at_edge = 0.0

    def add(self, prompt: Prompt) -> None:
        """Count one more line."""
        line_estimate = estimate(prompt, self._book)
        self.lines += 1
        self.calls += line_estimate.calls
        self.tokens_in += line_estimate.tokens_in
        self.tokens_out += line_estimate.tokens_out
        self.usd = _plus(self.usd, line_estimate)
        self.unpriced_models.update(line_estimate.unpriced)
        self.calls_at_edge += line_estimate.calls * line_estimate.edge_share
        for model in _reachable(prompt, self._book):
            cost = estimate(prompt, self._only[model])
            self.by_model[model] = _plus(self.by_model.get(model, NOTHING), cost)


def _priced_only(book: Catalogue, name: str) -> Catalogue:
    """The catalogue with all prices 0 but one model's, to estimate that model's part of the cost.

    That works because a cost is a sum over models.
    """
    models = {
        other: model if other == name else replace(model, rates=(0.0, 0.0))
        for other, model in book.models.items()
    }
    return replace(book, models=models)


def _reachable(prompt: Prompt, book: Catalogue) -> set[str]:
    """The models that a prompt may call: its members and judges."""
    pool = book.pool(prompt)
    if pool is None:
        return set()
    models = set(prompt.members or (member.model for member in pool.members))
    if prompt.judge:
        models.add(prompt.judge)
    else:
        models.update(pool.jury)
        models.update(filter(None, (pool.judge,)))
    return models


def _plus(total: Usd, more: Estimate) -> Usd:
    least, expected, most = total
    return _add(least, more.usd_min), _add(expected, more.usd_expected), _add(most, more.usd_max)


def _add(total: float | None, more: float | None) -> float | None:
    return None if total is None or more is None else total + more


def _usd_dict(usd: Usd) -> dict[str, float | None]:
    return dict(zip(("min", "expected", "max"), usd, strict=True))


def show(options: RunOptions, *, as_json: bool) -> None:
    """Check a file and print its plan."""
    config = settings()
    total = BatchEstimate(asyncio.run(load_catalogue(config, datetime.now(UTC))))
    with checked_input(options, config, total.add) as (_path, report, _ids):
        plan = describe(report, total, asyncio.run(measured_rate(config)))
    if as_json:
        print(json.dumps(plan))
    else:
        print(as_text(plan))


def describe(report: CheckReport, total: BatchEstimate, rate_per_s: float | None) -> dict[str, Any]:
    """The plan as a dictionary for JSON."""
    return {
        "lines": report.count,
        "forms": dict(report.forms),
        "without_id": report.count_without_id,
        "calls": total.calls,
        "tokens_in": total.tokens_in,
        "tokens_out": total.tokens_out,
        "usd": _usd_dict(total.usd),
        "usd_by_model": {name: _usd_dict(total.by_model[name]) for name in sorted(total.by_model)},
        "unpriced": sorted(total.unpriced_models),
        "edge_share": total.calls_at_edge / total.calls if total.calls else 0.0,
        "rate_per_s": rate_per_s,
        "eta_s": round(report.count / rate_per_s, 1) if rate_per_s else None,
    }


def as_text(plan: dict[str, Any]) -> str:
    """The plan as text for people."""
    forms = ", ".join(f"{count} {form}" for form, count in plan["forms"].items())
    no_price = f"; no price for {', '.join(plan['unpriced'])}" if plan["unpriced"] else ""
    eta = "unknown: no batch has been measured here"
    if plan["eta_s"] is not None:
        duration = timedelta(seconds=round(plan["eta_s"]))
        eta = f"{duration} at {plan['rate_per_s']:.3g} lines/s, as in the last batch"
    return "\n".join(
        (
            f"{plan['lines']} lines: {forms}; {plan['without_id']} without custom_id",
            f"{plan['calls']} calls expected, {plan['edge_share']:.0%} at the edge",
            f"{plan['tokens_in']} tokens in, {plan['tokens_out']} out, by estimate",
            f"USD {_usd_text(plan['usd'])}{no_price}",
            *(f"  {name}: {_usd_text(usd)}" for name, usd in plan["usd_by_model"].items()),
            f"time {eta}",
            "nothing was sent",
        )
    )


def _usd_text(usd: dict[str, float | None]) -> str:
    parts = []
    for name, amount in usd.items():
        parts.append(f"{name} unknown" if amount is None else f"{name} {amount:.4g}")
    return " · ".join(parts)


async def measured_rate(config: Settings) -> float | None:
    """Lines per second of this database's last batch, measured over its last outcomes.

    None if there is no database, or too few outcomes.
    """
    if not _exists(config.database):
        return None
    store = Store(config.database)
    try:
        async with store.read() as connection:
            outcomes = (await connection.execute(text(_LAST_BATCH))).all()
    except (DBAPIError, Transient):
        return None
    finally:
        await store.close()
    if len(outcomes) < FEWEST:
        return None
    start = min(_time(submitted_at) for submitted_at, _ in outcomes)
    end = max(_time(finished_at) for _, finished_at in outcomes)
    return len(outcomes) / (end - start).total_seconds()


def _time(moment: str | datetime) -> datetime:
    """A column's time: SQLite returns text, PostgreSQL a datetime."""
    return datetime.fromisoformat(moment) if isinstance(moment, str) else moment


def _exists(database: Database) -> bool:
    """Whether the database exists; connecting to a missing SQLite file would create it."""
    url = make_url(database.url)
    return url.get_backend_name() != "sqlite" or Path(url.database or "").is_file()
