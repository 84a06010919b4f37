"""The cost of a call: by a model's configured prices, else by the list in genai-prices.

Never uses the network.
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
"""`Price.version` of configured prices."""

_MTOK = 1_000_000
_SAMPLE_TOKENS = 100
"""Few, so that a list with price steps by length uses the first step."""


@dataclass(frozen=True, slots=True)
class Price:
    """The price of a call. All fields are None, never 0, if it is unknown."""

    usd: float | None = None
    """US dollars."""
    prompt_usd: float | None = None
    """The prompt's part of `usd`."""
    version: str | None = None
    """The price list."""


UNKNOWN = Price()


async def price(usage: Usage, model: RemoteModel, at: datetime) -> Price:
    """Price a call made at `at`.

    The list is loaded at the first use, in a thread, as that takes about a second.
    """
    if (configured_rates := _configured_rates(model)) is not None:
        per_prompt_token, per_answer_token = configured_rates
        prompt_usd = usage.prompt_tokens * per_prompt_token
        answer_usd = usage.completion_tokens * per_answer_token
        return Price(prompt_usd + answer_usd, prompt_usd, CONFIGURED)
    if model.price_provider is None and _is_local(model.base_url):
        return UNKNOWN
    is_loaded = _price_list.cache_info().currsize > 0
    lookup = _price_list() if is_loaded else await asyncio.to_thread(_price_list)
    return lookup(usage, model, at)


async def rates(model: RemoteModel, at: datetime) -> tuple[float, float] | None:
    """USD per prompt token and per answer token at `at`; None if they are unknown.

    Unlike `price`, without discounts for cached tokens and without steps for very long prompts.
    """
    if (configured_rates := _configured_rates(model)) is not None:
        return configured_rates
    prompt = await price(Usage(prompt_tokens=_SAMPLE_TOKENS), model, at)
    answer = await price(Usage(completion_tokens=_SAMPLE_TOKENS), model, at)
    if prompt.usd is None or answer.usd is None:
        return None
    return prompt.usd / _SAMPLE_TOKENS, answer.usd / _SAMPLE_TOKENS


def _configured_rates(model: RemoteModel) -> tuple[float, float] | None:
    if model.input_usd_per_mtok is None or model.output_usd_per_mtok is None:
        return None
    return model.input_usd_per_mtok / _MTOK, model.output_usd_per_mtok / _MTOK


@cache
def _price_list() -> Callable[[Usage, RemoteModel, datetime], Price]:
    import genai_prices  # noqa: PLC0415 - a second and its memory, for those who have a priced model
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - loaded only where it is needed

    prices = get_snapshot()
    version = f"genai-prices {genai_prices.__version__}"

    def lookup(usage: Usage, model: RemoteModel, at: datetime) -> Price:
        tokens = genai_prices.Usage(
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            cache_read_tokens=usage.cached_tokens or None,
        )
        url = None if model.price_provider else model.base_url
        try:
            calculation = prices.calc(tokens, model.model, model.price_provider, url, at)
        except (LookupError, ValueError):
            return UNKNOWN
        per_mtok = calculation.model_price
        for unit in ("input_mtok", "output_mtok"):
            if getattr(per_mtok, unit, None) is None:
                return UNKNOWN  # the list knows the model but not its price, and would count 0
        return Price(float(calculation.total_price), float(calculation.input_price), version)

    return lookup


@cache
def _is_local(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
