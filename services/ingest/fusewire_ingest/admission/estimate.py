"""Estimate what a prompt will cost before it runs: least, expected and most. Pure.

It counts the calls that dispatcher plans and the judge's strategies make.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import product

from fusewire.contracts import Message, Prompt
from fusewire.tokens import CHARS_PER_TOKEN, UNKNOWN_TOKENS

GATE_SAMPLES = 3
"""Edge answers that an edge-first gate compares."""
VERDICT_TOKENS = 256
ANALYSIS_TOKENS = 768
ERROR_TOKENS = 160
"""Tokens of a debate's turn beyond its answer: the error that it states."""
SHOWN_CHARS = 12_000
"""The most characters of one answer that a judge is shown."""
MOST_TURNS = 2
"""The most line-ups of a second ballot."""
RULES_TOKENS = 300
"""Expected tokens of a judge's instructions; at most twice as many."""
TURN_TOKENS = 8
"""The most tokens that a provider adds to each message."""
IMAGE_TOKENS = 1_600
MOST_IMAGE_TOKENS = 4_096
"""An assumption: providers count images in many ways."""
UNLIMITED_TOKENS = 16_384
"""The longest answer where neither prompt, pool nor model limits it. An assumption."""

Rates = tuple[float, float]
"""USD per prompt token, and per completion token."""


@dataclass(frozen=True)
class Model:
    """What an estimate needs of a configured model."""

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
    """What an estimate needs of a pool."""

    members: tuple[Member, ...]
    judge: str | None = None
    jury: tuple[str, ...] = ()
    max_tokens: int | None = None
    is_gated: bool = False
    is_hedged: bool = False
    is_guarded: bool = True
    debate_rounds: int = 2
    checks: int = 1
    criteria: str | None = None


@dataclass(frozen=True)
class Catalogue:
    """All pools and models."""

    pools: Mapping[str, Pool]
    models: Mapping[str, Model]
    variants: Mapping[tuple[str, str], Pool] = field(default_factory=dict)
    """Pools under presets."""
    tenant_models: Mapping[str, Set[str]] = field(default_factory=dict)
    """By tenant, the models that may see its prompts; those of other tenants, all may see."""

    def for_tenant(self, tenant: str) -> "Catalogue":
        """The catalogue in which models that may not see a tenant's prompts are unknown."""
        names = self.tenant_models.get(tenant)
        if names is None:
            return self
        return replace(self, models={n: model for n, model in self.models.items() if n in names})

    def pool(self, prompt: Prompt) -> Pool | None:
        """The pool of a prompt, with the prompt's preset applied; None if there is none."""
        if prompt.preset is None:
            return self.pools.get(prompt.pool)
        return self.variants.get((prompt.pool, prompt.preset))


@dataclass(frozen=True)
class Estimate:
    """An estimate. Calls and tokens are expected ones; USD is None if a model has no price."""

    calls: int
    tokens_in: int
    tokens_out: int
    usd_min: float | None
    usd_expected: float | None
    usd_max: float | None
    unpriced: tuple[str, ...]
    """Models without a price that may be called."""
    edge_share: float
    """Share of the expected calls that edge models answer, 0 to 1."""


@dataclass(frozen=True)
class _CallGroup:
    """Equal calls of one model."""

    model: str
    count: int
    tokens_in: int
    tokens_out: int


def estimate(prompt: Prompt, catalogue: Catalogue) -> Estimate:
    """Estimate a prompt's calls, tokens and cost.

    Least: only the first wave, with the shortest answers.

    Expected: each member once, with answers of UNKNOWN_TOKENS or a lower limit, and the judge's
    calls of the mode when all goes well.

    Most: every sample, hedge, second ballot, repetition and turn that can happen, with answers at
    their limits and one token for each byte.
    """
    pool = catalogue.pool(prompt)
    catalogue = catalogue.for_tenant(prompt.tenant)
    if pool is None:
        return Estimate(0, 0, 0, 0.0, 0.0, 0.0, (), 0.0)
    estimator = _Estimator(prompt, pool, catalogue)
    least, expected, most = estimator.least(), estimator.expected(), estimator.most()
    count = sum(group.count for group in expected)
    edge_count = sum(group.count for group in expected if catalogue.models[group.model].is_edge)
    unpriced_models = {group.model for group in most if _rates(group.model, catalogue) is None}
    return Estimate(
        calls=count,
        tokens_in=sum(group.count * group.tokens_in for group in expected),
        tokens_out=sum(group.count * group.tokens_out for group in expected),
        usd_min=_usd(least, catalogue),
        usd_expected=_usd(expected, catalogue),
        usd_max=_usd(most, catalogue),
        unpriced=tuple(sorted(unpriced_models)),
        edge_share=edge_count / count if count else 0.0,
    )


