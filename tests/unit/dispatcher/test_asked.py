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
from fusewire_dispatcher.planning import Catalogue, expand, plan
from fusewire_dispatcher.pools import book

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


BOOK = book(settings())


def planned(made_of: Catalogue = BOOK, **prompt: Any) -> tuple[Plan, dict[str, Task]]:
    made, tasks = plan(make_prompt(**prompt), made_of, T0)
    return made, {task.call: task for task in tasks}


# -- members ----------------------------------------------------------------------------------


def test_a_prompt_is_answered_by_the_models_it_names() -> None:
    made, tasks = planned(members=("mist", "claude", "mist"))

    assert [(m.name, m.model, m.weight, m.is_required) for m in made.members] == [
        ("mist", "mist", 1.0, False),
        ("claude", "claude", 1.0, False),
    ]
    assert list(tasks) == ["mist", "claude"]
    assert (tasks["mist"].model, tasks["mist"].sampling.max_tokens) == ("mist", 99)
    assert tasks["mist"].messages == make_prompt().messages
    assert made.judge is not None
    assert (made.judge.model, made.config_hash) == ("claude", BOOK.pools["default"].config_hash)


def test_a_model_of_the_pool_keeps_its_settings_there() -> None:
    made, tasks = planned(members=("gpt", "mist"))

    assert [(m.name, m.weight, m.is_required) for m in made.members] == [
        ("gpt", 3.0, True),
        ("mist", 1.0, False),
    ]
    assert tasks["gpt"].messages[0] == Message(role="system", content="Hm.")
    assert tasks["gpt"].sampling.temperature == 0.1


def test_a_named_model_is_the_model_and_not_the_member_of_that_name() -> None:
    made, tasks = planned(members=("one", "mist"))

    assert [(m.name, m.model, m.weight) for m in made.members] == [
        ("one", "one", 1.0),
        ("mist", "mist", 1.0),
    ]
    assert tasks["one"].messages == make_prompt().messages


def test_named_models_are_barred_as_members_are() -> None:
    made, tasks = planned(members=("mist", "gone", "tiny"), residency="edge-only")

    assert list(tasks) == ["tiny"]
    assert [(e.name, e.reason) for e in made.excluded] == [
        ("mist", "residency"), ("gone", "unknown_model"), ("judge", "residency")
    ]  # fmt: skip


def test_a_gate_stands_between_named_models_too() -> None:
    made, tasks = planned(book(settings(gate="edge-first")), members=("tiny", "mist"))

    assert {m.name: m.wave for m in made.members} == {"tiny": 0, "mist": 1}
    assert list(tasks) == ["tiny", "tiny=2", "tiny=3"]


def test_one_named_model_needs_no_judge_and_has_all_the_time() -> None:
    made, tasks = planned(members=("mist",), residency="any")
    barred, _ = planned(members=("tiny",), residency="edge-only")

    assert list(tasks) == ["mist"]
    assert (made.judge, made.jurors, made.excluded) == (None, (), ())
    assert made.panel_deadline_at == made.deadline_at
    assert barred.excluded == ()  # nor is one missing


def test_the_only_member_that_is_left_has_all_the_time() -> None:
    made, _ = planned(members=("mist", "gone"))

    assert made.judge is not None
    assert made.panel_deadline_at == made.deadline_at


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
    by_gpt, by_mist, by_one, by_member = expand(make_round(calls=calls), BOOK)

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
    made_of = book(settings(**own))
    usual, _ = planned(made_of)
    made, _ = planned(made_of, preset=preset)

    found = {**made.policy.model_dump(), "quorum": made.quorum, "debate_rounds": made.debate_rounds}
    assert {key: found[key] for key in PRESETS[preset]} == PRESETS[preset]
    assert found["max_total_tokens"] == 9000  # what it says nothing of stays
    assert (usual.quorum, usual.policy.early_stop) == (0.3, 0.6)
    hashes = {planned(made_of, preset=one)[0].config_hash for one in (None, *PRESETS)}
    assert len(hashes) == 1 + len(PRESETS)


