"""Answers that satisfy a JSON Schema: at each step, only tokens that can still lead to one are allowed."""

import json
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

from fusewire_worker_edge.engine.api import EngineError, RequestRefusedError


class Constraint:
    """The grammar of one answer, and how far the answer has come in it."""

    def __init__(self, tokenizer: LLTokenizer, vocab_size: int, schema: dict[str, Any]) -> None:
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_flexible": False})
        self._matcher = LLMatcher(tokenizer, grammar, log_level=0)
        if self._matcher.is_error():
            raise RequestRefusedError("bad_request", "response_schema is not a JSON Schema that the engine can enforce")
        self._vocab_size = vocab_size
        self._mask = allocate_token_bitmask(1, vocab_size)

    @property
    def complete(self) -> bool:
        """The document is whole and nothing can follow it."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, [vocabulary]. Has an end token where the document is whole."""
        fill_next_token_bitmask(self._matcher, self._mask)
        self._check()
        return np.unpackbits(self._mask.view(np.uint8), count=self._vocab_size, bitorder="little").astype(np.bool_)

    def accept(self, token: int) -> None:
        """Take the next token; it was one of `allowed`."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError("the schema's grammar outgrew the limits of llguidance")


class Grammars:
    """Makes constraints for one vocabulary; the tokenizer's trie is built when first needed."""

    def __init__(self, tokenizer_json: str, vocab_size: int, end_tokens: tuple[int, ...]) -> None:
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._end_tokens = list(end_tokens)
        self._tokenizer: LLTokenizer | None = None

    def constraint(self, schema: dict[str, Any]) -> Constraint:
        """The constraint of one answer.

        Raises:
            RequestRefusedError: the schema is not valid, or uses what cannot be enforced.
        """
        if self._tokenizer is None:
            self._tokenizer = LLTokenizer(self._tokenizer_json, n_vocab=self._vocab_size, eos_token=self._end_tokens)
        return Constraint(self._tokenizer, self._vocab_size, schema)
