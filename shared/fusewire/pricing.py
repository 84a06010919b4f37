"""What a call cost: by the prices that a model is configured with, else by the price list that ships with genai-prices.

Never asks the network.
"""

import asyncio
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from urllib.parse import urlsplit

from fusewire.contracts import Usage
from fusewire.settings import RemoteModel

CONFIGURED = "configured"
"""The version of prices that stand in the configuration."""

_MTOK = 1_000_000
_SAMPLE_TOKENS = 100
"""Few, so that a list with steps by length gives its first."""


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars, how much of them the prompt cost, and the list. All None when the price is unknown, never 0."""

    usd: float | None = None
    prompt_usd: float | None = None
    version: str | None = None


UNKNOWN = Price()


async def price(usage: Usage, model: RemoteModel, at: datetime) -> Price:
    """Price a call made at `at`. Loads the list at first need, beside the event loop: it takes about a second."""
    if (configured := _configured(model)) is not None:
        per_prompt, per_answer = configured
        asked = usage.prompt_tokens * per_prompt
        return Price(asked + usage.completion_tokens * per_answer, asked, CONFIGURED)
    if model.price_provider is None and _is_local(model.base_url):
        return UNKNOWN
    lookup = _list() if _list.cache_info().currsize else await asyncio.to_thread(_list)
    return lookup(usage, model, at)


async def rates(model: RemoteModel, at: datetime) -> tuple[float, float] | None:
    """USD per prompt token and per token of answers, at `at`; None where they are unknown.

    Without what caches save and without steps for very long prompts: those are for `price`.
    """
    if (configured := _configured(model)) is not None:
        return configured
    asked = await price(Usage(prompt_tokens=_SAMPLE_TOKENS), model, at)
    said = await price(Usage(completion_tokens=_SAMPLE_TOKENS), model, at)
    if asked.usd is None or said.usd is None:
        return None
    return asked.usd / _SAMPLE_TOKENS, said.usd / _SAMPLE_TOKENS


def _configured(model: RemoteModel) -> tuple[float, float] | None:
    if model.input_usd_per_mtok is None or model.output_usd_per_mtok is None:
        return None
    return model.input_usd_per_mtok / _MTOK, model.output_usd_per_mtok / _MTOK


@cache
def _list() -> Callable[[Usage, RemoteModel, datetime], Price]:
    import genai_prices  # noqa: PLC0415 - a second and its memory, for those who have a priced model
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - loaded only where it is needed

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
        if any(
            getattr(found.model_price, unit, None) is None for unit in ("input_mtok", "output_mtok")
        ):
            return UNKNOWN  # the list knows the model but not its price, and would count 0
        return Price(float(found.total_price), float(found.input_price), version)

    return lookup


@cache
def _is_local(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
