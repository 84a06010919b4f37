"""Fusing tool calls: who has a vote, which tools win, and what each argument becomes."""

import json
import re
from itertools import chain
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


def voice(member: str, weight: float, *named_calls: tuple[str, Any]) -> MemberCalls:
    """Arguments that are a text are sent as they are."""
    calls = (
        ToolCall(
            id=f"{member}-{i}",
            name=name,
            arguments=arguments if isinstance(arguments, str) else json.dumps(arguments),
        )
        for i, (name, arguments) in enumerate(named_calls)
    )
    return MemberCalls(member, weight, tuple(calls))


def fuse_all(*votes: MemberCalls) -> FusedCalls:
    fusion = fuse(votes, TOOLS, ("f1",))
    assert fusion is not None
    return fusion


def named_calls(calls_of: FusedCalls) -> Asked:
    return [(call.name, json.loads(call.arguments)) for call in calls_of.calls]


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
    ("votes", "calls", "members"), [row[1:] for row in NAMES], ids=[row[0] for row in NAMES]
)
def test_the_tools_are_voted_on_by_weight(
    votes: list[MemberCalls], calls: Asked, members: str
) -> None:
    fusion = fuse_all(*votes)

    assert (named_calls(fusion), "".join(fusion.members)) == (calls, members)


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
    ("votes", "calls"), [row[1:] for row in ARGUMENTS], ids=[row[0] for row in ARGUMENTS]
)
def test_arguments_are_voted_on_one_by_one(votes: list[tuple[float, Asked]], calls: Asked) -> None:
    assert (
        named_calls(
            fuse_all(
                *(voice(f"m{i}", weight, *calls_of) for i, (weight, calls_of) in enumerate(votes))
            )
        )
        == calls
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

    fusion = fuse_all(bad, voice("b", 1, ("mail", B)), voice("c", 1, ("clock", {})))
    assert (named_calls(fusion), fusion.members, fusion.invalid) == (
        [("mail", B)],
        ("b",),
        ("bad",),
    )
    assert fusion.agreement == 0.5
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
    fetches: list[object] = []
    monkeypatch.setattr("urllib.request.urlopen", fetches.append)
    tool = Tool(name="odd", parameters=parameters)

    fusion = fuse(
        [voice("a", 1, ("odd", {"x": 10**400})), voice("b", 1, ("clock", {}))],
        (tool, CLOCK),
        ("f1",),
    )

    assert fusion is not None
    assert (fusion.members, fusion.invalid) == (("b",), ("a",))
    assert not fetches


def test_nobody_said_anything() -> None:
    assert fuse([], TOOLS, ("f1",)) is None


@pytest.mark.parametrize(
    ("votes", "unanimous", "agreement"),
    [
        ([voice("a", 1, ("mail", A)), voice("b", 2, ("mail", A))], True, 1.0),
        ([voice("a", 1, ("mail", A)), voice("b", 2, ("mail", B))], False, 1.0),
        ([voice("a", 1, ("mail", A)), voice("b", 2, ("mail", A)), voice("c", 1)], False, 0.75),
        ([voice("a", 1), voice("b", 3)], True, 1.0),
        ([voice("a", 1, ("clock", {"x": 1})), voice("b", 1, ("clock", {"x": 1.0}))], True, 1.0),
    ],
)
def test_agreement_is_on_the_tools_and_unanimity_on_everything(
    votes: list[MemberCalls], unanimous: bool, agreement: float
) -> None:
    fusion = fuse_all(*votes)

    assert (fusion.unanimous, fusion.agreement) == (unanimous, agreement)


def test_ids_are_new_repeatable_and_such_as_every_provider_takes() -> None:
    votes = [voice("a", 1, ("mail", A), ("mail", B))]

    def mint_ids(*seed_parts: str) -> list[str]:
        fusion = fuse(votes, TOOLS, seed_parts)
        assert fusion is not None
        return [call.id for call in fusion.calls]

    assert mint_ids("f1") == mint_ids("f1")
    assert len({*mint_ids("f1"), *mint_ids("f2"), *mint_ids("f1", "2")}) == 6
    assert all(re.fullmatch("[a-zA-Z0-9]{9}", entry) for entry in mint_ids("f1"))


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
# One call of a tool, whose arguments do not depend on each other: no whole object is ever taken.
plain_set = st.lists(
    st.tuples(st.just("weather"), weather) | st.tuples(st.just("mail"), mail),
    max_size=2,
    unique_by=lambda entry: entry[0],
)


def as_votes(sets: list[Asked]) -> list[MemberCalls]:
    """Powers of two: no two groups of these weigh the same."""
    return [voice(f"m{i}", 2.0**i, *calls_of) for i, calls_of in enumerate(sets)]


def as_set(calls: Asked) -> list[str]:
    return sorted(json.dumps(entry, sort_keys=True).replace("1.0", "1") for entry in calls)


@given(st.data(), st.lists(any_set, min_size=1, max_size=5))
def test_the_order_of_unequal_voices_changes_nothing(
    data: st.DataObject, sets: list[Asked]
) -> None:
    votes = as_votes(sets)
    entry = fuse(votes, TOOLS, ("f1",))
    other = fuse(data.draw(st.permutations(votes)), TOOLS, ("f1",))

    if entry is None or other is None:
        assert entry is other
        return
    assert (entry.calls, entry.agreement, entry.unanimous) == (
        other.calls,
        other.agreement,
        other.unanimous,
    )
    assert (sorted(entry.members), sorted(entry.invalid)) == (
        sorted(other.members),
        sorted(other.invalid),
    )


@given(st.lists(plain_set, min_size=1, max_size=4), st.integers(1, 3))
def test_one_more_who_wants_what_won_changes_nothing(sets: list[Asked], more: int) -> None:
    votes = as_votes(sets)
    winner = fuse_all(*votes)
    echoes = [MemberCalls(f"echo{i}", 1.0, winner.calls) for i in range(more)]

    assert fuse_all(*votes, *echoes).calls == winner.calls


@given(st.lists(any_set, min_size=1, max_size=5))
def test_what_wins_is_valid_or_a_members_own(sets: list[Asked]) -> None:
    votes = as_votes(sets)
    winner = fuse(votes, TOOLS, ("f1",))

    if winner is None:
        assert all(sets)
        return
    # Alone it has a vote, which only a valid set has.
    assert fuse([MemberCalls("alone", 1, winner.calls)], TOOLS, ("f1",)) is not None
    behind = [sets[int(member[1:])] for member in winner.members]
    assert behind
    winning_names = sorted(call.name for call in winner.calls)
    for member_set in behind:
        assert sorted(name for name, _ in member_set) == winning_names
    if len(behind) == 1:
        assert as_set(named_calls(winner)) == as_set(behind[0])
    for name, arguments in named_calls(winner):
        for key, value in arguments.items():
            assert is_backed(behind, name, key, value)


def is_backed(sets: list[Asked], name: str, key: str, value: Any) -> bool:
    """Whether a member gave this argument to a call of this tool."""
    for tool, arguments in chain.from_iterable(sets):
        if tool == name and key in arguments and arguments[key] == value:
            return True
    return False
