"""Which sequence advances when: continuous batching.

Requests join and leave between steps. A step is one chunk of one prompt, then one token for each
answer that has begun. The sequences that decode are always the first slots, so that one run of the
model advances them all; when one of them leaves, the last takes its place. After Yu et al., "Orca"
(OSDI 2022), iteration-level scheduling; chunks of prompts between decoding steps after Agrawal et al.,
"Sarathi-Serve" (OSDI 2024).

A token depends on nothing but its own request. Whoever else is in the batch, wherever a prompt was cut
into chunks and whatever part of it was computed before, its logits are the same bit for bit, with two
conditions that this module keeps: a chunk has more than one token, since a run over a single token of
each row takes other kernels; and what is used again was computed as a prompt, not token by token.
"""

import heapq
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fusewire_worker_edge.engine.answer import AnswerTokens
from fusewire_worker_edge.engine.api import (
    Completion,
    EngineError,
    RequestCancelledError,
    RequestRefusedError,
)
from fusewire_worker_edge.engine.cache import Kept, PrefixCache, common_prefix
from fusewire_worker_edge.engine.comparison import Comparison
from fusewire_worker_edge.engine.sampling import Floats

CHUNK = 128
"""The most tokens of a prompt that go through the model at once."""
SHARED_CHUNK = 32
"""The same while others decode, so that they do not stand still for long."""
WORTH_KEEPING = 32
"""Shorter beginnings are computed anew as fast as they are copied."""


def chunk_size(remaining: int, limit: int) -> int:
    """How many tokens to prefill next, so that no single one is ever left over."""
    return limit - 1 if remaining == limit + 1 else min(remaining, limit)


def _array(ids: Sequence[int]) -> NDArray[np.int64]:
    return np.asarray(ids, np.int64)


class Model(Protocol):
    """What the scheduler advances; see `fusewire_worker_edge.engine.model.OnnxModel`."""

    slots: int
    positions: int

    def prefill(self, slot: int, ids: Sequence[int], past: int) -> Floats:
        """Append tokens to a sequence of `past`. Returns the logits after the last, [vocabulary]."""
        ...

    def advance(self, slot: int, ids: Sequence[int], past: int) -> Floats:
        """The same. Returns the logits after each of them, [ids, vocabulary]."""
        ...

    def decode(self, tokens: Sequence[int], lengths: Sequence[int]) -> Floats:
        """Append a token to each of the first sequences, which have so many. Returns [sequences, vocabulary]."""
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a sequence from one slot to another."""
        ...

    def keep(self, slot: int, length: int) -> Kept | None:
        """A copy of a sequence, or None if this model cannot make one."""
        ...

    def restore(self, slot: int, kept: Kept, length: int) -> None:
        """Begin a slot's sequence with the first positions of a copy."""
        ...

    def release(self, slot: int) -> None:
        """The slot is empty."""
        ...


@dataclass(eq=False, kw_only=True)
class _Job(ABC):
    """A request that is under way."""

    id: str
    prompt: Sequence[int]
    rank: int = 1
    """0 is admitted first."""
    began_s: float = 0.0
    prefilled_s: float = 0.0
    length: int = 0
    """Positions that are filled."""
    reused: int = 0

    @property
    @abstractmethod
    def most_after(self) -> int:
        """Positions that it may need after its prompt."""

    @property
    def reserved(self) -> int:
        """Positions that it may need."""
        return len(self.prompt) + self.most_after


@dataclass(eq=False, kw_only=True)
class AnswerJob(_Job):
    """An answer to generate."""

    answer: AnswerTokens
    max_tokens: int
    is_streamed: bool = False
    last: int = 0

    @property
    def most_after(self) -> int:
        """See `_Job`."""
        return self.max_tokens


@dataclass(eq=False, kw_only=True)
class ComparisonJob(_Job):
    """Answers to read, to say how probable each is."""

    comparison: Comparison
    choices: Sequence[str]

    @property
    def most_after(self) -> int:
        """See `_Job`."""
        return self.comparison.longest


Job = AnswerJob | ComparisonJob


@dataclass(frozen=True)
class Event:
    """What became of a request: a piece of its text, or its end."""

    id: str
    piece: str = ""
    completion: Completion | None = None
    error: EngineError | None = None


