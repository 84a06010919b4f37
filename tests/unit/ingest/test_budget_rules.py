"""What the configuration says of budgets, and of prices that nobody knows."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from fusewire.settings import Settings
from fusewire.testing.factories import make_prompt
from fusewire_ingest.admission.budgets import BudgetLimit
from fusewire_ingest.admission.estimate import estimate
from fusewire_ingest.admission.rules import budget_limits, load_catalogue

NOW = datetime(2026, 11, 30, tzinfo=UTC)


def settings(**tenants: dict[str, Any]) -> Settings:
    # On this machine, so the price list does not know it.
    model = {
        "kind": "remote",
        "base_url": "http://127.0.0.1:1/v1",
        "model": "own",
        "max_tokens": 1000,
    }
    return Settings.model_validate(
        {
            "models": {
                "own": model,
                "free": {**model, "input_usd_per_mtok": 0, "output_usd_per_mtok": 0},
            },
            "pools": {"default": {"members": ["own"]}, "free": {"members": ["free"]}},
            "tenants": tenants,
        }
    )


def test_limits_of_tenants_are_those_of_the_configuration() -> None:
    config = settings(
        both={"budget_usd": 5, "budget_soft_usd": 5, "budget_period": "day"},
        soft={"budget_soft_usd": 4},
        zero={"budget_usd": 0},
        none={},
    )
    assert budget_limits(config) == [
        BudgetLimit("both", "day", 5, 5, is_configured=True),
        BudgetLimit("soft", "month", None, 4, is_configured=True),
        BudgetLimit("zero", "month", 0, None, is_configured=True),
    ]
    with pytest.raises(ValidationError, match="budget_soft_usd = 6"):
        settings(acme={"budget_usd": 5, "budget_soft_usd": 6})


@pytest.mark.parametrize(("ceiling", "usd"), [(None, None), (0.0, 0.0), (50.0, 0.05)])
async def test_models_without_a_price_cost_the_ceiling(
    ceiling: float | None, usd: float | None
) -> None:
    book = await load_catalogue(settings(), NOW, ceiling)

    cost = estimate(make_prompt("Why?"), book).usd_max
    # 1,000 tokens at most, and a few of the prompt.
    assert cost == (usd if not usd else pytest.approx(usd, rel=0.05))
    assert estimate(make_prompt("Why?", pool="free"), book).usd_max == 0
