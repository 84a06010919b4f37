"""What a model folder gives on this machine: speed, memory, and how near it is to the file that it was made from."""

import inspect
import json
import os
import statistics
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusewire.contracts import Message
from fusewire_worker_edge.engine.api import GenerateRequest
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.engine.sampling import Floats
from fusewire_worker_edge.folder import verify
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
WEIGHTS = "model.onnx.data"
_LONG_TEXT = {"type": "string", "minLength": 8 * ANSWER_TOKENS}
"""A schema that an answer of so many tokens does not yet satisfy, so that all of them are guided."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured. Speeds are medians of `ROUNDS` rounds, in turn, so that other load falls on all alike."""

    load_s: float
    prefill_tok_s: float
    decode_tok_s: float
    guided_over_unguided: float
    rss_over_weights: float
    """What loading and answering added to the process, over the size of the weights."""
    kl: float | None = None
    """Mean Kullback-Leibler divergence from the file's own weights in float32, in nats; None without the file."""
    top1: float | None = None
    """The share of places with the same most probable token."""
    tokens: int | None = None
    """Places compared."""


def measure(
    folder: Path, source: Path | None = None, *, tokens: int = 2048, threads: int | None = None
) -> Measurement:
    """Measure a model folder.

    Args:
        folder: it.
        source: the GGUF file that it was made from, to compare with.
        tokens: of the text that is compared: a module of Python's standard library, prose and code.
        threads: of the engine; None takes the processors that this process may use.

    Raises:
        ModelFolderError: the folder is not as it should be.
        ModelImportError: the file cannot be read.
    """
    manifest = verify(folder)
    before = _rss()
    began = time.perf_counter()
    generator = Generator(folder, manifest, EngineOptions(threads=threads, slots=1))
    load_s = time.perf_counter() - began
    text = _text_ids(generator, max(tokens, PROMPT_TOKENS))
    prefill, plain, guided = [], [], []
    for number in range(ROUNDS):
        prefill.append(
            _speed(lambda: _drain(generator.chunks(text[:PROMPT_TOKENS])), PROMPT_TOKENS)
        )
        plain.append(_decode_speed(generator, f"plain-{number}", None))
        guided.append(_decode_speed(generator, f"guided-{number}", _LONG_TEXT))
    decode = statistics.median(plain)
    grown = (_rss() - before) / (folder / WEIGHTS).stat().st_size
    compared = None
    if source is not None:
        file = GgufFile(source)
        compared = mean(list(_compared(file, generator, text[:tokens])))
    return Measurement(
        load_s=load_s,
        prefill_tok_s=statistics.median(prefill),
        decode_tok_s=decode,
        guided_over_unguided=statistics.median(guided) / decode,
        rss_over_weights=grown,
        kl=compared.kl if compared else None,
        top1=compared.top1 if compared else None,
        tokens=compared.tokens if compared else None,
    )


def _compared(file: GgufFile, generator: Generator, ids: Sequence[int]) -> Iterator[Divergence]:
    """The divergence of each piece of a text, so that never all of its logits are in memory."""
    states = reference_states(file, ids)
    at = 0
    for rows in generator.chunks(ids):
        yield divergence(reference_head(file, states[at : at + len(rows)]), rows)
        at += len(rows)


def _drain(rows: Iterator[Floats]) -> None:
    for _ in rows:
        pass


def _decode_speed(generator: Generator, name: str, schema: dict[str, object] | None) -> float:
    """Tokens a second after the first one."""
    message = Message(role="user", content="Tell me a long story about the sea.")
    request = GenerateRequest(
        id=name, messages=(message,), max_tokens=ANSWER_TOKENS, response_schema=schema
    )
    completion = generator.generate(request)
    return (completion.completion_tokens - 1) / completion.decode_s


def _speed(work: Callable[[], None], tokens: int) -> float:
    began = time.perf_counter()
    work()
    return tokens / (time.perf_counter() - began)


def _text_ids(generator: Generator, count: int) -> list[int]:
    source = (
        inspect.getsource(textwrap)
        + inspect.getsource(json.decoder)
        + inspect.getsource(statistics)
    )
    return generator.vocabulary.ids(source)[:count]


def _rss() -> int:
    """Resident memory of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
