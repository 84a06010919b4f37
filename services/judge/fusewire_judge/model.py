"""What a strategy works on, and what it may answer."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import Any

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


@dataclass(frozen=True)
class ReceivedCandidate:
    """A candidate, and when the judge committed it."""

    candidate: Candidate
    received_at: datetime
    after_rounds: int
    """How many rounds had been asked by then: tells late from timely without trusting a clock."""


@dataclass(frozen=True)
class Case:
    """Everything known of one fusion."""

    prompt: Prompt
    plan: Plan
    rounds: tuple[Round, ...]
    """Rounds that were asked for, in order: first those that widen the panel, then the strategy's."""
    received: Mapping[tuple[int, str], ReceivedCandidate]
    """By round and call. Only calls that the plan or a round names."""

    @property
    def panel_rounds(self) -> tuple[Round, ...]:
        """Rounds in which members were asked for answers: a second wave, hedges."""
        return tuple(takewhile(lambda asked: asked.is_panel, self.rounds))


@dataclass(frozen=True)
class MemberAnswer:
    """One member's answer as it stands."""

    member: str
    weight: float
    content: str
    round: int
    call: str = ""
    """The call that said it."""
    cost_usd: float | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    is_cut: bool = False
    """Whether it ran into the token limit."""


@dataclass(frozen=True)
class Panel:
    """A panel that is over."""

    answers: tuple[MemberAnswer, ...]
    """The usable answers, in the pool's order."""
    received: Mapping[str, ReceivedCandidate]
    """By member: the candidate that stands for it, an answer if it gave one."""
    skipped: frozenset[str]
    """Members that the gate spared."""
    flaws: Mapping[str, str]
    """By member: why what it said is no answer."""
    kind: AnswerKind
    closed_by: ClosedBy | None
    """None where it was broken off."""


@dataclass(frozen=True)
class Draft:
    """The part of an outcome that a strategy decides."""

    status: Status
    content: str | None = None
    winner: str | None = None
    answers: tuple[MemberAnswer, ...] = ()
    """The answers that were on the table at the end."""
    shown: tuple[str, ...] = ()
    """Members in the order in which the judge saw them."""
    rung: ParseStage | None = None
    reason: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    guard: Guard | None = None
    verdicts: tuple[Verdict, ...] = ()
    analysis: dict[str, Any] | None = None
    agreement: float | None = None
    degraded: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Wait:
    """Nothing to do before this time, unless another candidate comes."""

    until: datetime


@dataclass(frozen=True)
class Ask:
    """Model calls to make before the case can go on."""

    calls: tuple[Call, ...]
    number: int
    """The round's number, from 1."""
    until: datetime
    """When the answers are no longer waited for."""


@dataclass(frozen=True)
class Decided:
    """The end."""

    draft: Draft
    panel: Panel | None = None
    """None where nobody was asked."""


Decision = Wait | Ask | Decided

Replies = Mapping[str, Candidate]
"""What came back of a round, by call; a call that gave nothing in time is absent."""

Wanted = Callable[[], tuple[Call, ...]]
"""Makes the calls that a strategy needs. It is called only when they are to be asked: to write them takes longer than
all the rest."""

Steps = Generator[Wanted, Replies, Draft]
"""A strategy: yields the calls it needs, is sent their replies, returns a draft.

It is run from its beginning at each message and fed the rounds that were already asked,
so it must ask for the same calls whenever it sees the same case. Nothing of it is stored.
"""


def wanted(*calls: Call) -> Wanted:
    """Calls that are made already."""
    return lambda: calls
