import socket
from datetime import UTC, datetime

import pytest

from fusewire.contracts import Usage
from fusewire.pricing import CONFIGURED, UNKNOWN, Price, price, rates
from fusewire.settings import RemoteModel

AT = datetime(2026, 11, 1, tzinfo=UTC)
USED = Usage(prompt_tokens=1_000_000, completion_tokens=1_000_000)


def model(
    base_url: str, name: str = "gpt-4o-mini", price_provider: str | None = None
) -> RemoteModel:
    return RemoteModel(kind="remote", base_url=base_url, model=name, price_provider=price_provider)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a price was asked for over the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


async def test_a_known_model_is_priced_by_its_address() -> None:
    cost = await price(USED, model("https://api.openai.com/v1"), AT)
    assert cost.usd is not None
    assert cost.prompt_usd is not None
    assert 0 < cost.prompt_usd < cost.usd
    assert cost.version is not None
    assert cost.version.startswith("genai-prices ")


async def test_cost_is_proportional_and_cached_tokens_are_cheaper() -> None:
    at_openai = model("https://api.openai.com/v1")
    whole = await price(USED, at_openai, AT)
    half = await price(Usage(prompt_tokens=500_000, completion_tokens=500_000), at_openai, AT)
    with_cache = await price(USED.model_copy(update={"cached_tokens": 1_000_000}), at_openai, AT)
    assert whole.usd is not None
    assert half.usd == pytest.approx(whole.usd / 2)
    assert with_cache.usd is not None
    assert 0 < with_cache.usd < whole.usd


@pytest.mark.parametrize(
    "unknown_model",
    [
        model("http://127.0.0.1:8000/v1"),
        model("http://localhost:8000/v1"),
        model("http://[::1]:8000/v1"),
        model("https://models.example/v1"),
        model("https://api.openai.com/v1", "no-such-model"),
        model(
            "https://api.openai.com/v1", "text-embedding-3-small"
        ),  # has no price for what it would say
        model("https://models.example/v1", price_provider="no-such-provider"),
    ],
)
async def test_an_unknown_price_is_none_and_not_zero(unknown_model: RemoteModel) -> None:
    assert await price(USED, unknown_model, AT) == UNKNOWN


async def test_a_named_provider_prices_any_address() -> None:
    by_provider = await price(USED, model("http://127.0.0.1:8000/v1", price_provider="openai"), AT)
    assert by_provider == await price(USED, model("https://api.openai.com/v1"), AT)


def priced_model(base_url: str, per_prompt: float, per_answer: float) -> RemoteModel:
    return model(base_url).model_copy(
        update={"input_usd_per_mtok": per_prompt, "output_usd_per_mtok": per_answer}
    )


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:8000/v1", "https://api.openai.com/v1"])
async def test_configured_prices_come_before_the_list_and_hold_for_local_servers_too(
    base_url: str,
) -> None:
    usage = Usage(prompt_tokens=2_000_000, completion_tokens=500_000)
    assert await price(usage, priced_model(base_url, 3.0, 8.0), AT) == Price(10.0, 6.0, CONFIGURED)
    assert await price(usage, priced_model(base_url, 0.0, 0.0), AT) == Price(0.0, 0.0, CONFIGURED)


async def test_rates_are_per_token() -> None:
    assert await rates(priced_model("http://127.0.0.1:8000/v1", 3.0, 8.0), AT) == pytest.approx(
        (3e-6, 8e-6)
    )
    per_token = await rates(model("https://api.openai.com/v1"), AT)
    whole = await price(USED, model("https://api.openai.com/v1"), AT)
    assert per_token is not None
    assert sum(per_token) * 1_000_000 == pytest.approx(whole.usd)
    assert 0 < per_token[0] < per_token[1]


async def test_unknown_rates_are_none_and_not_zero() -> None:
    assert await rates(model("http://127.0.0.1:8000/v1"), AT) is None
    assert await rates(model("https://api.openai.com/v1", "text-embedding-3-small"), AT) is None


async def test_usage_that_contradicts_itself_has_no_price() -> None:
    odd = Usage(prompt_tokens=1, completion_tokens=1, cached_tokens=50)
    assert await price(odd, model("https://api.openai.com/v1"), AT) == UNKNOWN
