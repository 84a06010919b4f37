"""The configured models: where they are used, how they do lately, what they cost."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fusewire.settings import Model, RemoteModel, Settings
from fusewire_console.access import Visitor
from fusewire_console.api import ApiError
from fusewire_console.figures.models import TokenPrice, judge_calls, member_calls, token_prices
from fusewire_console.pages import page
from fusewire_console.site import Site

HOURS = 1
SAMPLE = 1000
"""So many of the newest outcomes of the last hour are read at most."""

_SAMPLE = f"""
WITH newest AS (
  SELECT o.outcome_id, o.finished_at FROM v_outcome o WHERE o.finished_at >= :since
  ORDER BY o.finished_at DESC LIMIT {SAMPLE}
)
"""
_CALLS = f"""{_SAMPLE}
SELECT a.model, a.status, a.error_code, COUNT(*) AS n, MAX(n.finished_at) AS last_at
FROM newest n JOIN v_answer a ON a.outcome_id = n.outcome_id WHERE a.status <> 'unasked'
GROUP BY a.model, a.status, a.error_code
"""
# The observation of rank ⌈0.95 · n⌉.
_P95 = f"""{_SAMPLE}
SELECT model, MIN(latency_ms) AS p95_ms, MAX(n) AS n FROM (
  SELECT a.model, a.latency_ms, COUNT(*) OVER (PARTITION BY a.model) AS n,
    CUME_DIST() OVER (PARTITION BY a.model ORDER BY a.latency_ms) AS share
  FROM newest n JOIN v_answer a ON a.outcome_id = n.outcome_id
  WHERE a.status = 'ok' AND a.latency_ms IS NOT NULL
) calls WHERE share >= 0.95 GROUP BY model
"""
_VERDICTS = f"""{_SAMPLE}
SELECT v.judge_model AS model, v.void, COUNT(*) AS n, MAX(n.finished_at) AS last_at
FROM newest n JOIN v_verdict v ON v.outcome_id = n.outcome_id GROUP BY v.judge_model, v.void
"""
_COUNT = f"{_SAMPLE} SELECT COUNT(*) AS n FROM newest"
_LAST_DAYS = """
SELECT model, MAX(day) AS day FROM v_model_day WHERE answered > 0 GROUP BY model
"""
_PRICE_LIST = f"""
SELECT price_version, finished_at FROM (
  SELECT o.price_version, o.finished_at FROM v_outcome o WHERE o.finished_at >= :since
  ORDER BY o.finished_at DESC LIMIT {SAMPLE}
) newest
WHERE price_version <> 'configured' ORDER BY finished_at DESC LIMIT 1
"""


def places(settings: Settings) -> dict[str, list[tuple[str, str]]]:
    """Pools and roles of each model."""
    roles: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, pool in settings.pools.items():
        for member in pool.members:
            role = "member" if member.name == member.model else f"member {member.name}"
            roles[member.model].append((name, role))
        for model in pool.judges:
            roles[model].append((name, "judge"))
    return dict(roles)


def served_name(model: Model) -> str:
    """The name at its provider, or of its folder: never an address or a path."""
    return model.model if isinstance(model, RemoteModel) else model.path.name


@dataclass(frozen=True)
class ModelPrice:
    """USD per million tokens; None where it is not known."""

    source: str
    """edge, configured or list."""
    prompt_usd: float | None = None
    answer_usd: float | None = None
    is_asked: bool = True
    """Whether the API told what it knows."""


def model_price(model: Model, list_price: TokenPrice | None, *, is_asked: bool) -> ModelPrice:
    """The price of a model, by its configuration or else by the price list."""
    if not isinstance(model, RemoteModel):
        return ModelPrice("edge", 0.0, 0.0)
    if model.input_usd_per_mtok is not None:
        return ModelPrice("configured", model.input_usd_per_mtok, model.output_usd_per_mtok)
    if list_price is None:
        return ModelPrice("list", is_asked=is_asked)
    return ModelPrice("list", list_price.prompt_usd, list_price.answer_usd)


async def read(site: Site, visitor: Visitor, now: datetime) -> dict[str, Any]:
    """Read how models did in the last hour. Raises OperatorsOnlyError and QueryError."""
    values = {"since": now - timedelta(hours=HOURS)}
    fetch = site.views.of_all
    p95_rows = await fetch(visitor, _P95, values)
    price_lists = await fetch(visitor, _PRICE_LIST, values)
    return {
        "members": member_calls(await fetch(visitor, _CALLS, values)),
        "judges": judge_calls(await fetch(visitor, _VERDICTS, values)),
        "p95": {row["model"]: (row["p95_ms"], row["n"]) for row in p95_rows},
        "outcomes": (await fetch(visitor, _COUNT, values))[0]["n"],
        "last_days": {row["model"]: row["day"] for row in await fetch(visitor, _LAST_DAYS)},
        "price_list": price_lists[0] if price_lists else None,
    }


async def read_prices(site: Site, visitor: Visitor) -> tuple[dict[str, ModelPrice], str | None]:
    """Prices by model, and why those of the price list are not known."""
    list_prices: dict[str, TokenPrice] = {}
    fault = None
    try:
        reply = await site.api.get(visitor.key, "/v1/models")
        list_prices = token_prices(reply["data"])
    except ApiError as exc:
        if exc.status == 401:
            raise
        fault = exc.message
    prices = {
        name: model_price(model, list_prices.get(name), is_asked=fault is None)
        for name, model in site.settings.models.items()
    }
    return prices, fault


def routes(site: Site) -> list[Route]:
    """`/models`."""
    settings = site.settings

    async def show(_request: Request, visitor: Visitor) -> Response:
        figures = await read(site, visitor, site.clock())
        prices, fault = await read_prices(site, visitor)
        return page.render(
            site,
            "models.html",
            visitor,
            models=sorted(settings.models.items()),
            places=places(settings),
            served_name=served_name,
            prices=prices,
            fault=fault,
            sample=SAMPLE,
            **figures,
        )

    return [page.route(site, "/models", show)]
