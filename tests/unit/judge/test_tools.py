"""Fusing tool calls: who has a vote, which tools win, and what each argument becomes."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.contracts import Tool, ToolCall
from fusewire_judge.strategies.tool_calls import FusedCalls, MemberCalls, fuse

WEATHER = Tool(
    name="weather",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["C", "F"]},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
)
MAIL = Tool(
    name="mail",
    parameters={"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]},
)
# By itself each argument fits, but only one of them may be there.
WHERE = Tool(
    name="where",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "zip": {"type": "string"},
            "days": {"type": "integer"},
        },
        "oneOf": [{"required": ["city"]}, {"required": ["zip"]}],
    },
)
CLOCK = Tool(name="clock")
TOOLS = (WEATHER, MAIL, WHERE, CLOCK)

Asked = list[tuple[str, Any]]


def voice(member: str, weight: float, *asked: tuple[str, Any]) -> MemberCalls:
    """Arguments that are a text are sent as they are."""
    calls = (
        ToolCall(
            id=f"{member}-{i}",
            name=name,
            arguments=given if isinstance(given, str) else json.dumps(given),
        )
        for i, (name, given) in enumerate(asked)
    )
    return MemberCalls(member, weight, tuple(calls))


def fused(*said: MemberCalls) -> FusedCalls:
    found = fuse(said, TOOLS, ("f1",))
    assert found is not None
    return found


def asked(of: FusedCalls) -> Asked:
    return [(call.name, json.loads(call.arguments)) for call in of.calls]


PARIS, ROME = {"city": "Paris"}, {"city": "Rome"}
A, B, C = {"to": "a"}, {"to": "b"}, {"to": "c"}

NAMES: list[tuple[str, list[MemberCalls], Asked, str]] = [
    # what, voices, calls, members behind them
    (
        "the heaviest",
        [voice("a", 1, ("mail", A)), voice("b", 3, ("clock", {}))],
        [("clock", {})],
        "b",
    ),
    (
        "weights add up",
        [voice("a", 2, ("mail", A)), voice("b", 2, ("mail", A)), voice("c", 3, ("clock", {}))],
        [("mail", A)],
        "ab",
    ),
    (
        "more members win a tie",
        [
            voice("a", 0.3, ("clock", {})),
            voice("b", 0.1, ("mail", A)),
            voice("c", 0.2, ("mail", A)),
        ],
        [("mail", A)],
        "bc",
    ),
    (
        "the first wins what is left",
        [voice("a", 1, ("mail", A)), voice("b", 1, ("clock", {}))],
        [("mail", A)],
        "a",
    ),
    (
        "0.1 + 0.2 is a tie with 0.15 + 0.15",
        [
            voice("a", 0.15, ("clock", {})),
            voice("b", 0.15, ("clock", {})),
            voice("c", 0.1, ("mail", A)),
            voice("d", 0.2, ("mail", A)),
        ],
        [("clock", {})],
        "ab",
    ),
    (
        "text is a vote for no call",
        [voice("a", 1, ("mail", A)), voice("b", 1), voice("c", 1)],
        [],
        "bc",
    ),
    ("text loses like any other", [voice("a", 2, ("mail", A)), voice("b", 1)], [("mail", A)], "a"),
    (
        "two of one tool are not one",
        [voice("a", 2, ("mail", A), ("mail", B)), voice("b", 1, ("mail", A))],
        [("mail", A), ("mail", B)],
        "a",
    ),
    (
        "order does not part members",
        [
            voice("a", 1, ("clock", {}), ("mail", A)),
            voice("b", 2, ("mail", A), ("clock", {})),
            voice("c", 2.5, ("mail", A)),
        ],
        [("mail", A), ("clock", {})],
        "ab",
    ),
]


@pytest.mark.parametrize(
    ("said", "calls", "members"), [row[1:] for row in NAMES], ids=[row[0] for row in NAMES]
)
def test_the_tools_are_voted_on_by_weight(
    said: list[MemberCalls], calls: Asked, members: str
) -> None:
    found = fused(*said)

    assert (asked(found), "".join(found.members)) == (calls, members)


ARGUMENTS: list[tuple[str, list[tuple[float, Asked]], Asked]] = [
    # what, weights and calls, result
    (
        "each argument by itself",
        [
            (1, [("weather", {"city": "Paris", "unit": "C", "days": 1})]),
            (1, [("weather", {"city": "Paris", "unit": "F", "days": 2})]),
            (1, [("weather", {"city": "Rome", "unit": "F", "days": 1})]),
        ],
        [("weather", {"city": "Paris", "unit": "F", "days": 1})],
    ),
    (
        "an absent argument is a value",
        [(1, [("weather", {"city": "Paris", "days": 3})]), (2, [("weather", PARIS)])],
        [("weather", PARIS)],
    ),
    (
        "1.0 is 1",
        [
            (2, [("weather", {"city": "Paris", "days": 2})]),
            (1, [("weather", {"city": "Paris", "days": 1.0})]),
            (1.5, [("weather", {"city": "Paris", "days": 1})]),
        ],
        [("weather", {"city": "Paris", "days": 1})],
    ),
    (
        "the order of keys says nothing",
        [
            (2, [("clock", {"at": {"b": 3, "a": 1}})]),
            (1, [("clock", {"at": {"a": 1, "b": 2}})]),
            (1.5, [("clock", {"at": {"b": 2, "a": 1.0}})]),
        ],
        [("clock", {"at": {"a": 1, "b": 2}})],
    ),
    (
        "true is not 1",
        [
            (1, [("clock", {"x": True})]),
            (1, [("clock", {"x": True})]),
            (1.5, [("clock", {"x": 1})]),
        ],
        [("clock", {"x": True})],
    ),
    (
        "null is not absent",
        [(1, [("clock", {"x": None})]), (1, [("clock", {})]), (1, [("clock", {"x": None})])],
        [("clock", {"x": None})],
    ),
    (
        "calls of one tool are matched by order",
        [
            (2, [("mail", A), ("mail", B)]),
            (1, [("mail", A), ("mail", C)]),
            (1.5, [("mail", A), ("mail", C)]),
        ],
        [("mail", A), ("mail", C)],
    ),
    (
        "what breaks the schema together is not put together",
        [
            (2, [("where", {"city": "Paris", "days": 1})]),
            (2, [("where", {"zip": "00184", "days": 1})]),
            (1, [("where", {"zip": "00184", "days": 2})]),
            (2, [("where", {"city": "Paris", "days": 3})]),
            (1, [("where", {"zip": "75001"})]),
        ],
        [("where", {"city": "Paris", "days": 1})],
    ),
    (
        "nothing is done twice that each wanted once",
        [
            (3, [("mail", A), ("mail", B)]),
            (2, [("mail", B), ("mail", A)]),
            (2, [("mail", C), ("mail", A)]),
        ],
        [("mail", A), ("mail", B)],
    ),
    (
        "what a member wants twice is done twice",
        [(1, [("clock", {}), ("clock", {})])],
        [("clock", {}), ("clock", {})],
    ),
]


@pytest.mark.parametrize(
    ("said", "calls"), [row[1:] for row in ARGUMENTS], ids=[row[0] for row in ARGUMENTS]
)
def test_arguments_are_voted_on_one_by_one(said: list[tuple[float, Asked]], calls: Asked) -> None:
    assert (
        asked(fused(*(voice(f"m{i}", weight, *of) for i, (weight, of) in enumerate(said)))) == calls
    )


INVALID: list[tuple[str, str, str]] = [
    # what, tool, arguments
    ("an unknown tool", "launch", "{}"),
    ("no JSON", "mail", '{"to": '),
    ("empty", "clock", ""),
    ("an array", "mail", '["to"]'),
    ("a text", "clock", '"{}"'),
    ("an argument is missing", "mail", "{}"),
    ("an argument is of the wrong type", "mail", '{"to": 1}'),
    ("an argument too many", "weather", '{"city": "Paris", "hours": 1}'),
    ("NaN", "clock", '{"x": NaN}'),
    ("too large a number", "clock", '{"x": 1e999}'),
    ("half of a surrogate pair", "clock", '{"x": "\\ud83d"}'),
    ("nested without end", "clock", '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    ("digits without end", "clock", '{"x": ' + "9" * 5_000 + "}"),
]


@pytest.mark.parametrize(
    ("name", "arguments"), [row[1:] for row in INVALID], ids=[row[0] for row in INVALID]
)
def test_an_invalid_call_takes_the_whole_vote(name: str, arguments: str) -> None:
    bad = voice("bad", 9, ("mail", A), (name, arguments))

    found = fused(bad, voice("b", 1, ("mail", B)), voice("c", 1, ("clock", {})))
    assert (asked(found), found.members, found.invalid) == ([("mail", B)], ("b",), ("bad",))
    assert found.agreement == 0.5
    assert fuse([bad], TOOLS, ("f1",)) is None


BROKEN: list[dict[str, Any]] = [
    {"$ref": "#/$defs/none"},
    {"$ref": "https://models.example/schema.json"},
    {"$ref": "#"},
    {"properties": {"x": {"multipleOf": 0.01}}},
]


@pytest.mark.parametrize("parameters", BROKEN, ids=repr)
def test_a_schema_that_cannot_be_applied_stops_nobody_and_fetches_nothing(
    parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[object] = []
    monkeypatch.setattr("urllib.request.urlopen", fetched.append)
    tool = Tool(name="odd", parameters=parameters)

    found = fuse(
        [voice("a", 1, ("odd", {"x": 10**400})), voice("b", 1, ("clock", {}))],
        (tool, CLOCK),
        ("f1",),
    )

    assert found is not None
    assert (found.members, found.invalid) == (("b",), ("a",))
    assert not fetched


def test_nobody_said_anything() -> None:
    assert fuse([], TOOLS, ("f1",)) is None


@pytest.mark.parametrize(
    ("said", "unanimous", "agreement"),
    [
        ([voice("a", 1, ("mail", A)), voice("b", 2, ("mail", A))], True, 1.0),
        ([voice("a", 1, ("mail", A)), voice("b", 2, ("mail", B))], False, 1.0),
        ([voice("a", 1, ("mail", A)), voice("b", 2, ("mail", A)), voice("c", 1)], False, 0.75),
        ([voice("a", 1), voice("b", 3)], True, 1.0),
        ([voice("a", 1, ("clock", {"x": 1})), voice("b", 1, ("clock", {"x": 1.0}))], True, 1.0),
    ],
)
def test_agreement_is_on_the_tools_and_unanimity_on_everything(
    said: list[MemberCalls], unanimous: bool, agreement: float
) -> None:
    found = fused(*said)

    assert (found.unanimous, found.agreement) == (unanimous, agreement)


def test_ids_are_new_repeatable_and_such_as_every_provider_takes() -> None:
    said = [voice("a", 1, ("mail", A), ("mail", B))]

    def minted(*seed_parts: str) -> list[str]:
        found = fuse(said, TOOLS, seed_parts)
        assert found is not None
        return [call.id for call in found.calls]

    assert minted("f1") == minted("f1")
    assert len({*minted("f1"), *minted("f2"), *minted("f1", "2")}) == 6
    assert all(re.fullmatch("[a-zA-Z0-9]{9}", one) for one in minted("f1"))


# -- properties -------------------------------------------------------------------------------

weather = st.fixed_dictionaries(
    {"city": st.sampled_from(["Paris", "Rome"])},
    optional={"days": st.sampled_from([1, 1.0, 2]), "unit": st.sampled_from(["C", "F"])},
)
mail = st.fixed_dictionaries({"to": st.sampled_from(["a", "b"])})
where = st.sampled_from(
    [{"city": "x"}, {"zip": "x"}, {"city": "x", "days": 1}, {"zip": "x", "days": 2}]
)
a_call = st.one_of(
    st.tuples(st.just("weather"), weather),
    st.tuples(st.just("mail"), mail),
    st.tuples(st.just("where"), where),
)
bad_call = st.tuples(
    st.sampled_from(["weather", "launch"]), st.sampled_from(["{}", "no", '{"days": 1}'])
)
any_set = st.lists(a_call, max_size=3) | st.lists(a_call | bad_call, min_size=1, max_size=2)
# One call of a tool, and no tool whose arguments depend on each other: nothing is ever taken as a whole.
plain_set = st.lists(
    st.tuples(st.just("weather"), weather) | st.tuples(st.just("mail"), mail),
    max_size=2,
    unique_by=lambda one: one[0],
)


def weighed(sets: list[Asked]) -> list[MemberCalls]:
    """Powers of two: no two groups of these weigh the same."""
    return [voice(f"m{i}", 2.0**i, *of) for i, of in enumerate(sets)]


def as_set(calls: Asked) -> list[str]:
    return sorted(json.dumps(one, sort_keys=True).replace("1.0", "1") for one in calls)


@given(st.data(), st.lists(any_set, min_size=1, max_size=5))
def test_the_order_of_unequal_voices_changes_nothing(
    data: st.DataObject, sets: list[Asked]
) -> None:
    said = weighed(sets)
    one = fuse(said, TOOLS, ("f1",))
    other = fuse(data.draw(st.permutations(said)), TOOLS, ("f1",))

    if one is None or other is None:
        assert one is other
        return
    assert (one.calls, one.agreement, one.unanimous) == (
        other.calls,
        other.agreement,
        other.unanimous,
    )
    assert (sorted(one.members), sorted(one.invalid)) == (
        sorted(other.members),
        sorted(other.invalid),
    )


@given(st.lists(plain_set, min_size=1, max_size=4), st.integers(1, 3))
def test_one_more_who_wants_what_won_changes_nothing(sets: list[Asked], more: int) -> None:
    said = weighed(sets)
    won = fused(*said)
    echoes = [MemberCalls(f"echo{i}", 1.0, won.calls) for i in range(more)]

    assert fused(*said, *echoes).calls == won.calls


@given(st.lists(any_set, min_size=1, max_size=5))
def test_what_wins_is_valid_or_a_members_own(sets: list[Asked]) -> None:
    said = weighed(sets)
    won = fuse(said, TOOLS, ("f1",))

    if won is None:
        assert all(sets)
        return
    # Alone it has a vote, which only a valid set has.
    assert fuse([MemberCalls("alone", 1, won.calls)], TOOLS, ("f1",)) is not None
    behind = [sets[int(member[1:])] for member in won.members]
    assert behind
    assert all(sorted(n for n, _ in of) == sorted(c.name for c in won.calls) for of in behind)
    if len(behind) == 1:
        assert as_set(asked(won)) == as_set(behind[0])
    for name, arguments in asked(won):
        for key, value in arguments.items():
            assert any(
                n == name and key in given and given[key] == value
                for of in behind
                for n, given in of
            )
