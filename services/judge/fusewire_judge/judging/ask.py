"""Ask a judge for JSON, and run two strategies' calls side by side. Pure."""

from collections.abc import Generator, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

from fusewire.contracts import Call, Candidate, Message, ParseStage, PlannedJudge, Sampling
from fusewire.contracts.call_names import REPEAT
from fusewire_judge.judging.parse import Read, UnreadableVerdict, read
from fusewire_judge.model import MakeCalls, Replies, ready_calls

_First = TypeVar("_First")
_Second = TypeVar("_Second")


def read_reply(reply: Candidate | None, schema: dict[str, Any]) -> Read | UnreadableVerdict:
    """Parse the reply to a judge call; None stands for a reply that did not come in time."""
    if reply is None:
        return UnreadableVerdict("no_answer")
    if reply.error:
        return UnreadableVerdict(reply.error.code)
    return read(reply.content, schema)


def ask_json(
    judge: PlannedJudge,
    kind: Literal["analysis"],
    messages: tuple[Message, ...],
    schema: dict[str, Any],
    expected_tokens: int,
) -> Generator[MakeCalls, Replies, tuple[dict[str, Any], ParseStage] | UnreadableVerdict]:
    """Ask one judge for JSON, and once more if it cannot be parsed.

    Yields:
        The calls to make.

    Returns:
        (value, parse stage), or why the last output could not be parsed.
    """
    sampling = Sampling(response_schema=schema)
    unreadable = UnreadableVerdict("no_answer")
    for name in (kind, kind + REPEAT):
        call = Call(
            name=name,
            kind=kind,
            model=judge.model,
            messages=messages,
            sampling=sampling,
            expected_tokens=expected_tokens,
        )
        replies = yield ready_calls(call)
        reply = replies.get(name)
        output = read_reply(reply, schema)
        if isinstance(output, Read):
            return output.value, output.parse_stage if name == kind else "reasked"
        unreadable = output
        if reply is None or not reply.ok:
            break
    return unreadable


def run_together(
    first: Generator[MakeCalls, Replies, _First], second: Generator[MakeCalls, Replies, _Second]
) -> Generator[MakeCalls, Replies, tuple[_First, _Second]]:
    """Run two generators of calls side by side: what both need next is asked in one round.

    Each is sent the replies of the whole round, and picks its own by name.
    """
    generators = (first, second)
    waiting: dict[int, MakeCalls] = {}
    returns: dict[int, Any] = {}
    for place, generator in enumerate(generators):
        _advance(generator, None, place, waiting, returns)
    while waiting:
        replies = yield partial(_make_all, [waiting[place] for place in sorted(waiting)])
        for place in sorted(waiting):
            _advance(generators[place], replies, place, waiting, returns)
    return returns[0], returns[1]


def _make_all(makers: Sequence[MakeCalls]) -> tuple[Call, ...]:
    calls: list[Call] = []
    for make_calls in makers:
        calls += make_calls()
    return tuple(calls)


def _advance(
    generator: Generator[MakeCalls, Replies, Any],
    replies: Replies | None,
    place: int,
    waiting: dict[int, MakeCalls],
    returns: dict[int, Any],
) -> None:
    """Send a generator its replies, and note what it needs next or what it returned."""
    try:
        waiting[place] = next(generator) if replies is None else generator.send(replies)
    except StopIteration as stop:
        waiting.pop(place, None)
        returns[place] = stop.value
