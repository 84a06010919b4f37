"""Constrained decoding: at each step, a grammar allows only tokens that can complete the answer."""

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
    """The grammar of one answer and the answer's state in it.

    Args:
        tokenizer: llguidance's tokenizer of the vocabulary.
        vocab_size: size of the vocabulary.
        grammar: in llguidance's format.
    """

    def __init__(self, tokenizer: LLTokenizer, vocab_size: int, grammar: str) -> None:
        self._matcher = LLMatcher(tokenizer, grammar, log_level=0)
        self._vocab_size = vocab_size
        self._mask = allocate_token_bitmask(1, vocab_size)

    @property
    def is_complete(self) -> bool:
        """Whether the answer is complete and no token can follow it."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed_tokens(self) -> NDArray[np.bool_]:
        """Return which tokens may come next, [vocabulary]; an end token if the answer may end here.

        Raises:
            EngineError: the grammar grew beyond the limits of llguidance.
        """
        fill_next_token_bitmask(self._matcher, self._mask)
        self._check()
        return np.unpackbits(
            self._mask.view(np.uint8), count=self._vocab_size, bitorder="little"
        ).astype(np.bool_)

    def accept(self, token: int) -> None:
        """Advance by the next token, one of `allowed_tokens`.

        Raises:
            EngineError: the grammar grew beyond the limits of llguidance.
        """
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError("the answer's grammar outgrew the limits of llguidance")


class Grammars:
    """Makes constraints for one vocabulary. Builds llguidance's tokenizer on first use.

    Args:
        tokenizer_json: the text of `tokenizer.json`.
        vocab_size: size of the vocabulary.
        end_tokens: the ids that end an answer.
    """

    def __init__(self, tokenizer_json: str, vocab_size: int, end_tokens: tuple[int, ...]) -> None:
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._end_tokens = list(end_tokens)
        self._tokenizer: LLTokenizer | None = None
        added_tokens = json.loads(tokenizer_json)["added_tokens"]
        self._special_ids = {
            token["content"]: token["id"] for token in added_tokens if token["special"]
        }
        longest_first = sorted(self._special_ids, key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    def of_schema(self, schema: dict[str, Any]) -> Constraint:
        """Return the constraint of one answer that is a JSON document.

        Raises:
            RequestRefusedError: the schema is not valid, or a keyword of it cannot be enforced.
        """
        grammar = LLMatcher.grammar_from_json_schema(
            json.dumps(schema), overrides={"whitespace_flexible": False}
        )
        if not self._is_usable(grammar):
            raise RequestRefusedError(
                "bad_request", "response_schema is not a JSON Schema that the engine can enforce"
            )
        return Constraint(self._ll_tokenizer(), self._vocab_size, grammar)

    def of_tools(self, dialect: Dialect, request: GenerateRequest) -> Constraint:
        """Return the constraint of one answer that may call tools.

        Raises:
            RequestRefusedError: a schema is not valid, or a keyword of it cannot be enforced.
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
            raise RequestRefusedError(
                "bad_request",
                f"{self._bad_schema(request)} not a JSON Schema that the engine can enforce",
            )
        return Constraint(self._ll_tokenizer(), self._vocab_size, grammar)

    def _bad_schema(self, request: GenerateRequest) -> str:
        """Name the schema that cannot be enforced, as subject and verb of a sentence."""
        for tool in request.tools:
            if not self._is_usable(arguments_grammar(tool)):
                return f"the parameters of the tool '{tool.name}' are"
        return "response_schema is"

    def _is_usable(self, grammar: str) -> bool:
        return not LLMatcher(self._ll_tokenizer(), grammar, log_level=0).is_error()

    def _literal(self, text: str) -> str:
        """Spell a text in a grammar: special tokens by their ids, everything else as strings."""
        symbols = []
        for part in self._special.split(text):
            if part in self._special_ids:
                symbols.append(f"<[{self._special_ids[part]}]>")
            elif part:
                symbols.append(json.dumps(part))
        return " ".join(symbols)

    def _ll_tokenizer(self) -> LLTokenizer:
        if self._tokenizer is None:
            self._tokenizer = LLTokenizer(
                self._tokenizer_json, n_vocab=self._vocab_size, eos_token=self._end_tokens
            )
        return self._tokenizer
