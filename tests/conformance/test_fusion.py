"""What outcomes teach and what a pool's policy does, through the whole pipeline."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any

import pytest
from nats.aio.msg import Msg
from sqlalchemy import text

from fusewire import replies
from fusewire.bus import Bus
from fusewire.contracts import Plan, Task, Token
from fusewire.metrics import ROUTES
from fusewire.settings import Database, Nats, Settings
from fusewire.store.engine import Store
from fusewire.testing.echo_worker import EchoWorker, echo
from fusewire.testing.eventually import eventually
from fusewire.testing.factories import make_prompt
from fusewire.testing.model_script import (
    Fault,
    ModelScript,
    Rule,
    Script,
    ScriptedCall,
    last_user_message,
)
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire.topology import prompt_subject, token_subject
from fusewire_cli.client import Client
from fusewire_ingest.repository.submissions import Submissions
from fusewire_judge import service as judge_service
from fusewire_judge.learning import router

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
ALL = ("judge", "worker-remote", "dispatcher", "ingest")
WAIT_S = 250
FOUR = ModelScript(answer="4")


@pytest.fixture(autouse=True)
def _quick_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_service, "LEARN_EVERY_S", 0.1)


@pytest.fixture
def settings(make_settings: MakeSettings, nats: NatsServer) -> Callable[..., Settings]:
    """Settings on the test's own broker: `settings(pool={…}, models={…})`."""

    def make(**sections: Any) -> Settings:
        return make_settings(nats=Nats(url=nats.url), **sections)

    return make


def script(**models: ModelScript) -> Script:
    return Script(models=models)


async def ask(client: Client, prompt: str = "Why?", **fields: Any) -> replies.fusions.Fusion:
    shown = await client.submit({"prompt": prompt, **fields}, wait_s=WAIT_S)
    assert shown["status"] != "running", shown
    return shown


async def rows(settings: Settings, query: str) -> list[dict[str, Any]]:
    store = Store(settings.database)
    async with store.read() as connection:
        found = [dict(row) for row in (await connection.execute(text(query))).mappings()]
    await store.close()
    return found


async def weights(settings: Settings, outcome: replies.fusions.Fusion) -> dict[str, float]:
    """What a fusion's plan says that a number counts."""
    (row,) = await rows(settings, f"SELECT plan FROM fusions WHERE fusion_id = '{outcome['id']}'")
    return {m.name: m.weight_for("number") for m in Plan.decode(row["plan"]).members}


async def test_members_are_weighed_by_their_labels(
    settings: Callable[..., Settings], running: Running, model_server: ModelServer
) -> None:
    config = settings(pool={"judge": None})
    model_server.set_script(
        script(a=ModelScript(answer="5"), b=ModelScript(answer="6"), c=ModelScript(answer="4"))
    )
    async with running(config, *ALL) as client:
        before = await ask(client, "2 + 2?")
        gold = {"answer": "4", "match": "number"}
        await asyncio.gather(*(ask(client, f"2 + 2? {i}", gold=gold) for i in range(25)))
        await asyncio.sleep(0.5)  # the memory is renewed
        after = await ask(client, "And 2 + 2?")
        learned = await weights(config, after)

    # Nobody agrees, and before anything is known no answer is more like the others than the first.
    assert (before["winner"], after["winner"]) == ("a", "c")
    assert await weights(config, before) == {"a": 1.0, "b": 1.0, "c": 1.0}
    # Two that agree have never been right, so they would not outvote it.
    assert learned["c"] > learned["a"] + learned["b"]
    assert learned["a"] == pytest.approx(learned["b"])
    assert await rows(
        config, "SELECT member, sum(is_right) AS n FROM v_answer GROUP BY 1 ORDER BY 1"
    ) == [
        {"member": "a", "n": 0},
        {"member": "b", "n": 0},
        {"member": "c", "n": 25},
    ]
    assert {row["accepted"] for row in await rows(config, "SELECT accepted FROM v_outcome")} == {
        0,
        None,
    }


