"""Dialects of tool calls: the grammar of a model's calls, and their parser. Pure.

An answer is either text or calls. The grammar, in llguidance's variant of Lark (docs/syntax.md of
that project), allows calls only in the dialect, with the name of a tool and arguments that are
valid under its schema, and text only if it does not contain the marker that calls begin with. So
every answer that is sampled under it can be parsed and is valid (docs/decisions/0030).
"""

import hashlib
import json
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fusewire.contracts import Message, Tool
from fusewire_worker_edge.engine.api import RequestedCall, RequestRefusedError

MAX_CALLS = 16
"""Most calls in one answer. A model that writes more is in a loop."""

_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as Python's json module writes it, which is what models were trained on."""
_OPEN_KEYWORDS = frozenset(
    {"allOf", "anyOf", "oneOf", "$ref", "patternProperties", "minProperties"}
)
"""Keywords of JSON Schema under which an object may need properties that `properties` lacks."""
_ID_CHARS = 9
_ALPHABET = string.ascii_letters + string.digits

SpellLiteral = Callable[[str], str]
"""Spells a text in a grammar; the text may hold special tokens."""


@dataclass(frozen=True)
class Dialect:
    """One format of tool calls: `first`, the calls with `between` between them, `last`.

    Attributes:
        marker: the beginning of `first`; no text of an answer contains it.
        first: the text before the first call.
        between: the text between two calls.
        last: the text after the last call.
        args: the text between a call's name and its arguments; empty if a call is
            `{"name": …, "arguments": …}`.
        call_id: the text between a call's name and its id of nine letters and digits; empty if the
            model writes no ids.
        hint: an addition to the system prompt, for a model that calls tools too readily.
        text: a class of characters, in regex syntax, one of which text must begin with; empty if
            text may begin with any character but must not contain the marker anywhere.
    """

    marker: str
    first: str
    between: str
    last: str = ""
    args: str = ""
    call_id: str = ""
    hint: str = ""
    text: str = ""

    def grammar(self, tools: Sequence[Tool], *, is_parallel: bool, literal: SpellLiteral) -> str:
        """Return the grammar's rule `calls` and the rules that it needs.

        Args:
            tools: the tools, at least one.
            is_parallel: whether several calls may be made.
            literal: spells text in the grammar.
        """
        more = f"({literal(self.between)} call){{0,{MAX_CALLS - 1}}}" if is_parallel else ""
        last = literal(self.last) if self.last else ""
        lines = [
            f"calls: {literal(self.first)} call {more} {last}",
            "call: " + " | ".join(f"call_{i}" for i in range(len(tools))),
        ]
        for i, tool in enumerate(tools):
            schema = {**_arguments_schema(tool), "x-guidance": _JSON_STYLE}
            lines.append(f"call_{i}: {self._call_rule(tool.name, f'args_{i}', literal)}")
            lines.append(f"args_{i}: %json {json.dumps(schema)}")
        if self.call_id:
            lines.append(f"CALL_ID: /[a-zA-Z0-9]{{{_ID_CHARS}}}/")
        return "\n".join(lines)

    def _call_rule(self, name: str, arguments_rule: str, literal: SpellLiteral) -> str:
        """The rule of one tool's calls."""
        if self.args:
            own_id = f"{literal(self.call_id)} CALL_ID" if self.call_id else ""
            return f"{json.dumps(name)} {own_id} {literal(self.args)} {arguments_rule}"
        head = json.dumps(f'{{"name": {json.dumps(name)}, "arguments": ')
        return f'{head} {arguments_rule} "}}"'

    def parse(self, text: str) -> tuple[RequestedCall, ...] | None:
        """Parse the calls of a text. None if it does not consist of complete calls."""
        calls: list[RequestedCall] = []
        try:
            rest = _cut(text, self.first)
            call, rest = self._parse_call(rest)
            calls.append(call)
            while rest != self.last:
                call, rest = self._parse_call(_cut(rest, self.between))
                calls.append(call)
        except ValueError:
            return None
        return tuple(calls)

    def _parse_call(self, text: str) -> tuple[RequestedCall, str]:
        """Parse the call at the beginning of a text. Return it and the rest of the text.

        Raises:
            ValueError: the call is not complete.
        """
        if self.args:
            head, rest = text.split(self.args, 1)
            name = head.split(self.call_id)[0] if self.call_id else head
            arguments, end = json.JSONDecoder().raw_decode(rest)
            rest = rest[end:]
        else:
            call, end = json.JSONDecoder().raw_decode(text)
            name, arguments, rest = call["name"], call["arguments"], text[end:]
        return RequestedCall(name=name, arguments=json.dumps(arguments, ensure_ascii=False)), rest


HERMES = Dialect(
    "<tool_call>",
    first="<tool_call>\n",
    between="\n</tool_call>\n<tool_call>\n",
    last="\n</tool_call>",
)
"""Nous Hermes and Qwen2.5; also used for models whose template has no tools."""
FENCED = Dialect(
    "```json",
    first="```json\n",
    between="\n",
    last="\n```",
    text=r"[^`{\[<]",
    hint=(
        "Call functions only when the request needs one of them, one call for each thing asked;"
        " otherwise answer in plain text without a call."
    ),
)
"""Qwen2.5-Coder, in spite of its template.

Of 20 answers none had Hermes' tags, neither with 0.5B nor with 1.5B parameters.
"""
PHI = Dialect("<|tool_call|>", first="<|tool_call|>[", between=", ", last="]<|/tool_call|>")
MISTRAL_LIST = Dialect("[TOOL_CALLS]", first="[TOOL_CALLS][", between=", ", last="]")
"""Mistral's tokenizers v3 to v7."""
MISTRAL_SPACED_LIST = replace(MISTRAL_LIST, first="[TOOL_CALLS] [")
"""The same for tokenizers of SentencePiece, which puts a space after a control token."""
MISTRAL_V11 = Dialect(
    "[TOOL_CALLS]", "[TOOL_CALLS]", "[TOOL_CALLS]", args="[ARGS]", call_id="[CALL_ID]"
)
"""Mistral's tokenizers v11 and v12."""
MISTRAL_V13 = replace(MISTRAL_V11, call_id="")
"""Mistral's tokenizers from v13 on."""


