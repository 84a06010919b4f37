"""What analysts see of one outcome, in the views, as the judge stores it."""

import json
from datetime import timedelta
from typing import Any

import pytest
from judge_desk import CLOSED, Desk, answers, verdicts
from sqlalchemy import text

from fusewire.settings import Database
from fusewire.store.engine import Store
from fusewire.testing.factories import OPEN_ANSWERS, T0, make_candidate, make_plan, make_prompt

PROMPT = make_prompt()


async def test_an_outcome_as_analysts_see_it(desk: Desk) -> None:
    prompt = make_prompt("Which city?", batch_id="b1", custom_id="row 1")
    await desk.submit(prompt)
    desk.clock.advance(1)
    plan = make_plan(prompt, planned_at=desk.clock())
    await desk.take(
        plan,
        *answers(prompt, {k: OPEN_ANSWERS[k] for k in "ab"}),
        make_candidate(call="c", fails="timeout", prompt=prompt),
    )
    desk.clock.advance(2)
    await desk.take(*verdicts(desk, prompt))

    (row,) = await desk.rows("SELECT * FROM v_outcome")

    for name in ("is_degraded", "is_fallback", "swap_consistent", "is_replay"):
        row[name] = bool(row[name])
    winner = row["winner"]
    assert winner in ("a", "b")
    assert str(row.pop("submitted_at"))[:19] == "2026-01-02 03:04:05"
    assert str(row.pop("finished_at"))[:19] == "2026-01-02 03:04:08"
    assert str(row.pop("day")) == "2026-01-02"
    assert json.loads(row.pop("degraded_reasons")) == ["failed:c:timeout"]
    assert len(row.pop("prompt_hash")) == 64
    assert 0 < row.pop("agreement") < 1
    assert row == {
        "is_degraded": True,
        "status": "selected",
        "outcome_id": prompt.fusion_id,
        "batch_id": "b1",
        "custom_id": "row 1",
        "tenant": "default",
        "pool": "default",
        "mode": "best-of",
        "strategy": "best-of",
        "config_hash": "0123456789ab",
        "content": OPEN_ANSWERS[winner],
        "reason": "It is right about the city.",
        "judge_model": "m-judge",
        "winner": winner,
        "winner_model": f"m-{winner}",
        "n_asked": 3,
        "n_answered": 2,
        "is_fallback": False,
        "fallback_reason": None,
        "verdict_parse": "strict",
        "swap_consistent": True,
        "latency_ms": 3000,
        "panel_ms": 0,
        "judge_ms": 2000,
        "tokens_in": 40,
        "tokens_out": 8,
        "tokens_cached": 0,
        "tokens_thought": 0,
        "cost_panel_usd": pytest.approx(0.002),
        "cost_judge_usd": pytest.approx(0.02),
        "cost_usd": pytest.approx(0.022),
        "price_version": "test-1",
        "accepted": None,
        "error": None,
        "answer_kind": "open",
        "route": None,
        "route_loss_points": None,
        "closed_by": "complete",
        "missing_weight": pytest.approx(1 / 3),
        "guard": None,
        "hedges": 0,
        "is_replay": False,
        "tool_calls": None,
        "cost_late_usd": None,
    }


async def test_answers_as_analysts_see_them(desk: Desk) -> None:
    await desk.submit(PROMPT)
    edge = make_candidate(
        OPEN_ANSWERS["a"], "a", tier="edge", provider="onnxruntime", cost_usd=0.0, attempts=2
    )
    members = [
        m.model_copy(update={"tier": "edge"}) if m.name == "a" else m
        for m in make_plan(PROMPT).members
    ]
    plan = make_plan(PROMPT, members=members)
    await desk.take(
        plan,
        edge,
        make_candidate(OPEN_ANSWERS["b"], "b"),
        make_candidate(call="c", fails="timeout", attempts=3),
    )
    await desk.take(*verdicts(desk, PROMPT))

    a, b, c = await desk.rows("SELECT * FROM v_answer ORDER BY member")

    assert {a["shown_position"], b["shown_position"]} == {1, 2}
    outcome = await desk.outcome(PROMPT)
    assert outcome is not None
    won = {row["member"] for row in (a, b, c) if row["is_winner"]}
    assert won == {outcome.winner}
    for row in (a, b, c):
        assert str(row["day"]) == "2026-01-02"
        assert row["answer_id"] == f"{PROMPT.fusion_id}/{row['member']}"
        assert (row["pool"], row["mode"], row["outcome_id"]) == (
            "default",
            "best-of",
            PROMPT.fusion_id,
        )

    def part(row: dict[str, Any], *names: str) -> tuple[Any, ...]:
        return tuple(row[name] for name in names)

    told = ("member", "model", "provider", "tier", "status", "error_code", "attempts", "round")
    assert part(a, *told) == ("a", "m-a", "onnxruntime", "edge", "ok", None, 2, 0)
    assert part(b, *told) == ("b", "m-b", "openai", "hosted", "ok", None, 1, 0)
    assert part(c, *told) == ("c", "m-c", "openai", "hosted", "error", "timeout", 3, 0)
    spent = ("latency_ms", "tokens_in", "tokens_out", "cost_usd", "content")
    assert part(a, *spent) == (1000, 10, 2, 0.0, OPEN_ANSWERS["a"])
    assert part(c, *spent) == (1000, 0, 0, 0.0, None)
    assert part(a, "call", "weight", "agreed", "vote_group", "is_right") == (
        "a",
        1.0,
        None,
        None,
        None,
    )