async def test_a_judge_that_picks_a_control_is_left_out(
    settings: Callable[..., Settings], running: Running, model_server: ModelServer
) -> None:
    """The scripted judge names the text that sorts first; a control sorts before all answers."""
    texts = {
        name: ModelScript(answer=f"zzz {name} says something of its own, {name * 3}")
        for name in "abc"
    }
    model_server.set_script(script(**texts))
    config = settings(pool={"control_share": 1.0})
    async with running(config, *ALL) as client:
        first = await ask(client)
        calls = model_server.stats.by_model["j"]
        await asyncio.sleep(0.5)
        second = await ask(client, "Why not?")

    assert first["degraded_reasons"] == ["judge_failed:picked_control"]
    assert (second["status"], second["degraded_reasons"]) == (
        "voted",
        ["excluded:judge:quarantined"],
    )
    assert model_server.stats.by_model["j"] == calls == 2
    found = await rows(config, "SELECT control, is_control_winner, void, n_shown FROM v_verdict")
    assert {
        (row["control"] is not None, bool(row["is_control_winner"]), row["void"], row["n_shown"])
        for row in found
    } == {(True, True, "picked_control", 4)}
    assert await rows(config, "SELECT * FROM v_judge_bias") == []


async def test_verdicts_have_what_the_judge_wrote_the_last_time_it_was_asked(
    make_settings: MakeSettings,
    running: Running,
    model_server: ModelServer,
    nats: NatsServer,
    database: Database,
) -> None:
    cut = Fault(kind="length")
    model_server.set_script(script(j=ModelScript(faults=(cut, cut))))
    config = make_settings(nats=Nats(url=nats.url), database=database)
    async with running(config, *ALL) as client:
        outcome = await ask(client)

    assert outcome["judge_rung"] == "reasked"
    found = await rows(config, "SELECT * FROM v_verdict ORDER BY call")
    assert [row["call"] for row in found] == ["verdict-1-1", "verdict-1-2"]
    assert [row["swap_of"] for row in found] == ["verdict-1-2", "verdict-1-1"]
    assert json.loads(found[0]["shown"]) == json.loads(found[1]["shown"])[::-1]
    assert [json.loads(row["output"])["reason"] for row in found] == [outcome["reason"]] * 2


async def test_verdicts_tell_whether_a_judge_follows_place(
    settings: Callable[..., Settings], running: Running, model_server: ModelServer
) -> None:
    model_server.set_script(script(j=ModelScript(judges="first")))
    config = settings()
    async with running(config, *ALL) as client:
        outcomes = await asyncio.gather(*(ask(client, f"Why {i}?") for i in range(8)))

    assert {o["swap_consistent"] for o in outcomes} == {False}
    (bias,) = await rows(config, "SELECT * FROM v_judge_bias")
    # Two orders, then the third candidate put first.
    assert (bias["presentations"], bias["first_wins"], bias["swapped"], bias["flips"]) == (
        24,
        24,
        8,
        8,
    )
    assert (bias["first_win_rate"], bias["fair_first_rate"]) == (1.0, pytest.approx(1 / 3))


async def test_each_answer_is_checked_on_its_own(
    make_settings: MakeSettings,
    running: Running,
    model_server: ModelServer,
    nats: NatsServer,
    database: Database,
) -> None:
    def say(*, passes: bool) -> str:
        return json.dumps({"reason": "The sum of it is 5, as I see it.", "passes": passes})

    judge = ModelScript(
        rules=(
            Rule(match=r"\]\]\n5\n\[\[", answer=say(passes=True)),
            Rule(match=r"Does the candidate pass\?", answer=say(passes=False)),
        )
    )
    model_server.set_script(script(a=FOUR, b=FOUR, c=ModelScript(answer="5"), j=judge))
    config = make_settings(nats=Nats(url=nats.url), database=database, pool={"checks": 2})
    async with running(config, *ALL) as client:
        outcome = await ask(client, mode="verify")

    assert (outcome["status"], outcome["winner"], outcome["content"]) == ("selected", "c", "5")
    assert outcome["reason"] == "The sum of it is 5, as I see it. (passed 2 of 2 checks)"
    assert outcome["is_degraded"] is False
    found = await rows(config, "SELECT call, kind, shown, winner, output FROM v_verdict ORDER BY 1")
    assert [(row["call"], row["kind"], row["winner"]) for row in found] == [
        ("check-1-1-1", "check", None),
        ("check-1-1-2", "check", None),
        ("check-1-2-1", "check", "c"),
        ("check-1-2-2", "check", "c"),
    ]
    assert json.loads(found[0]["output"])["passes"] is False
    for view in ("v_pair", "v_judge_bias", "v_win_matrix"):
        assert await rows(config, f"SELECT * FROM {view}") == [], "a check compares nothing"


