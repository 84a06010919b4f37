"""Planning: who is asked, who is not and why, with what, and by when."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from fusewire import ids
from fusewire.contracts import (
    Call,
    ContractError,
    Message,
    Plan,
    Prompt,
    Round,
    Sampling,
    Task,
    Tasks,
    Tier,
    Tool,
)
from fusewire.errors import UnacceptableMessage
from fusewire.settings import Settings
from fusewire.testing.factories import T0, make_prompt, make_round
from fusewire_dispatcher.planning import (
    Catalogue,
    MemberSpec,
    ModelSpec,
    PoolSpec,
    by_queue,
    expand,
    plan,
    with_system,
)
from fusewire_dispatcher.pools import book
from fusewire_dispatcher.residency import permits

NOW = T0 + timedelta(seconds=0.5)
MODELS = {
    "tiny": ModelSpec("edge", "smollm"),
    "gpt": ModelSpec("remote", "gpt"),
    "claude": ModelSpec("remote", "claude"),
}


def member(name: str, model: str, **given: Any) -> MemberSpec:
    fields: dict[str, Any] = {"weight": 1.0, "system": None, "sampling": Sampling(), **given}
    return MemberSpec(name, model, **fields)


MIXED = PoolSpec(
    members=(
        member(
            "small",
            "tiny",
            weight=2.0,
            system="Be brief.",
            sampling=Sampling(temperature=0.9, max_tokens=32),
        ),
        member("big", "gpt"),
        member("other", "claude", sampling=Sampling(top_p=0.5)),
    ),
    judge="gpt",
    quorum=0.5,
    debate_rounds=1,
    config_hash="cafe",
)
BOOK = Catalogue({"default": MIXED, "lonely": replace(MIXED, judge=None)}, MODELS)


def planned(**overrides: Any) -> tuple[Plan, dict[str, Task]]:
    made, tasks = plan(make_prompt(**overrides), BOOK, NOW)
    return made, {t.call: t for t in tasks}


PERMITS: list[tuple[Any, Tier, bool]] = [
    ("any", "edge", True),
    ("any", "remote", True),
    ("edge-only", "edge", True),
    ("edge-only", "remote", False),
]


@pytest.mark.parametrize(("residency", "tier", "permitted"), PERMITS)
def test_residency(residency: Any, tier: Tier, permitted: bool) -> None:
    assert permits(residency, tier) is permitted


def test_everyone_is_asked() -> None:
    made, tasks = planned()

    assert [(m.name, m.model, m.tier, m.family, m.weight) for m in made.members] == [
        ("small", "tiny", "edge", "smollm", 2.0),
        ("big", "gpt", "remote", "gpt", 1.0),
        ("other", "claude", "remote", "claude", 1.0),
    ]
    assert made.judge is not None
    assert (made.judge.model, made.judge.tier, made.judge.family) == ("gpt", "remote", "gpt")
    assert made.excluded == ()
    assert (made.quorum, made.debate_rounds, made.config_hash) == (0.5, 1, "cafe")
    assert made.planned_at == NOW
    assert set(tasks) == {"small", "big", "other"}


def test_a_task_says_everything_a_worker_needs() -> None:
    prompt = make_prompt(priority="high", tenant="acme")
    made, tasks = plan(prompt, BOOK, NOW)

    for task, asked in zip(tasks, made.members, strict=True):
        assert task.task_id == ids.task_id(prompt.fusion_id, 0, asked.name)
        assert (task.call, task.member, task.model, task.tier) == (
            asked.name,
            asked.name,
            asked.model,
            asked.tier,
        )
        assert (task.kind, task.round, task.priority, task.tenant) == ("answer", 0, "high", "acme")
        assert task.deadline_at == made.panel_deadline_at


def test_an_edge_only_prompt_is_shown_to_the_edge_alone() -> None:
    made, tasks = planned(residency="edge-only")

    assert set(tasks) == {"small"}
    assert {t.tier for t in tasks.values()} == {"edge"}
    assert made.judge is None
    assert [(e.name, e.reason) for e in made.excluded] == [
        ("big", "residency"),
        ("other", "residency"),
        ("judge", "residency"),
    ]
    assert made.residency == "edge-only"
    assert tasks["small"].residency == "edge-only"


def test_an_unknown_pool_gives_a_plan_without_members() -> None:
    made, tasks = planned(pool="gone")

    assert (made.members, tasks, made.judge) == ((), {}, None)
    assert [(e.name, e.reason) for e in made.excluded] == [("gone", "unknown_pool")]


def test_an_unknown_model_is_left_out() -> None:
    models = {name: spec for name, spec in MODELS.items() if name != "gpt"}

    made, tasks = plan(make_prompt(), Catalogue({"default": MIXED}, models), NOW)

    assert [t.call for t in tasks] == ["small", "other"]
    assert [(e.name, e.reason) for e in made.excluded] == [
        ("big", "unknown_model"),
        ("judge", "unknown_model"),
    ]


@pytest.mark.parametrize(
    ("pool", "deadline_s", "panel_s"),
    [
        ("default", 60, 45),  # a quarter is kept for the judge
        ("default", 4, 3),
        ("default", 86_400, 86_280),  # but two minutes at most
        ("lonely", 60, 60),  # and nothing where nobody judges
    ],
)
def test_deadlines(pool: str, deadline_s: float, panel_s: float) -> None:
    made, tasks = planned(pool=pool, deadline_at=T0 + timedelta(seconds=deadline_s))

    assert made.panel_deadline_at == T0 + timedelta(seconds=panel_s)
    assert made.deadline_at == T0 + timedelta(seconds=deadline_s)
    assert {t.deadline_at for t in tasks.values()} == {made.panel_deadline_at}


def test_the_panel_of_an_edge_only_prompt_has_all_the_time_when_the_judge_is_barred() -> None:
    made, _ = planned(residency="edge-only")

    assert made.panel_deadline_at == made.deadline_at


def test_each_edge_member_has_a_seed_of_its_own_and_always_the_same() -> None:
    first = {call: task.sampling.seed for call, task in planned()[1].items()}
    again = {call: task.sampling.seed for call, task in planned()[1].items()}
    other = {call: task.sampling.seed for call, task in planned(seed=8)[1].items()}

    assert first == again
    assert first["small"] not in (None, other["small"])
    # Some hosted models refuse a seed, so none is sent that nobody asked for.
    assert (first["big"], first["other"]) == (None, None)


def test_a_seed_that_the_client_fixed_still_differs_by_member() -> None:
    _, tasks = planned(seed=5, sampling=Sampling(seed=5))

    assert len({t.sampling.seed for t in tasks.values()}) == 3
    assert {t.sampling.seed for t in tasks.values()} == {
        t.sampling.seed for t in planned(seed=5, sampling=Sampling(seed=5))[1].values()
    }


def test_the_client_s_sampling_goes_before_the_member_s() -> None:
    _, tasks = planned(
        sampling=Sampling(temperature=0.0, stop=("END",), response_schema={"type": "object"})
    )

    assert tasks["small"].sampling.temperature == 0.0
    assert tasks["small"].sampling.max_tokens == 32
    assert tasks["other"].sampling.top_p == 0.5
    assert {t.sampling.stop for t in tasks.values()} == {("END",)}
    assert all(t.sampling.response_schema == {"type": "object"} for t in tasks.values())


def test_a_member_s_system_prompt_leads_unless_the_conversation_brings_one() -> None:
    asked = (Message(role="user", content="Why?"),)
    led = (Message(role="system", content="Be brief."), *asked)
    own = (Message(role="system", content="Be a pirate."), *asked)

    assert with_system(asked, "Be brief.") == led
    assert with_system(own, "Be brief.") == own
    assert with_system(asked, None) == asked
    assert planned()[1]["small"].messages[0] == led[0]
    assert planned()[1]["big"].messages == make_prompt().messages


def a_call(**given: Any) -> Call:
    fields: dict[str, Any] = {
        "name": "verdict",
        "kind": "verdict",
        "model": "gpt",
        "messages": (Message(role="user", content="Which?"),),
        "sampling": Sampling(temperature=0, max_tokens=256),
        **given,
    }
    return Call(**fields)


def expanded(*calls: Call, **overrides: Any) -> list[Task]:
    return list(expand(make_round(calls=calls, **overrides), BOOK))


def test_a_judge_s_call_becomes_a_task() -> None:
    (task,) = expanded(a_call(), round=2, priority="low")

    assert task.task_id == ids.task_id(make_prompt().fusion_id, 2, "verdict")
    assert (task.round, task.call, task.kind, task.member) == (2, "verdict", "verdict", None)
    assert (task.model, task.tier, task.priority) == ("gpt", "remote", "low")
    assert (task.sampling.temperature, task.sampling.max_tokens) == (0, 256)
    assert task.messages == a_call().messages
    assert task.deadline_at == make_prompt().deadline_at


def test_a_member_s_call_speaks_with_its_own_system_prompt_and_sampling() -> None:
    (task,) = expanded(
        a_call(
            name="small", kind="debate", model="tiny", member="small", sampling=Sampling(top_p=0.1)
        )
    )

    assert task.messages[0] == Message(role="system", content="Be brief.")
    assert (task.sampling.temperature, task.sampling.max_tokens, task.sampling.top_p) == (
        0.9,
        32,
        0.1,
    )
    assert (task.member, task.tier) == ("small", "edge")


def test_seeds_of_rounds_are_deterministic_and_differ_by_round_and_call() -> None:
    def seeds(**overrides: Any) -> set[int | None]:
        calls = (a_call(model="tiny"), a_call(name="verdict-again", model="tiny"))
        return {t.sampling.seed for t in expanded(*calls, **overrides)}

    assert seeds() == seeds()
    assert len(seeds() | seeds(round=2) | seeds(seed=8)) == 6
    assert [task.sampling.seed for task in expanded(a_call())] == [None]


REFUSED = [
    ("a model that is not configured", {"model": "gone"}, {}, "model gone is not configured"),
    (
        "a hosted model for an edge-only prompt",
        {},
        {"residency": "edge-only"},
        "gpt is hosted, the prompt edge-only",
    ),
]


@pytest.mark.parametrize(
    ("call", "overrides", "part"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_a_round_is_refused_whole(
    call: dict[str, Any], overrides: dict[str, Any], part: str
) -> None:
    allowed = a_call(name="small", model="tiny")

    with pytest.raises(UnacceptableMessage, match=part):
        expanded(allowed, a_call(**call), **overrides)


def test_an_edge_judge_may_see_an_edge_only_prompt() -> None:
    (task,) = expanded(a_call(model="tiny"), residency="edge-only")

    assert (task.tier, task.residency) == ("edge", "edge-only")


def test_a_round_of_a_pool_that_is_gone_is_still_expanded() -> None:
    (task,) = expanded(a_call(member="small", model="tiny"), pool="gone")

    assert task.messages == a_call().messages


def settings(**sections: Any) -> Settings:
    remote = {
        "kind": "remote",
        "base_url": "http://127.0.0.1:1/v1",
        "model": "vendor/Mistral-7b-instruct",
    }
    given: dict[str, Any] = {
        "models": {"tiny": {"kind": "edge", "path": "/models/SmolLM2-135m"}, "mist": remote},
        "pools": {
            "default": {
                "members": [
                    {
                        "name": "one",
                        "model": "tiny",
                        "weight": 3,
                        "system": "Hm.",
                        "temperature": 0.1,
                    },
                    "mist",
                ],
                "judge": "mist",
                "quorum": 0.4,
                "debate_rounds": 1,
                "max_tokens": 99,
            }
        },
    }
    return Settings(**{**given, **sections})


def test_the_book_is_the_configuration() -> None:
    made = book(settings())

    assert made.models == {
        "tiny": ModelSpec("edge", "smollm"),
        "mist": ModelSpec("remote", "mistral"),
    }
    pool = made.pools["default"]
    assert pool.members == (
        MemberSpec("one", "tiny", 3.0, "Hm.", Sampling(temperature=0.1, max_tokens=99)),
        MemberSpec("mist", "mist", 1.0, None, Sampling(max_tokens=99)),
    )
    assert (pool.judge, pool.quorum, pool.debate_rounds) == ("mist", 0.4, 1)
    assert pool.config_hash == settings().config_hash("default")


def test_hosted_tasks_travel_together_and_those_of_an_edge_model() -> None:
    pool = replace(MIXED, members=(*MIXED.members, member("again", "tiny")))
    _, tasks = plan(make_prompt(), replace(BOOK, pools={"default": pool}), NOW)

    messages = by_queue("default", tasks)

    assert {(m.tier, m.queue): [t.call for t in m.tasks] for m in messages} == {
        ("edge", "tiny"): ["small", "again"],
        ("remote", "default"): ["big", "other"],
    }
    assert len({m.key for m in messages}) == 2
    assert [task for m in messages for task in m.each()] == sorted(tasks, key=lambda t: t.tier)


def test_what_tasks_share_travels_once() -> None:
    tool = Tool(name="look")
    _, tasks = plan(make_prompt("x" * 10_000, tools=(tool,)), BOOK, NOW)
    (message,) = by_queue("default", [t for t in tasks if t.tier == "remote"])

    assert len(message.messages) == len(message.tools) == 1
    assert len(message.encode()) < 12_000
    assert all(task.tools == (tool,) for task in message.each())


@pytest.mark.parametrize("missing", [{"messages": (0, 7)}, {"messages": (0,), "tools": (0,)}])
def test_a_task_that_names_a_message_that_is_not_there_is_refused(missing: dict[str, Any]) -> None:
    _, tasks = plan(make_prompt(), BOOK, NOW)
    message = by_queue("default", tasks)[0]
    broken = message.model_copy(update={"tasks": (message.tasks[0].model_copy(update=missing),)})

    with pytest.raises(ContractError, match=r"\$\.tasks\[0\]"):
        Tasks.decode(broken.encode()).each()


def test_plan_and_tasks_survive_the_wire() -> None:
    made, tasks = plan(make_prompt(residency="edge-only"), BOOK, NOW)

    assert Plan.decode(made.encode()) == made
    sent = [Tasks.decode(together.encode()) for together in by_queue("default", tasks)]
    assert [task for together in sent for task in together.each()] == list(tasks)
    assert Round.decode(make_round().encode()) == make_round()
    assert Prompt.decode(make_prompt().encode()) == make_prompt()


@pytest.mark.parametrize(
    ("judge", "is_by_margin", "judges_own", "expected"),
    [
        ("tiny", True, False, (True, False)),
        ("tiny", True, True, (True, True)),
        ("tiny", False, True, (False, False)),
        ("gpt", True, True, (False, False)),
    ],
)
def test_only_a_judge_at_the_edge_decides_by_margin_and_only_such_a_one_may_see_its_own(
    judge: str, is_by_margin: bool, judges_own: bool, expected: tuple[bool, bool]
) -> None:
    pool = replace(MIXED, judge=judge, is_by_margin=is_by_margin, judges_own=judges_own)
    made, _ = plan(make_prompt(), Catalogue({"default": pool}, MODELS), NOW)

    assert made.judge is not None
    assert (made.judge.by_margin, made.judge.sees_own) == expected


def test_steps_are_for_answers_and_not_for_turns_of_a_debate() -> None:
    pool = replace(MIXED, members=(member("small", "tiny", is_in_steps=True), member("big", "gpt")))
    book = Catalogue({"default": pool}, MODELS)
    _, tasks = plan(make_prompt(), book, NOW)
    calls = [
        a_call(name=kind, kind=kind, model="tiny", member="small") for kind in ("answer", "debate")
    ]

    assert [task.is_in_steps for task in tasks] == [True, False]
    assert [task.is_in_steps for task in expand(make_round(calls=tuple(calls)), book)] == [
        True,
        False,
    ]
