"""What a pool's policy makes of a plan: waves, samples, juries, caps, recorded answers, tools."""

from dataclasses import replace
from typing import Any

import pytest

from fusewire.contracts import (
    Call,
    Message,
    Plan,
    Policy,
    RecordedAnswer,
    Sampling,
    Task,
    Tool,
    ToolCall,
)
from fusewire.errors import UnacceptableMessage
from fusewire.settings import PRESETS, Pool
from fusewire.testing.factories import T0, make_prompt, make_round
from fusewire_dispatcher.planning.catalogue import Catalogue, MemberSpec, ModelSpec, PoolSpec
from fusewire_dispatcher.planning.plan import plan_prompt
from fusewire_dispatcher.planning.tasks import expand_round

MODELS = {
    "tiny": ModelSpec("edge", "smollm", has_tools=False),
    "mini": ModelSpec("edge", "qwen", has_tools=False),
    "gpt": ModelSpec("remote", "gpt"),
    "claude": ModelSpec("remote", "claude"),
}
TOOL = Tool(name="look", parameters={"type": "object"})


def pool(*models: str, **fields: Any) -> PoolSpec:
    members = tuple(
        MemberSpec(m, m, 1.0, None, Sampling(max_tokens=100), is_required=m == "claude")
        for m in models
    )
    defaults: dict[str, Any] = {
        "judge": "gpt",
        "quorum": 0.67,
        "debate_rounds": 1,
        "config_hash": "cafe",
    }
    return PoolSpec(members, **{**defaults, **fields})


def plan_and_tasks(spec: PoolSpec, **prompt: Any) -> tuple[Plan, dict[str, Task]]:
    plan, tasks = plan_prompt(make_prompt(**prompt), Catalogue({"default": spec}, MODELS), T0)
    return plan, {task.call: task for task in tasks}


GATED = Policy(gate="edge-first")


def test_an_edge_first_pool_asks_its_one_edge_member_three_times_and_nobody_else() -> None:
    plan, tasks = plan_and_tasks(pool("tiny", "gpt", "claude", policy=GATED))

    assert list(tasks) == ["tiny", "tiny=2", "tiny=3"]
    assert {m.name: (m.wave, m.samples) for m in plan.members} == {
        "tiny": (0, 3),
        "gpt": (1, 1),
        "claude": (1, 1),
    }
    assert {task.member for task in tasks.values()} == {"tiny"}
    assert len({task.sampling.seed for task in tasks.values()}) == 3
    # A first answer as the client wants it, further ones by chance: at temperature 0 they could
    # only agree.
    assert [task.sampling.temperature for task in tasks.values()] == [None, 0.7, 0.7]


def test_further_samples_keep_a_temperature_that_is_not_nought() -> None:
    _, tasks = plan_and_tasks(pool("tiny", "gpt", policy=GATED), sampling=Sampling(temperature=0.3))
    assert {task.sampling.temperature for task in tasks.values()} == {0.3}

    _, tasks = plan_and_tasks(pool("tiny", "gpt", policy=GATED), sampling=Sampling(temperature=0.0))
    assert [task.sampling.temperature for task in tasks.values()] == [0.0, 0.7, 0.7]


@pytest.mark.parametrize(
    ("members", "samples"),
    [(("tiny", "mini", "gpt"), 2), (("tiny", "mini"), 1), (("gpt", "claude"), 1)],
)
def test_the_gate_has_three_samples_or_more_and_stands_only_between_two_tiers(
    members: tuple[str, ...], samples: int
) -> None:
    plan, tasks = plan_and_tasks(pool(*members, policy=GATED))

    edge = [m for m in plan.members if m.tier == "edge"] or list(plan.members)
    assert {m.samples for m in edge} == {samples}
    assert {m.wave for m in plan.members} == ({0, 1} if samples > 1 else {0})
    assert len(tasks) == sum(m.samples for m in plan.members if m.wave == 0)


def test_an_edge_only_prompt_has_no_second_wave() -> None:
    plan, tasks = plan_and_tasks(pool("tiny", "gpt", policy=GATED), residency="edge-only")

    assert [m.wave for m in plan.members] == [0]
    assert list(tasks) == ["tiny"]


