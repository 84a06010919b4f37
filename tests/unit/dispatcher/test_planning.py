"""Planning: who is asked, who is not and why, with what, and by when."""

from dataclasses import replace
from datetime import timedelta
from itertools import chain
from typing import Any

import pytest

from fusewire import ids
from fusewire.contracts import (
    Call,
    ContractError,
    Message,
    Plan,
    Policy,
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
from fusewire_dispatcher.planning.catalogue import Catalogue, MemberSpec, ModelSpec, PoolSpec
from fusewire_dispatcher.planning.plan import plan_prompt
from fusewire_dispatcher.planning.tasks import expand_round, group_by_queue, with_system
from fusewire_dispatcher.pools import build_catalogue
from fusewire_dispatcher.residency import permits

NOW = T0 + timedelta(seconds=0.5)
MODELS = {
    "tiny": ModelSpec("edge", "smollm"),
    "gpt": ModelSpec("remote", "gpt"),
    "claude": ModelSpec("remote", "claude"),
}


def member(name: str, model: str, **overrides: Any) -> MemberSpec:
    fields: dict[str, Any] = {"weight": 1.0, "system": None, "sampling": Sampling(), **overrides}
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
CATALOGUE = Catalogue({"default": MIXED, "lonely": replace(MIXED, judge=None)}, MODELS)


def plan_and_tasks(**overrides: Any) -> tuple[Plan, dict[str, Task]]:
    plan, tasks = plan_prompt(make_prompt(**overrides), CATALOGUE, NOW)
    return plan, {t.call: t for t in tasks}


PERMITS: list[tuple[Any, Tier, bool]] = [
    ("any", "edge", True),
    ("any", "remote", True),
    ("edge-only", "edge", True),
    ("edge-only", "remote", False),
]


@pytest.mark.parametrize(("residency", "tier", "is_permitted"), PERMITS)
def test_residency(residency: Any, tier: Tier, is_permitted: bool) -> None:
    assert permits(residency, tier) is is_permitted


def test_everyone_is_asked() -> None:
    plan, tasks = plan_and_tasks()

    assert [(m.name, m.model, m.tier, m.family, m.weight) for m in plan.members] == [
        ("small", "tiny", "edge", "smollm", 2.0),
        ("big", "gpt", "remote", "gpt", 1.0),
        ("other", "claude", "remote", "claude", 1.0),
    ]
    assert plan.judge is not None
    assert (plan.judge.model, plan.judge.tier, plan.judge.family) == ("gpt", "remote", "gpt")
    assert plan.excluded == ()
    assert (plan.quorum, plan.debate_rounds, plan.config_hash) == (0.5, 1, "cafe")
    assert plan.planned_at == NOW
    assert set(tasks) == {"small", "big", "other"}


def test_a_task_says_everything_a_worker_needs() -> None:
    prompt = make_prompt(priority="high", tenant="acme")
    plan, tasks = plan_prompt(prompt, CATALOGUE, NOW)

    for task, member_plan in zip(tasks, plan.members, strict=True):
        assert task.task_id == ids.task_id(prompt.fusion_id, 0, member_plan.name)
        assert (task.call, task.member, task.model, task.tier) == (
            member_plan.name,
            member_plan.name,
            member_plan.model,
            member_plan.tier,
        )
        assert (task.kind, task.round, task.priority, task.tenant) == ("answer", 0, "high", "acme")
        assert task.deadline_at == plan.panel_deadline_at


def test_an_edge_only_prompt_is_shown_to_the_edge_alone() -> None:
    plan, tasks = plan_and_tasks(residency="edge-only")

    assert set(tasks) == {"small"}
    assert {t.tier for t in tasks.values()} == {"edge"}
    assert plan.judge is None
    assert [(e.name, e.reason) for e in plan.excluded] == [
        ("big", "residency"),
        ("other", "residency"),
        ("judge", "residency"),
    ]
    assert plan.residency == "edge-only"
    assert tasks["small"].residency == "edge-only"


def test_an_unknown_pool_gives_a_plan_without_members() -> None:
    plan, tasks = plan_and_tasks(pool="gone")

    assert (plan.members, tasks, plan.judge) == ((), {}, None)
    assert [(e.name, e.reason) for e in plan.excluded] == [("gone", "unknown_pool")]


def test_an_unknown_model_is_left_out() -> None:
    models = {name: spec for name, spec in MODELS.items() if name != "gpt"}

    plan, tasks = plan_prompt(make_prompt(), Catalogue({"default": MIXED}, models), NOW)

    assert [t.call for t in tasks] == ["small", "other"]
    assert [(e.name, e.reason) for e in plan.excluded] == [
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
    plan, tasks = plan_and_tasks(pool=pool, deadline_at=T0 + timedelta(seconds=deadline_s))

    assert plan.panel_deadline_at == T0 + timedelta(seconds=panel_s)
    assert plan.deadline_at == T0 + timedelta(seconds=deadline_s)
    assert {t.deadline_at for t in tasks.values()} == {plan.panel_deadline_at}


def test_the_panel_of_an_edge_only_prompt_has_all_the_time_when_the_judge_is_barred() -> None:
    plan, _ = plan_and_tasks(residency="edge-only")

    assert plan.panel_deadline_at == plan.deadline_at


def test_each_edge_member_has_a_seed_of_its_own_and_always_the_same() -> None:
    first = {call: task.sampling.seed for call, task in plan_and_tasks()[1].items()}
    repeat = {call: task.sampling.seed for call, task in plan_and_tasks()[1].items()}
    other = {call: task.sampling.seed for call, task in plan_and_tasks(seed=8)[1].items()}

    assert first == repeat
    assert first["small"] not in (None, other["small"])
    # Some hosted models refuse a seed, so none is sent that nobody asked for.
    assert (first["big"], first["other"]) == (None, None)


def test_a_seed_that_the_client_fixed_still_differs_by_member() -> None:
    _, tasks = plan_and_tasks(seed=5, sampling=Sampling(seed=5))

    assert len({t.sampling.seed for t in tasks.values()}) == 3
    assert {t.sampling.seed for t in tasks.values()} == {
        t.sampling.seed for t in plan_and_tasks(seed=5, sampling=Sampling(seed=5))[1].values()
    }


def test_the_client_s_sampling_goes_before_the_member_s() -> None:
    _, tasks = plan_and_tasks(
        sampling=Sampling(temperature=0.0, stop=("END",), response_schema={"type": "object"})
    )

    assert tasks["small"].sampling.temperature == 0.0
    assert tasks["small"].sampling.max_tokens == 32
    assert tasks["other"].sampling.top_p == 0.5
    assert {t.sampling.stop for t in tasks.values()} == {("END",)}
    assert all(t.sampling.response_schema == {"type": "object"} for t in tasks.values())


def test_a_member_s_system_prompt_leads_unless_the_conversation_brings_one() -> None:
    conversation = (Message(role="user", content="Why?"),)
    with_members_prompt = (Message(role="system", content="Be brief."), *conversation)
    with_own_prompt = (Message(role="system", content="Be a pirate."), *conversation)

    assert with_system(conversation, "Be brief.") == with_members_prompt
    assert with_system(with_own_prompt, "Be brief.") == with_own_prompt
    assert with_system(conversation, None) == conversation
    assert plan_and_tasks()[1]["small"].messages[0] == with_members_prompt[0]
    assert plan_and_tasks()[1]["big"].messages == make_prompt().messages


def a_call(**overrides: Any) -> Call:
    fields: dict[str, Any] = {
        "name": "verdict",
        "kind": "verdict",
        "model": "gpt",
        "messages": (Message(role="user", content="Which?"),),
        "sampling": Sampling(temperature=0, max_tokens=256),
        **overrides,
    }
    return Call(**fields)


def expand(*calls: Call, **overrides: Any) -> list[Task]:
    return list(expand_round(make_round(calls=calls, **overrides), CATALOGUE))


def test_a_judge_s_call_becomes_a_task() -> None:
    (task,) = expand(a_call(), round=2, priority="low")

    assert task.task_id == ids.task_id(make_prompt().fusion_id, 2, "verdict")
    assert (task.round, task.call, task.kind, task.member) == (2, "verdict", "verdict", None)
    assert (task.model, task.tier, task.priority) == ("gpt", "remote", "low")
    assert (task.sampling.temperature, task.sampling.max_tokens) == (0, 256)
    assert task.messages == a_call().messages
    assert task.deadline_at == make_prompt().deadline_at


def test_a_member_s_call_speaks_with_its_own_system_prompt_and_sampling() -> None:
    (task,) = expand(
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
        return {t.sampling.seed for t in expand(*calls, **overrides)}

    assert seeds() == seeds()
    assert len(seeds() | seeds(round=2) | seeds(seed=8)) == 6
    assert [task.sampling.seed for task in expand(a_call())] == [None]


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
    allowed_call = a_call(name="small", model="tiny")

    with pytest.raises(UnacceptableMessage, match=part):
        expand(allowed_call, a_call(**call), **overrides)


def test_an_edge_judge_may_see_an_edge_only_prompt() -> None:
    (task,) = expand(a_call(model="tiny"), residency="edge-only")

    assert (task.tier, task.residency) == ("edge", "edge-only")


def test_a_round_of_a_pool_that_is_gone_is_still_expanded() -> None:
    (task,) = expand(a_call(member="small", model="tiny"), pool="gone")

    assert task.messages == a_call().messages


def settings(**sections: Any) -> Settings:
    remote = {
        "kind": "remote",
        "base_url": "http://127.0.0.1:1/v1",
        "model": "vendor/Mistral-7b-instruct",
    }
    overrides: dict[str, Any] = {
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
    return Settings(**{**overrides, **sections})


def test_the_catalogue_is_the_configuration() -> None:
    catalogue = build_catalogue(settings())

    assert catalogue.models == {
        "tiny": ModelSpec("edge", "smollm"),
        "mist": ModelSpec("remote", "mistral"),
    }
    pool = catalogue.pools["default"]
    assert pool.members == (
        MemberSpec("one", "tiny", 3.0, "Hm.", Sampling(temperature=0.1, max_tokens=99)),
        MemberSpec("mist", "mist", 1.0, None, Sampling(max_tokens=99)),
    )
    assert (pool.judge, pool.quorum, pool.debate_rounds) == ("mist", 0.4, 1)
    assert pool.config_hash == settings().config_hash("default")


def test_each_setting_of_a_pool_is_in_the_catalogue() -> None:
    fields = {
        "members": [
            {"name": "one", "model": "tiny", "required": True, "in_steps": True, "top_p": 0.5}
        ],
        "jury": ["tiny", "mist"],
        "judge_by": "margin",
        "judge_own": True,
        "quorum": 0.4,
        "debate_rounds": 1,
        "max_tokens": 99,
        "early_stop": 0.8,
        "hedge": 0.2,
    }
    pools = {
        "default": {"judge": "tiny", **fields},
        "jury": fields,
        "hosted": {"members": ["mist"], "judge": "mist"},
    }
    configured = settings(pools=pools, tenants={"acme": {"models": ["mist"]}, "open": {}})
    catalogue = build_catalogue(configured)

    one = MemberSpec("one", "tiny", 1.0, None, Sampling(top_p=0.5, max_tokens=99), True, True)
    assert catalogue.pools["default"] == PoolSpec(
        members=(one,),
        judge="tiny",
        quorum=0.4,
        debate_rounds=1,
        config_hash=configured.config_hash("default"),
        jury=("tiny", "mist"),
        is_by_margin=True,
        judges_own=True,
        policy=Policy(early_stop=0.8, hedge=0.2),
        max_tokens=99,
    )
    assert catalogue.pools["jury"].judge == "tiny", "the first of its jury"
    assert catalogue.tenant_models == {"acme": {"mist"}}
    budget = catalogue.variants["default", "budget"]
    assert (budget.policy.gate, budget.policy.early_stop) == ("edge-first", 0.87)
    assert (budget.quorum, budget.debate_rounds) == (0.4, 1)
    assert budget.config_hash != catalogue.pools["default"].config_hash


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("vendor/Mistral-7b-instruct", "mistral"),
        ("Qwen2.5-7B", "qwen"),
        ("gpt4", "gpt"),
        ("405-B", "405-b"),
        ("a/b/phi-3", "phi"),
    ],
)
def test_a_family_is_guessed_from_the_name_of_a_model(name: str, family: str) -> None:
    model = {"kind": "remote", "base_url": "http://127.0.0.1:1/v1", "model": name}
    edge = {"kind": "edge", "path": f"/models/{name}"}
    own = {**model, "family": "own"}
    pools = {"default": {"members": ["m", "e", "o"], "judge": "m"}}
    models = build_catalogue(settings(models={"m": model, "e": edge, "o": own}, pools=pools)).models

    assert (models["m"].family, models["e"].family, models["o"].family) == (family, family, "own")


def test_what_a_model_can_do_depends_on_where_it_is() -> None:
    model = {"kind": "remote", "base_url": "http://127.0.0.1:1/v1", "model": "m", "images": True}
    edge = {"kind": "edge", "path": "/models/e"}
    pools = {"default": {"members": ["m", "e", "t"], "judge": "m"}}
    models = build_catalogue(
        settings(models={"m": model, "e": edge, "t": {**edge, "tools": False}}, pools=pools)
    ).models

    assert {n: (spec.has_tools, spec.has_images) for n, spec in models.items()} == {
        "m": (True, True),
        "e": (True, False),
        "t": (False, False),
    }


def test_hosted_tasks_travel_together_and_those_of_an_edge_model() -> None:
    pool = replace(MIXED, members=(*MIXED.members, member("again", "tiny")))
    _, tasks = plan_prompt(make_prompt(), replace(CATALOGUE, pools={"default": pool}), NOW)

    messages = group_by_queue("default", tasks)

    edge, remote = sorted(messages, key=lambda message: message.tier)
    assert (edge.tier, edge.queue) == ("edge", "tiny")
    assert [task.call for task in edge.tasks] == ["small", "again"]
    assert (remote.tier, remote.queue) == ("remote", "default")
    assert [task.call for task in remote.tasks] == ["big", "other"]
    assert edge.key != remote.key
    all_tasks = [*messages[0].each(), *messages[1].each()]
    assert all_tasks == sorted(tasks, key=lambda task: task.tier)


def test_what_tasks_share_travels_once() -> None:
    tool = Tool(name="look")
    _, tasks = plan_prompt(make_prompt("x" * 10_000, tools=(tool,)), CATALOGUE, NOW)
    (message,) = group_by_queue("default", [t for t in tasks if t.tier == "remote"])

    assert len(message.messages) == len(message.tools) == 1
    assert len(message.encode()) < 12_000
    assert all(task.tools == (tool,) for task in message.each())


@pytest.mark.parametrize("missing", [{"messages": (0, 7)}, {"messages": (0,), "tools": (0,)}])
def test_a_task_that_names_a_message_that_is_not_there_is_refused(missing: dict[str, Any]) -> None:
    _, tasks = plan_prompt(make_prompt(), CATALOGUE, NOW)
    message = group_by_queue("default", tasks)[0]
    broken_task = message.tasks[0].model_copy(update=missing)
    broken_message = message.model_copy(update={"tasks": (broken_task,)})

    with pytest.raises(ContractError, match=r"\$\.tasks\[0\]"):
        Tasks.decode(broken_message.encode()).each()


def test_plan_and_tasks_survive_the_wire() -> None:
    plan, tasks = plan_prompt(make_prompt(residency="edge-only"), CATALOGUE, NOW)

    assert Plan.decode(plan.encode()) == plan
    messages = [Tasks.decode(message.encode()) for message in group_by_queue("default", tasks)]
    assert list(chain.from_iterable(message.each() for message in messages)) == list(tasks)
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
    plan, _ = plan_prompt(make_prompt(), Catalogue({"default": pool}, MODELS), NOW)

    assert plan.judge is not None
    assert (plan.judge.by_margin, plan.judge.sees_own) == expected


def test_steps_are_for_answers_and_not_for_turns_of_a_debate() -> None:
    pool = replace(MIXED, members=(member("small", "tiny", is_in_steps=True), member("big", "gpt")))
    build_catalogue = Catalogue({"default": pool}, MODELS)
    _, tasks = plan_prompt(make_prompt(), build_catalogue, NOW)
    calls = [
        a_call(name=kind, kind=kind, model="tiny", member="small") for kind in ("answer", "debate")
    ]

    assert [task.is_in_steps for task in tasks] == [True, False]
    assert [
        task.is_in_steps for task in expand_round(make_round(calls=tuple(calls)), build_catalogue)
    ] == [
        True,
        False,
    ]
