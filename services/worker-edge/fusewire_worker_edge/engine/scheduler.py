"""Continuous batching: which sequence advances in which step.

Requests join and leave the batch between steps: iteration-level scheduling, after Yu et al.,
"Orca" (OSDI 2022). A step prefills one chunk of one prompt, then decodes one token of each sequence
in the batch: chunked prefill, after Agrawal et al., "Sarathi-Serve" (OSDI 2024). The decoding
sequences are always in the first slots (batch rows), so that one run of the model advances them
all, and the prompts in prefill are in the slots after them. When a decoding sequence leaves, the
last one takes its slot; a complete prompt changes places with the first one in prefill.

The chunk is one of the shortest prompt, so that a short one that joins late does not wait for a
long one, and every so often of the oldest (`MOST_PASSED_OVER`).

The tokens of a request depend on that request alone: whatever else is in the batch, however its
prompt was cut into chunks and however much of it came from the prefix cache, its logits differ by
rounding at most. This module keeps the two conditions for that: a chunk has more than one token,
because onnxruntime uses other kernels for a single token of each row; and only keys and values that
were computed by prefill are reused, never those of decoding (docs/decisions/0028).
"""

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fusewire_worker_edge.engine.api import (
    EngineError,
    RequestCancelledError,
    RequestRefusedError,
)
from fusewire_worker_edge.engine.cache import KeyValues, PrefixCache, common_prefix
from fusewire_worker_edge.engine.jobs import AnswerJob, ComparisonJob, Event, Job
from fusewire_worker_edge.engine.sampling import Floats

CHUNK = 128
"""Largest chunk of a prompt, in tokens, while nothing decodes."""
SHARED_CHUNK = 32
"""Largest chunk while other sequences decode, so that they do not wait for long."""
WORTH_KEEPING = 32
"""Shortest prefix worth caching, in tokens: a shorter one is computed as fast as it is copied."""
MOST_PASSED_OVER = 3
"""How many chunks in a row go to other prompts before the oldest one gets its next.

So every fourth chunk at least is the oldest prompt's: however many short ones come, it takes four
times as long as alone at most. And a short prompt of up to three chunks waits for one chunk of it
at most, which is why the number is not smaller.
"""


def chunk_size(remaining: int, limit: int) -> int:
    """Return the size of the next chunk, such that a single token never remains for the last one.

    >>> chunk_size(300, 128), chunk_size(129, 128), chunk_size(2, 128)
    (128, 127, 2)
    """
    return limit - 1 if remaining == limit + 1 else min(remaining, limit)


class Model(Protocol):
    """A model with a KV cache of `slots` sequences of at most `positions` tokens.

    Implemented by `fusewire_worker_edge.engine.model.OnnxModel` and `…genai.GenaiModel`.
    """

    slots: int
    positions: int

    def prefill(self, slot: int, ids: Sequence[int], past: int) -> Floats:
        """Append tokens to a sequence of length `past`. Returns the last logits, [vocabulary]."""
        ...

    def advance(self, slot: int, ids: Sequence[int], past: int) -> Floats:
        """Like `prefill`, but returns the logits after each token, [ids, vocabulary]."""
        ...

    def decode(self, tokens: Sequence[int], lengths: Sequence[int]) -> Floats:
        """Append a token to each of the first sequences.

        Args:
            tokens: the token of each sequence.
            lengths: the length of each sequence before this step.

        Returns:
            the logits, [sequences, vocabulary].
        """
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""
        ...

    def swap(self, slots: tuple[int, int], lengths: tuple[int, int]) -> None:
        """Exchange the sequences of two slots, which have these lengths."""
        ...

    def keep(self, slot: int, length: int) -> KeyValues | None:
        """Return a copy of the first `length` positions of a slot, or None if the model cannot."""
        ...

    def restore(self, slot: int, key_values: KeyValues, length: int) -> None:
        """Write the first `length` positions of a copy to a slot."""
        ...

    def release(self, slot: int) -> None:
        """Free the memory of a slot."""
        ...


