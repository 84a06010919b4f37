"""What is judged again, and what comes out of the comparison."""

import json
from typing import Any

import pytest

from fusewire.contracts import (
    Answer,
    Gold,
    Message,
    Outcome,
    Prompt,
    RecordedAnswer,
    Sampling,
    TextReference,
    Tool,
    ToolCall,
)
from fusewire.testing.factories import (
    T0,
    make_candidate,
    make_member,
    make_plan,
    make_prompt,
    make_round,
)
from fusewire_cli.rejudge import PolicyChange, Stored, compare, recorded, submission
from fusewire_ingest.admission.admit import parse


def outcome(
    prompt: Prompt, *, winner: str | None = "a", content: str | None = "2", **fields: Any
) -> Outcome:
    names = fields.pop("took_part", "abc")
    given = {
        "fusion_id": prompt.fusion_id,
        "status": "fused",
        "is_degraded": False,
        "content": content,
        "tenant": prompt.tenant,
        "custom_id": prompt.custom_id,
        "pool": prompt.pool,
        "mode": prompt.mode,
        "winner": winner,
        "answers": tuple(
            Answer(member=n, model=f"m-{n}", tier="remote", status="ok") for n in names
        ),
        "submitted_at": T0,
        "finished_at": T0,
    }
    return Outcome(**{**given, **fields})


def test_the_panel_is_recorded_with_its_failures_and_without_debate_and_stragglers() -> None:
    prompt = make_prompt()
    plan = make_plan(
        prompt, [make_member("a", 2.0), make_member("b"), make_member("c"), make_member("late")]
    )
    debate = make_round(prompt, round=1)
    stored = Stored(
        prompt,
        plan,
        outcome(prompt, took_part="abc"),
        (debate,),
        (
            make_candidate("first", "a"),
            make_candidate("turned", "a", round=2),
            make_candidate("verdict", "listwise", round=1, member=None),
            make_candidate(call="b", fails="timeout"),
            make_candidate("c's", "c"),
            make_candidate("too late", "late"),
        ),
    )
    found = recorded(stored)
    assert [(r.member, r.model, r.family, r.weight, r.content, r.error_code) for r in found] == [
        ("a", "m-a", "a", 2.0, "first", None),
        ("b", "m-b", "b", 1.0, None, "timeout"),
        ("c", "m-c", "c", 1.0, "c's", None),
    ]


def test_an_answer_stands_before_a_failure_of_the_same_member() -> None:
    prompt = make_prompt()
    said = (make_candidate(call="a", fails="timeout"), make_candidate("second", "a=2", member="a"))
    (found,) = recorded(
        Stored(prompt, make_plan(prompt, "a"), outcome(prompt, took_part="a"), (), said)
    )
    assert (found.content, found.error_code) == ("second", None)


def test_what_was_recorded_is_recorded_again_and_what_runs_is_not() -> None:
    said = (RecordedAnswer(member="x", model="x", content="y"),)
    prompt = make_prompt(recorded=said)
    assert recorded(Stored(prompt, None, None, (), ())) == said
    assert (
        recorded(Stored(make_prompt(), make_plan(), None, (), (make_candidate("first", "a"),)))
        == ()
    )


def test_a_prompt_is_submitted_as_it_was_save_what_changes() -> None:
    call = ToolCall(id="1", name="look", arguments="{}")
    turns = (
        Message(role="user", content="see"),
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="rain", tool_call_id="1"),
    )
    prompt = make_prompt(
        messages=turns,
        sampling=Sampling(max_tokens=5, temperature=0.5),
        tools=(Tool(name="look", description="looks"),),
        tool_choice="look",
        judge="j",
        criteria="old",
        gold=Gold(answer="2", match="number"),
        residency="edge-only",
    )
    said = (RecordedAnswer(member="a", model="m-a", content="x"),)
    body = submission(prompt, said, PolicyChange(criteria="new", mode="merge"))
    read = parse(body, 10_000)
    assert read.messages is not None
    assert tuple(turn.message() for turn in read.messages) == prompt.messages
    assert tuple(tool.tool() for tool in read.tools) == prompt.tools
    assert (read.tool_choice, read.recorded, read.gold, read.residency) == (
        "look",
        said,
        prompt.gold,
        "edge-only",
    )
    assert (read.judge, read.criteria, read.mode, read.pool) == ("j", "new", "merge", "default")
    assert (read.max_tokens, read.temperature) == (5, 0.5)


def test_the_new_batch_is_named_by_what_changes() -> None:
    changes = [
        PolicyChange(judge="x"),
        PolicyChange(criteria="x"),
        PolicyChange(mode="x"),
        PolicyChange(pool="x"),
        PolicyChange(judge="y"),
    ]
    names = {change.batch("b") for change in changes}
    assert len(names) == 5
    assert all(len(name) == len("b.rejudge-") + 8 for name in names)
    assert PolicyChange(judge="x").batch("b") in names


def test_old_and_new_outcomes_are_compared() -> None:
    gold = Gold(answer="2", match="number")
    stored, after = [], {}
    for number in range(40):
        prompt = make_prompt(custom_id=f"q{number}", gold=gold if number < 10 else None)
        old = outcome(prompt, winner="a" if number % 2 else "b", is_degraded=number == 0)
        stored.append(Stored(prompt, None, old, (), ()))
        winner = "b" if number in (1, 3) else old.winner
        after[prompt.custom_id] = {
            "status": "fused",
            "winner": winner,
            "content": "3" if number < 4 else "2",
            "is_degraded": number < 3,
        }
    running = make_prompt(custom_id="running")
    silent = make_prompt(custom_id="silent")
    stored += [Stored(running, None, None, (), ()), Stored(silent, None, outcome(silent), (), ())]
    after["q39"] = {"status": "refused"}
    found = compare(stored, after)
    assert (found.prompts, found.rejudged, found.running, found.unanswered) == (42, 40, 1, 1)
    assert (found.winners, found.winners_changed) == (39, 2)
    assert found.agreement == pytest.approx(37 / 39)
    # 19 times a and 20 times b before, 17 and 22 after.
    chance = (19 * 17 + 20 * 22) / 39**2
    assert found.kappa == pytest.approx((37 / 39 - chance) / (1 - chance))
    assert (found.labelled, found.accepted_before, found.accepted_after) == (10, 10, 6)
    assert (found.degraded_before, found.degraded_after) == (1, 3)
    assert (found.failed_before, found.failed_after) == (0, 1)


def test_few_outcomes_have_no_rate_of_agreement() -> None:
    prompt = make_prompt()
    found = compare(
        [Stored(prompt, None, outcome(prompt), (), ())], {"one": {"status": "fused", "winner": "a"}}
    )
    assert (found.agreement, found.kappa, found.winners) == (None, None, 1)
    assert found.agreement_low == pytest.approx(0.2065, abs=1e-4)
    assert json.dumps(found.agreement_high) == "1.0"


def test_of_a_text_that_stands_apart_it_has_what_the_judge_saw() -> None:
    apart = TextReference(name="ab" * 32, chars=900_000, size=900_000, at=5)
    prompt = make_prompt(messages=(Message(role="user", content="BeginEnd", texts=(apart,)),))
    said = (RecordedAnswer(member="a", model="m-a", content="4"),)

    (turn,) = parse(submission(prompt, said, PolicyChange()).encode(), 262_144).messages or ()

    assert turn.message().content == "Begin\n\n[900000 characters are left out here]\n\nEnd"
