"""The judge's model of one fusion: what a strategy works on, and what it may decide.

A strategy is a generator over a `Case`: it yields the model calls it needs and returns a `Draft`.
`decide` turns that into one of three decisions: `Ask`, `Wait` or `Decided`.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, takewhile
from typing import Any, Literal

from fusewire.contracts import (
    AnswerKind,
    Call,
    Candidate,
    ClosedBy,
    Guard,
    ParseStage,
    Plan,
    Prompt,
    Round,
    Status,
    ToolCall,
    Verdict,
)
from fusewire.contracts.degraded import DegradedReason


@dataclass(frozen=True)
class ReceivedCandidate:
    """A candidate, and when the judge committed it."""

    candidate: Candidate
    received_at: datetime
    after_rounds: int
    """How many rounds had been published by then. Tells late from timely without a clock
    (docs/decisions/0002)."""


@dataclass(frozen=True)
class Case:
    """Everything that the judge knows of one fusion."""

    prompt: Prompt
    plan: Plan
    rounds: tuple[Round, ...]
    """Published rounds in order: first those that call members for answers, then the strategy's."""
    received: Mapping[tuple[int, str], ReceivedCandidate]
    """By round and call. Only calls that the plan or a round names."""

    @property
    def panel_rounds(self) -> tuple[Round, ...]:
        """Rounds that call members for answers: a second wave, hedges."""
        return tuple(takewhile(lambda round_: round_.is_panel, self.rounds))

    @property
    def panel_calls(self) -> tuple[Call, ...]:
        """The calls of all panel rounds. Calls of round 0 are in the plan, not here."""
        return tuple(chain.from_iterable(round_.calls for round_ in self.panel_rounds))


@dataclass(frozen=True)
class MemberAnswer:
    """One member's current answer, with the weight of its vote."""

    member: str
    weight: float
    content: str
    round: int
    call: str = ""
    """The call that returned it."""
    cost_usd: float | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    is_cut: bool = False
    """Whether it was cut off at the token limit."""


Flaw = Literal["empty", "refused", "looped", "no_call", "off_schema", "invalid_call"]
"""Why what a member answered is no answer to the prompt."""


@dataclass(frozen=True)
class Panel:
    """A panel that is closed: no further answers are waited for."""

    answers: tuple[MemberAnswer, ...]
    """The usable answers, in the pool's order."""
    received: Mapping[str, ReceivedCandidate]
    """By member: its first answer, or its last failure if it gave none."""
    skipped: frozenset[str]
    """Members that were not called: the cascade gate found the first wave sufficient, or the route
    has chosen others."""
    flaws: Mapping[str, Flaw]
    """By member: why its text does not count as an answer."""
    kind: AnswerKind
    closed_by: ClosedBy | None
    """None if the fusion was cancelled while the panel was open."""


@dataclass(frozen=True)
class Draft:
    """The part of an outcome that a strategy decides."""

    status: Status
    content: str | None = None
    winner: str | None = None
    answers: tuple[MemberAnswer, ...] = ()
    """The members' answers at the end; after a debate, the revised ones."""
    lineup: tuple[str, ...] = ()
    """Members in the order in which the judge saw them."""
    parse_stage: ParseStage | None = None
    """The stage at which the judge's output could be parsed."""
    reason: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    guard: Guard | None = None
    verdicts: tuple[Verdict, ...] = ()
    analysis: dict[str, Any] | None = None
    agreement: float | None = None
    degraded: tuple[DegradedReason, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Wait:
    """Nothing to do before `until`, unless another candidate comes."""

    until: datetime


@dataclass(frozen=True)
class Ask:
    """Model calls to make before the case can go on."""

    calls: tuple[Call, ...]
    number: int
    """The round's number, from 1."""
    until: datetime
    """When the replies are no longer waited for."""


@dataclass(frozen=True)
class Decided:
    """The fusion is decided."""

    draft: Draft
    panel: Panel | None = None
    """None if no member was called."""


Decision = Wait | Ask | Decided

Replies = Mapping[str, Candidate]
"""The candidates of a round, by call. A call without a candidate in time is absent."""

MakeCalls = Callable[[], tuple[Call, ...]]
"""Makes the calls that a strategy needs next.

It runs only when the calls are to be published: rendering their prompts takes longer than all the
rest of a replay.
"""

Steps = Generator[MakeCalls, Replies, Draft]
"""A strategy: yields the calls it needs, is sent their replies, returns a draft.

It is run from its beginning at each message and fed the rounds that were published already, so it
must ask for the same calls whenever it sees the same case. Nothing of it is stored
(docs/decisions/0001).
"""


def ready_calls(*calls: Call) -> MakeCalls:
    """Wrap calls that are made already."""
    return lambda: calls
