"""A loaded model: its vocabulary, its grammars, and the requests that run on it."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fusewire.contracts import Message
from fusewire_worker_edge.engine.answer import AnswerTokens
from fusewire_worker_edge.engine.api import Completion, GenerateRequest, Hear
from fusewire_worker_edge.engine.comparison import Comparison
from fusewire_worker_edge.engine.constraint import Grammars
from fusewire_worker_edge.engine.dialects import BY_NAME, check_results
from fusewire_worker_edge.engine.mistral import FILES, MistralVocabulary
from fusewire_worker_edge.engine.model import OnnxModel
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.engine.sampling import Floats
from fusewire_worker_edge.engine.scheduler import (
    CHUNK,
    AnswerJob,
    ComparisonJob,
    Scheduler,
    chunk_size,
)
from fusewire_worker_edge.engine.tokens import Vocabulary
from fusewire_worker_edge.folder import Manifest


def read_vocabulary(folder: Path, manifest: Manifest) -> Vocabulary:
    """The vocabulary of a verified model folder."""
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer_json = (folder / "tokenizer.json").read_text(encoding="utf-8")
    own = next((folder / name for name in FILES if (folder / name).is_file()), None)
    return (
        MistralVocabulary(own, tokenizer_json, config)
        if own
        else Vocabulary(tokenizer_json, config, BY_NAME.get(manifest.tool_calls or ""))
    )


class Generator:
    """A loaded model with its vocabulary.

    Args:
        folder: a verified model folder.
        manifest: its manifest.
        options: how to run it.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, options: EngineOptions | None = None
    ) -> None:
        self.manifest = manifest
        self.vocabulary = read_vocabulary(folder, manifest)
        self.model = OnnxModel(folder, manifest, options or EngineOptions())
        self.scheduler = Scheduler(self.model, self.model.budget, time.perf_counter)
        self._grammars = Grammars(
            self.vocabulary.tokenizer_json, manifest.vocab_size, manifest.end_tokens
        )

    def submit(self, request: GenerateRequest) -> None:
        """Hand a request to the scheduler.

        Raises:
            RequestRefusedError: it does not fit the context, or its messages or its schema are not usable.
        """
        check_results(request.messages)
        prompt = self.vocabulary.prompt(request.messages, request.tools)
        if request.choices:
            self.scheduler.submit(self._comparison(request, prompt))
            return
        dialect = self.vocabulary.dialect if request.tools else None
        constraint = None
        if dialect:
            constraint = self._grammars.of_tools(dialect, request)
        elif request.response_schema is not None:
            constraint = self._grammars.of_schema(request.response_schema)
        stream = self.vocabulary.text_stream(special=dialect is not None)
        answer = AnswerTokens(request, stream, constraint, self.manifest.end_tokens, dialect)
        self.scheduler.submit(
            AnswerJob(
                id=request.id,
                prompt=prompt,
                rank=request.rank,
                answer=answer,
                max_tokens=request.max_tokens,
                is_streamed=request.is_streamed,
            )
        )

    def _comparison(self, request: GenerateRequest, prompt: Sequence[int]) -> ComparisonJob:
        texts = [self.vocabulary.ids(choice) for choice in request.choices]
        comparison = Comparison(prompt, texts, self.manifest.end_tokens)
        return ComparisonJob(
            id=request.id,
            prompt=prompt,
            rank=request.rank,
            comparison=comparison,
            choices=request.choices,
        )

    def generate(
        self,
        request: GenerateRequest,
        cancelled: Callable[[], bool] = lambda: False,
        hear: Hear | None = None,
    ) -> Completion:
        """Answer one request alone; `cancelled` is asked before every step, `hear` given the text as it comes.

        Raises:
            EngineError: see `submit`; or `cancelled` said so.
        """
        self.submit(request.model_copy(update={"is_streamed": hear is not None}))
        while True:
            if cancelled():
                self.scheduler.cancel(request.id)
            for event in self.scheduler.step():
                if event.error:
                    raise event.error
                if hear and event.piece:
                    hear(event.piece)
                if event.completion:
                    return event.completion

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """At most `count` most probable tokens after a prompt, up to and with an end token. Uses the first slot."""
        ids = [int(self.logits(prompt)[-1].argmax())]
        while len(ids) < count and ids[-1] not in self.manifest.end_tokens:
            row = self.model.decode(ids[-1:], [len(prompt) + len(ids) - 1])[0]
            ids.append(int(row.argmax()))
        return ids

    def logits(self, ids: Sequence[int]) -> Floats:
        """The logits after each token of a text, [len(ids), vocabulary]. Uses the first slot."""
        return np.concatenate(list(self.chunks(ids)))

    def chunks(self, ids: Sequence[int]) -> Iterator[Floats]:
        """The same in pieces, as they are computed, for texts whose logits would fill the memory."""
        done = 0
        while done < len(ids):
            size = chunk_size(len(ids) - done, CHUNK)
            yield self.model.advance(0, ids[done : done + size], done)
            done += size

    def golden_agreement(self) -> float:
        """The share of the manifest's golden answer that the model, given what is before each token, also prefers.

        0 where the tokenizer or the template makes another prompt than it did at conversion.
        """
        golden = self.manifest.golden
        prompt = self.vocabulary.prompt([Message(role="user", content=golden.message)])
        if tuple(prompt) != golden.prompt_ids:
            return 0.0
        rows = self.logits([*prompt, *golden.ids[:-1]])[len(prompt) - 1 :]
        return float(np.mean(rows.argmax(axis=-1) == np.array(golden.ids)))
