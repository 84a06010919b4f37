"""What a prompt asks of its pool: other members, a preset, eyes, to be read while it is written."""

from datetime import timedelta
from typing import Any

import pytest

from fusewire.contracts import (
    Call,
    Image,
    Message,
    Plan,
    Prompt,
    RecordedAnswer,
    Sampling,
    Task,
    TextReference,
    Tool,
)
from fusewire.settings import PRESETS, Settings
from fusewire.testing.factories import T0, make_prompt, make_round
from fusewire_dispatcher.planning.catalogue import Catalogue
from fusewire_dispatcher.planning.plan import plan_prompt
from fusewire_dispatcher.planning.tasks import expand_round
from fusewire_dispatcher.pools import build_catalogue

PICTURE = Message(
    role="user", content="What is this?", images=(Image(url="https://example.org/a.png", at=13),)
)


def remote(name: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "remote", "base_url": "http://127.0.0.1:1/v1", "model": name, **fields}


def settings(**pool: Any) -> Settings:
    """The pool has `one` of the model `gpt`, twice, and `claude`; `mist` is in none."""
    members = [
        {
            "name": "one",
            "model": "gpt",
            "weight": 3,
            "system": "Hm.",
            "temperature": 0.1,
            "required": True,
        },
        {"name": "two", "model": "gpt"},
        "claude",
        "tiny",
    ]
    return Settings(
        models={
            "gpt": remote("gpt-9", images=True),
            "claude": remote("claude-9"),
            "mist": remote("mistral-9", images=True),
            "one": remote("another-one"),
            "tiny": {"kind": "edge", "path": "/models/smollm"},
        },
        pools={
            "default": {"members": members, "judge": "claude", "max_tokens": 99, **pool},
            "edge": {"members": ["tiny"], "residency": "edge-only"},
        },
    )


CATALOGUE = build_catalogue(settings())


def plan_and_tasks(catalogue: Catalogue = CATALOGUE, **prompt: Any) -> tuple[Plan, dict[str, Task]]:
    plan, tasks = plan_prompt(make_prompt(**prompt), catalogue, T0)
    return plan, {task.call: task for task in tasks}


# -- members ----------------------------------------------------------------------------------


def test_a_prompt_is_answered_by_the_models_it_names() -> None:
    plan, tasks = plan_and_tasks(members=("mist", "claude", "mist"))

    assert [(m.name, m.model, m.weight, m.is_required) for m in plan.members] == [
        ("mist", "mist", 1.0, False),
        ("claude", "claude", 1.0, False),
    ]
    assert list(tasks) == ["mist", "claude"]
    assert (tasks["mist"].model, tasks["mist"].sampling.max_tokens) == ("mist", 99)
    assert tasks["mist"].messages == make_prompt().messages
    assert plan.judge is not None
    assert (plan.judge.model, plan.config_hash) == (
        "claude",
        CATALOGUE.pools["default"].config_hash,
    )


def test_a_model_of_the_pool_keeps_its_settings_there() -> None:
    plan, tasks = plan_and_tasks(members=("gpt", "mist"))

    assert [(m.name, m.weight, m.is_required) for m in plan.members] == [
        ("gpt", 3.0, True),
        ("mist", 1.0, False),
    ]
    assert tasks["gpt"].messages[0] == Message(role="system", content="Hm.")
    assert tasks["gpt"].sampling.temperature == 0.1


def test_a_named_model_is_the_model_and_not_the_member_of_that_name() -> None:
    plan, tasks = plan_and_tasks(members=("one", "mist"))

    assert [(m.name, m.model, m.weight) for m in plan.members] == [
        ("one", "one", 1.0),
        ("mist", "mist", 1.0),
    ]
    assert tasks["one"].messages == make_prompt().messages


