"""Ask a judge for JSON, and run two strategies' calls side by side. Pure."""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

from fusewire.contracts import Call, Candidate, Message, ParseStage, PlannedJudge, Sampling
from fusewire.contracts.call_names import REPEAT
from fusewire_judge.judging.parse import Read, UnreadableVerdict, read
from fusewire_judge.model import MakeCalls, Replies, ready_calls

_First = TypeVar("_First")
_Second = TypeVar("_Second")


class Question(Protocol):
    """What a judge is to be asked."""

    @property
    def name(self) -> str:
        """Of its call; unique within the round."""


_Question = TypeVar("_Question", bound=Question)
_Output = TypeVar("_Output")


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


def ask_readable(
    calls: Sequence[_Question],
    *,
    make_call: Callable[[_Question, str], Call],
    read: Callable[[Candidate | None, _Question, str], _Output | UnreadableVerdict],
    may_repeat: Callable[[_Question], bool],
) -> Generator[MakeCalls, Replies, dict[str, _Output | UnreadableVerdict]]:
    """Ask what judges are to be asked; once more where the output could not be read.

    Args:
        calls: what to ask, each with a name of its own.
        make_call: makes the model call; its second argument ends the call's name, and is empty the
            first time.
        read: reads a reply; its last argument is the same.
        may_repeat: whether a judge may do better if it is asked again.

    Yields:
        The calls to make.

    Returns:
        By name, what was read.
    """
    outputs: dict[str, _Output | UnreadableVerdict] = {}
    pending = list(calls)
    for suffix in ("", REPEAT):
        if not pending:
            break
        replies = yield partial(_make_each, pending, make_call, suffix)
        repeats = []
        for call in pending:
            reply = replies.get(call.name + suffix)
            output = read(reply, call, suffix)
            outputs[call.name] = output
            is_unreadable = isinstance(output, UnreadableVerdict) and reply is not None and reply.ok
            if is_unreadable and may_repeat(call):
                repeats.append(call)
        pending = repeats
    return outputs


def _make_each(
    calls: Sequence[_Question], make_call: Callable[[_Question, str], Call], suffix: str
) -> tuple[Call, ...]:
    return tuple(make_call(call, suffix) for call in calls)


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