def test_a_preset_of_an_unknown_pool_ends_as_the_pool_does() -> None:
    made, tasks = planned(pool="gone", preset="fast")

    assert (made.members, tasks) == ((), {})
    assert [(e.name, e.reason) for e in made.excluded] == [("gone", "unknown_pool")]


# -- images -----------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [(), (Message(role="user", content="And now?"),)])
def test_models_without_eyes_are_not_shown_images(later: tuple[Message, ...]) -> None:
    made, tasks = planned(messages=(PICTURE, *later))

    assert set(tasks) == {"one", "two"}
    assert tasks["two"].messages[0].images == PICTURE.images
    assert [(e.name, e.reason) for e in made.excluded] == [
        ("claude", "no_images"),
        ("tiny", "no_images"),
    ]
    # It judges by the text.
    assert made.judge is not None
    assert made.judge.model == "claude"


def test_models_at_the_edge_are_not_asked_about_what_only_hosted_ones_can_read() -> None:
    aside = TextReference(name="ab" * 32, chars=900_000, size=900_000, at=3)
    made, tasks = planned(messages=(Message(role="user", content="So: .", texts=(aside,)),))

    assert "tiny" not in tasks
    assert tasks["one"].messages[-1].texts == (aside,)
    assert [(e.name, e.reason) for e in made.excluded] == [("tiny", "no_long_texts")]


def test_without_images_nobody_needs_eyes() -> None:
    assert planned()[0].excluded == ()


# -- streaming and depth ----------------------------------------------------------------------


def test_the_one_call_whose_text_is_the_outcome_is_streamed() -> None:
    made, tasks = planned(book(settings(hedge=0.5)), members=("mist",), is_streamed=True)

    assert [t.is_streamed for t in tasks.values()] == [True]
    # A second call could win with another text than was shown.
    assert made.policy.hedge == 0
    _, tasks = planned(members=("mist",), is_streamed=True, tools=(Tool(name="look"),))
    assert [t.is_streamed for t in tasks.values()] == [True]
    assert planned(book(settings(hedge=0.5)), members=("mist",))[0].policy.hedge == 0.5


NOT_STREAMED: dict[str, dict[str, Any]] = {
    "nobody reads along": {"members": ("mist",), "is_streamed": False},
    "several are asked": {"members": ("mist", "claude")},
}


@pytest.mark.parametrize("prompt", NOT_STREAMED.values(), ids=NOT_STREAMED.keys())
def test_what_may_not_be_the_outcome_is_not_streamed(prompt: dict[str, Any]) -> None:
    _, tasks = planned(**{"is_streamed": True, **prompt})

    assert tasks
    assert not any(t.is_streamed for t in tasks.values())


def test_the_samples_of_a_gate_are_not_streamed() -> None:
    _, tasks = planned(
        book(settings(gate="edge-first")), members=("tiny", "mist"), is_streamed=True
    )

    assert [t.is_streamed for t in tasks.values()] == [False] * 3


def test_a_recorded_answer_is_not_asked_for() -> None:
    made, tasks = planned(
        recorded=(RecordedAnswer(member="x", model="gpt", content="4"),), is_streamed=True
    )

    assert tasks == {}
    assert made.judge is None


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_call_of_a_round_is_streamed_where_the_judge_says_so(is_streamed: bool) -> None:
    (task,) = expand(make_round(calls=(ask("claude", "claude", is_streamed=is_streamed),)), BOOK)

    assert task.is_streamed is is_streamed


def test_every_task_knows_how_deep_it_is() -> None:
    prompt: Prompt = make_prompt(depth=2)
    _, tasks = planned(depth=2)
    later = expand(make_round(prompt), Catalogue({}, {"m-judge": BOOK.models["mist"]}))

    assert {t.depth for t in (*tasks.values(), *later)} == {2}
    assert {t.depth for t in planned()[1].values()} == {0}


def test_the_samplings_of_the_prompt_go_before_a_named_model_s() -> None:
    _, tasks = planned(members=("mist",), sampling=Sampling(max_tokens=7))

    assert tasks["mist"].sampling.max_tokens == 7
    assert tasks["mist"].deadline_at == T0 + timedelta(seconds=60)
