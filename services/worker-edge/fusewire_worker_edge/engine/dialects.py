"""How models write tool calls: the grammar that makes them do it, and the way back. Pure.

An answer is either text or calls. The grammar (llguidance's Lark, docs/syntax.md of that project) lets a
call be written only as its dialect has it, with a known name and arguments that fit the tool's schema; text
cannot spell the marker that calls begin with. So whatever is sampled parses and validates.
"""

import hashlib
import json
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fusewire.contracts import Message, Tool
from fusewire_worker_edge.engine.api import RequestedCall, RequestRefusedError

MAX_CALLS = 16
"""More calls at once than this are a model that goes round in circles."""

_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As Python's json module writes it, which is what models have seen."""
_ID_CHARS = 9
_ALPHABET = string.ascii_letters + string.digits

Literal = Callable[[str], str]
"""How a grammar spells a text that may hold special tokens."""


@dataclass(frozen=True)
class Dialect:
    """One way to write calls: `first`, calls with `between` between them, `last`.

    Attributes:
        marker: what `first` begins with, and no text.
        args: empty where a call is `{"name": …, "arguments": …}`; else what stands between name and arguments.
        call_id: stands after the name and before nine letters and digits, where the model writes an id.
        hint: what a model that calls too readily is told besides.
        text: the characters that begin text, where the marker is no special token; any, but then the marker is barred.
    """

    marker: str
    first: str
    between: str
    last: str = ""
    args: str = ""
    call_id: str = ""
    hint: str = ""
    text: str = ""

    def grammar(self, tools: Sequence[Tool], *, is_parallel: bool, literal: Literal) -> str:
        """The rule `calls` and those that it needs."""
        more = f"({literal(self.between)} call){{0,{MAX_CALLS - 1}}}" if is_parallel else ""
        lines = [
            f"calls: {literal(self.first)} call {more} {literal(self.last) if self.last else ''}",
            "call: " + " | ".join(f"call_{i}" for i in range(len(tools))),
        ]
        for i, tool in enumerate(tools):
            if self.args:
                own_id = f"{literal(self.call_id)} CALL_ID" if self.call_id else ""
                lines.append(
                    f"call_{i}: {json.dumps(tool.name)} {own_id} {literal(self.args)} args_{i}"
                )
            else:
                head = json.dumps(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
                lines.append(f'call_{i}: {head} args_{i} "}}"')
            lines.append(
                f"args_{i}: %json {json.dumps({**_arguments(tool), 'x-guidance': _JSON_STYLE})}"
            )
        if self.call_id:
            lines.append(f"CALL_ID: /[a-zA-Z0-9]{{{_ID_CHARS}}}/")
        return "\n".join(lines)

    def parse(self, text: str) -> tuple[RequestedCall, ...] | None:
        """The calls of a text that begins with the marker; None if it ends in the middle of one."""
        calls: list[RequestedCall] = []
        try:
            rest = _cut(text, self.first)
            while not calls or rest != self.last:
                call, rest = self._parse_one(_cut(rest, self.between) if calls else rest)
                calls.append(call)
        except ValueError:
            return None
        return tuple(calls)

    def _parse_one(self, text: str) -> tuple[RequestedCall, str]:
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
"""Qwen2.5's, and that of Nous Hermes; also for models whose template knows no tools."""
FENCED = Dialect(
    "```json",
    first="```json\n",
    between="\n",
    last="\n```",
    text=r"[^`{\[<]",
    hint="Call functions only when the request needs one of them, one call for each thing asked; otherwise answer in"
    " plain text without a call.",
)
"""What Qwen2.5-Coder writes, whatever its template teaches: of 20 answers none had Hermes' tags, in both sizes."""
PHI = Dialect("<|tool_call|>", first="<|tool_call|>[", between=", ", last="]<|/tool_call|>")
MISTRAL_LIST = Dialect("[TOOL_CALLS]", first="[TOOL_CALLS][", between=", ", last="]")
"""Mistral's tokenizers v3 to v7."""
MISTRAL_SPACED_LIST = replace(MISTRAL_LIST, first="[TOOL_CALLS] [")
"""The same with SentencePiece, which puts a space after a control token."""
MISTRAL_V11 = Dialect(
    "[TOOL_CALLS]", "[TOOL_CALLS]", "[TOOL_CALLS]", args="[ARGS]", call_id="[CALL_ID]"
)
MISTRAL_V13 = replace(MISTRAL_V11, call_id="")


BY_NAME = {"hermes": HERMES, "fenced": FENCED}
"""Those that a manifest may name, for models that write otherwise than their template teaches."""


def of_template(template: str) -> Dialect | None:
    """The dialect that a chat template teaches, or None if it teaches none that is known."""
    known = (d for d in (MISTRAL_LIST, PHI, HERMES) if "tools" in template and d.marker in template)
    return next(known, None)


def answer_grammar(
    dialect: Dialect,
    tools: Sequence[Tool],
    *,
    choice: str,
    is_parallel: bool,
    literal: Literal,
    schema: Mapping[str, Any] | None = None,
) -> str:
    """The grammar of a whole answer.

    Args:
        dialect: how calls are written.
        tools: what may be called, at least one.
        choice: `auto`, `none`, `required` or a tool's name.
        is_parallel: whether several calls may be made at once.
        literal: spells text.
        schema: what the answer must satisfy where it is text.

    Raises:
        RequestRefusedError: `choice` names no tool.
    """
    offered = [tool for tool in tools if choice in ("auto", "none", "required", tool.name)]
    if not offered:
        raise RequestRefusedError(
            "bad_request", "tool_choice names none of the tools; name one of them"
        )
    lines = []
    if choice in ("auto", "none"):
        if schema is not None:
            text = f"text: %json {json.dumps({**schema, 'x-guidance': {'whitespace_flexible': False}})}"
        else:
            text = f"text: TEXT\nTEXT: {_text(dialect, literal)}"
        lines.append(text)
    if choice != "none":
        lines.append(dialect.grammar(offered, is_parallel=is_parallel, literal=literal))
    start = {"auto": "text | calls", "none": "text"}.get(choice, "calls")
    return "\n".join(["%llguidance {}", f"start: {start}", *lines])


def _text(dialect: Dialect, literal: Literal) -> str:
    """The pattern of text that cannot be taken for calls."""
    if dialect.text:
        return f"/{dialect.text}(?s:.*)/"
    # A special token is no text, so no text can hold one.
    is_special = literal(dialect.marker).startswith("<[")
    return "/(?s:.+)/" + ("" if is_special else f" & ~/(?s:.*){_escaped(dialect.marker)}(?s:.*)/")


def arguments_grammar(tool: Tool) -> str:
    """The grammar of one tool's arguments alone, to find the one that cannot be expressed."""
    return f"start: %json {json.dumps(_arguments(tool))}"


def check_results(messages: Sequence[Message]) -> None:
    """See that every call of a conversation is answered, directly after it, and nothing else is.

    Raises:
        RequestRefusedError: a result is missing, or answers no call.
    """
    open_calls: set[str] = set()
    for at, message in enumerate(messages):
        if message.role == "tool":
            if message.tool_call_id not in open_calls:
                raise RequestRefusedError(
                    "bad_request",
                    f"messages.{at} is the result of no call before it; send the call first",
                )
            open_calls.remove(message.tool_call_id)
            continue
        if open_calls:
            break
        open_calls = {call.id for call in message.tool_calls}
    if open_calls:
        raise RequestRefusedError(
            "bad_request",
            f"{len(open_calls)} tool calls have no result; send one tool message for each",
        )


def short_id(call_id: str) -> str:
    """Nine letters and digits for any id, always the same ones: what Mistral's formats take."""
    if len(call_id) == _ID_CHARS and all(c in _ALPHABET for c in call_id):
        return call_id
    number = int.from_bytes(hashlib.sha256(call_id.encode()).digest(), "big")
    return "".join(
        _ALPHABET[number // len(_ALPHABET) ** i % len(_ALPHABET)] for i in range(_ID_CHARS)
    )


def _arguments(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments; nothing that it does not declare is written."""
    schema = {"type": "object", "properties": {}, **tool.parameters}
    declared = schema["properties"]
    composed = schema.keys() & {
        "allOf",
        "anyOf",
        "oneOf",
        "$ref",
        "patternProperties",
        "minProperties",
    }
    if (
        not composed
        and isinstance(declared, dict)
        and set(schema.get("required", ())) <= declared.keys()
    ):
        schema.setdefault("additionalProperties", False)
    return schema


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in r".^$*+?()[]{}|\/" else c for c in text)


def _cut(text: str, beginning: str) -> str:
    if not text.startswith(beginning):
        raise ValueError("the text ends in the middle of a call")
    return text[len(beginning) :]
