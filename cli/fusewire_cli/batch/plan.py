"""The dry run of a batch: what it would take, before anything is sent."""

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
from fusewire_cli.batch.command import RunOptions, checked
from fusewire_cli.session import settings
from fusewire_ingest.admission.estimate import Catalogue, Estimate, estimate
from fusewire_ingest.admission.rules import load_catalogue

FEWEST = 10
"""Outcomes from which a rate is told."""
FINISHED = """
SELECT submitted_at, finished_at FROM v_outcome
WHERE batch_id = (SELECT batch_id FROM v_outcome WHERE batch_id IS NOT NULL ORDER BY finished_at DESC LIMIT 1)
ORDER BY finished_at DESC LIMIT 500
"""


Usd = tuple[float | None, float | None, float | None]
"""The least, the expected, the most; None where a price is unknown."""
NOTHING: Usd = (0.0, 0.0, 0.0)


class BatchEstimate:
    """What all lines together would take."""

    def __init__(self, book: Catalogue) -> None:
        self._book = book
        self._alone = {name: _alone(book, name) for name in book.models}
        self.lines = 0
        self.calls = 0
        self.tokens_in = 0
        self.tokens_out = 0
        self.usd = NOTHING
        self.by_model: dict[str, Usd] = {}
        self.unpriced: set[str] = set()
        self.calls_at_edge = 0.0

    def add(self, prompt: Prompt) -> None:
        """Count one more line."""
        one = estimate(prompt, self._book)
        self.lines += 1
        self.calls += one.calls
        self.tokens_in += one.tokens_in
        self.tokens_out += one.tokens_out
        self.usd = _plus(self.usd, one)
        self.unpriced.update(one.unpriced)
        self.calls_at_edge += one.calls * one.edge_share
        for model in _reachable(prompt, self._book):
            cost = estimate(prompt, self._alone[model])
            self.by_model[model] = _plus(self.by_model.get(model, NOTHING), cost)


def _alone(book: Catalogue, name: str) -> Catalogue:
    """The same with one model's price alone, for its part in the cost: a cost is a sum over models."""
    models = {
        other: model if other == name else replace(model, rates=(0.0, 0.0))
        for other, model in book.models.items()
    }
    return replace(book, models=models)


def _reachable(prompt: Prompt, book: Catalogue) -> set[str]:
    pool = book.pool(prompt)
    if pool is None:
        return set()
    named = prompt.members or tuple(member.model for member in pool.members)
    return {
        *named,
        *filter(None, (prompt.judge or pool.judge,)),
        *(() if prompt.judge else pool.jury),
    }


def _plus(sum_: Usd, more: Estimate) -> Usd:
    least, expected, most = sum_
    return _add(least, more.usd_min), _add(expected, more.usd_expected), _add(most, more.usd_max)


def _add(sum_: float | None, more: float | None) -> float | None:
    return None if sum_ is None or more is None else sum_ + more


def _named(usd: Usd) -> dict[str, float | None]:
    return dict(zip(("min", "expected", "max"), usd, strict=True))


def show(asked: RunOptions, *, as_json: bool) -> None:
    """Print the plan of a file."""
    config = settings()
    total = BatchEstimate(asyncio.run(load_catalogue(config, datetime.now(UTC))))
    with checked(asked, config, total.add) as (_path, found, _ids):
        plan = describe(found, total, asyncio.run(measured_rate(config)))
    if as_json:
        print(json.dumps(plan))
    else:
        print(told(plan))


def describe(found: CheckReport, total: BatchEstimate, rate_per_s: float | None) -> dict[str, Any]:
    """The plan as JSON shows it."""
    return {
        "lines": found.count,
        "forms": dict(found.forms),
        "without_id": found.unnamed,
        "calls": total.calls,
        "tokens_in": total.tokens_in,
        "tokens_out": total.tokens_out,
        "usd": _named(total.usd),
        "usd_by_model": {name: _named(total.by_model[name]) for name in sorted(total.by_model)},
        "unpriced": sorted(total.unpriced),
        "edge_share": total.calls_at_edge / total.calls if total.calls else 0.0,
        "rate_per_s": rate_per_s,
        "eta_s": round(found.count / rate_per_s, 1) if rate_per_s else None,
    }


def told(plan: dict[str, Any]) -> str:
    """The plan as people read it."""
    forms = ", ".join(f"{count} {form}" for form, count in plan["forms"].items())
    lacking = f"; no price for {', '.join(plan['unpriced'])}" if plan["unpriced"] else ""
    eta = "unknown: no batch has been measured here"
    if plan["eta_s"] is not None:
        eta = f"{timedelta(seconds=round(plan['eta_s']))} at {plan['rate_per_s']:.3g} lines/s, as in the last batch"
    return "\n".join(
        (
            f"{plan['lines']} lines: {forms}; {plan['without_id']} without custom_id",
            f"{plan['calls']} calls expected, {plan['edge_share']:.0%} at the edge",
            f"{plan['tokens_in']} tokens in, {plan['tokens_out']} out, by estimate",
            f"USD {_priced(plan['usd'])}{lacking}",
            *(f"  {name}: {_priced(usd)}" for name, usd in plan["usd_by_model"].items()),
            f"time {eta}",
            "nothing was sent",
        )
    )


def _priced(usd: dict[str, float | None]) -> str:
    return " · ".join(
        f"{name} {'unknown' if value is None else f'{value:.4g}'}" for name, value in usd.items()
    )


async def measured_rate(config: Settings) -> float | None:
    """Lines a second of the last batch of this database, over its last outcomes; None where there is none."""
    if not _exists(config.database):
        return None
    store = Store(config.database)
    try:
        async with store.read() as connection:
            found = (await connection.execute(text(FINISHED))).all()
    except (DBAPIError, Transient):
        return None
    finally:
        await store.close()
    if len(found) < FEWEST:
        return None
    begun, ended = min(_time(row[0]) for row in found), max(_time(row[1]) for row in found)
    return len(found) / (ended - begun).total_seconds()


def _time(found: str | datetime) -> datetime:
    return datetime.fromisoformat(found) if isinstance(found, str) else found


def _exists(database: Database) -> bool:
    """Whether there is something to connect to; SQLite would make it."""
    url = make_url(database.url)
    return url.get_backend_name() != "sqlite" or Path(url.database or "").is_file()
