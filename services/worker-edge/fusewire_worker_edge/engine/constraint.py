"""Answers that satisfy a grammar: at each step, only tokens that can still lead to one are allowed."""

import json
import re
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

from fusewire_worker_edge.engine.api import EngineError, GenerateRequest, RequestRefusedError
from fusewire_worker_edge.engine.dialects import Dialect, answer_grammar, arguments_grammar


class Constraint:
    """The grammar of one answer, and how far the answer has come in it."""

    def __init__(self, tokenizer: LLTokenizer, vocab_size: int, grammar: str) -> None:
        self._matcher = LLMatcher(tokenizer, grammar, log_level=0)
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
        return np.unpackbits(
            self._mask.view(np.uint8), count=self._vocab_size, bitorder="little"
        ).astype(np.bool_)

    def accept(self, token: int) -> None:
        """Take the next token; it was one of `allowed`."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError("the answer's grammar outgrew the limits of llguidance")


class Grammars:
    """Makes constraints for one vocabulary; the tokenizer's trie is built when first needed."""

    def __init__(self, tokenizer_json: str, vocab_size: int, end_tokens: tuple[int, ...]) -> None:
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._end_tokens = list(end_tokens)
        self._tokenizer: LLTokenizer | None = None
        added = json.loads(tokenizer_json)["added_tokens"]
        self._special_ids = {token["content"]: token["id"] for token in added if token["special"]}
        longest_first = sorted(self._special_ids, key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    def of_schema(self, schema: dict[str, Any]) -> Constraint:
        """The constraint of one answer that is a JSON document.

        Raises:
            RequestRefusedError: the schema is not valid, or uses what cannot be enforced.
        """
        grammar = LLMatcher.grammar_from_json_schema(
            json.dumps(schema), overrides={"whitespace_flexible": False}
        )
        if not self._is_usable(grammar):
            raise RequestRefusedError(
                "bad_request", "response_schema is not a JSON Schema that the engine can enforce"
            )
        return Constraint(self._trie(), self._vocab_size, grammar)

    def of_tools(self, dialect: Dialect, request: GenerateRequest) -> Constraint:
        """The constraint of one answer that may call tools.

        Raises:
            RequestRefusedError: a schema is not valid, or uses what cannot be enforced.
        """
        grammar = answer_grammar(
            dialect,
            request.tools,
            choice=request.tool_choice,
            is_parallel=request.parallel_tool_calls,
            literal=self._literal,
            schema=request.response_schema,
        )
        if not self._is_usable(grammar):
            bad = next(
                (t.name for t in request.tools if not self._is_usable(arguments_grammar(t))), None
            )
            what = (
                "response_schema is" if bad is None else f"the parameters of the tool '{bad}' are"
            )
            raise RequestRefusedError(
                "bad_request", f"{what} not a JSON Schema that the engine can enforce"
            )
        return Constraint(self._trie(), self._vocab_size, grammar)

    def _is_usable(self, grammar: str) -> bool:
        return not LLMatcher(self._trie(), grammar, log_level=0).is_error()

    def _literal(self, text: str) -> str:
        parts = self._special.split(text)
        return " ".join(
            f"<[{self._special_ids[part]}]>" if part in self._special_ids else json.dumps(part)
            for part in parts
            if part
        )

    def _trie(self) -> LLTokenizer:
        if self._tokenizer is None:
            self._tokenizer = LLTokenizer(
                self._tokenizer_json, n_vocab=self._vocab_size, eos_token=self._end_tokens
            )
        return self._tokenizer
