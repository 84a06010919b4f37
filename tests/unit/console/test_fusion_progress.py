"""What the page Ask shows after each event of a fusion."""

from typing import Any

from fusewire_console.figures.fusion_progress import (
    MOST_CHARS,
    MOST_OUTCOME_CHARS,
    FusionProgress,
)


def plan(*members: str, **fields: Any) -> dict[str, Any]:
    return {
        "members": [
            {"name": name, "model": f"m-{name}", "tier": "remote", "samples": 1, "wave": 0}
            for name in members
        ],
        "judge": {"model": "j", "tier": "remote"},
        "jury": [],
        "excluded": [],
        **fields,
    }


def candidate(call: str, **fields: Any) -> dict[str, Any]:
    return {
        "round": 0,
        "call": call,
        "kind": "answer",
        "member": call,
        "model": f"m-{call}",
        "tier": "remote",
        "ok": True,
        "error_code": None,
        "latency_ms": 12.0,
        "cost_usd": 0.5,
        "content": f"says {call}",
        "is_cut": False,
        "tool_calls": [],
        **fields,
    }


def answer(member: str, **fields: Any) -> dict[str, Any]:
    return {
        "member": member,
        "model": f"m-{member}",
        "tier": "remote",
        "status": "ok",
        "error_code": None,
        "is_winner": False,
        "content": f"says {member}",
        "tool_calls": [],
        "latency_ms": 12.0,
        "cost_usd": 0.5,
        **fields,
    }


def verdicts(round_: int = 1, *calls: str) -> dict[str, Any]:
    return {
        "round": round_,
        "calls": [
            {"call": call, "kind": "verdict", "model": "j", "member": None}
            for call in calls or ("v1", "v2")
        ],
    }


def progress(*events: tuple[str, dict[str, Any]]) -> FusionProgress:
    state = FusionProgress.of_pool([("a", "m-a"), ("b", "m-b")])
    for name, event in events:
        state.apply(name, event)
    return state


def states(state: FusionProgress) -> dict[str, str]:
    return {card.name: card.state for card in state.cards}


def test_the_pool_has_its_places_before_the_plan() -> None:
    state = progress()
    assert states(state) == {"a": "waiting", "b": "waiting"}
    assert state.headline == "Waiting for the plan."


def test_no_card_moves_when_the_plan_comes() -> None:
    excluded = [{"name": "a", "reason": "no price"}, {"name": "judge", "reason": "is remote"}]
    state = progress(("plan", plan("b", "z", excluded=excluded)))
    assert state.layout == ("a", "b", "z")
    assert states(state) == {"a": "left out", "b": "waiting", "z": "waiting"}
    assert state.cards[0].note == "no price"
    assert state.without_judge == "is remote"


def test_answers_come_to_their_cards() -> None:
    failed = candidate("b", ok=False, error_code="timeout", content=None)
    state = progress(("plan", plan("a", "b")), ("candidate", candidate("a")))
    assert state.headline == "1 of 2 members have answered."
    assert state.cards[0].text == "says a"
    state.apply("candidate", failed)
    assert states(state) == {"a": "ok", "b": "error"}
    assert state.cards[1].note == "timeout"
    assert state.headline == "All members have answered; the judge decides."


def test_of_several_samples_the_first_answer_stays() -> None:
    state = progress(("plan", plan("a")))
    for call, fields in (
        ("a", {"ok": False, "content": None, "error_code": "timeout"}),
        ("a=2", {"content": "second"}),
        ("a=3", {"content": "third"}),
    ):
        state.apply("candidate", candidate(call, member="a", **fields))
    card = state.cards[0]
    assert (card.state, card.text, card.n_samples, card.note) == ("ok", "second", 3, None)


def test_calls_of_the_judge_are_listed_and_counted() -> None:
    state = progress(("plan", plan("a")), ("candidate", candidate("a")), ("round", verdicts()))
    assert state.headline == "The judge compares the answers: 0 of 2 calls have ended."
    state.apply("candidate", candidate("v1", round=1, kind="verdict", member=None, model="j"))
    assert state.headline == "The judge compares the answers: 1 of 2 calls have ended."
    assert [(call.call, call.state) for call in state.calls] == [("v1", "ok"), ("v2", "waiting")]


def test_open_calls_are_counted_within_their_round() -> None:
    done = candidate("v1", round=1, member=None)
    state = progress(
        ("round", verdicts(1, "v1")), ("candidate", done), ("round", verdicts(2, "w1", "w2"))
    )
    assert state.headline == "The judge compares the answers: 0 of 2 calls have ended."


def test_a_member_of_the_second_wave_waits_once_it_is_asked() -> None:
    late = {"name": "z", "model": "m-z", "tier": "remote", "samples": 1, "wave": 1}
    members = plan("a")["members"] + [late]
    state = progress(("plan", plan(members=members)), ("candidate", candidate("a")))
    assert states(state)["z"] == "unasked"
    assert state.headline == "All members have answered; the judge decides."
    call = {"call": "z", "kind": "answer", "model": "m-z", "member": "z"}
    state.apply("round", {"round": 1, "calls": [call]})
    assert states(state)["z"] == "waiting"
    assert state.calls == []
    state.apply("candidate", candidate("z", round=1))
    assert states(state)["z"] == "ok"


def test_the_outcome_ends_it() -> None:
    fusion = {
        "status": "selected",
        "content": "x" * (MOST_OUTCOME_CHARS + 1),
        "answers": [
            answer("a", is_winner=True, content="y" * (MOST_CHARS + 1)),
            answer("b", status="missing", content=None, latency_ms=None, cost_usd=None),
        ],
    }
    state = progress(("plan", plan("a", "b")), ("round", verdicts()), ("outcome", fusion))
    assert state.is_over
    assert state.headline == "The judge has chosen an answer."
    assert states(state) == {"a": "ok", "b": "missing"}
    card = state.cards[0]
    assert card.is_winner
    assert card.is_cut
    assert len(card.text or "") == MOST_CHARS
    assert state.is_answer_cut
    assert len(state.answer or "") == MOST_OUTCOME_CHARS
    assert state.calls == [], "what was not waited for is not shown as waiting"


def test_a_cancelled_fusion_leaves_nobody_waiting() -> None:
    state = progress(("outcome", {"status": "cancelled", "content": None, "answers": []}))
    assert states(state) == {"a": "missing", "b": "missing"}


def test_an_interruption_may_pass_or_not() -> None:
    state = progress(("error", {"code": "draining", "message": "it stops"}))
    assert (state.interruption, state.is_over) == ("it stops", False)
    state = progress(("error", {"code": "texts_deleted", "message": "they are gone"}))
    assert state.is_over


def test_unknown_events_change_nothing() -> None:
    assert progress(("news", {})) == progress()
