"""`decide`: what ends a fusion before any choice, deadlines, and what must never change what it says."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusewire.contracts import Excluded
from fusewire.testing.factories import JUDGE
from fusewire.testing.factories import OPEN_ANSWERS as OPEN
from fusewire_judge.fusion.case import Ask, Decided, Draft

Begin = Callable[..., Any]


def test_it_waits_for_the_panel(begin: Begin) -> None:
    play = begin()

    assert play.waits() == 45
    assert play.says(a="4").waits() == 45
    assert play.later(4).says(b="4").waits() == pytest.approx(5.4)


MODES = ["best-of", "merge", "debate"]


@pytest.mark.parametrize("mode", MODES)
def test_a_pool_of_one_is_single_and_whole(begin: Begin, mode: str) -> None:
    draft = begin(mode, members="a").says(a="Paris").ends()

    assert (draft.status, draft.content, draft.winner) == ("single", "Paris", "a")
    assert draft.reason == "the only member"
    assert draft.degraded == ()
    assert draft.rung is None


@pytest.mark.parametrize("mode", MODES)
def test_one_survivor_is_single_never_fused(begin: Begin, mode: str) -> None:
    draft = begin(mode).says(a="!server_error", b="Paris", c=" \n").ends()

    assert (draft.status, draft.content, draft.winner) == ("single", "Paris", "b")
    assert draft.reason == "the only answer of 3 members"
    assert draft.degraded == ("failed:a:server_error", "empty:c")


@pytest.mark.parametrize("mode", MODES)
def test_all_failed(begin: Begin, mode: str) -> None:
    draft = begin(mode).says(a="!server_error", b="!rate_limited", c="").ends()

    assert (draft.status, draft.content, draft.winner) == ("failed", None, None)
    assert draft.error == "every member failed (empty_answer, rate_limited, server_error)"
    assert draft.degraded == ("failed:a:server_error", "failed:b:rate_limited", "empty:c")


@pytest.mark.parametrize("mode", MODES)
def test_nobody_answered_in_time(begin: Begin, mode: str) -> None:
    play = begin(mode).says(a="!server_error")
    assert play.later(44.9).waits() == 45

    draft = play.later(45).ends()

    assert (draft.status, draft.error) == ("expired", "no member answered before the deadline")
    assert draft.degraded == ("failed:a:server_error", "missing:b", "missing:c")


def test_one_answer_in_time_is_single(begin: Begin) -> None:
    draft = begin().says(a="Paris").later(45).ends()

    assert (draft.status, draft.degraded) == ("single", ("missing:b", "missing:c"))


def test_a_plan_without_members_fails_at_once(begin: Begin) -> None:
    draft = begin(members=(), excluded=(Excluded(name="gone", reason="unknown_pool"),)).ends()

    assert (draft.status, draft.degraded) == ("failed", ("excluded:gone:unknown_pool",))
    assert draft.error == "no member may answer (gone: unknown_pool)"


def test_who_was_excluded_is_told(begin: Begin) -> None:
    draft = begin(members="ab", excluded=(Excluded(name="gpt", reason="residency"),)).says(a="4", b="4").ends()

    assert draft.degraded == ("excluded:gpt:residency",)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("texts", [OPEN, {"a": "4", "b": "5", "c": "6"}], ids=["open", "closed"])
@pytest.mark.parametrize("judge", [JUDGE, None], ids=["judge", "no judge"])
def test_after_the_deadline_nothing_is_asked_and_it_ends(
    begin: Begin, mode: str, texts: dict[str, str], judge: Any
) -> None:
    """As when the judge itself was down until then."""
    play = begin(mode, judge=judge).says(**texts)

    draft = play.later(61).ends()

    assert draft.content in texts.values()
    assert draft.status == "voted"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rounds", [1, 2])
def test_after_the_deadline_it_ends_wherever_it_stood(begin: Begin, mode: str, rounds: int) -> None:
    play = begin(mode).says(**OPEN)
    for _ in range(rounds):
        if not isinstance(play.decide(), Ask):
            break
        play.asks()
        play.replies(**{call.name.replace("-", "_"): "nonsense " + call.name for call in play.rounds[-1].calls})

    draft = play.later(61).ends()

    assert draft.status in ("voted", "fused")
    assert draft.degraded


def test_a_quorum_closes_the_panel_before_the_deadline(begin: Begin) -> None:
    play = begin().says(a="4", b="4")
    assert play.later(0.4).waits() == 0.5

    assert play.later(0.5).ends().degraded == ("missing:c",)


def test_who_comes_after_the_next_round_was_asked_is_too_late(begin: Begin) -> None:
    play = begin().says(a=OPEN["a"], b=OPEN["b"]).later(45)
    play.asks()
    play.says(c="!server_error")
    play.replies(verdict=play.verdict_for("a"))

    draft = play.ends()

    assert draft.degraded == ("missing:c",)
    assert {one.member for one in draft.said} == {"a", "b"}


SCENES: list[tuple[str, dict[str, str]]] = [
    ("best-of", {"a": "4", "b": "5", "c": "4"}),
    ("best-of", OPEN),
    ("best-of", {**OPEN, "b": "!server_error"}),
    ("merge", OPEN),
    ("debate", {"a": "4", "b": "5", "c": "6"}),
    ("debate", OPEN),
]

ANALYSIS = json.dumps(
    {"consensus": ["Paris"], "contradictions": [], "partial_coverage": [], "unique_insights": [], "blind_spots": []}
)
DEBATED = {"a": "5", "b": "5", "c": "!server_error"}


def finish(play: Any, order: list[int]) -> Draft:
    """Answer whatever is asked, in an order that `order` decides, each message perhaps twice."""
    for step in range(8):
        decision = play.decide()
        if isinstance(decision, Decided):
            return decision.draft
        assert isinstance(decision, Ask), decision
        play.asks()
        calls = [call.name for call in play.rounds[-1].calls]
        for place in sorted(range(len(calls)), key=lambda i: order[(i + step) % len(order)]):
            name = calls[place]
            text = {"verdict": '{"reason": "It is plainly best.", "winner": "A"}', "write": "Merged."}.get(
                name, ANALYSIS if name.startswith("analysis") else DEBATED.get(name, "nonsense")
            )
            play.replies(**{name.replace("-", "_"): text})
            if order[place % len(order)] % 2:
                play.replies(**{name.replace("-", "_"): "another text for the same call"})
    raise AssertionError("no end")


@settings(max_examples=60)
@given(
    scene=st.sampled_from(SCENES),
    arrival=st.permutations(["a", "b", "c"]),
    twice=st.lists(st.sampled_from(["a", "b", "c"]), max_size=3),
    order=st.permutations(list(range(6))),
    late=st.sampled_from(["", "late text", "!timeout"]),
)
def test_order_and_duplicates_and_late_answers_change_nothing(
    begin: Begin, scene: tuple[str, dict[str, str]], arrival: list[str], twice: list[str], order: list[int], late: str
) -> None:
    mode, texts = scene
    plain = begin(mode).says(**texts)
    expected = finish(plain, [0, 2, 4])

    play = begin(mode)
    for name in [*arrival, *twice]:
        play.says(**{name: texts[name] if (0, name) not in play.heard else "said again, otherwise"})
    draft = finish(play, order)

    assert draft == expected

    # Once decided, nothing that comes in changes what it says: what came before a later round was
    # asked stays as it was, what comes after is late.
    for (round_, call), heard in list(play.heard.items()):
        if late and round_ < len(play.rounds):
            again = play.spoken(round_, call, late)
            play.heard[round_, call] = heard
            play.hear(again)
    assert play.ends() == expected


@settings(max_examples=40)
@given(
    missing=st.sampled_from(["a", "b", "c"]),
    late=st.sampled_from(["4", "late text", "!timeout"]),
    mode=st.sampled_from(MODES),
)
def test_a_member_too_late_for_the_first_round_changes_nothing(
    begin: Begin, missing: str, late: str, mode: str
) -> None:
    texts = {name: text for name, text in OPEN.items() if name != missing}
    expected = finish(begin(mode).says(**texts).later(45), [0])

    play = begin(mode).says(**texts).later(45)
    play.asks()
    play.says(**{missing: late})
    calls = [call.name for call in play.rounds[-1].calls]
    for name in calls:
        text = {"verdict": '{"reason": "It is plainly best.", "winner": "A"}'}.get(
            name, ANALYSIS if name == "analysis" else DEBATED.get(name, "")
        )
        play.replies(**{name: text})

    assert finish(play, [0]) == expected