async def test_a_straggler_is_asked_a_second_time(
    settings: Callable[..., Settings], running: Running, model_server: ModelServer
) -> None:
    config = settings(pool={"hedge": 0.5, "early_stop": 1.0, "judge": None})
    async with running(config, *ALL) as client:
        await asyncio.gather(*(ask(client, f"Why {i}?") for i in range(30)))
        await asyncio.sleep(0.5)
        hang = Fault(kind="drip", seconds=20)
        model_server.set_script(script(c=ModelScript(faults=(hang,))))
        shown = await ask(client, "Why now?")

    assert shown["hedges"] >= 1
    (late,) = [a for a in shown["answers"] if a["member"] == "c"]
    assert (late["status"], late["call"]) == ("ok", "c=h")
    assert (shown["closed_by"], shown["is_degraded"]) == ("complete", False)
    assert shown["latency_ms"] < 15_000


def edge(*answers: str) -> Callable[[Task], str]:
    """What an edge model says, sample by sample."""
    return lambda task: answers[int(task.call.partition("=")[2] or 1) - 1]


TINY = {"tiny": {"kind": "edge", "path": "/nowhere"}}
GATED = {"members": ["tiny", "a", "b"], "gate": "edge-first"}


async def test_hosted_members_are_not_called_where_the_edge_agrees_with_itself(
    settings: Callable[..., Settings], running: Running, model_server: ModelServer
) -> None:
    config = settings(models=TINY, pool=GATED)
    async with running(
        config, *ALL, EchoWorker(config, edge("4", "4.0", "The answer is 4"))
    ) as client:
        shown = await ask(client, "2 + 2?")

    assert model_server.stats.requests == 0
    assert (shown["status"], shown["content"], shown["closed_by"], shown["rounds"]) == (
        "single",
        "4",
        "gate",
        0,
    )
    assert (shown["is_degraded"], shown["missing_weight"]) == (False, 0)
    assert {a["member"]: a["status"] for a in shown["answers"]} == {
        "tiny": "ok",
        "a": "unasked",
        "b": "unasked",
    }
    assert (await rows(config, "SELECT n_asked, n_answered FROM v_outcome")) == [
        {"n_asked": 1, "n_answered": 1}
    ]


async def test_hosted_members_are_called_where_it_does_not(
    settings: Callable[..., Settings], running: Running, model_server: ModelServer
) -> None:
    model_server.set_script(script(a=ModelScript(answer="5"), b=ModelScript(answer="5")))
    config = settings(models=TINY, pool=GATED)
    async with running(config, *ALL, EchoWorker(config, edge("4", "5", "6"))) as client:
        shown = await ask(client, "2 + 3?")

    assert model_server.stats.by_model == {"a": 1, "b": 1}
    assert (shown["status"], shown["content"], shown["closed_by"]) == ("voted", "5", "complete")
    assert {a["member"]: a["status"] for a in shown["answers"]} == dict.fromkeys(
        ("tiny", "a", "b"), "ok"
    )


