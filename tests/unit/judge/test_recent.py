"""What a judge keeps of open fusions: only what is whole, and only so much."""

from datetime import timedelta

from fusewire.contracts import Plan
from fusewire.testing.factories import T0, make_candidate, make_plan, make_prompt, make_round
from fusewire_judge.recent import FusionRecord, RecentFusions

PROMPT = make_prompt()
PLAN: Plan = make_plan(PROMPT)
NEW = FusionRecord(PROMPT, prompt_hash="", plan=None, chars=100)
LATER = T0 + timedelta(seconds=1)


def test_a_copy_is_given_only_where_it_holds_just_what_is_stored() -> None:
    record = NEW.planned(PLAN, 10).told(make_candidate(), 10, T0).asked(make_round(), 10, LATER)
    recent = RecentFusions()
    recent.keep({"f": record})

    assert recent.get("f", is_planned=True, rounds=1, candidates=1) == record
    assert recent.get("f", is_planned=True, rounds=1, candidates=2) is None
    assert recent.get("f", is_planned=True, rounds=2, candidates=1) is None
    assert recent.get("f", is_planned=False, rounds=1, candidates=1) is None
    assert recent.get("other", is_planned=True, rounds=1, candidates=1) is None


def test_a_candidate_is_timely_by_the_rounds_that_were_asked_before_it() -> None:
    record = (
        NEW.told(make_candidate(), 10, T0)
        .asked(make_round(), 10, LATER)
        .told(make_candidate(call="b"), 10, LATER)
    )

    assert {call: arrival.after_rounds for (_, call), arrival in record.received.items()} == {
        "a": 0,
        "b": 1,
    }
    assert record.asked_at == LATER
    assert record.chars == 130


def test_what_was_not_looked_at_for_the_longest_time_leaves_first() -> None:
    recent = RecentFusions(most_chars=250)
    recent.keep({"one": NEW, "two": NEW})
    recent.keep({"one": NEW})
    recent.keep({"three": NEW})

    kept_records = {
        key
        for key in ("one", "two", "three")
        if recent.get(key, is_planned=False, rounds=0, candidates=0)
    }
    assert kept_records == {"one", "three"}


def test_what_is_dropped_makes_room() -> None:
    recent = RecentFusions(most_chars=200)
    recent.keep({"one": NEW, "two": NEW})
    recent.drop(["one", "never heard of"])
    recent.keep({"three": NEW})

    assert recent.get("two", is_planned=False, rounds=0, candidates=0)
    assert recent.get("three", is_planned=False, rounds=0, candidates=0)
    assert recent.get("one", is_planned=False, rounds=0, candidates=0) is None


def test_one_that_is_larger_than_all_room_is_not_kept() -> None:
    recent = RecentFusions(most_chars=50)
    recent.keep({"one": NEW})

    assert recent.get("one", is_planned=False, rounds=0, candidates=0) is None