@dataclass
class Scheduler:
    """Schedules the requests of one model.

    Args:
        model: the model; all its slots are empty.
        budget: positions that fit into memory, in all slots and the prefix cache together.
        clock: the time in seconds.
        prefixes: the prefix cache.
    """

    model: Model
    budget: int
    clock: Callable[[], float]
    prefixes: PrefixCache = field(default_factory=PrefixCache)
    decoding: list[AnswerJob] = field(default_factory=list, init=False)
    """The decoding sequences, by slot."""
    prefilling: list[Job] = field(default_factory=list, init=False)
    """The sequences in prefill, in the slots after the decoding ones."""
    prefilled_tokens: int = field(default=0, init=False)
    """Tokens of prompts and choices computed so far."""
    decoded_tokens: int = field(default=0, init=False)
    """Steps of decoding so far, one for each sequence that takes part."""
    cached_tokens: int = field(default=0, init=False)
    """Tokens of prompts copied so far and not computed."""

    def __post_init__(self) -> None:
        self._waiting: list[tuple[int, int, Job]] = []
        self._order = itertools.count()
        self._cancelled: set[str] = set()
        self._passed_over = 0

    @property
    def is_busy(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self.decoding or self.prefilling or self._waiting)

    @property
    def waiting_jobs(self) -> list[Job]:
        """The jobs that have no slot yet."""
        return [job for _, _, job in self._waiting]

    @property
    def running_jobs(self) -> list[Job]:
        """The jobs that have a slot, by slot."""
        return [*self.decoding, *self.prefilling]

    def submit(self, job: Job) -> None:
        """Enqueue a request.

        Raises:
            RequestRefusedError: prompt and answer together exceed the positions of a slot, or the
                budget: the request would wait for ever.
        """
        most_positions = min(self.model.positions, self.budget)
        if job.reserved_positions > most_positions:
            raise RequestRefusedError(
                "context_length_exceeded",
                f"the prompt has {len(job.prompt)} tokens and the answer may have"
                f" {job.max_tokens_after}; together they exceed the {most_positions} that"
                " this model has room for here",
            )
        job.began_s = self.clock()
        # The number keeps equal ranks in order, and jobs from being compared.
        heapq.heappush(self._waiting, (job.rank, next(self._order), job))

    def cancel(self, job_id: str) -> None:
        """End a request at the beginning of the next step. Unknown ids are ignored."""
        if any(job.id == job_id for job in self._jobs()):
            self._cancelled.add(job_id)

    def step(self) -> list[Event]:
        """Advance all sequences.

        Cancelled requests leave, requests are admitted, a chunk of one prompt is prefilled, and
        each decoding sequence gets one token.
        """
        events = self._drop_cancelled()
        self._admit()
        if self.prefilling:
            job = self._next_in_prefill()
            if isinstance(job, ComparisonJob) and job.is_prefilled:
                events += self._compare(job)
            else:
                events += self._prefill(job)
        if self.decoding:
            events += self._decode()
        return events

    def _jobs(self) -> list[Job]:
        return [*self.running_jobs, *self.waiting_jobs]

    def _drop_cancelled(self) -> list[Event]:
        if not self._cancelled:
            return []
        jobs = [job for job in self._jobs() if job.id in self._cancelled]
        self._waiting = [entry for entry in self._waiting if entry[2].id not in self._cancelled]
        heapq.heapify(self._waiting)
        self._cancelled.clear()
        for job in jobs:
            self._free_slot(job)
        return [Event(job.id, error=RequestCancelledError("cancelled")) for job in jobs]

    def _free_slot(self, job: Job) -> None:
        """Take a job out of its slot, if it has one."""
        if isinstance(job, AnswerJob) and job in self.decoding:
            self._leave(job)
        elif job in self.prefilling:
            self._leave_prefill(job)

    def _admit(self) -> None:
        """Begin waiting jobs, the first ones first, while there is a slot and memory for them."""
        while self._waiting and len(self.running_jobs) < self.model.slots:
            job = self._waiting[0][2]
            in_use = sum(other.reserved_positions for other in self.running_jobs)
            free_positions = self.budget - in_use - job.reserved_positions
            if free_positions < 0:
                # Later ones must not overtake it, or a large request would wait for ever.
                return
            heapq.heappop(self._waiting)
            self.prefilling.append(job)
            # Before shrinking, which may drop the very prefix that is reused.
            self._reuse_prefix(job)
            self.prefixes.shrink(free_positions)

    def _next_in_prefill(self) -> Job:
        """Choose the job whose turn the next chunk is."""
        oldest = min(self.prefilling, key=lambda job: job.began_s)
        job = min(self.prefilling, key=lambda job: (job.rank, job.unread_tokens, job.began_s))
        if self._passed_over >= MOST_PASSED_OVER:
            job = oldest
        self._passed_over = 0 if job is oldest else self._passed_over + 1
        return job

    def _slot(self, job: Job) -> int:
        """The slot of a job in prefill."""
        return len(self.decoding) + self.prefilling.index(job)

    def _reuse_prefix(self, job: Job) -> None:
        """Copy the longest common prefix from another slot or from the prefix cache."""
        length, key_values = self.prefixes.match(job.prompt)
        source_slot = None
        for slot, other in enumerate(self.running_jobs):
            if other is job:
                continue
            # Of a prompt that is still in prefill, only what was computed.
            common = min(common_prefix(other.prompt_array, job.prompt_array), other.length)
            if common > length:
                source_slot, length = slot, common
        # At least two tokens must remain: a single one would take other kernels than a prompt
        # (docs/decisions/0028).
        length = min(length, len(job.prompt) - 2)
        if length - job.length < WORTH_KEEPING:
            return
        if source_slot is not None:
            self.model.move(source_slot, self._slot(job), length)
        else:
            self.model.restore(self._slot(job), key_values, length)
        self.cached_tokens += length - job.length
        job.cached_tokens += length - job.length
        job.length = length

    def _prefill(self, job: Job) -> list[Event]:
        """Compute the next chunk of a prompt; after the last, decode or compare."""
        # Again before every chunk: prompts that begin alike are often submitted together, and what
        # one of them has computed by now is not computed by the next.
        self._reuse_prefix(job)
        size = chunk_size(len(job.prompt) - job.length, SHARED_CHUNK if self.decoding else CHUNK)
        chunk = job.prompt[job.length : job.length + size]
        logits = self.model.prefill(self._slot(job), chunk, job.length)
        job.length += size
        self.prefilled_tokens += size
        if not job.is_prefilled:
            return []
        job.prefilled_s = self.clock()
        if isinstance(job, ComparisonJob):
            job.comparison.begin(logits)
            return []
        self._begin_decoding(job)
        return self._take([(job, logits)])

    def _begin_decoding(self, job: AnswerJob) -> None:
        """Move a job from prefill to the decoding ones, whose slots must stay the first."""
        first, slot = self.prefilling[0], self._slot(job)
        if job is not first:
            self.model.swap((len(self.decoding), slot), (first.length, job.length))
            self.prefilling[self.prefilling.index(job)] = first
        del self.prefilling[0]
        self.decoding.append(job)

    def _compare(self, job: ComparisonJob) -> list[Event]:
        """Read the next chunk of a text. Each text overwrites the positions of the one before."""
        comparison = job.comparison
        past = len(job.prompt) + comparison.position
        # Small chunks: the logits after every token of a large one would fill much memory.
        size = chunk_size(len(comparison.remaining), SHARED_CHUNK)
        ids = comparison.remaining[:size]
        comparison.take(self.model.advance(self._slot(job), ids, past))
        job.length = past + size
        job.read_tokens += size
        self.prefilled_tokens += size
        if not comparison.is_complete:
            return []
        self._leave_prefill(job)
        return [Event(job.id, completion=job.completion(self.clock()))]

    def _decode(self) -> list[Event]:
        """Append the last token of each sequence, and sample the next."""
        if draft := self._draft():
            return self._check_draft(self.decoding[0], draft)
        jobs = list(self.decoding)
        rows = self.model.decode([job.last_token for job in jobs], [job.length for job in jobs])
        for job in jobs:
            job.length += 1
        self.decoded_tokens += len(jobs)
        return self._take(list(zip(jobs, rows, strict=True)))

    def _draft(self) -> Sequence[int]:
        """The next tokens as they are guessed, if there is a single sequence to compute."""
        if len(self.decoding) > 1 or self.prefilling:
            # The rows of a batch gain more by running together than one of them does by a draft.
            return []
        job = self.decoding[0]
        # The run itself gives one token more than the draft has.
        return job.lookup.draft(job.max_tokens - job.answer.tokens - 1) if job.lookup else []

    def _check_draft(self, job: AnswerJob, draft: Sequence[int]) -> list[Event]:
        """Compute the logits after the last token and each drafted one, and sample by them.

        The first token that differs ends it: what was computed after it is overwritten later.
        """
        events = []
        rows = self.model.advance(0, [job.last_token, *draft], job.length)
        for row, guess in zip(rows, [*draft, None], strict=True):
            job.length += 1
            events += self._take([(job, row)])
            if job not in self.decoding or job.last_token != guess:
                break
        return events

    def _take(self, rows: Sequence[tuple[AnswerJob, Floats]]) -> list[Event]:
        """Sample the next token of each sequence; complete ones leave the batch."""
        events = []
        for job, logits in rows:
            try:
                job.last_token = job.answer.take(logits)
            except EngineError as exc:
                self._leave(job)
                events.append(Event(job.id, error=exc))
                continue
            if job.lookup:
                job.lookup.append(job.last_token)
            if job.is_streamed and (piece := job.answer.piece()):
                events.append(Event(job.id, piece=piece))
            if job.answer.finish_reason:
                self._leave(job)
                events.append(Event(job.id, completion=job.completion(self.clock())))
        return events

    def _leave(self, job: AnswerJob) -> None:
        """Take a decoding sequence out of the batch, and move the last one to its slot."""
        slot, last = self.decoding.index(job), len(self.decoding) - 1
        self._cache_prompt(job, slot)
        # The rows of a batch lie side by side in memory (docs/decisions/0029).
        if slot < last:
            self.model.move(last, slot, self.decoding[last].length)
            self.decoding[slot] = self.decoding[last]
        del self.decoding[last]
        if self.prefilling:
            # The slots in prefill come directly after the decoding ones.
            self.model.move(last + len(self.prefilling), last, self.prefilling[-1].length)
            self.prefilling.insert(0, self.prefilling.pop())
        self.model.release(last + len(self.prefilling))

    def _leave_prefill(self, job: Job) -> None:
        """Take a sequence in prefill out of its slot, and move the last one there."""
        slot, last = self._slot(job), self.prefilling[-1]
        self._cache_prompt(job, slot)
        if job is not last:
            self.model.move(self._slot(last), slot, last.length)
            self.prefilling[self.prefilling.index(job)] = last
        self.prefilling.pop()
        self.model.release(len(self.running_jobs))

    def _cache_prompt(self, job: Job, slot: int) -> None:
        """Add the prefilled part of a prompt to the prefix cache, if it fits and is not there."""
        # Never what was decoded: other kernels computed it (docs/decisions/0028).
        prefix = job.prompt[: job.length]
        in_use = sum(other.reserved_positions for other in self.running_jobs if other is not job)
        free_positions = self.budget - in_use
        if not WORTH_KEEPING <= len(prefix) <= free_positions or self.prefixes.holds(prefix):
            return
        key_values = self.model.keep(slot, len(prefix))
        if key_values is not None:
            self.prefixes.shrink(free_positions - len(prefix))
            self.prefixes.add(prefix, key_values)