def test_named_models_are_barred_as_members_are() -> None:
    plan, tasks = plan_and_tasks(members=("mist", "gone", "tiny"), residency="edge-only")

    assert list(tasks) == ["tiny"]
    assert [(e.name, e.reason) for e in plan.excluded] == [
        ("mist", "residency"), ("gone", "unknown_model"), ("judge", "residency")
    ]  # fmt: skip


def test_a_gate_stands_between_named_models_too() -> None:
    plan, tasks = plan_and_tasks(
        build_catalogue(settings(gate="edge-first")), members=("tiny", "mist")
    )

    assert {m.name: m.wave for m in plan.members} == {"tiny": 0, "mist": 1}
    assert list(tasks) == ["tiny", "tiny=2", "tiny=3"]


def test_one_named_model_needs_no_judge_and_has_all_the_time() -> None:
    plan, tasks = plan_and_tasks(members=("mist",), residency="any")
    edge_plan, _ = plan_and_tasks(members=("tiny",), residency="edge-only")

    assert list(tasks) == ["mist"]
    assert (plan.judge, plan.jurors, plan.excluded) == (None, (), ())
    assert plan.panel_deadline_at == plan.deadline_at
    assert edge_plan.excluded == ()  # nor is one missing


def test_the_only_member_that_is_left_has_all_the_time() -> None:
    plan, _ = plan_and_tasks(members=("mist", "gone"))

    assert plan.judge is not None
    assert plan.panel_deadline_at == plan.deadline_at


def ask(name: str, model: str, **fields: Any) -> Call:
    return Call(
        name=name,
        kind="debate",
        model=model,
        member=name,
        messages=make_prompt().messages,
        **fields,
    )


def test_the_calls_of_named_models_are_made_in_later_rounds_too() -> None:
    calls = (ask("gpt", "gpt"), ask("mist", "mist"), ask("one", "one"), ask("one", "gpt"))
    by_gpt, by_mist, by_one, by_member = expand_round(make_round(calls=calls), CATALOGUE)

    assert (
        by_gpt.messages
        == by_member.messages
        == (Message(role="system", content="Hm."), *make_prompt().messages)
    )
    assert by_mist.messages == by_one.messages == make_prompt().messages
    assert (by_gpt.sampling.temperature, by_mist.sampling.max_tokens) == (0.1, 99)


# -- presets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_that_a_prompt_asks_for_goes_before_the_pool_s_own_keys(preset: Any) -> None:
    own = {
        "quorum": 0.3,
        "early_stop": 0.6,
        "debate_rounds": 2,
        "grace_most_s": 7.0,
        "max_total_tokens": 9000,
    }
    catalogue = build_catalogue(settings(**own))
    usual, _ = plan_and_tasks(catalogue)
    plan, _ = plan_and_tasks(catalogue, preset=preset)

    settings_of_plan = {
        **plan.policy.model_dump(),
        "quorum": plan.quorum,
        "debate_rounds": plan.debate_rounds,
    }
    assert {key: settings_of_plan[key] for key in PRESETS[preset]} == PRESETS[preset]
    assert settings_of_plan["max_total_tokens"] == 9000  # what it says nothing of stays
    assert (usual.quorum, usual.policy.early_stop) == (0.3, 0.6)
    hashes = {plan_and_tasks(catalogue, preset=name)[0].config_hash for name in (None, *PRESETS)}
    assert len(hashes) == 1 + len(PRESETS)


def test_a_preset_of_an_unknown_pool_ends_as_the_pool_does() -> None:
    plan, tasks = plan_and_tasks(pool="gone", preset="fast")

    assert (plan.members, tasks) == ((), {})
    assert [(e.name, e.reason) for e in plan.excluded] == [("gone", "unknown_pool")]


# -- images -----------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [(), (Message(role="user", content="And now?"),)])
def test_models_without_eyes_are_not_shown_images(later: tuple[Message, ...]) -> None:
    plan, tasks = plan_and_tasks(messages=(PICTURE, *later))

    assert set(tasks) == {"one", "two"}
    assert tasks["two"].messages[0].images == PICTURE.images
    assert [(e.name, e.reason) for e in plan.excluded] == [
        ("claude", "no_images"),
        ("tiny", "no_images"),
    ]
    # It judges by the text.
    assert plan.judge is not None
    assert plan.judge.model == "claude"