async def test_what_came_too_late_has_cost_something_too(desk: Desk) -> None:
    await desk.submit(PROMPT)
    first, late, second = answers(PROMPT, CLOSED, cost_usd=0.25)
    await desk.take(make_plan(PROMPT), first, second)
    (before,) = await desk.rows("SELECT cost_usd, cost_late_usd FROM v_outcome")

    await desk.take(late)
    # Until a budget has counted it; delivered once more, it has cost nothing more.
    assert await desk.rows("SELECT call, usd FROM late_costs") == [{"call": "b", "usd": 0.25}]
    async with desk.store.write() as connection:
        await connection.execute(text("DELETE FROM late_costs"))
    await desk.take(late)
    assert await desk.rows("SELECT call, usd FROM late_costs") == []

    (after,) = await desk.rows("SELECT cost_usd, cost_late_usd FROM v_outcome")
    assert (before["cost_usd"], before["cost_late_usd"]) == (0.5, None)
    assert (after["cost_usd"], after["cost_late_usd"]) == (0.5, 0.25)


async def test_a_fallback_as_analysts_see_it(desk: Desk) -> None:
    await desk.submit(PROMPT)
    await desk.take(make_plan(PROMPT), *answers(PROMPT, cost_usd=None, price_version=None))
    await desk.take(*verdicts(desk, PROMPT, fails="server_error", cost_usd=None))

    (row,) = await desk.rows("SELECT * FROM v_outcome")

    assert (bool(row["is_fallback"]), bool(row["is_degraded"]), row["verdict_parse"]) == (
        True,
        True,
        "fallback",
    )
    assert (
        row["fallback_reason"]
        == row["reason"]
        == "no usable verdict, the answer most like the others"
    )
    assert (row["cost_panel_usd"], row["cost_judge_usd"], row["cost_usd"]) == (None, 0, None)


async def test_the_day_is_utc_whatever_the_zone_of_the_session(postgres_database: Database) -> None:
    desk = Desk(Store(postgres_database))
    late = T0.replace(hour=23, minute=59)
    prompt = make_prompt(submitted_at=late)
    await desk.submit(prompt)
    desk.clock.now = late + timedelta(seconds=10)
    await desk.take(make_plan(prompt), *answers(prompt, CLOSED))

    async with desk.store.read() as connection:
        await connection.execute(text("SET LOCAL TIME ZONE 'Asia/Tokyo'"))
        found = await connection.execute(
            text("SELECT o.day, a.day AS other FROM v_outcome o, v_answer a LIMIT 1")
        )
        assert [str(value) for value in found.one()] == ["2026-01-02", "2026-01-02"]
    await desk.store.close()


async def test_an_answer_of_any_text_is_shown_as_it_is(desk: Desk) -> None:
    prompt = make_prompt(members="ab")
    texts = {
        "a": 'Quotes " and \\ and \n and \\u0000 and 🌍 and “€”.',
        "b": "%s :name {x} ' ; -- as one may well say",
    }
    await desk.submit(prompt)
    await desk.take(make_plan(prompt, members="ab", judge=None), *answers(prompt, texts))

    rows = await desk.rows("SELECT member, content FROM v_answer ORDER BY member")

    assert {row["member"]: row["content"] for row in rows} == texts
    assert len(await desk.rows("SELECT * FROM outcomes")) == 1
