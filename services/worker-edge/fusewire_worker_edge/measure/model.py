"""Measure a loaded model: speed, memory, batches, and fidelity to its source."""

import inspect
import json
import os
import statistics
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusewire.contracts import Message
from fusewire_worker_edge.engine.api import GenerateRequest
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.engine.processors import usable_processors
from fusewire_worker_edge.folder import GRAPH, WEIGHTS, verify
from fusewire_worker_edge.importers.gguf import GgufFile
from fusewire_worker_edge.importers.reference import (
    Divergence,
    divergence,
    mean,
    reference_head,
    reference_states,
)
from fusewire_worker_edge.measure.bandwidth import MemoryReader, step_bytes
from fusewire_worker_edge.measure.batches import (
    PREFIX_TOKENS,
    batch_speed,
    late_join_steps,
    prefix_reuse,
)

PROMPT_TOKENS = 256
ANSWER_TOKENS = 48
ROUNDS = 3
_SLOTS = (1, 4, 8)
_LONG_TEXT = {"type": "string", "minLength": 8 * ANSWER_TOKENS}
"""A schema whose shortest answer is longer than `ANSWER_TOKENS`: all tokens are constrained."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """The measurements of a model folder.

    Speeds are medians over `ROUNDS` rounds of all of them, and ratios those of the ratios of each
    round, so that other load on the machine affects all alike.
    """

    load_s: float
    prefill_tok_s: float
    decode_tok_s: float
    guided_over_unguided: float
    rss_over_weights: float
    """Growth of the process's resident memory, relative to the size of the weights."""
    decode_over_bandwidth: float
    """Tokens a second, over those that reading the weights once a token would allow."""
    bandwidth_gb_s: float
    """What as many threads read from memory, in 10^9 bytes a second."""
    step_bytes: int
    """What one step reads of the weights; see `step_bytes`."""
    slots4_over_1: float
    """Tokens a second of four sequences that decode together, over those of one."""
    slots8_over_1: float
    late_join_steps: int
    """Steps that a late request waits for its first token, beyond its own prompt's."""
    prefix_reuse_cpu: float
    """CPU time of a prompt whose first 500 tokens are cached, over that of computing it."""
    kl: float | None = None
    """Mean KL divergence from the source's weights in float32, in nats; None without a source."""
    top1: float | None = None
    """Share of positions with the same most probable token."""
    tokens: int | None = None
    """Number of positions that were compared."""


def measure(
    folder: Path, source: Path | None = None, *, tokens: int = 2048, threads: int | None = None
) -> Measurement:
    """Measure a model folder.

    Args:
        folder: the model folder.
        source: the GGUF file that it was made from, to compare with.
        tokens: length of the text to compare on. The text is prose and code, modules of Python's
            standard library.
        threads: threads of the engine; None uses all processors of this process.

    Raises:
        ModelFolderError: the folder cannot be used.
        ModelImportError: the source cannot be read.
    """
    manifest = verify(folder)
    threads = threads or usable_processors()
    with MemoryReader(threads) as reader:
        rss_before = _resident_bytes()
        began = time.perf_counter()
        options = EngineOptions(threads=threads, slots=max(_SLOTS))
        generator = Generator(folder, manifest, options)
        load_s = time.perf_counter() - began
        text = _text_ids(generator, ROUNDS * (PREFIX_TOKENS + PROMPT_TOKENS))
        alone = [_measure_alone(generator, reader, text, number) for number in range(ROUNDS)]
    rss_growth = (_resident_bytes() - rss_before) / (folder / WEIGHTS).stat().st_size
    together = [_measure_together(generator, text, number) for number in range(ROUNDS)]
    comparison = None
    if source is not None:
        comparison = compare(generator, source, tokens)
    read_bytes = step_bytes(folder / GRAPH)
    return Measurement(
        load_s=load_s,
        prefill_tok_s=statistics.median(speeds.prefill for speeds in alone),
        decode_tok_s=statistics.median(speeds.decode for speeds in alone),
        guided_over_unguided=statistics.median(speeds.guided / speeds.decode for speeds in alone),
        rss_over_weights=rss_growth,
        decode_over_bandwidth=statistics.median(
            speeds.decode * read_bytes / speeds.bandwidth for speeds in alone
        ),
        bandwidth_gb_s=statistics.median(speeds.bandwidth for speeds in alone) / 1e9,
        step_bytes=read_bytes,
        slots4_over_1=statistics.median(speeds.of_four / speeds.of_one for speeds in together),
        slots8_over_1=statistics.median(speeds.of_eight / speeds.of_one for speeds in together),
        late_join_steps=late_join_steps(generator, text),
        prefix_reuse_cpu=statistics.median(speeds.prefix_reuse for speeds in together),
        kl=comparison.kl if comparison else None,
        top1=comparison.top1 if comparison else None,
        tokens=comparison.tokens if comparison else None,
    )