BY_NAME = {"hermes": HERMES, "fenced": FENCED}
"""The dialects that a manifest may name, for models that do not follow their template."""


def dialect_of_template(template: str) -> Dialect | None:
    """Return the dialect that a chat template teaches, or None if it teaches none of ours.

    >>> dialect_of_template("{% if tools %}<tool_call>{% endif %}") is HERMES
    True
    """
    if "tools" not in template:
        return None
    for dialect in (MISTRAL_LIST, PHI, HERMES):
        if dialect.marker in template:
            return dialect
    return None


def answer_grammar(
    dialect: Dialect,
    tools: Sequence[Tool],
    *,
    choice: str,
    is_parallel: bool,
    literal: SpellLiteral,
    schema: Mapping[str, Any] | None = None,
) -> str:
    """Return the grammar of a whole answer.

    Args:
        dialect: the format of calls.
        tools: the tools of the request, at least one.
        choice: `auto`, `none`, `required` or a tool's name.
        is_parallel: whether several calls may be made at once.
        literal: spells text in the grammar.
        schema: the JSON Schema of an answer without calls; None allows any text.

    Raises:
        RequestRefusedError: `choice` names no tool.
    """
    callable_tools = [tool for tool in tools if choice in ("auto", "none", "required", tool.name)]
    if not callable_tools:
        raise RequestRefusedError(
            "bad_request", "tool_choice names none of the tools; name one of them"
        )
    lines = []
    if choice in ("auto", "none"):
        if schema is not None:
            compact_schema = {**schema, "x-guidance": {"whitespace_flexible": False}}
            lines.append(f"text: %json {json.dumps(compact_schema)}")
        else:
            lines.append(f"text: TEXT\nTEXT: {_text_pattern(dialect, literal)}")
    if choice != "none":
        lines.append(dialect.grammar(callable_tools, is_parallel=is_parallel, literal=literal))
    start = {"auto": "text | calls", "none": "text"}.get(choice, "calls")
    return "\n".join(["%llguidance {}", f"start: {start}", *lines])


def _text_pattern(dialect: Dialect, literal: SpellLiteral) -> str:
    """The pattern of text that cannot be taken for calls."""
    if dialect.text:
        return f"/{dialect.text}(?s:.*)/"
    if literal(dialect.marker).startswith("<["):
        # The marker is a special token, which a pattern of text never matches.
        return "/(?s:.+)/"
    return f"/(?s:.+)/ & ~/(?s:.*){_escape(dialect.marker)}(?s:.*)/"


def arguments_grammar(tool: Tool) -> str:
    """Return the grammar of one tool's arguments alone, to find one that cannot be enforced."""
    return f"start: %json {json.dumps(_arguments_schema(tool))}"


def check_results(messages: Sequence[Message]) -> None:
    """Check that each call of a conversation has its result in the messages directly after it.

    Raises:
        RequestRefusedError: a result is missing, or belongs to no call.
    """
    open_calls: set[str] = set()
    for index, message in enumerate(messages):
        if message.role == "tool":
            if message.tool_call_id not in open_calls:
                raise RequestRefusedError(
                    "bad_request",
                    f"messages.{index} is the result of no call before it; send the call first",
                )
            open_calls.remove(message.tool_call_id)
        else:
            _check_no_open_calls(open_calls)
            open_calls = {call.id for call in message.tool_calls}
    _check_no_open_calls(open_calls)


def _check_no_open_calls(open_calls: Collection[str]) -> None:
    if open_calls:
        raise RequestRefusedError(
            "bad_request",
            f"{len(open_calls)} tool calls have no result; send one tool message for each",
        )


def short_id(call_id: str) -> str:
    """Return the id that Mistral's formats take: nine letters and digits, a hash of any other id.

    >>> short_id("abcDEF123"), short_id("call_1") == short_id("call_1")
    ('abcDEF123', True)
    """
    if len(call_id) == _ID_CHARS and all(c in _ALPHABET for c in call_id):
        return call_id
    number = int.from_bytes(hashlib.sha256(call_id.encode()).digest(), "big")
    return "".join(
        _ALPHABET[number // len(_ALPHABET) ** i % len(_ALPHABET)] for i in range(_ID_CHARS)
    )


def _arguments_schema(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments, closed against undeclared properties where that is safe."""
    schema = {"type": "object", "properties": {}, **tool.parameters}
    properties = schema["properties"]
    is_simple = (
        # Other keywords may declare further properties.
        not schema.keys() & _OPEN_KEYWORDS
        and isinstance(properties, dict)
        and set(schema.get("required", ())) <= properties.keys()
    )
    if is_simple:
        schema.setdefault("additionalProperties", False)
    return schema


def _escape(text: str) -> str:
    """Escape a text for a regex of llguidance."""
    return "".join(f"\\{c}" if c in r".^$*+?()[]{}|\/" else c for c in text)


def _cut(text: str, beginning: str) -> str:
    """Remove the beginning of a text; ValueError if the text does not begin with it."""
    if not text.startswith(beginning):
        raise ValueError("the text ends in the middle of a call")
    return text[len(beginning) :]