async def test_recorded_answers_are_fused_without_a_member_call(
    settings: Callable[..., Settings], running: Running, model_server: ModelServer
) -> None:
    recorded = [
        {"member": "x", "model": "gone", "content": "It is four, as everybody knows."},
        {
            "member": "y",
            "model": "gone",
            "content": "A sum of two and two, which is five.",
            "cost_usd": 3.0,
        },
        {"member": "z", "model": "a", "error_code": "timeout"},
    ]
    config = settings()
    async with running(config, *ALL) as client:
        shown = await ask(client, "2 + 2?", recorded=recorded)

    assert set(model_server.stats.by_model) == {"j"}
    assert (shown["status"], shown["winner"], shown["is_replay"]) == ("selected", "y", True)
    assert shown["degraded_reasons"] == ["failed:z:timeout"]
    assert shown["cost_usd"] is None or shown["cost_usd"] < 3


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "maximum": 5}},
            "required": ["city"],
        },
    },
}


async def test_tool_calls_are_voted_argument_by_argument(
    settings: Callable[..., Settings], running: Running, model_server: ModelServer
) -> None:
    def calls(**arguments: Any) -> ModelScript:
        return ModelScript(calls=(ScriptedCall(name="weather", arguments=arguments),))

    model_server.set_script(
        script(
            a=calls(city="Rome", days=3),
            b=calls(city="Paris", days=3),
            c=calls(city="Rome", days=9),
        )
    )
    config = settings()
    async with running(config, *ALL) as client:
        shown = await ask(client, "The weather in Rome?", tools=[TOOL], tool_choice="required")

    (call,) = shown["tool_calls"]
    assert json.loads(call["arguments"])["days"] == 3
    assert (call["name"], len(call["id"])) == ("weather", 9)
    assert (shown["status"], shown["answer_kind"], shown["content"]) == ("voted", "tool_call", None)
    assert shown["degraded_reasons"] == ["invalid_call:c"]
    assert "j" not in model_server.stats.by_model


async def test_a_cap_ends_the_spending(
    settings: Callable[..., Settings], running: Running, model_server: ModelServer
) -> None:
    config = settings(pool={"max_total_tokens": 400, "max_tokens": 100})
    async with running(config, *ALL) as client:
        shown = await ask(client)

    assert (shown["status"], shown["degraded_reasons"][0]) == ("voted", "capped:tokens"), shown[
        "degraded_reasons"
    ]
    assert "j" not in model_server.stats.by_model


async def test_a_required_member_is_waited_for(
    settings: Callable[..., Settings], running: Running, model_server: ModelServer
) -> None:
    model_server.set_script(script(a=FOUR, b=FOUR, c=ModelScript(latency_ms=1500)))
    members = ["a", "b", {"name": "c", "model": "c", "required": True}]
    async with running(settings(pool={"members": members, "quorum": 0.5}), *ALL) as client:
        shown = await ask(client)

    assert (shown["closed_by"], [a["status"] for a in shown["answers"]]) == ("complete", ["ok"] * 3)


async def test_late_answers_are_stored_as_late(
    settings: Callable[..., Settings], running: Running, model_server: ModelServer
) -> None:
    model_server.set_script(script(a=FOUR, b=FOUR, c=ModelScript(latency_ms=700)))
    config = settings()
    async with running(config, *ALL) as client:
        shown = await ask(client)

        async def stored() -> bool:
            return await rows(config, "SELECT call FROM candidates WHERE is_late") == [
                {"call": "c"}
            ]

        await eventually(stored)

    assert (shown["closed_by"], shown["is_degraded"], shown["content"]) == ("certain", False, "4")


# -- what is asked for in place of the pool's own ----------------------------------------------


async def test_one_model_alone_is_asked_by_its_name(
    settings: Callable[..., Settings], running: Running, model_server: ModelServer
) -> None:
    async with running(settings(), *ALL) as client:
        shown = await ask(client, members=["j"])

    assert model_server.stats.by_model == {"j": 1}
    assert (shown["status"], shown["winner"], shown["is_degraded"]) == ("single", "j", False)
    assert [(a["member"], a["model"]) for a in shown["answers"]] == [("j", "j")]


