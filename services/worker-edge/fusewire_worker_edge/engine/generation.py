"""One request, from its messages to its answer, on a loaded model."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from fusewire.contracts import Message
from fusewire_worker_edge.engine.api import (
    Completion,
    GenerateRequest,
    Hear,
    RequestCancelledError,
    RequestRefusedError,
)
from fusewire_worker_edge.engine.constraint import Constraint, Grammars
from fusewire_worker_edge.engine.model import CHUNK, OnnxModel
from fusewire_worker_edge.engine.sampling import Floats, choose, generator, log_probability, masked
from fusewire_worker_edge.engine.tokens import TextStream, Vocabulary
from fusewire_worker_edge.folder import Manifest


class Answer:
    """An answer as it grows. Knows nothing of the model: logits in, the next token out."""

    def __init__(
        self,
        request: GenerateRequest,
        stream: TextStream,
        constraint: Constraint | None,
        end_tokens: tuple[int, ...],
    ) -> None:
        self._request = request
        self._stream = stream
        self._constraint = constraint
        self._end_tokens = end_tokens
        self._random = generator(request.seed)
        self._log_probability = 0.0
        self._chosen = 0
        self._given = 0
        self.tokens = 0
        self.finish_reason: Literal["stop", "length"] | None = None

    @property
    def text(self) -> str:
        """What there is of it."""
        return self._stream.text

    @property
    def confidence(self) -> float:
        """Geometric mean of the probabilities of the tokens chosen so far, the end token included."""
        return math.exp(self._log_probability / self._chosen) if self._chosen else 0.0

    def piece(self) -> str:
        """The text since the last piece that stands for good: nothing that a stop string may yet take back."""
        stops = () if self._constraint or self.finish_reason else self._request.stop
        stands = len(self.text) - self._stream.begun(stops)
        piece = self.text[self._given : stands]
        self._given = stands
        return piece

    def take(self, logits: Floats) -> int:
        """Choose the next token, [vocabulary] -> id, and append it. Sets `finish_reason` when it was the last."""
        if self._constraint:
            logits = masked(logits, self._constraint.allowed())
        token = choose(logits, self._request.temperature, self._request.top_p, self._random)
        self._log_probability += log_probability(logits, token)
        self._chosen += 1
        if token in self._end_tokens:
            self.finish_reason = "stop"
            return token
        self.tokens += 1
        since = len(self._stream.text)
        self._stream.append(token)
        if self._complete(token, since):
            self.finish_reason = "stop"
        elif self.tokens == self._request.max_tokens:
            self.finish_reason = "length"
        return token

    def _complete(self, token: int, since: int) -> bool:
        if self._constraint is None:
            return self._stream.cut_at(self._request.stop, since)
        self._constraint.accept(token)
        return self._constraint.complete


class Generator:
    """A loaded model with its vocabulary and one slot.

    Args:
        folder: a verified model folder.
        manifest: its manifest.
        threads: how many threads one step uses; None takes the processors that this process may use.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None = None) -> None:
        self.manifest = manifest
        self.vocabulary = Vocabulary(folder)
        self._model = OnnxModel(folder, manifest, threads)
        self._grammars = Grammars(self.vocabulary.tokenizer_json, manifest.vocab_size, manifest.end_tokens)
        self._slot = self._model.new_slot()

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool], hear: Hear | None = None) -> Completion:
        """Answer one request; `cancelled` is asked before every step, `hear` given the text as it comes.

        Raises:
            RequestRefusedError: the prompt and the longest answer do not fit the context together, or the
                messages or the schema are not usable.
            RequestCancelledError: `cancelled` said so.
        """
        began = time.perf_counter()
        prompt = self.vocabulary.prompt(request.messages)
        self._check_length(len(prompt), request.max_tokens)
        schema = request.response_schema
        constraint = None if schema is None else self._grammars.constraint(schema)
        answer = Answer(request, self.vocabulary.text_stream(), constraint, self.manifest.end_tokens)

        self._slot.clear()
        logits = self._advance(prompt, cancelled)
        prefilled = time.perf_counter()
        token = answer.take(logits[-1])
        _tell(answer, hear)
        while answer.finish_reason is None:
            token = answer.take(self._advance([token], cancelled)[-1])
            _tell(answer, hear)
        return Completion(
            text=answer.text,
            finish_reason=answer.finish_reason,
            confidence=min(answer.confidence, 1.0),
            prompt_tokens=len(prompt),
            completion_tokens=answer.tokens,
            prefill_s=prefilled - began,
            decode_s=time.perf_counter() - prefilled,
        )

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """At most `count` most probable tokens after a prompt, up to and with an end token."""
        self._slot.clear()
        ids = [int(self._advance(prompt)[-1].argmax())]
        while len(ids) < count and ids[-1] not in self.manifest.end_tokens:
            ids.append(int(self._advance(ids[-1:])[-1].argmax()))
        return ids

    def logits(self, ids: Sequence[int]) -> Floats:
        """The logits after each token of a text, [len(ids), vocabulary]."""
        self._slot.clear()
        return np.concatenate([self._advance(ids[i : i + CHUNK]).copy() for i in range(0, len(ids), CHUNK)])

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

    def _advance(self, ids: Sequence[int], cancelled: Callable[[], bool] = lambda: False) -> Floats:
        """Append tokens to the slot, a chunk at a time. Returns the logits of the last chunk."""
        logits = np.empty((0, self.manifest.vocab_size), np.float32)
        for start in range(0, len(ids), CHUNK):
            if cancelled():
                raise RequestCancelledError("cancelled")
            logits = self._model.advance(self._slot, ids[start : start + CHUNK])
        return logits

    def _check_length(self, prompt_tokens: int, max_tokens: int) -> None:
        context = self.manifest.context_length
        if prompt_tokens + max_tokens > context:
            raise RequestRefusedError(
                "context_length_exceeded",
                f"the prompt has {prompt_tokens} tokens and the answer may have {max_tokens};"
                f" together they exceed the model's context of {context}",
            )


def _tell(answer: Answer, hear: Hear | None) -> None:
    if hear and (piece := answer.piece()):
        hear(piece)