def rate_tokens(prompt: Prompt, catalogue: Catalogue) -> int:
    """The tokens of a prompt for a rate limit: its own, and those of its longest answer.

    Its own are expected ones, as none is paid for them twice; of answers, one of a member counts,
    at its limit. 0 for an unknown pool.
    """
    pool = catalogue.pool(prompt)
    if pool is None:
        return 0
    return _Estimator(prompt, pool, catalogue.for_tenant(prompt.tenant)).rate_tokens()


def _usd(groups: Iterable[_CallGroup], catalogue: Catalogue) -> float | None:
    total = 0.0
    for group in groups:
        rates = _rates(group.model, catalogue)
        if rates is None:
            return None
        total += group.count * (group.tokens_in * rates[0] + group.tokens_out * rates[1])
    return total


def _rates(name: str, catalogue: Catalogue) -> Rates | None:
    model = catalogue.models[name]
    return (0.0, 0.0) if model.is_edge else model.rates


@dataclass(frozen=True)
class _TokenCounts:
    """Lengths in tokens: expected ones, or the most."""

    is_most: bool

    def text(self, text: str) -> int:
        # No tokenizer in use makes more tokens than there are bytes.
        return len(text.encode()) if self.is_most else math.ceil(len(text) / CHARS_PER_TOKEN)

    def messages(self, messages: Sequence[Message]) -> int:
        return sum(self._message(message) for message in messages)

    def _message(self, message: Message) -> int:
        tokens = TURN_TOKENS if self.is_most else 0
        tokens += self.text(message.content)
        for call in message.tool_calls:
            tokens += self.text(call.name + call.arguments)
        for text in message.texts:
            tokens += text.size if self.is_most else math.ceil(text.chars / CHARS_PER_TOKEN)
        return tokens

    def images(self, messages: Sequence[Message]) -> int:
        tokens_per_image = MOST_IMAGE_TOKENS if self.is_most else IMAGE_TOKENS
        return sum(len(message.images) for message in messages) * tokens_per_image

    def answer(self, limit: int | None) -> int:
        if self.is_most:
            return limit or UNLIMITED_TOKENS
        return min(limit or UNKNOWN_TOKENS, UNKNOWN_TOKENS)

    def judged_answer(self, tokens: int) -> int:
        """An answer in a judge's call: the judge's tokenizer may need twice as many tokens."""
        if self.is_most:
            return min(tokens * 2, SHOWN_CHARS)
        return min(tokens, SHOWN_CHARS // CHARS_PER_TOKEN)


class _Estimator:
    def __init__(self, prompt: Prompt, pool: Pool, catalogue: Catalogue) -> None:
        self._prompt = prompt
        self._pool = pool
        self._catalogue = catalogue
        panel = self._panel()
        self._members: list[Member] = []
        """Members that are called: none if answers came with the prompt."""
        if not prompt.recorded:
            self._members = [member for member in panel if self._is_able(member.model)]
        self._n_answers = len(prompt.recorded) or len(self._members)
        # A panel of one has no judge; members that cannot be called count as part of the panel.
        has_judge = (len(prompt.recorded) or len(panel)) > 1
        self._jurors, self._writer = self._judges() if has_judge else ([], None)
        tiers = {catalogue.models[member.model].is_edge for member in self._members}
        self._is_gated = pool.is_gated and not prompt.is_complete and len(tiers) > 1

    def _panel(self) -> list[Member]:
        """Members that the prompt names, or else those of the pool."""
        if not self._prompt.members:
            return list(self._pool.members)
        # Where two members share a model, the one that is named as the model comes last, and wins.
        pool_members = sorted(self._pool.members, key=lambda member: member.name == member.model)
        members_by_model = {member.model: member for member in pool_members}
        return [members_by_model.get(model, Member(model, model)) for model in self._prompt.members]

    def _judges(self) -> tuple[list[str], str | None]:
        """The models that vote, and the one that writes a merge."""
        writer, jury = self._pool.judge, self._pool.jury
        if self._prompt.judge:
            writer, jury = self._prompt.judge, ()
        permitted_models = [model for model in (writer, *jury) if model and self._may_see(model)]
        jurors = [model for model in jury if model in permitted_models] or permitted_models[:1]
        if writer not in permitted_models:
            writer = next(iter(jurors), None)
        return jurors, writer

    def _may_see(self, name: str) -> bool:
        """Whether a model exists, and residency permits it to see the prompt."""
        model = self._catalogue.models.get(name)
        return model is not None and (model.is_edge or self._prompt.residency == "any")

    def _is_able(self, name: str) -> bool:
        """Whether dispatcher would call the model."""
        if not self._may_see(name):
            return False
        model = self._catalogue.models[name]
        if self._needs_images() and not model.has_images:
            return False
        return model.has_tools or not self._needs_tools()

    def _needs_images(self) -> bool:
        return any(message.images for message in self._prompt.messages)

    def _needs_tools(self) -> bool:
        return bool(self._prompt.tools) or any(
            message.tool_calls or message.role == "tool" for message in self._prompt.messages
        )

    # -- sets of calls ------------------------------------------------------------------------

    def rate_tokens(self) -> int:
        size, most = _TokenCounts(is_most=False), _TokenCounts(is_most=True)
        members = self._members or [Member("", "")]
        tokens_in = max(self._tokens_in(member, size) for member in members)
        tokens_out = (most.answer(self._limit(member.model)) for member in self._members)
        return tokens_in + max(tokens_out, default=0)

    def least(self) -> list[_CallGroup]:
        size = _TokenCounts(is_most=False)
        return [
            _CallGroup(member.model, 1, self._tokens_in(member, size), 1)
            for member in self._first_wave()
        ]

    def expected(self) -> list[_CallGroup]:
        size = _TokenCounts(is_most=False)
        return [*self._member_calls(size, hedges=0), *self._judging(size)]

    def most(self) -> list[_CallGroup]:
        size = _TokenCounts(is_most=True)
        hedges = 1 if self._pool.is_hedged and not self._prompt.is_complete else 0
        return [*self._member_calls(size, hedges=hedges), *self._judging(size)]

    def _member_calls(self, size: _TokenCounts, *, hedges: int) -> list[_CallGroup]:
        return [
            _CallGroup(
                member.model,
                self._samples(member) + hedges,
                self._tokens_in(member, size),
                size.answer(self._limit(member.model)),
            )
            for member in self._members
        ]

    def _first_wave(self) -> list[Member]:
        if not self._is_gated:
            return self._members
        return [member for member in self._members if self._catalogue.models[member.model].is_edge]

    def _samples(self, member: Member) -> int:
        if not self._is_gated or not self._catalogue.models[member.model].is_edge:
            return 1
        return math.ceil(GATE_SAMPLES / len(self._first_wave()))

    def _limit(self, model: str) -> int | None:
        limit = self._prompt.sampling.max_tokens
        if limit is None:
            limit = self._pool.max_tokens
        return limit if limit is not None else self._catalogue.models[model].max_tokens

    def _tokens_in(self, member: Member, size: _TokenCounts) -> int:
        prompt = self._prompt
        tokens = size.messages(prompt.messages) + size.images(prompt.messages) + self._schema(size)
        tokens += sum(size.text(tool.model_dump_json()) for tool in prompt.tools)
        return tokens + size.text(member.system or "")

    def _schema(self, size: _TokenCounts) -> int:
        schema = self._prompt.sampling.response_schema
        return size.text(json.dumps(schema)) if schema else 0

    # -- judging ------------------------------------------------------------------------------

    def _judging(self, size: _TokenCounts) -> list[_CallGroup]:
        if self._n_answers < 2:
            return []
        mode = self._prompt.mode
        debate = self._debate(size) if mode == "debate" else []
        if self._writer is None:
            return debate
        if mode == "verify":
            return self._checks(size)
        if mode != "merge":
            return [*debate, *self._ballot(size)]
        merge = self._merge(size)
        if self._pool.is_guarded:
            return [*self._ballot(size), *self._guard(size), *merge]
        # Tied answers to a closed question are judged, and not merged.
        return [*self._ballot(size), *merge] if size.is_most else merge

    def _judge_tokens_in(self, size: _TokenCounts, answer_lengths: Iterable[int]) -> int:
        """Prompt tokens of a judge's call that shows answers of these lengths."""
        rules = RULES_TOKENS * (2 if size.is_most else 1)
        criteria = size.text(self._prompt.criteria or self._pool.criteria or "")
        return (
            size.messages(self._prompt.messages)
            + rules
            + criteria
            + sum(size.judged_answer(length) for length in answer_lengths)
        )

    def _answer_lengths(self, size: _TokenCounts) -> list[int]:
        """Tokens of each member's answer."""
        if self._prompt.recorded:
            return [
                answer.completion_tokens or size.text(answer.content or "")
                for answer in self._prompt.recorded
            ]
        return [size.answer(self._limit(member.model)) for member in self._members]

    def _ballot(self, size: _TokenCounts) -> list[_CallGroup]:
        """Two orders for each judge; at most a second ballot too, and each call repeated once."""
        tokens_in = self._judge_tokens_in(size, self._answer_lengths(size))
        second_ballot = MOST_TURNS if self._n_answers > 2 else 0
        count = (2 + second_ballot) * 2 if size.is_most else 2
        return [_CallGroup(model, count, tokens_in, VERDICT_TOKENS) for model in self._jurors]

    def _checks(self, size: _TokenCounts) -> list[_CallGroup]:
        """Each answer by each judge, one by one; at most each call repeated once."""
        times = self._pool.checks * (2 if size.is_most else 1)
        lengths = self._answer_lengths(size)
        return [
            _CallGroup(model, times, self._judge_tokens_in(size, [length]), VERDICT_TOKENS)
            for model, length in product(self._jurors, lengths)
        ]

    def _merge(self, size: _TokenCounts) -> list[_CallGroup]:
        writer = self._writer
        assert writer is not None
        tokens_in = self._judge_tokens_in(size, self._answer_lengths(size))
        limit = self._prompt.sampling.max_tokens
        if limit is None:
            limit = self._catalogue.models[writer].max_tokens
        text_tokens_in = tokens_in + ANALYSIS_TOKENS + self._schema(size)
        return [
            _CallGroup(writer, 2 if size.is_most else 1, tokens_in, ANALYSIS_TOKENS),
            _CallGroup(writer, 1, text_tokens_in, size.answer(limit)),
        ]

    def _guard(self, size: _TokenCounts) -> list[_CallGroup]:
        longest = max(self._answer_lengths(size))
        tokens_in = self._judge_tokens_in(size, [longest, longest])
        count = 4 if size.is_most else 2
        return [_CallGroup(model, count, tokens_in, VERDICT_TOKENS) for model in self._jurors]

    def _debate(self, size: _TokenCounts) -> list[_CallGroup]:
        tokens_in = self._judge_tokens_in(size, self._answer_lengths(size)) + self._schema(size)
        turns = self._pool.debate_rounds if size.is_most else 1
        speakers = [member.model for member in self._members]
        if not speakers:
            models = (answer.model for answer in self._prompt.recorded)
            speakers = [model for model in models if self._may_see(model)]
        return [
            _CallGroup(model, turns, tokens_in, size.answer(self._limit(model)) + ERROR_TOKENS)
            for model in speakers
        ]
