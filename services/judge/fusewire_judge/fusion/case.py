"""What a strategy works on, and what it may answer."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fusewire.contracts import Call, Candidate, Plan, Prompt, Round, Rung, Status


@dataclass(frozen=True)
class Heard:
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
    """Rounds that were asked for, in order."""
    heard: Mapping[tuple[int, str], Heard]
    """By round and call. Only calls that the plan or a round names."""


@dataclass(frozen=True)
class Said:
    """One member's answer as it stands."""

    member: str
    weight: float
    content: str
    round: int


@dataclass(frozen=True)
class Draft:
    """The part of an outcome that a strategy decides."""

    status: Status
    content: str | None = None
    winner: str | None = None
    said: tuple[Said, ...] = ()
    """The answers that were on the table at the end."""
    shown: tuple[str, ...] = ()
    """Members in the order in which the judge saw them."""
    rung: Rung | None = None
    reason: str | None = None
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


@dataclass(frozen=True)
class Decided:
    """The end."""

    draft: Draft


Decision = Wait | Ask | Decided

Replies = Mapping[str, Candidate]
"""What came back of a round, by call; a call that gave nothing in time is absent."""

Steps = Generator[tuple[Call, ...], Replies, Draft]
"""A strategy: yields the calls it needs, is sent their replies, returns a draft.

It is run from its beginning at each message and fed the rounds that were already asked,
so it must ask for the same calls whenever it sees the same case. Nothing of it is stored.
"""