@dataclass(frozen=True, slots=True)
class _AnswerMeasurement:
    """Tokens a second of one sequence, and bytes a second of memory, in one round."""

    prefill: float
    decode: float
    guided: float
    bandwidth: float


def _measure_alone(
    generator: Generator, reader: MemoryReader, text: Sequence[int], number: int
) -> _AnswerMeasurement:
    return _AnswerMeasurement(
        prefill=_prefill_speed(generator, text[:PROMPT_TOKENS]),
        decode=_decode_speed(generator, f"plain-{number}", None),
        bandwidth=reader.measure(),
        guided=_decode_speed(generator, f"guided-{number}", _LONG_TEXT),
    )


@dataclass(frozen=True, slots=True)
class _BatchMeasurement:
    """Tokens a second of several sequences together, and the cost of a cached prefix."""

    of_one: float
    of_four: float
    of_eight: float
    prefix_reuse: float


def _measure_together(generator: Generator, text: Sequence[int], number: int) -> _BatchMeasurement:
    of_one, of_four, of_eight = (batch_speed(generator, text, count) for count in _SLOTS)
    # Another part of the text each time: the prompts before it are cached.
    start = number * (PREFIX_TOKENS + PROMPT_TOKENS)
    reuse = prefix_reuse(generator, text[start : start + PREFIX_TOKENS + PROMPT_TOKENS])
    return _BatchMeasurement(of_one, of_four, of_eight, reuse)


def compare(generator: Generator, source: Path, tokens: int) -> Divergence:
    """Compare a loaded model with its source's weights in float32, over a text of that length.

    Raises:
        ModelImportError: the source cannot be read.
    """
    ids = _text_ids(generator, tokens)
    return mean(list(_divergences(GgufFile(source), generator, ids)))


def _divergences(file: GgufFile, generator: Generator, ids: Sequence[int]) -> Iterator[Divergence]:
    """The divergence of each chunk of a text: all of its logits would not fit into memory."""
    states = reference_states(file, ids)
    start = 0
    for rows in generator.chunks(ids):
        end = start + len(rows)
        yield divergence(reference_head(file, states[start:end]), rows)
        start = end


def _prefill_speed(generator: Generator, ids: Sequence[int]) -> float:
    """Tokens a second."""
    began = time.perf_counter()
    for _ in generator.chunks(ids):
        pass
    return PROMPT_TOKENS / (time.perf_counter() - began)


def _decode_speed(generator: Generator, name: str, schema: dict[str, object] | None) -> float:
    """Tokens a second, without the first token."""
    message = Message(role="user", content="Tell me a long story about the sea.")
    request = GenerateRequest(
        id=name, messages=(message,), max_tokens=ANSWER_TOKENS, response_schema=schema
    )
    completion = generator.generate(request)
    return (completion.completion_tokens - 1) / completion.decode_s


def _text_ids(generator: Generator, count: int) -> list[int]:
    source = (
        inspect.getsource(textwrap)
        + inspect.getsource(json.decoder)
        + inspect.getsource(statistics)
    )
    return generator.vocabulary.ids(source)[:count]


def _resident_bytes() -> int:
    """Resident memory of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