async def test_named_models_debate_as_members_do(
    settings: Callable[..., Settings], running: Running, model_server: ModelServer
) -> None:
    models = {"x": {"kind": "remote", "base_url": model_server.base_url, "model": "another-x"}}
    model_server.set_script(script(a=ModelScript(answer="4")))
    async with running(settings(models=models), *ALL) as client:
        shown = await ask(client, "2 + 2?", mode="debate", members=["a", "x"])

    # Each is asked, and asked again: they differ.
    assert {name: model_server.stats.by_model[name] for name in ("a", "another-x")} == {
        "a": 2,
        "another-x": 2,
    }
    assert (shown["mode"], shown["rounds"] >= 1) == ("debate", True)
    assert {a["member"]: a["status"] for a in shown["answers"]} == {"a": "ok", "x": "ok"}


async def test_a_preset_is_part_of_what_is_asked(
    settings: Callable[..., Settings], running: Running, model_server: ModelServer
) -> None:
    model_server.set_script(script(a=FOUR, b=FOUR, c=ModelScript(answer="4", latency_ms=1500)))
    async with running(settings(pool={"early_stop": 0.6}), *ALL) as client:
        usual, high = await asyncio.gather(ask(client), ask(client, preset="high"))

    # It stops early, though with the preset it waits for everybody.
    assert (usual["closed_by"], high["closed_by"]) == ("certain", "complete")
    assert usual["config_hash"] != high["config_hash"]


