"""Answers are checked against the prompt: its schema, and whether tools must be called."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from fusewire.contracts import Sampling, Tool, ToolCall
from fusewire_judge.scoring.answers import unwrap_json

if TYPE_CHECKING:
    from conftest import ScriptedFusion

Begin = Callable[..., "ScriptedFusion"]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
OSLO, ROME = json.dumps({"city": "Oslo"}), json.dumps({"city": "Rome"})
ASKED = {"sampling": Sampling(response_schema=CITY, temperature=0.7)}
WEATHER = ToolCall(id="c1", name="weather", arguments=OSLO)
CLOCK = ToolCall(id="c2", name="clock", arguments=OSLO)
TOOLS = tuple(Tool(name=name, parameters=CITY) for name in ("weather", "clock"))


def fence(text: str, before: str = "", after: str = "") -> str:
    return f"{before}```json\n{text}\n```{after}"


WRAPPED = [
    # what, text, what is read
    ("bare", OSLO, OSLO),
    ("with space around it", f"\n {OSLO} \n", f"\n {OSLO} \n"),
    ("fenced", fence(OSLO), OSLO),
    ("fenced without a word", f"```\n{OSLO}\n```", OSLO),
    ("fenced, with words around it", fence(OSLO, "Here it is:\n", "\nAnything else?"), OSLO),
    ("two blocks", fence(OSLO) + "\n" + fence(ROME), None),
    ("another schema's", fence("[1]"), None),
    ("no JSON", "Oslo", None),
    ("a fence without an end", f"```json\n{OSLO}", None),
]


@pytest.mark.parametrize(
    ("text", "read"), [row[1:] for row in WRAPPED], ids=[row[0] for row in WRAPPED]
)
def test_an_answer_is_read_without_what_stands_around_it(text: str, read: str | None) -> None:
    assert unwrap_json(text, CITY) == (text if read is None else read)
    assert unwrap_json(text, None) == text


def test_three_fenced_answers_win_over_a_bare_one(begin: Begin) -> None:
    play = begin(prompt=ASKED, members="abcd").says(
        a=ROME, b=fence(OSLO), c=fence(OSLO), d=fence(OSLO)
    )
    assert play.ends().content == OSLO


def test_where_nobody_has_the_form_one_answer_is_written_anew(begin: Begin) -> None:
    play = begin(prompt=ASKED).says(
        a="The city is Oslo.", b="The city is Oslo!", c="Rome, of course."
    )
    calls_asked = play.asks()
    assert list(calls_asked) == ["repair"]
    assert "The city is Oslo" in calls_asked["repair"]
    assert "Rome" not in calls_asked["repair"]
    (call,) = play.rounds[-1].calls
    assert (call.kind, call.sampling.response_schema, call.sampling.temperature) == (
        "write",
        CITY,
        None,
    )

    draft = play.replies(repair=fence(OSLO)).ends()
    assert (draft.status, draft.content) == ("fused", OSLO)
    assert draft.degraded == ("off_schema:a", "off_schema:b", "off_schema:c")


@pytest.mark.parametrize("reply", ["still prose", "!server_error", "{}"])
def test_where_that_fails_too_the_outcome_says_so(begin: Begin, reply: str) -> None:
    play = begin(prompt=ASKED).says(a="The city is Oslo.", b="Oslo.", c="Rome.")
    play.asks()
    play.replies(repair=reply).asks()
    draft = play.judge_says("b").ends()
    assert draft.content == "Oslo."
    assert "schema_unmet" in draft.degraded
    assert play.outcome().is_degraded


def test_without_a_judge_there_is_nobody_to_mend_it(begin: Begin) -> None:
    draft = begin(prompt=ASKED, judge=None, members="a").says(a="Oslo.").ends()
    assert (draft.status, draft.content) == ("single", "Oslo.")
    assert draft.degraded == ("off_schema:a", "schema_unmet")


def answer_with_calls(
    play: "ScriptedFusion", **calls: tuple[ToolCall, ...] | str
) -> "ScriptedFusion":
    for member, reply in calls.items():
        if isinstance(reply, str):
            play.say(member, reply)
        else:
            play.say(member, None, tool_calls=reply)
    return play


def test_a_tool_that_nobody_may_call_is_not_called(begin: Begin) -> None:
    play = begin(prompt={"tools": TOOLS, "tool_choice": "none"})
    draft = answer_with_calls(play, a=(WEATHER,), b=(WEATHER,), c="Sunny.").ends()
    assert (draft.content, draft.tool_calls) == ("Sunny.", ())
    assert draft.degraded == ("empty:a", "empty:b")


def test_only_the_tool_that_is_named_is_called(begin: Begin) -> None:
    play = begin(prompt={"tools": TOOLS, "tool_choice": "clock"})
    draft = answer_with_calls(play, a=(WEATHER,), b=(WEATHER, CLOCK), c=(WEATHER,)).ends()
    assert [call.name for call in draft.tool_calls] == ["clock"]
    assert draft.degraded == ("no_call:a", "no_call:c")


def test_a_call_that_must_be_made_and_is_not_is_told(begin: Begin) -> None:
    play = begin(prompt={"tools": TOOLS, "tool_choice": "required"}, members="a", judge=None)
    draft = answer_with_calls(play, a="Sunny.").ends()
    assert (draft.content, draft.degraded) == ("Sunny.", ("no_call:a",))


def test_one_call_is_one_call(begin: Begin) -> None:
    play = begin(prompt={"tools": TOOLS, "parallel_tool_calls": False})
    draft = answer_with_calls(play, a=(WEATHER, CLOCK), b=(WEATHER, CLOCK), c=(WEATHER,)).ends()
    assert [call.name for call in draft.tool_calls] == ["weather"]


def test_beside_tools_a_schema_binds_the_answer_alone(begin: Begin) -> None:
    prompt = {**ASKED, "tools": TOOLS}
    draft = answer_with_calls(begin(prompt=prompt), a=(WEATHER,), b=(WEATHER,), c="Sunny.").ends()
    assert [call.name for call in draft.tool_calls] == ["weather"]
    assert draft.degraded == ("off_schema:c",)
    draft = answer_with_calls(begin(prompt=prompt), a=OSLO, b=fence(OSLO), c=(WEATHER,)).ends()
    assert (draft.content, draft.tool_calls) == (OSLO, ())
