"""What is judged again, and what comes out of the comparison."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from fusewire.contracts import (
    Answer,
    Candidate,
    Gold,
    Message,
    Outcome,
    Plan,
    Prompt,
    RecordedAnswer,
    Round,
    Sampling,
    TextReference,
    Tool,
    ToolCall,
)
from fusewire.store.history import History, StoredCandidate
from fusewire.testing.factories import (
    T0,
    make_candidate,
    make_member,
    make_plan,
    make_prompt,
    make_round,
)
from fusewire_cli.rejudge import (
    PolicyChange,
    compare,
    recorded_answers,
    submission,
)
from fusewire_ingest.admission.admit import parse


def outcome(
    prompt: Prompt, *, winner: str | None = "a", content: str | None = "2", **fields: Any
) -> Outcome:
    names = fields.pop("took_part", "abc")
    defaults = {
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
    return Outcome(**{**defaults, **fields})


def history(
    prompt: Prompt,
    plan: Plan | None,
    stored_outcome: Outcome | None,
    rounds: Sequence[Round] = (),
    candidates: Sequence[Candidate] = (),
) -> History:
    return History(
        prompt=prompt,
        published_at=None,
        cancelled_at=None,
        plan=plan,
        rounds=[(round_, T0) for round_ in rounds],
        received=[StoredCandidate(candidate, T0, is_late=False) for candidate in candidates],
        outcome=stored_outcome,
    )


def test_the_panel_is_recorded_with_its_failures_and_without_debate_and_stragglers() -> None:
    prompt = make_prompt()
    plan = make_plan(
        prompt, [make_member("a", 2.0), make_member("b"), make_member("c"), make_member("late")]
    )
    debate = make_round(prompt, round=1)
    fusion = history(
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
    answers = recorded_answers(fusion)
    assert [(r.member, r.model, r.family, r.weight, r.content, r.error_code) for r in answers] == [
        ("a", "m-a", "a", 2.0, "first", None),
        ("b", "m-b", "b", 1.0, None, "timeout"),
        ("c", "m-c", "c", 1.0, "c's", None),
    ]


def test_an_answer_stands_before_a_failure_of_the_same_member() -> None:
    prompt = make_prompt()
    candidates = (
        make_candidate(call="a", fails="timeout"),
        make_candidate("second", "a=2", member="a"),
    )
    (answer,) = recorded_answers(
        history(prompt, make_plan(prompt, "a"), outcome(prompt, took_part="a"), (), candidates)
    )
    assert (answer.content, answer.error_code) == ("second", None)


def test_what_was_recorded_is_recorded_again_and_what_runs_is_not() -> None:
    answers = (RecordedAnswer(member="x", model="x", content="y"),)
    prompt = make_prompt(recorded=answers)
    assert recorded_answers(history(prompt, None, None)) == answers
    assert (
        recorded_answers(
            history(make_prompt(), make_plan(), None, (), (make_candidate("first", "a"),))
        )
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
        preset="fast",
        criteria="old",
        gold=Gold(answer="2", match="number"),
        residency="edge-only",
    )
    answers = (RecordedAnswer(member="a", model="m-a", content="x"),)
    body = submission(prompt, answers, PolicyChange(criteria="new", mode="merge"))
    request = parse(body, 10_000)
    assert request.messages is not None
    assert tuple(turn.message() for turn in request.messages) == prompt.messages
    assert tuple(tool.tool() for tool in request.tools) == prompt.tools
    assert (request.tool_choice, request.recorded, request.gold, request.residency) == (
        "look",
        answers,
        prompt.gold,
        "edge-only",
    )
    assert (request.judge, request.criteria, request.mode, request.pool) == (
        "j",
        "new",
        "merge",
        "default",
    )
    assert (request.max_tokens, request.temperature, request.preset) == (5, 0.5, "fast")


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
    fusions, new_outcomes = [], {}
    for number in range(40):
        prompt = make_prompt(custom_id=f"q{number}", gold=gold if number < 10 else None)
        old = outcome(prompt, winner="a" if number % 2 else "b", is_degraded=number == 0)
        fusions.append(history(prompt, None, old))
        winner = "b" if number in (1, 3) else old.winner
        new_outcomes[prompt.custom_id] = {
            "status": "fused",
            "winner": winner,
            "content": "3" if number < 4 else "2",
            "is_degraded": number < 3,
        }
    running = make_prompt(custom_id="running")
    silent = make_prompt(custom_id="silent")
    fusions += [
        history(running, None, None),
        history(silent, None, outcome(silent)),
    ]
    new_outcomes["q39"] = {"status": "refused"}
    report = compare(fusions, new_outcomes)
    assert (report.prompts, report.rejudged, report.running, report.unanswered) == (42, 40, 1, 1)
    assert (report.winners, report.winners_changed) == (39, 2)
    assert report.agreement == pytest.approx(37 / 39)
    # 19 times a and 20 times b before, 17 and 22 after.
    chance = (19 * 17 + 20 * 22) / 39**2
    assert report.kappa == pytest.approx((37 / 39 - chance) / (1 - chance))
    assert (report.labelled, report.accepted_before, report.accepted_after) == (10, 10, 6)
    assert (report.degraded_before, report.degraded_after) == (1, 3)
    assert (report.failed_before, report.failed_after) == (0, 1)


def test_few_outcomes_have_no_rate_of_agreement() -> None:
    prompt = make_prompt()
    report = compare(
        [history(prompt, None, outcome(prompt))],
        {"one": {"status": "fused", "winner": "a"}},
    )
    assert (report.agreement, report.kappa, report.winners) == (None, None, 1)
    assert report.agreement_low == pytest.approx(0.2065, abs=1e-4)
    assert json.dumps(report.agreement_high) == "1.0"


def test_of_a_text_that_stands_apart_it_has_what_the_judge_saw() -> None:
    apart = TextReference(name="ab" * 32, chars=900_000, size=900_000, at=5)
    prompt = make_prompt(messages=(Message(role="user", content="BeginEnd", texts=(apart,)),))
    answers = (RecordedAnswer(member="a", model="m-a", content="4"),)

    (turn,) = parse(submission(prompt, answers, PolicyChange()).encode(), 262_144).messages or ()

    assert turn.message().content == "Begin\n\n[900000 characters are left out here]\n\nEnd"
