from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fusewire.contracts import Message, Prompt
from fusewire.settings import Settings
from fusewire_cli.batch.checking import CheckReport
from fusewire_cli.batch.plan import BatchEstimate, as_text, describe, measured_rate
from fusewire_ingest.admission.estimate import Catalogue, Member, Model, Pool

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def prompt(text: str, **changes: object) -> Prompt:
    fields = {
        "fusion_id": "f" * 27,
        "tenant": "default",
        "custom_id": "q",
        "pool": "default",
        "mode": "best-of",
        "residency": "any",
        "priority": "low",
        "messages": (Message(role="user", content=text),),
        "seed": 1,
        "submitted_at": NOW,
        "deadline_at": NOW + timedelta(hours=1),
    }
    return Prompt.model_validate({**fields, **changes})


def book(**rates: tuple[float, float] | None) -> Catalogue:
    models = {"edge": Model(is_edge=True, rates=None, max_tokens=50)}
    models |= {
        name: Model(is_edge=False, rates=price, max_tokens=50) for name, price in rates.items()
    }
    members = tuple(Member(name, name) for name in models if name != "j")
    return Catalogue({"default": Pool(members, judge="j" if "j" in rates else None)}, models)


def total(catalogue: Catalogue, *prompts: Prompt) -> BatchEstimate:
    batch_estimate = BatchEstimate(catalogue)
    for prompt in prompts:
        batch_estimate.add(prompt)
    return batch_estimate


def test_lines_add_up_and_the_parts_of_the_models_are_the_whole() -> None:
    catalogue = book(a=(1e-6, 2e-6), b=(3e-6, 4e-6), j=(5e-6, 6e-6))
    short, long = total(catalogue, prompt("short")), total(catalogue, prompt("x" * 4000))
    both = total(catalogue, prompt("short"), prompt("x" * 4000))
    assert both.calls == short.calls + long.calls
    assert both.tokens_in == short.tokens_in + long.tokens_in
    sums = [a + b for a, b in zip(short.usd, long.usd, strict=True)]  # type: ignore[operator]
    assert both.usd == pytest.approx(sums)
    assert set(both.by_model) == {"edge", "a", "b", "j"}
    bounds = zip(*both.by_model.values(), strict=True)
    parts = [sum(filter(None, costs)) for costs in bounds]
    assert parts == pytest.approx(both.usd)
    assert both.by_model["edge"] == (0.0, 0.0, 0.0)
    assert both.by_model["j"][0] == 0.0  # the least is a panel that needs no judge
    assert both.by_model["j"][1] > 0  # type: ignore[operator]


def test_a_model_without_a_price_is_named_and_the_others_keep_theirs() -> None:
    plan = describe(CheckReport(count=1), total(book(a=(1e-6, 2e-6), b=None), prompt("one")), None)
    assert plan["unpriced"] == ["b"]
    assert plan["usd"] == {"min": None, "expected": None, "max": None}
    assert plan["usd_by_model"]["a"]["expected"] > 0
    assert plan["usd_by_model"]["b"]["expected"] is None
    assert "no price for b" in as_text(plan)
    assert "b: min unknown" in as_text(plan)


def test_only_what_a_line_can_reach_is_counted() -> None:
    batch_estimate = total(book(a=(1e-6, 2e-6), b=(1e-6, 2e-6)), prompt("one", members=("a",)))
    assert set(batch_estimate.by_model) == {"a"}


def test_the_share_of_the_edge_is_one_of_calls() -> None:
    plan = describe(
        CheckReport(count=2), total(book(a=(1e-6, 2e-6)), prompt("one"), prompt("two")), None
    )
    assert plan["edge_share"] == 0.5
    assert "4 calls expected, 50% at the edge" in as_text(plan)


def test_time_follows_from_a_measured_rate() -> None:
    batch_estimate = total(book(a=(1e-6, 2e-6)))
    assert describe(CheckReport(count=7200), batch_estimate, None)["eta_s"] is None
    plan = describe(CheckReport(count=7200), batch_estimate, 2.0)
    assert plan["eta_s"] == 3600
    assert "time 1:00:00 at 2 lines/s" in as_text(plan)


async def test_without_a_database_there_is_no_rate_and_none_is_made(tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    config = Settings(database={"url": f"sqlite+aiosqlite:///{path}"})
    assert await measured_rate(config) is None
    assert not path.exists()