@dataclass
class Scheduler:
    """The requests of one model.

    Args:
        model: whose slots are all empty.
        budget: positions that there is memory for, in all slots and kept prompts together.
        clock: seconds.
    """

    model: Model
    budget: int
    clock: Callable[[], float]
    prefixes: PrefixCache = field(default_factory=PrefixCache)
    decoding: list[AnswerJob] = field(default_factory=list, init=False)
    """By slot."""
    prefilling: Job | None = field(default=None, init=False)
    """In the slot after those."""

    def __post_init__(self) -> None:
        self._waiting: list[tuple[int, int, Job]] = []
        self._order = itertools.count()
        self._cancelled: set[str] = set()

    @property
    def is_busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.decoding or self.prefilling or self._waiting)

    def submit(self, job: Job) -> None:
        """Take a request.

        Raises:
            RequestRefusedError: it could never fit.
        """
        if job.reserved > self.model.positions:
            raise RequestRefusedError(
                "context_length_exceeded",
                f"the prompt has {len(job.prompt)} tokens and the answer may have {job.most_after};"
                f" together they exceed the {self.model.positions} that this model has room for here",
            )
        job.began_s = self.clock()
        heapq.heappush(self._waiting, (job.rank, next(self._order), job))

    def cancel(self, job_id: str) -> None:
        """End a request before the next step; does nothing when it is not under way."""
        if any(job.id == job_id for job in self._jobs()):
            self._cancelled.add(job_id)

    def step(self) -> list[Event]:
        """Advance: what was cancelled leaves, one request may join, a chunk is prefilled, a token decoded."""
        events = self._drop_cancelled()
        self._admit()
        if job := self.prefilling:
            if isinstance(job, ComparisonJob) and job.length >= len(job.prompt):
                events += self._compare(job)
            else:
                events += self._prefill(job)
        if self.decoding:
            events += self._decode()
        return events

    def _jobs(self) -> list[Job]:
        begun = [*self.decoding, *([self.prefilling] if self.prefilling else [])]
        return [*begun, *(job for _, _, job in self._waiting)]

    def _drop_cancelled(self) -> list[Event]:
        if not self._cancelled:
            return []
        dropped = [job for job in self._jobs() if job.id in self._cancelled]
        self._cancelled.clear()
        for job in dropped:
            if isinstance(job, AnswerJob) and job in self.decoding:
                self._leave(job)
            elif job is self.prefilling:
                self._keep(job, len(self.decoding))
                self.model.release(len(self.decoding))
                self.prefilling = None
        gone = {job.id for job in dropped}
        self._waiting = [entry for entry in self._waiting if entry[2].id not in gone]
        heapq.heapify(self._waiting)
        return [Event(job.id, error=RequestCancelledError("cancelled")) for job in dropped]

    def _admit(self) -> None:
        slot = len(self.decoding)
        if not self._waiting or self.prefilling or slot == self.model.slots:
            return
        job = self._waiting[0][2]
        free = self.budget - sum(j.reserved for j in self.decoding) - job.reserved
        if free < 0:
            return
        heapq.heappop(self._waiting)
        self._reuse(job, slot)
        self.prefixes.shrink(free)
        self.prefilling = job

    def _reuse(self, job: Job, slot: int) -> None:
        """Begin with what another request computed: one that is under way, or one that is kept."""
        # At least two tokens are left, since one alone would take other kernels than a prompt.
        most = len(job.prompt) - 2
        length, kept = self.prefixes.match(job.prompt)
        source = None
        for i, other in enumerate(self.decoding):
            common = common_prefix(_array(other.prompt), _array(job.prompt))
            if common > length:
                source, length = i, common
        length = min(length, most)
        if length < WORTH_KEEPING:
            return
        if source is not None:
            self.model.move(source, slot, length)
        else:
            self.model.restore(slot, kept, length)
        job.length = job.reused = length

    def _prefill(self, job: Job) -> list[Event]:
        slot = len(self.decoding)
        size = chunk_size(len(job.prompt) - job.length, SHARED_CHUNK if self.decoding else CHUNK)
        logits = self.model.prefill(slot, job.prompt[job.length : job.length + size], job.length)
        job.length += size
        if job.length < len(job.prompt):
            return []
        job.prefilled_s = self.clock()
        if isinstance(job, ComparisonJob):
            job.comparison.begin(logits)
            return []
        self.prefilling = None
        self.decoding.append(job)
        return self._take([(job, logits)])

    def _compare(self, job: ComparisonJob) -> list[Event]:
        """Read the next piece of a text; each text takes the positions of the one before."""
        slot, comparison = len(self.decoding), job.comparison
        past = len(job.prompt) + comparison.done
        # Logits are wanted after each token: in small pieces, since those of a chunk fill much memory.
        size = chunk_size(len(comparison.left), SHARED_CHUNK)
        ids = comparison.left[:size]
        comparison.take(self.model.advance(slot, ids, past))
        job.length = past + size
        if not comparison.is_complete:
            return []
        self._keep(job, slot)
        self.model.release(slot)
        self.prefilling = None
        return [Event(job.id, completion=self._compared(job))]

    def _decode(self) -> list[Event]:
        jobs = list(self.decoding)
        rows = self.model.decode([job.last for job in jobs], [job.length for job in jobs])
        for job in jobs:
            job.length += 1
        return self._take(list(zip(jobs, rows, strict=True)))

    def _take(self, rows: Sequence[tuple[AnswerJob, Floats]]) -> list[Event]:
        """Choose the next token of each; those that are complete leave."""
        events = []
        for job, logits in rows:
            try:
                job.last = job.answer.take(logits)
            except EngineError as exc:
                self._leave(job)
                events.append(Event(job.id, error=exc))
                continue
            if job.is_streamed and (piece := job.answer.piece()):
                events.append(Event(job.id, piece=piece))
            if job.answer.finish_reason:
                self._leave(job)
                events.append(Event(job.id, completion=self._completion(job)))
        return events

    def _leave(self, job: AnswerJob) -> None:
        """Free a decoding request's slot, and fill it with the last one's sequence."""
        slot, last = self.decoding.index(job), len(self.decoding) - 1
        self._keep(job, slot)
        if slot < last:
            self.model.move(last, slot, self.decoding[last].length)
            self.decoding[slot] = self.decoding[last]
        del self.decoding[last]
        if self.prefilling:
            # Its slot is the one after those that decode.
            self.model.move(last + 1, last, self.prefilling.length)
            last += 1
        self.model.release(last)

    def _keep(self, job: Job, slot: int) -> None:
        """Keep what was computed of its prompt, if there is room and it is not kept already."""
        computed = job.prompt[: job.length]
        begun = [*self.decoding, *([self.prefilling] if self.prefilling else [])]
        room = self.budget - sum(other.reserved for other in begun if other is not job)
        if WORTH_KEEPING <= len(computed) <= room and not self.prefixes.holds(computed):
            kept = self.model.keep(slot, len(computed))
            if kept is not None:
                self.prefixes.shrink(room - len(computed))
                self.prefixes.add(computed, kept)

    def _completion(self, job: AnswerJob) -> Completion:
        answer = job.answer
        if answer.finish_reason is None:
            raise ValueError("the answer is not complete")
        return Completion(
            text=answer.text,
            tool_calls=answer.tool_calls,
            finish_reason=answer.finish_reason,
            mean_logprob=answer.mean_logprob,
            min_logprob=answer.min_logprob,
            logprobs=tuple(answer.logprobs),
            prompt_tokens=len(job.prompt),
            cached_tokens=job.reused,
            completion_tokens=answer.tokens,
            prefill_s=job.prefilled_s - job.began_s,
            decode_s=self.clock() - job.prefilled_s,
        )

    def _compared(self, job: ComparisonJob) -> Completion:
        comparison = job.comparison
        return Completion(
            text=job.choices[comparison.best],
            finish_reason="stop",
            mean_logprob=comparison.logprobs[comparison.best],
            min_logprob=comparison.least,
            choice_logprobs=comparison.logprobs,
            # All of it was read, nothing generated.
            prompt_tokens=len(job.prompt) + comparison.tokens,
            completion_tokens=0,
            cached_tokens=job.reused,
            prefill_s=job.prefilled_s - job.began_s,
            decode_s=self.clock() - job.prefilled_s,
        )
