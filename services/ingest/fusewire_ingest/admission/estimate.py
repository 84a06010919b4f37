"""What a prompt will cost, before anything is asked: the least, the expected and the most. Pure.

The calls that are counted are those that dispatcher plans and the judge's strategies ask for.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fusewire.contracts import Message, Prompt
from fusewire.tokens import CHARS_PER_TOKEN, UNKNOWN_TOKENS

GATE_SAMPLES = 3
"""Edge answers that an edge-first gate looks at."""
VERDICT_TOKENS = 256
ANALYSIS_TOKENS = 768
ERROR_TOKENS = 160
"""What a turn of a debate may have beyond an answer."""
SHOWN_CHARS = 12_000
"""Of each answer, what a judge is shown at most."""
MOST_TURNS = 2
"""Line-ups that a second ballot makes at most."""
RULES_TOKENS = 300
"""What a judge is told besides the request, the criteria and the answers; twice that at most."""
TURN_TOKENS = 8
"""What a provider adds to each message, at most."""
IMAGE_TOKENS = 1_600
MOST_IMAGE_TOKENS = 4_096
"""An assumption: providers count images in many ways."""
UNLIMITED_TOKENS = 16_384
"""The longest answer that is reckoned with where neither prompt nor pool nor model limits it. An assumption."""

Rates = tuple[float, float]
"""USD per prompt token, and per token of answers."""


@dataclass(frozen=True)
class Model:
    """What is to know of a configured model."""

    is_edge: bool
    rates: Rates | None
    """None: unknown. An edge model costs nothing."""
    max_tokens: int | None = None
    has_images: bool = False
    has_tools: bool = True


@dataclass(frozen=True)
class Member:
    """A member of a pool."""

    name: str
    model: str
    system: str | None = None


@dataclass(frozen=True)
class Pool:
    """What is to know of a pool."""

    members: tuple[Member, ...]
    judge: str | None = None
    jury: tuple[str, ...] = ()
    max_tokens: int | None = None
    is_gated: bool = False
    is_hedged: bool = False
    is_guarded: bool = True
    debate_rounds: int = 2
    criteria: str | None = None


@dataclass(frozen=True)
class Catalogue:
    """All pools and models."""

    pools: Mapping[str, Pool]
    models: Mapping[str, Model]
    variants: Mapping[tuple[str, str], Pool] = field(default_factory=dict)
    """Pools under presets."""

    def pool(self, prompt: Prompt) -> Pool | None:
        """The pool of a prompt, as it asks for it."""
        if prompt.preset is None:
            return self.pools.get(prompt.pool)
        return self.variants.get((prompt.pool, prompt.preset))


@dataclass(frozen=True)
class Estimate:
    """Calls and tokens are those expected. A sum in USD is None where a model in it has no price."""

    calls: int
    tokens_in: int
    tokens_out: int
    usd_min: float | None
    usd_expected: float | None
    usd_max: float | None
    unpriced: tuple[str, ...]
    """Models without a price that it can reach."""
    edge_share: float
    """The share of the expected calls that the edge answers."""


@dataclass(frozen=True)
class _CallGroup:
    """Calls of one model that are alike."""

    model: str
    count: int
    tokens_in: int
    tokens_out: int


def estimate(prompt: Prompt, book: Catalogue) -> Estimate:
    """What a prompt will take.

    The least: the first wave alone, with the shortest answers. Expected: each member once, answers of their
    limit or UNKNOWN_TOKENS, the judges' calls that the mode makes when all goes well. The most: every sample,
    hedge, second ballot, repetition and turn that can be made, answers at their limits, a token for each byte.
    """
    pool = book.pool(prompt)
    if pool is None:
        return Estimate(0, 0, 0, 0.0, 0.0, 0.0, (), 0.0)
    reckoner = _Estimator(prompt, pool, book)
    least, expected, most = reckoner.least(), reckoner.expected(), reckoner.most()
    count = sum(c.count for c in expected)
    at_edge = sum(c.count for c in expected if book.models[c.model].is_edge)
    return Estimate(
        calls=count,
        tokens_in=sum(c.count * c.tokens_in for c in expected),
        tokens_out=sum(c.count * c.tokens_out for c in expected),
        usd_min=_usd(least, book),
        usd_expected=_usd(expected, book),
        usd_max=_usd(most, book),
        unpriced=tuple(sorted({c.model for c in most if _rates(c.model, book) is None})),
        edge_share=at_edge / count if count else 0.0,
    )


def _usd(calls: Iterable[_CallGroup], book: Catalogue) -> float | None:
    total = 0.0
    for call in calls:
        rates = _rates(call.model, book)
        if rates is None:
            return None
        total += call.count * (call.tokens_in * rates[0] + call.tokens_out * rates[1])
    return total


def _rates(model: str, book: Catalogue) -> Rates | None:
    found = book.models[model]
    return (0.0, 0.0) if found.is_edge else found.rates


@dataclass(frozen=True)
class _TokenCounts:
    """How long things are, in tokens: as expected, or at most."""

    is_most: bool

    def text(self, value: str) -> int:
        # No tokenizer in use makes more tokens than there are bytes.
        return len(value.encode()) if self.is_most else math.ceil(len(value) / CHARS_PER_TOKEN)

    def messages(self, messages: Sequence[Message]) -> int:
        calls = [call.name + call.arguments for m in messages for call in m.tool_calls]
        texts = sum(self.text(m.content) for m in messages) + sum(self.text(one) for one in calls)
        apart = [text for m in messages for text in m.texts]
        texts += sum(
            one.size if self.is_most else math.ceil(one.chars / CHARS_PER_TOKEN) for one in apart
        )
        return texts + (TURN_TOKENS * len(messages) if self.is_most else 0)

    def images(self, messages: Sequence[Message]) -> int:
        return sum(len(m.images) for m in messages) * (
            MOST_IMAGE_TOKENS if self.is_most else IMAGE_TOKENS
        )

    def answer(self, limit: int | None) -> int:
        if self.is_most:
            return limit or UNLIMITED_TOKENS
        return min(limit or UNKNOWN_TOKENS, UNKNOWN_TOKENS)

    def shown(self, tokens: int) -> int:
        """An answer as a judge reads it: another tokenizer may need twice as many."""
        return (
            min(tokens * 2, SHOWN_CHARS)
            if self.is_most
            else min(tokens, SHOWN_CHARS // CHARS_PER_TOKEN)
        )


class _Estimator:
    def __init__(self, prompt: Prompt, pool: Pool, book: Catalogue) -> None:
        self._prompt = prompt
        self._pool = pool
        self._book = book
        wanted = self._wanted()
        self._asked = [] if prompt.recorded else [m for m in wanted if self._is_able(m.model)]
        named = len(prompt.recorded) or len(wanted)
        self._answers = len(prompt.recorded) or len(self._asked)
        writer, jury = (prompt.judge, ()) if prompt.judge else (pool.judge, pool.jury)
        permitted = [m for m in (writer, *jury) if m and named > 1 and self._may_see(m)]
        self._jurors = [m for m in jury if m in permitted] or permitted[:1]
        self._writer = writer if writer in permitted else next(iter(self._jurors), None)
        tiers = {book.models[m.model].is_edge for m in self._asked}
        self._is_gated = pool.is_gated and not prompt.is_complete and len(tiers) > 1

    def _wanted(self) -> list[Member]:
        if not self._prompt.members:
            return list(self._pool.members)
        own = {m.model: m for m in sorted(self._pool.members, key=lambda m: m.name == m.model)}
        return [own.get(model, Member(model, model)) for model in self._prompt.members]

    def _may_see(self, model: str) -> bool:
        known = self._book.models.get(model)
        return known is not None and (known.is_edge or self._prompt.residency == "any")

    def _is_able(self, model: str) -> bool:
        """Whether dispatcher would ask it."""
        if not self._may_see(model):
            return False
        messages, known = self._prompt.messages, self._book.models[model]
        has_tools = bool(self._prompt.tools) or any(
            m.tool_calls or m.role == "tool" for m in messages
        )
        return (known.has_images or not any(m.images for m in messages)) and (
            known.has_tools or not has_tools
        )

    # -- sets of calls ------------------------------------------------------------------------

    def least(self) -> list[_CallGroup]:
        size = _TokenCounts(is_most=False)
        return [_CallGroup(m.model, 1, self._in(m, size), 1) for m in self._first_wave()]

    def expected(self) -> list[_CallGroup]:
        size = _TokenCounts(is_most=False)
        members = [
            _CallGroup(
                m.model, self._samples(m), self._in(m, size), size.answer(self._limit(m.model))
            )
            for m in self._asked
        ]
        return [*members, *self._judging(size)]

    def most(self) -> list[_CallGroup]:
        size = _TokenCounts(is_most=True)
        hedge = 1 if self._pool.is_hedged and not self._prompt.is_complete else 0
        members = [
            _CallGroup(
                m.model,
                self._samples(m) + hedge,
                self._in(m, size),
                size.answer(self._limit(m.model)),
            )
            for m in self._asked
        ]
        return [*members, *self._judging(size)]

    def _first_wave(self) -> list[Member]:
        if not self._is_gated:
            return self._asked
        return [m for m in self._asked if self._book.models[m.model].is_edge]

    def _samples(self, member: Member) -> int:
        if not self._is_gated or not self._book.models[member.model].is_edge:
            return 1
        return math.ceil(GATE_SAMPLES / len(self._first_wave()))

    def _limit(self, model: str) -> int | None:
        own = self._prompt.sampling.max_tokens
        if own is None:
            own = self._pool.max_tokens
        return own if own is not None else self._book.models[model].max_tokens

    def _in(self, member: Member, size: _TokenCounts) -> int:
        prompt = self._prompt
        given = size.messages(prompt.messages) + size.images(prompt.messages) + self._schema(size)
        given += sum(size.text(tool.model_dump_json()) for tool in prompt.tools)
        return given + size.text(member.system or "")

    def _schema(self, size: _TokenCounts) -> int:
        schema = self._prompt.sampling.response_schema
        return size.text(json.dumps(schema)) if schema else 0

    # -- judging ------------------------------------------------------------------------------

    def _judging(self, size: _TokenCounts) -> list[_CallGroup]:
        if self._answers < 2:
            return []
        mode = self._prompt.mode
        debate = self._debate(size) if mode == "debate" else []
        if self._writer is None:
            return debate
        if mode != "merge":
            return [*debate, *self._ballot(size)]
        merge = self._merge(size)
        if self._pool.is_guarded:
            return [*self._ballot(size), *self._guard(size), *merge]
        # Closed answers that are tied are judged in place of being merged.
        return [*self._ballot(size), *merge] if size.is_most else merge

    def _told(self, size: _TokenCounts, answers: Iterable[int]) -> int:
        """Tokens of a judge's call that is shown answers of these lengths."""
        rules = RULES_TOKENS * (2 if size.is_most else 1)
        criteria = size.text(self._prompt.criteria or self._pool.criteria or "")
        return (
            size.messages(self._prompt.messages)
            + rules
            + criteria
            + sum(size.shown(one) for one in answers)
        )

    def _said(self, size: _TokenCounts) -> list[int]:
        """How long the members' answers are."""
        if self._prompt.recorded:
            return [
                one.completion_tokens or size.text(one.content or "")
                for one in self._prompt.recorded
            ]
        return [size.answer(self._limit(m.model)) for m in self._asked]

    def _ballot(self, size: _TokenCounts) -> list[_CallGroup]:
        """Two orders a judge; at most each once more, and then a second ballot, repeated likewise."""
        told = self._told(size, self._said(size))
        second = MOST_TURNS if self._answers > 2 else 0
        count = (2 + second) * 2 if size.is_most else 2
        return [_CallGroup(model, count, told, VERDICT_TOKENS) for model in self._jurors]

    def _merge(self, size: _TokenCounts) -> list[_CallGroup]:
        writer = self._writer
        assert writer is not None
        told = self._told(size, self._said(size))
        sampling = self._prompt.sampling.max_tokens
        limit = sampling if sampling is not None else self._book.models[writer].max_tokens
        return [
            _CallGroup(writer, 2 if size.is_most else 1, told, ANALYSIS_TOKENS),
            _CallGroup(writer, 1, told + ANALYSIS_TOKENS + self._schema(size), size.answer(limit)),
        ]

    def _guard(self, size: _TokenCounts) -> list[_CallGroup]:
        lengths = self._said(size)
        told = self._told(size, [max(lengths), max(lengths)])
        return [
            _CallGroup(model, 4 if size.is_most else 2, told, VERDICT_TOKENS)
            for model in self._jurors
        ]

    def _debate(self, size: _TokenCounts) -> list[_CallGroup]:
        told = self._told(size, self._said(size)) + self._schema(size)
        turns = self._pool.debate_rounds if size.is_most else 1
        speakers = [m.model for m in self._asked] or [
            r.model for r in self._prompt.recorded if self._may_see(r.model)
        ]
        return [
            _CallGroup(model, turns, told, size.answer(self._limit(model)) + ERROR_TOKENS)
            for model in speakers
        ]
