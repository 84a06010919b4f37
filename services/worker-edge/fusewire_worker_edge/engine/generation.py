"""Generation on a loaded model: vocabulary, grammars and scheduler put together."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fusewire.contracts import Message
from fusewire_worker_edge.engine.answer import AnswerTokens
from fusewire_worker_edge.engine.api import Completion, GenerateRequest, OnPiece
from fusewire_worker_edge.engine.comparison import Comparison
from fusewire_worker_edge.engine.constraint import Grammars
from fusewire_worker_edge.engine.dialects import BY_NAME, check_results
from fusewire_worker_edge.engine.genai import GenaiModel
from fusewire_worker_edge.engine.jobs import AnswerJob, ComparisonJob, Event
from fusewire_worker_edge.engine.mistral import MistralVocabulary, find_tokenizer_file
from fusewire_worker_edge.engine.model import OnnxModel
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.engine.sampling import Floats
from fusewire_worker_edge.engine.scheduler import CHUNK, Scheduler, chunk_size
from fusewire_worker_edge.engine.speculation import PromptLookup
from fusewire_worker_edge.engine.tokens import Vocabulary
from fusewire_worker_edge.folder import Manifest


def read_vocabulary(folder: Path, manifest: Manifest) -> Vocabulary:
    """Read the vocabulary of a verified model folder."""
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer_json = (folder / "tokenizer.json").read_text(encoding="utf-8")
    mistral_file = find_tokenizer_file(folder)
    if mistral_file:
        return MistralVocabulary(mistral_file, tokenizer_json, config)
    return Vocabulary(tokenizer_json, config, BY_NAME.get(manifest.tool_calls or ""))


def load_model(folder: Path, manifest: Manifest, options: EngineOptions) -> OnnxModel | GenaiModel:
    """Load the model of a verified folder with the engine that the options name.

    Raises:
        ModelFolderError: the engine's library is not installed, or does not load the folder.
    """
    load = GenaiModel if options.engine == "genai" else OnnxModel
    return load(folder, manifest, options)


class Generator:
    """A loaded model with its vocabulary, its grammars and its scheduler.

    Args:
        folder: a verified model folder.
        manifest: its manifest.
        options: library, threads, slots and memory; None takes the defaults.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, options: EngineOptions | None = None
    ) -> None:
        self.manifest = manifest
        self.vocabulary = read_vocabulary(folder, manifest)
        options = options or EngineOptions()
        self.model = load_model(folder, manifest, options)
        self.speculate = options.speculate
        self.scheduler = Scheduler(self.model, self.model.budget, time.perf_counter)
        self._grammars = Grammars(
            self.vocabulary.tokenizer_json, manifest.vocab_size, manifest.end_tokens
        )

    def submit(self, request: GenerateRequest) -> None:
        """Hand a request to the scheduler.

        Raises:
            RequestRefusedError: it does not fit the context, or its messages, its tools or its
                schema cannot be used.
        """
        check_results(request.messages)
        prompt = self.vocabulary.prompt(request.messages, request.tools)
        if request.choices:
            self.scheduler.submit(self._comparison_job(request, prompt))
        else:
            self.scheduler.submit(self._answer_job(request, prompt))

    def _answer_job(self, request: GenerateRequest, prompt: Sequence[int]) -> AnswerJob:
        dialect = self.vocabulary.dialect if request.tools else None
        constraint = None
        if dialect:
            constraint = self._grammars.of_tools(dialect, request)
        elif request.response_schema is not None:
            constraint = self._grammars.of_schema(request.response_schema)
        stream = self.vocabulary.text_stream(special=dialect is not None)
        answer = AnswerTokens(request, stream, constraint, self.manifest.end_tokens, dialect)
        return AnswerJob(
            id=request.id,
            prompt=prompt,
            rank=request.rank,
            answer=answer,
            max_tokens=request.max_tokens,
            is_streamed=request.is_streamed,
            lookup=PromptLookup(prompt) if self.speculate == "prompt" else None,
        )

    def _comparison_job(self, request: GenerateRequest, prompt: Sequence[int]) -> ComparisonJob:
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
        is_cancelled: Callable[[], bool] = lambda: False,
        on_piece: OnPiece | None = None,
    ) -> Completion:
        """Answer one request alone.

        Args:
            request: the request.
            is_cancelled: called before every step; True cancels the request.
            on_piece: called with each piece of the text as it is generated.

        Raises:
            RequestCancelledError: `is_cancelled` returned True.
            EngineError: see `submit`.
        """
        self.submit(request.model_copy(update={"is_streamed": on_piece is not None}))
        while True:
            if is_cancelled():
                self.scheduler.cancel(request.id)
            completion = _handle_events(self.scheduler.step(), on_piece)
            if completion:
                return completion

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """Decode greedily: at most `count` tokens, up to and including an end token.

        Overwrites the first slot, past the scheduler.
        """
        ids = [int(self.logits(prompt)[-1].argmax())]
        while len(ids) < count and ids[-1] not in self.manifest.end_tokens:
            row = self.model.decode(ids[-1:], [len(prompt) + len(ids) - 1])[0]
            ids.append(int(row.argmax()))
        return ids

    def logits(self, ids: Sequence[int]) -> Floats:
        """Return the logits after each token of a text, [len(ids), vocabulary].

        Overwrites the first slot, past the scheduler.
        """
        return np.concatenate(list(self.chunks(ids)))

    def chunks(self, ids: Sequence[int]) -> Iterator[Floats]:
        """Yield the same logits chunk by chunk: those of a long text would not fit into memory."""
        past = 0
        while past < len(ids):
            size = chunk_size(len(ids) - past, CHUNK)
            yield self.model.advance(0, ids[past : past + size], past)
            past += size

    def golden_agreement(self) -> float:
        """Return the share of the golden answer's tokens that are the model's most probable ones.

        Each token is predicted from the golden answer's tokens before it. 0 if the tokenizer or the
        template makes another prompt than at conversion.

        The answer is computed after the prompt, in a run of its own, so that it depends on the KV
        cache: a provider with memory of its own may write the cache and go on with an older copy.
        """
        golden = self.manifest.golden
        prompt = self.vocabulary.prompt([Message(role="user", content=golden.message)])
        if tuple(prompt) != golden.prompt_ids:
            return 0.0
        rows = [self.logits(prompt)[-1:]]
        if len(golden.ids) > 1:
            rows.append(self.model.advance(0, golden.ids[:-1], len(prompt)))
        return float(np.mean(np.concatenate(rows).argmax(axis=-1) == np.array(golden.ids)))


def _handle_events(events: Sequence[Event], on_piece: OnPiece | None) -> Completion | None:
    """Pass on the pieces of a lone request's events. Return its completion if there is one."""
    for event in events:
        if event.error:
            raise event.error
        if on_piece and event.piece:
            on_piece(event.piece)
        if event.completion:
            return event.completion
    return None