def test_a_second_wave_is_asked_as_the_first_would_have_been() -> None:
    prompt = make_prompt(tools=(TOOL,), tool_choice="look")
    whole = Catalogue({"default": pool("gpt")}, MODELS)
    _, (first,) = plan_prompt(prompt, whole, T0)
    call = Call(
        name="gpt",
        kind="answer",
        model="gpt",
        member="gpt",
        messages=prompt.messages,
        sampling=prompt.sampling,
        tools=prompt.tools,
        tool_choice=prompt.tool_choice,
    )

    (later,) = expand_round(make_round(prompt, [call]), whole)

    same = ("messages", "sampling", "tools", "tool_choice", "model", "member", "kind", "residency")
    assert {k: getattr(later, k) for k in same} == {k: getattr(first, k) for k in same}


def test_a_jury_votes_and_the_judge_writes() -> None:
    plan, _ = plan_and_tasks(pool("tiny", "gpt", jury=("claude", "mini")))

    assert plan.judge is not None
    assert (plan.judge.model, [j.model for j in plan.jurors]) == ("gpt", ["claude", "mini"])


def test_an_edge_only_prompt_is_judged_by_the_jurors_that_may_see_it() -> None:
    plan, _ = plan_and_tasks(pool("tiny", "gpt", jury=("claude", "mini")), residency="edge-only")

    assert plan.judge is not None
    assert (plan.judge.model, [j.model for j in plan.jurors]) == ("mini", ["mini"])
    assert {("judge", "residency"), ("juror-claude", "residency")} <= {
        (e.name, e.reason) for e in plan.excluded
    }


def test_a_prompt_can_name_its_judge_and_its_criteria() -> None:
    plan, _ = plan_and_tasks(
        pool("tiny", "gpt", jury=("claude", "mini")), judge="mini", criteria="brevity"
    )

    assert plan.judge is not None
    assert (plan.judge.model, plan.jury, plan.policy.criteria) == ("mini", (), "brevity")


def test_members_that_do_not_fit_the_token_cap_are_left_out() -> None:
    # 7 tokens of prompt and 100 of answer each
    plan, tasks = plan_and_tasks(pool("tiny", "gpt", "claude", policy=Policy(max_total_tokens=220)))

    assert list(tasks) == ["tiny", "gpt"]
    assert [(e.name, e.reason, e.weight) for e in plan.excluded] == [("claude", "token_cap", 1.0)]


def test_a_complete_prompt_asks_and_awaits_everybody() -> None:
    policy = Policy(gate="edge-first", early_stop=0.87, hedge=0.1)
    plan, tasks = plan_and_tasks(pool("tiny", "gpt", policy=policy), is_complete=True)

    assert list(tasks) == ["tiny", "gpt"]
    assert (plan.quorum, plan.policy) == (1.0, Policy(early_stop=1.0))


def test_recorded_answers_stand_in_for_the_members() -> None:
    recorded = (
        RecordedAnswer(member="one", model="gpt", content="4"),
        RecordedAnswer(member="two", model="elsewhere", family="other", weight=2.0, content="5"),
    )
    plan, tasks = plan_and_tasks(pool("tiny", "claude", policy=GATED), recorded=recorded)

    assert tasks == {}
    assert [(m.name, m.model, m.family, m.weight, m.is_replay_only) for m in plan.members] == [
        ("one", "gpt", "gpt", 1.0, False),
        ("two", "elsewhere", "other", 2.0, True),
    ]
    assert plan.judge is not None


def test_a_recorded_hosted_member_cannot_be_asked_again_about_an_edge_only_prompt() -> None:
    plan, _ = plan_and_tasks(
        pool("tiny"),
        recorded=(RecordedAnswer(member="one", model="gpt", content="4"),),
        residency="edge-only",
    )

    assert [m.is_replay_only for m in plan.members] == [True]
    assert plan.judge is None