async def test_a_learned_route_asks_one_member_of_three(
    settings: Callable[..., Settings],
    running: Running,
    model_server: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Learned from labelled outcomes in which all were asked, and off until the pool says so."""
    monkeypatch.setattr(router, "MIN_COMPARISONS", 20)
    model_server.set_script(script(a=FOUR, b=FOUR, c=ModelScript(answer="5")))
    gold = {"answer": "4", "match": "number"}
    plain = settings(pool={"early_stop": 1.0, "judge": None})
    async with running(plain, *ALL) as client:
        first = await asyncio.gather(*(ask(client, f"2 + 2? {i}", gold=gold) for i in range(60)))
    calls = dict(model_server.stats.by_model)

    pool = {"early_stop": 1.0, "judge": None, "route": "learned", "route_explore": 0.0}
    routed = settings(pool=pool)
    async with running(routed, *ALL) as client:
        second = await asyncio.gather(
            *(ask(client, f"And 2 + 2? {i}", gold=gold) for i in range(5))
        )
        everybody = await ask(client, "And 2 + 2 for all?", complete=True)

    assert {outcome["route"] for outcome in first} == {None}
    assert calls == {"a": 60, "b": 60, "c": 60}
    asked = {
        tuple(a["member"] for a in outcome["answers"] if a["status"] != "unasked")
        for outcome in second
    }
    assert asked <= {("a",), ("b",)}
    for outcome in second:
        assert (outcome["status"], outcome["content"]) == ("single", "4")
        assert (outcome["is_degraded"], outcome["missing_weight"]) == (False, 0)
        route = outcome["route"]
        assert route
        assert (route["reason"], len(route["members"])) == ("predicted", 1)
    assert everybody["route"] is None
    assert {a["status"] for a in everybody["answers"]} == {"ok"}
    counts = model_server.stats.by_model
    assert sum(counts.values()) == 180 + 5 + 3
    assert await rows(
        routed,
        "SELECT route, count(*) AS n, sum(n_asked) AS asked FROM v_outcome GROUP BY 1 ORDER BY 2",
    ) == [
        {"route": "predicted", "n": 5, "asked": 5},
        {"route": None, "n": 61, "asked": 183},
    ]


async def test_exploration_asks_all_and_is_counted(
    settings: Callable[..., Settings], running: Running, model_server: ModelServer
) -> None:
    model_server.set_script(script(a=FOUR, b=FOUR, c=FOUR))
    config = settings(pool={"judge": None, "route": "learned", "route_explore": 1.0})
    before = ROUTES.labels("default", "explored")._value.get()
    async with running(config, *ALL) as client:
        outcome = await ask(client, "2 + 2?")

    assert outcome["route"] == {
        "members": ["a", "b", "c"],
        "reason": "explored",
        "loss_points": None,
    }
    # Without it the vote of two would have ended the panel.
    assert {a["status"] for a in outcome["answers"]} == {"ok"}
    assert ROUTES.labels("default", "explored")._value.get() == before + 1
    assert await rows(config, "SELECT route, route_loss_points FROM v_outcome") == [
        {"route": "explored", "route_loss_points": None}
    ]


# -- read while it is written -----------------------------------------------------------------


async def streamed(
    config: Settings, running: Running, *services: str | EchoWorker, **prompt: Any
) -> tuple[replies.fusions.Fusion, list[Token]]:
    """Fuse one prompt that somebody reads along; returns the fusion and what was told meanwhile."""
    now = datetime.now(UTC)
    made = make_prompt("Why?", submitted_at=now, is_streamed=True, **prompt)
    store = Store(config.database)
    await Submissions(store).add([made], [None])
    await store.close()
    bus = Bus("ops", config.nats, drain_s=2)
    await bus.connect(timeout_s=120)
    told: list[Token] = []

    async def hear(msg: Msg) -> None:
        told.append(Token.decode(msg.data))

    await bus.client.subscribe(token_subject(made.fusion_id), cb=hear)
    async with running(config, "judge", "dispatcher", "ingest", *services) as client:
        await bus.publish(prompt_subject("normal", "default"), made, msg_id=made.fusion_id)
        shown = await client.get(made.fusion_id, wait_s=WAIT_S)
        await bus.client.flush()
    await bus.stop()
    return shown, told


async def test_one_answer_alone_can_be_read_while_it_is_written(
    settings: Callable[..., Settings], running: Running
) -> None:
    config = settings(models=TINY)
    text_ = "It is blue,  and this\nis why. "
    shown, told = await streamed(
        config, running, EchoWorker(config, lambda _: text_), members=("tiny",)
    )

    assert (shown["status"], shown["content"]) == ("single", text_)
    assert len(told) > 3
    assert "".join(t.text for t in told) == text_
    assert [t.offset for t in told] == [
        len("".join(t.text for t in told[:i])) for i in range(len(told))
    ]
    assert {(t.round, t.call, t.attempt) for t in told} == {(0, "tiny", 1)}


@pytest.mark.parametrize("guard", [False, True])
async def test_a_merge_can_be_read_while_it_is_written_where_nothing_can_refuse_it(
    settings: Callable[..., Settings], running: Running, model_server: ModelServer, guard: bool
) -> None:
    texts = {"one": "Light is scattered by the air.", "two": "It is the colour that we see."}
    merge = "Light is scattered by the air, and it is the colour that we see.\n"

    def answer(task: Task) -> str:
        if task.kind == "answer":
            return texts[task.call]
        return merge if task.kind == "write" else echo(task)

    models = {name: {"kind": "edge", "path": "/nowhere"} for name in (*texts, "w")}
    config = settings(
        models=models,
        pool={"members": list(texts), "judge": "w", "judge_by": "words", "guard": guard},
    )
    shown, told = await streamed(config, running, EchoWorker(config, answer), mode="merge")

    assert shown["status"] == "fused"
    if guard:
        assert told == []
    else:
        assert shown["content"] == "".join(t.text for t in told) == merge.strip()
        assert {t.call for t in told} == {"write"}


async def test_a_merge_with_fences_in_it_ends_as_it_was_told(
    settings: Callable[..., Settings], running: Running
) -> None:
    texts = {"one": "Light is scattered by the air.", "two": "It is the colour that we see."}

    def answer(task: Task) -> str:
        if task.kind == "answer":
            return texts[task.call]
        if task.kind != "write":
            return echo(task)
        shown = last_user_message({"messages": [m.model_dump() for m in task.messages]})
        return f"The best of them: \n{shown[shown.index('[[') :]}"

    models = {name: {"kind": "edge", "path": "/nowhere"} for name in (*texts, "w")}
    config = settings(models=models, pool={"members": list(texts), "judge": "w", "guard": False})
    shown, told = await streamed(config, running, EchoWorker(config, answer), mode="merge")

    assert (shown["status"], "[[" in (shown["content"] or "")) == ("fused", False)
    assert "".join(t.text for t in told) == "The best of them:"
    assert all(said in (shown["content"] or "") for said in texts.values())
