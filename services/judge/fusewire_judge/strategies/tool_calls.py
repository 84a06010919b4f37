"""Tool calls of several models fused into one set. Pure. Fusewire never executes a call; the client does."""

import json
import math
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fusewire import ids
from fusewire.contracts import Tool, ToolCall
from fusewire.json_schema import SchemaCheck, plain

T = TypeVar("T")

ID_CHARS = 9
"""Of letters and digits: Mistral accepts no other ids, and the others accept these."""
_ALPHABET = string.ascii_letters + string.digits

_Asked = tuple[str, str]
"""A call's name and its arguments as canonical JSON."""


@dataclass(frozen=True)
class MemberCalls:
    """What one member asked for; without calls it answered in text."""

    member: str
    weight: float
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class FusedCalls:
    """What the vote came to."""

    calls: tuple[ToolCall, ...]
    """Empty: text won, and it is the text answers of `members` that are to be fused."""
    members: tuple[str, ...]
    """Who asked for these tools, whatever the arguments, or for none."""
    agreement: float
    """Their share of the weight of all whose voice counts, 0 to 1."""
    invalid: tuple[str, ...]
    """Whose calls do not count: an unknown tool, or arguments that break its schema."""
    unanimous: bool
    """Whether all whose voice counts asked for the same calls with the same arguments, or all for none."""


def fuse(
    answers: Sequence[MemberCalls], tools: Sequence[Tool], seed_parts: tuple[str, ...]
) -> FusedCalls | None:
    """Vote by weight, first on which tools are called and then on each argument of each call.

    Ties go to what more members want, then to what was said first. A text answer is a vote for calling
    nothing. One invalid call takes the vote from the member's whole set, since calls are made together.
    Calls of one tool are matched by their order. Where the arguments that win one by one break the tool's
    schema together, the heaviest whole object is taken; where they make the same call twice, the heaviest
    whole set.

    Args:
        said: one voice a member, weights above 0.
        tools: those of the prompt.
        seed_parts: what the calls' ids are derived from.

    Returns:
        None if nobody's voice counts.
    """
    checks = {tool.name: SchemaCheck(tool.parameters) for tool in tools}
    read = [(voice, _read(voice.calls, checks)) for voice in answers]
    valid = [(voice, calls) for voice, calls in read if calls is not None]
    if not valid:
        return None
    names = _heaviest((_names(calls), voice.weight) for voice, calls in valid)
    behind = [(voice, calls) for voice, calls in valid if _names(calls) == names]
    sets = [(calls, voice.weight) for voice, calls in behind]
    return FusedCalls(
        calls=tuple(
            ToolCall(id=_id(seed_parts, index), name=name, arguments=arguments)
            for index, (name, arguments) in enumerate(_assembled(sets, checks))
        ),
        members=tuple(voice.member for voice, _ in behind),
        agreement=math.fsum(v.weight for v, _ in behind) / math.fsum(v.weight for v, _ in valid),
        invalid=tuple(voice.member for voice, calls in read if calls is None),
        unanimous=len({tuple(sorted(calls)) for _, calls in valid}) == 1,
    )


def _read(
    calls: Sequence[ToolCall], checks: Mapping[str, SchemaCheck]
) -> tuple[_Asked, ...] | None:
    """A member's set; None if any of it is invalid."""
    found = []
    for call in calls:
        arguments = _arguments(call.arguments)
        if call.name not in checks or arguments is None or not checks[call.name].fits(arguments):
            return None
        found.append((call.name, _canonical(arguments)))
    return tuple(found)


def _arguments(text: str) -> dict[str, Any] | None:
    """The object that a model wrote; None if it is none, or one that no database or JSON parser takes."""
    try:
        value = plain(json.loads(text))
        _canonical(value).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _canonical(value: Any) -> str:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _names(calls: Iterable[_Asked]) -> tuple[str, ...]:
    return tuple(sorted(name for name, _ in calls))


def _assembled(
    sets: Sequence[tuple[tuple[_Asked, ...], float]], checks: Mapping[str, SchemaCheck]
) -> tuple[_Asked, ...]:
    """One set made of weighted sets that call the same tools."""
    order = _heaviest((tuple(name for name, _ in calls), weight) for calls, weight in sets)
    fused = []
    for place, name in enumerate(order):
        nth = order[:place].count(name)
        group = [
            ([given for called, given in calls if called == name][nth], weight)
            for calls, weight in sets
        ]
        fused.append((name, _merged(group, checks[name])))
    # To act twice where each member wanted it once is worse than any one member's word.
    return tuple(fused) if len(set(fused)) == len(fused) else _heaviest(sets)


def _merged(group: Sequence[tuple[str, float]], check: SchemaCheck) -> str:
    """One argument object made of weighted ones."""
    objects = [(json.loads(text), weight) for text, weight in group]
    merged = {}
    for key in {key for one, _ in objects for key in one}:
        # No value's JSON is empty, so that an absent argument is a value of its own.
        chosen = _heaviest(
            (_canonical(one[key]) if key in one else "", weight) for one, weight in objects
        )
        if chosen:
            merged[key] = json.loads(chosen)
    return _canonical(merged) if check.fits(merged) else _heaviest(group)


def _heaviest(votes: Iterable[tuple[T, float]]) -> T:
    """The value with the most weight; of equals the one with more votes, then the first."""
    weights: dict[T, list[float]] = {}
    for value, weight in votes:
        weights.setdefault(value, []).append(weight)
    # An exact sum does not depend on the order, and 0.1 + 0.2 must tie with 0.3.
    return max(
        weights, key=lambda value: (round(math.fsum(weights[value]), 9), len(weights[value]))
    )


def _id(seed_parts: tuple[str, ...], index: int) -> str:
    number = int.from_bytes(ids.digest("tool_call", *seed_parts, str(index)), "big")
    return "".join(
        _ALPHABET[number // len(_ALPHABET) ** place % len(_ALPHABET)] for place in range(ID_CHARS)
    )
