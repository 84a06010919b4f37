"""Measure a model folder on this machine: speed, memory, and fidelity to its source."""

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
from fusewire_worker_edge.folder import WEIGHTS, verify
from fusewire_worker_edge.importers.gguf import GgufFile
from fusewire_worker_edge.importers.reference import (
    Divergence,
    divergence,
    mean,
    reference_head,
    reference_states,
)

PROMPT_TOKENS = 256
ANSWER_TOKENS = 48
ROUNDS = 3
_LONG_TEXT = {"type": "string", "minLength": 8 * ANSWER_TOKENS}
"""A schema whose shortest answer is longer than `ANSWER_TOKENS`: all tokens are constrained."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """The measurements of a model folder.

    Speeds are medians over `ROUNDS` rounds of all of them, so that other load on the machine
    affects all alike.
    """

    load_s: float
    prefill_tok_s: float
    decode_tok_s: float
    guided_over_unguided: float
    rss_over_weights: float
    """Growth of the process's resident memory, relative to the size of the weights."""
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
    rss_before = _resident_bytes()
    began = time.perf_counter()
    generator = Generator(folder, manifest, EngineOptions(threads=threads, slots=1))
    load_s = time.perf_counter() - began
    text = _text_ids(generator, max(tokens, PROMPT_TOKENS))
    prefill_speeds, plain_speeds, guided_speeds = [], [], []
    for number in range(ROUNDS):
        prefill_speeds.append(_prefill_speed(generator, text[:PROMPT_TOKENS]))
        plain_speeds.append(_decode_speed(generator, f"plain-{number}", None))
        guided_speeds.append(_decode_speed(generator, f"guided-{number}", _LONG_TEXT))
    decode_speed = statistics.median(plain_speeds)
    rss_growth = (_resident_bytes() - rss_before) / (folder / WEIGHTS).stat().st_size
    comparison = None
    if source is not None:
        comparison = mean(list(_divergences(GgufFile(source), generator, text[:tokens])))
    return Measurement(
        load_s=load_s,
        prefill_tok_s=statistics.median(prefill_speeds),
        decode_tok_s=decode_speed,
        guided_over_unguided=statistics.median(guided_speeds) / decode_speed,
        rss_over_weights=rss_growth,
        kl=comparison.kl if comparison else None,
        top1=comparison.top1 if comparison else None,
        tokens=comparison.tokens if comparison else None,
    )


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