def test_a_model_that_may_not_see_a_tenant_s_prompts_is_not_asked_in_any_round() -> None:
    """Neither as a member, nor as a judge, nor because a recorded answer names it."""
    spec = pool("tiny", "claude", judge="gpt")
    whole = Catalogue({"default": spec}, MODELS, tenant_models={"acme": {"tiny"}})

    plan, tasks = plan_prompt(make_prompt(tenant="acme"), whole, T0)
    assert [task.model for task in tasks] == ["tiny"]
    assert {(out.name, out.reason) for out in plan.excluded} == {
        ("claude", "unknown_model"),
        ("judge", "unknown_model"),
    }
    recorded = (
        RecordedAnswer(member="one", model="gpt", content="4"),
        RecordedAnswer(member="two", model="tiny", content="5"),
    )
    plan, _ = plan_prompt(make_prompt(tenant="acme", recorded=recorded), whole, T0)
    assert [m.is_replay_only for m in plan.members] == [True, False]
    call = Call(name="one-2", kind="answer", model="gpt", messages=make_prompt().messages)
    with pytest.raises(UnacceptableMessage, match="model gpt is not configured"):
        expand_round(make_round(make_prompt(tenant="acme"), calls=(call,)), whole)
    assert len(plan_prompt(make_prompt(tenant="other"), whole, T0)[1]) == 2


CALLED = (
    Message(role="user", content="Look!"),
    Message(
        role="assistant", content="", tool_calls=(ToolCall(id="1", name="look", arguments="{}"),)
    ),
    Message(role="tool", content="a cat", tool_call_id="1"),
)


@pytest.mark.parametrize(
    "fields", [{"tools": (TOOL,)}, {"messages": CALLED}], ids=["offered", "called before"]
)
def test_members_without_tools_are_left_out_where_there_are_some(fields: dict[str, Any]) -> None:
    plan, tasks = plan_and_tasks(pool("tiny", "gpt"), **fields)

    assert list(tasks) == ["gpt"]
    assert [(e.name, e.reason) for e in plan.excluded] == [("tiny", "no_tools")]
    assert tasks["gpt"].tools == fields.get("tools", ())


def test_required_members_are_marked() -> None:
    plan, _ = plan_and_tasks(pool("gpt", "claude"))

    assert {m.name: m.is_required for m in plan.members} == {"gpt": False, "claude": True}


def test_a_missing_writer_is_stood_in_for_by_a_juror() -> None:
    spec = replace(pool("tiny", "gpt", jury=("mini",)), judge="gone")
    plan, _ = plan_and_tasks(spec)

    assert plan.judge is not None
    assert plan.judge.model == "mini"


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_fills_what_is_not_given(preset: str) -> None:
    plain = Pool.model_validate({"members": ["a"], "preset": preset})
    key, value = next(iter(PRESETS[preset].items()))
    own = {"quorum": 0.9, "gate": "none"}[key]

    assert getattr(plain, key) == value
    assert getattr(Pool.model_validate({"members": ["a"], "preset": preset, key: own}), key) == own
    assert plain != Pool.model_validate({"members": ["a"]})


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match="'high', 'budget' or 'fast'"):
        Pool.model_validate({"members": ["a"], "preset": "cheap"})


LEARNED = Policy(route="learned")
NOT_ROUTED: dict[str, tuple[Policy, dict[str, Any]]] = {
    "off by default": (Policy(), {}),
    "a gate": (Policy(route="learned", gate="edge-first"), {}),
    "complete": (LEARNED, {"is_complete": True}),
    "members of its own": (LEARNED, {"members": ("gpt", "claude")}),
    "too long for a round": (LEARNED, {"text": "x" * 200_000}),
    "one member may answer": (LEARNED, {"residency": "edge-only"}),
}


def test_members_of_a_routed_pool_are_left_to_the_judge() -> None:
    plan, tasks = plan_and_tasks(pool("tiny", "gpt", "claude", policy=LEARNED))

    assert plan.is_routed
    assert tasks == {}
    assert {m.name: (m.wave, m.is_required) for m in plan.members} == {
        "tiny": (1, False),
        "gpt": (1, False),
        "claude": (1, True),
    }


@pytest.mark.parametrize("what", NOT_ROUTED)
def test_where_there_is_no_route_members_are_called_at_once(what: str) -> None:
    policy, prompt = NOT_ROUTED[what]
    plan, tasks = plan_and_tasks(pool("tiny", "gpt", "claude", policy=policy), **prompt)

    assert not plan.is_routed
    assert tasks


def test_a_pool_has_a_route_or_a_gate() -> None:
    with pytest.raises(ValueError, match='set gate = "none", or remove route'):
        Pool.model_validate({"members": ["a", "b"], "route": "learned", "gate": "edge-first"})
