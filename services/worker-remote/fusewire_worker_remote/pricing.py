"""What a call cost, by the price list that ships with genai-prices. Never asks the network."""

import asyncio
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from urllib.parse import urlsplit

from fusewire.contracts import Usage
from fusewire.settings import RemoteModel


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars, and the list they are from. Both None when the price is unknown; never 0 for that."""

    usd: float | None = None
    version: str | None = None


UNKNOWN = Price()


async def price(usage: Usage, model: RemoteModel, at: datetime) -> Price:
    """Price a call made at `at`. Loads the list at first need, beside the event loop: it takes about a second."""
    if model.price_provider is None and _is_local(model.base_url):
        return UNKNOWN
    lookup = _list() if _list.cache_info().currsize else await asyncio.to_thread(_list)
    return lookup(usage, model, at)


@cache
def _list() -> Callable[[Usage, RemoteModel, datetime], Price]:
    import genai_prices  # noqa: PLC0415 - a second and its memory, for those who have a priced model
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415

    prices = get_snapshot()
    version = f"genai-prices {genai_prices.__version__}"

    def lookup(usage: Usage, model: RemoteModel, at: datetime) -> Price:
        counted = genai_prices.Usage(
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            cache_read_tokens=usage.cached_tokens or None,
        )
        url = None if model.price_provider else model.base_url
        try:
            found = prices.calc(counted, model.model, model.price_provider, url, at)
        except (LookupError, ValueError):
            return UNKNOWN
        if any(getattr(found.model_price, unit, None) is None for unit in ("input_mtok", "output_mtok")):
            return UNKNOWN  # the list knows the model but not its price, and would count 0
        return Price(float(found.total_price), version)

    return lookup


@cache
def _is_local(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