def test_models_at_the_edge_are_not_asked_about_what_only_hosted_ones_can_read() -> None:
    aside = TextReference(name="ab" * 32, chars=900_000, size=900_000, at=3)
    plan, tasks = plan_and_tasks(messages=(Message(role="user", content="So: .", texts=(aside,)),))

    assert "tiny" not in tasks
    assert tasks["one"].messages[-1].texts == (aside,)
    assert [(e.name, e.reason) for e in plan.excluded] == [("tiny", "no_long_texts")]


def test_without_images_nobody_needs_eyes() -> None:
    assert plan_and_tasks()[0].excluded == ()


# -- streaming and depth ----------------------------------------------------------------------


def test_the_one_call_whose_text_is_the_outcome_is_streamed() -> None:
    plan, tasks = plan_and_tasks(
        build_catalogue(settings(hedge=0.5)), members=("mist",), is_streamed=True
    )

    assert [t.is_streamed for t in tasks.values()] == [True]
    # A second call could win with another text than was shown.
    assert plan.policy.hedge == 0
    _, tasks = plan_and_tasks(members=("mist",), is_streamed=True, tools=(Tool(name="look"),))
    assert [t.is_streamed for t in tasks.values()] == [True]
    assert (
        plan_and_tasks(build_catalogue(settings(hedge=0.5)), members=("mist",))[0].policy.hedge
        == 0.5
    )


NOT_STREAMED: dict[str, dict[str, Any]] = {
    "nobody reads along": {"members": ("mist",), "is_streamed": False},
    "several are asked": {"members": ("mist", "claude")},
}


@pytest.mark.parametrize("prompt", NOT_STREAMED.values(), ids=NOT_STREAMED.keys())
def test_what_may_not_be_the_outcome_is_not_streamed(prompt: dict[str, Any]) -> None:
    _, tasks = plan_and_tasks(**{"is_streamed": True, **prompt})

    assert tasks
    assert not any(t.is_streamed for t in tasks.values())


def test_the_samples_of_a_gate_are_not_streamed() -> None:
    _, tasks = plan_and_tasks(
        build_catalogue(settings(gate="edge-first")), members=("tiny", "mist"), is_streamed=True
    )

    assert [t.is_streamed for t in tasks.values()] == [False] * 3


def test_a_recorded_answer_is_not_asked_for() -> None:
    plan, tasks = plan_and_tasks(
        recorded=(RecordedAnswer(member="x", model="gpt", content="4"),), is_streamed=True
    )

    assert tasks == {}
    assert plan.judge is None


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_call_of_a_round_is_streamed_where_the_judge_says_so(is_streamed: bool) -> None:
    (task,) = expand_round(
        make_round(calls=(ask("claude", "claude", is_streamed=is_streamed),)), CATALOGUE
    )

    assert task.is_streamed is is_streamed


def test_every_task_knows_how_deep_it_is() -> None:
    prompt: Prompt = make_prompt(depth=2)
    _, tasks = plan_and_tasks(depth=2)
    later = expand_round(make_round(prompt), Catalogue({}, {"m-judge": CATALOGUE.models["mist"]}))

    assert {t.depth for t in (*tasks.values(), *later)} == {2}
    assert {t.depth for t in plan_and_tasks()[1].values()} == {0}


def test_the_samplings_of_the_prompt_go_before_a_named_model_s() -> None:
    _, tasks = plan_and_tasks(members=("mist",), sampling=Sampling(max_tokens=7))

    assert tasks["mist"].sampling.max_tokens == 7
    assert tasks["mist"].deadline_at == T0 + timedelta(seconds=60)
