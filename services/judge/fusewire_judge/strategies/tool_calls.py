"""Fuse the tool calls of several members into one set of calls. Pure.

Fusewire never executes a call; the client does.
"""

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
"""Length of a call's id, of letters and digits: Mistral accepts no other, and all accept these."""
_ALPHABET = string.ascii_letters + string.digits

NamedArguments = tuple[str, str]
"""A tool's name, and the arguments of a call as canonical JSON."""
CallSet = tuple[NamedArguments, ...]
"""The calls that one member asked for together."""


@dataclass(frozen=True)
class MemberCalls:
    """The calls that one member asked for; none if it answered in text."""

    member: str
    weight: float
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class FusedCalls:
    """The calls that won the vote."""

    calls: tuple[ToolCall, ...]
    """Empty: text won, and it is the text answers of `members` that are to be fused."""
    members: tuple[str, ...]
    """The members that asked for these tools, whatever the arguments, or for none."""
    agreement: float
    """Their share of the weight of all valid votes, 0 to 1."""
    invalid: tuple[str, ...]
    """Members without a vote: they called an unknown tool, or broke a tool's schema."""
    unanimous: bool
    """Whether all valid votes are for the same calls with the same arguments, or all for none."""


def fuse(
    member_calls: Sequence[MemberCalls], tools: Sequence[Tool], seed_parts: tuple[str, ...]
) -> FusedCalls | None:
    """Vote by weight, first on which tools are called and then on each argument of each call.

    Ties go to what more members want, then to what came first. A text answer is a vote for calling
    nothing. One invalid call voids the member's whole set, since calls are made together. Calls of
    one tool are matched by their order. If the arguments that win separately break the tool's
    schema together, the heaviest whole object is taken; if they make the same call twice, the
    heaviest whole set.

    Args:
        member_calls: one for each member, weights above 0.
        tools: those of the prompt.
        seed_parts: what the calls' ids are derived from.

    Returns:
        None if no vote is valid.
    """
    checks = {tool.name: SchemaCheck(tool.parameters) for tool in tools}
    sets = [(vote, _valid_set(vote.calls, checks)) for vote in member_calls]
    valid = [(vote, calls) for vote, calls in sets if calls is not None]
    if not valid:
        return None
    names = _heaviest((_names(calls), vote.weight) for vote, calls in valid)
    backers = [(vote, calls) for vote, calls in valid if _names(calls) == names]
    weighted_sets = [(calls, vote.weight) for vote, calls in backers]
    total_weight = math.fsum(vote.weight for vote, _ in valid)
    return FusedCalls(
        calls=_with_ids(_fuse_sets(weighted_sets, checks), seed_parts),
        members=tuple(vote.member for vote, _ in backers),
        agreement=math.fsum(vote.weight for vote, _ in backers) / total_weight,
        invalid=tuple(vote.member for vote, calls in sets if calls is None),
        unanimous=len({tuple(sorted(calls)) for _, calls in valid}) == 1,
    )


def _valid_set(calls: Sequence[ToolCall], checks: Mapping[str, SchemaCheck]) -> CallSet | None:
    """A member's calls in canonical form; None if any of them is invalid."""
    canonical_calls = []
    for call in calls:
        arguments = _arguments(call.arguments)
        if call.name not in checks or arguments is None or not checks[call.name].fits(arguments):
            return None
        canonical_calls.append((call.name, _canonical(arguments)))
    return tuple(canonical_calls)


def _arguments(text: str) -> dict[str, Any] | None:
    """Parse the JSON object that a model wrote.

    Returns:
        None if it is no object, or one that no database or JSON parser accepts.
    """
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


def _names(calls: CallSet) -> tuple[str, ...]:
    """The tools that a set calls, whatever their order."""
    return tuple(sorted(_names_in_order(calls)))


def _names_in_order(calls: CallSet) -> tuple[str, ...]:
    return tuple(name for name, _ in calls)


def _fuse_sets(
    weighted_sets: Sequence[tuple[CallSet, float]], checks: Mapping[str, SchemaCheck]
) -> CallSet:
    """Fuse weighted sets that call the same tools, call by call."""
    order = _heaviest((_names_in_order(calls), weight) for calls, weight in weighted_sets)
    fused_calls = []
    for place, name in enumerate(order):
        nth = order[:place].count(name)
        votes = [(_nth_arguments(calls, name, nth), weight) for calls, weight in weighted_sets]
        fused_calls.append((name, _fuse_arguments(votes, checks[name])))
    if len(set(fused_calls)) < len(fused_calls):
        # To call a tool twice where each member wanted it once is worse than any member's set.
        return _heaviest(weighted_sets)
    return tuple(fused_calls)


def _nth_arguments(calls: CallSet, name: str, nth: int) -> str:
    """The arguments of the nth call of a tool, from 0."""
    return [arguments for tool, arguments in calls if tool == name][nth]


def _fuse_arguments(votes: Sequence[tuple[str, float]], check: SchemaCheck) -> str:
    """Fuse weighted argument objects, argument by argument."""
    objects = [(json.loads(arguments), weight) for arguments, weight in votes]
    keys: set[str] = set()
    for arguments, _ in objects:
        keys.update(arguments)
    fused_arguments = {}
    for key in keys:
        winner = _heaviest((_canonical_argument(arguments, key), w) for arguments, w in objects)
        if winner:
            fused_arguments[key] = json.loads(winner)
    if check.fits(fused_arguments):
        return _canonical(fused_arguments)
    return _heaviest(votes)


def _canonical_argument(arguments: Mapping[str, Any], key: str) -> str:
    """An argument as JSON; empty if it is absent, which no JSON is."""
    return _canonical(arguments[key]) if key in arguments else ""


def _heaviest(votes: Iterable[tuple[T, float]]) -> T:
    """The value with the most weight; of equals the one with more votes, then the first."""
    weights: dict[T, list[float]] = {}
    for value, weight in votes:
        weights.setdefault(value, []).append(weight)

    def rank(value: T) -> tuple[float, int]:
        # An exact sum does not depend on the order, and 0.1 + 0.2 must tie with 0.3.
        return round(math.fsum(weights[value]), 9), len(weights[value])

    return max(weights, key=rank)


def _with_ids(calls: CallSet, seed_parts: tuple[str, ...]) -> tuple[ToolCall, ...]:
    return tuple(
        ToolCall(id=_id(seed_parts, index), name=name, arguments=arguments)
        for index, (name, arguments) in enumerate(calls)
    )


def _id(seed_parts: tuple[str, ...], index: int) -> str:
    number = int.from_bytes(ids.digest("tool_call", *seed_parts, str(index)), "big")
    return "".join(
        _ALPHABET[number // len(_ALPHABET) ** place % len(_ALPHABET)] for place in range(ID_CHARS)
    )
