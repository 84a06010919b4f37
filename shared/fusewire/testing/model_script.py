"""The script of the fake model server: latencies, answers and faults, for tests and benchmarks."""

import hashlib
import json
import math
import random
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ANY_MODEL = "*"
"""The script of every model that has none of its own."""

STATUS_FAULTS: dict[str, tuple[int, str, str]] = {
    "rate_limited": (429, "rate_limit_exceeded", "requests"),
    "insufficient_quota": (429, "insufficient_quota", "insufficient_quota"),
    "server_error": (500, "", "server_error"),
    "bad_gateway": (502, "", "server_error"),
    "unavailable": (503, "", "server_error"),
    "gateway_timeout": (504, "", "server_error"),
    "overloaded": (529, "", "overloaded_error"),
    "context_length_exceeded": (400, "context_length_exceeded", "invalid_request_error"),
    "content_policy": (400, "content_policy_violation", "invalid_request_error"),
    "bad_request": (400, "invalid_value", "invalid_request_error"),
    "unauthorized": (401, "invalid_api_key", "invalid_request_error"),
    "forbidden": (403, "permission_denied", "invalid_request_error"),
    "model_not_found": (404, "model_not_found", "invalid_request_error"),
    "gone": (410, "", "invalid_request_error"),
    "too_large": (413, "", "invalid_request_error"),
    "redirect": (307, "", ""),
}
"""Faults that are an HTTP error: status, `error.code` and `error.type`, as OpenAI has them."""

FaultKind = Literal[
    "none",
    "rate_limited",
    "insufficient_quota",
    "server_error",
    "bad_gateway",
    "unavailable",
    "gateway_timeout",
    "overloaded",
    "context_length_exceeded",
    "content_policy",
    "bad_request",
    "unauthorized",
    "forbidden",
    "model_not_found",
    "gone",
    "too_large",
    "redirect",
    "error_in_200",  # an error object in a response of status 200, as OpenRouter sends
    "hang",  # never answers
    "close",  # closes before answering
    "truncate",  # closes within the body, or after half of the tokens of a stream
    "drip",  # answers whole, over `seconds`
    "garbage",  # 200, and no JSON
    "no_finish_reason",
    "interrupted",  # a piece of an answer, with the finish reason `error`; OpenAI's protocol only
    "length",
    "content_filter",
    "empty",
    "huge",  # an answer of `bytes`
    # Of streams, after `tokens`; to a request that wants none the same befalls the whole body.
    "stream_close",  # closes
    "stream_error",  # sends an error, in a response of status 200
    "stream_hang",  # sends nothing more
    "stream_unknown",  # answers whole, as a server that knows no streams
]


_CANDIDATE = re.compile(r"\[\[\w+ (\w+)\]\]\n(.*?)\n\[\[/", re.DOTALL)
"""A candidate as it is shown to a judge: its label and its text."""


_WORDS = re.compile(r"satisfies this schema: (\{.*\})$", re.DOTALL)


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fault(_Data):
    """One request's fate."""

    kind: FaultKind
    headers: dict[str, str] = Field(default_factory=dict)
    """Sent with an HTTP error, such as `retry-after`."""
    seconds: float = 1.0
    bytes: int = 4 * 1024 * 1024
    tokens: int = 1


class Refusal(_Data):
    """A parameter that a model does not take: requests that hold it are refused with status 400."""

    parameter: str
    """Its name in the request as it is sent; `system` is a message of that role."""
    unless: Any = None
    """A value of it that is taken all the same."""
    message: str = "Unsupported parameter: '{parameter}' is not supported with this model."
    """What the error says."""
    is_named: bool = True
    """Whether the error names it in `param` too, as OpenAI's do."""

    def concerns(self, request: Mapping[str, Any]) -> bool:
        """Whether a request holds it."""
        if self.parameter == "system":
            messages = request.get("messages")
            return isinstance(messages, list) and any(m.get("role") == "system" for m in messages)
        for fields in (request, request.get("generationConfig")):
            if isinstance(fields, Mapping) and self.parameter in fields:
                return bool(fields[self.parameter] != self.unless)
        return False


REASONING = (
    Refusal(
        parameter="max_tokens",
        message="Unsupported parameter: 'max_tokens' is not supported with this model. "
        "Use 'max_completion_tokens' instead.",
    ),
    Refusal(
        parameter="temperature",
        unless=1,
        message="Unsupported value: 'temperature' does not support 0 with this model. "
        "Only the default (1) value is supported.",
    ),
    Refusal(parameter="top_p", unless=1),
    Refusal(parameter="stop"),
)
"""As OpenAI's reasoning models refuse."""
CLAUDE_5 = (
    Refusal(
        parameter="temperature",
        message="`temperature` is deprecated for this model.",
        is_named=False,
    ),
    Refusal(parameter="top_p", message="`top_p` is deprecated for this model.", is_named=False),
)
"""As Anthropic's models of 2026 refuse."""
KIMI = (
    Refusal(
        parameter="temperature",
        unless=1,
        message="invalid temperature: only 1 is allowed for this model",
        is_named=False,
    ),
)
"""As Moonshot's thinking models refuse."""
DEEPSEEK = (
    Refusal(
        parameter="response_format",
        unless={"type": "json_object"},
        message="This response_format type is unavailable now",
        is_named=False,
    ),
)
"""DeepSeek knows JSON objects and no schemas."""


class ScriptedCall(_Data):
    """A tool call that a model makes."""

    name: str
    arguments: dict[str, Any] | str = Field(default_factory=dict)
    """A text is sent as it is, JSON or not."""


class Rule(_Data):
    """The answer to prompts whose last user message `match` (a regular expression) is found in."""

    match: str
    answer: str = ""
    calls: tuple[ScriptedCall, ...] = ()
    """Made in place of the answer, where `ModelScript.calls` would be."""


class ModelScript(_Data):
    """One model's behaviour."""

    latency_ms: float = Field(default=0.0, ge=0)
    """The median, if `latency_sigma` is not 0."""
    latency_sigma: float = Field(default=0.0, ge=0)
    """Of a log-normal distribution, heavy-tailed from about 1; 0 gives each request the same
    latency."""
    token_ms: float = Field(default=0.0, ge=0)
    """Between the tokens of a stream; 0 sends them all at once."""
    cached_tokens: int = Field(default=0, ge=0)
    """Of each prompt's tokens, so many were in the provider's cache."""
    rules: tuple[Rule, ...] = ()
    """The first that matches answers, before anything below."""
    answer: str | None = None
    """The answer to all else; `{model}`, `{digest}` and `{prompt}` are filled in. None answers from
    the prompt."""
    calls: tuple[ScriptedCall, ...] = ()
    """Made in place of `answer` by requests that offer tools, until the last message is a tool's
    result."""
    beside: str = ""
    """What it says in the same turn as its calls."""
    faults: tuple[Fault, ...] = ()
    """The fates of the first requests, in order of arrival."""
    repeat_faults: bool = False
    """Begin again with the first fault when all are through."""
    fault_rates: dict[FaultKind, float] = Field(default_factory=dict)
    """Shares of the other requests that meet these faults."""
    refuses: tuple[Refusal, ...] = ()
    """Parameters that it does not take."""
    thinks: str = ""
    """What it thinks, in `<think>` before each answer."""
    judges: Literal["text", "first"] = "text"
    """Asked for a verdict it names the candidate whose text sorts first, or the one that is shown
    first."""
    reason: str | None = None
    """What it gives as its reason for a verdict; None gives something that fits the schema."""
    seed: int = 0


class Script(_Data):
    """Models' behaviours by the name that a request gives."""

    models: dict[str, ModelScript] = Field(default_factory=dict)
    recording: bool = False
    """Keep every byte received."""

    @classmethod
    def of(cls, *faults: FaultKind | Fault, recording: bool = False, **model: Any) -> "Script":
        """A script in which every model meets these faults in order, each model on its own."""
        all_faults = tuple(
            fault if isinstance(fault, Fault) else Fault(kind=fault) for fault in faults
        )
        return cls(models={ANY_MODEL: ModelScript(faults=all_faults, **model)}, recording=recording)


class Model:
    """A running model: its script, its place in it, its seeded randomness."""

    def __init__(self, name: str, script: ModelScript) -> None:
        self.name = name
        self._script = script
        self._random = random.Random(f"{script.seed}:{name}")
        self._request_count = 0
        self._rules = [(re.compile(rule.match), rule) for rule in script.rules]

    @property
    def token_s(self) -> float:
        """Seconds between the tokens of a stream."""
        return self._script.token_ms / 1000

    @property
    def cached_tokens(self) -> int:
        """Tokens of a prompt that were in the cache."""
        return self._script.cached_tokens

    def next_fault(self) -> Fault | None:
        """The fate of the next request; None answers it."""
        script, index = self._script, self._request_count
        self._request_count += 1
        if script.faults and script.repeat_faults:
            index %= len(script.faults)
        if index < len(script.faults):
            fault = script.faults[index]
            return None if fault.kind == "none" else fault
        return self._random_fault() if script.fault_rates else None

    def _random_fault(self) -> Fault | None:
        draw = self._random.random()
        for kind, share in self._script.fault_rates.items():
            if draw < share:
                return Fault(kind=kind)
            draw -= share
        return None

    def refusal(self, request: Mapping[str, Any]) -> Refusal | None:
        """The first parameter of a request, as it was sent, that it does not take."""
        return next(
            (refusal for refusal in self._script.refuses if refusal.concerns(request)), None
        )

    def next_latency_s(self) -> float:
        """Seconds until the next request is answered."""
        script = self._script
        if script.latency_sigma == 0:
            return script.latency_ms / 1000
        return (
            script.latency_ms * math.exp(script.latency_sigma * self._random.gauss(0.0, 1.0)) / 1000
        )

    def answer(self, request: Mapping[str, Any]) -> str:
        """The answer's text, and before it what it thinks."""
        reasoning = f"<think>\n{self._script.thinks}\n</think>\n\n" if self._script.thinks else ""
        return reasoning + self._text(request)

    def _text(self, request: Mapping[str, Any]) -> str:
        """By rule, else fitting the schema that is asked for, else by template, else an echo."""
        prompt = last_user_message(request)
        rule = self._rule(prompt)
        if rule is not None:
            return rule.answer
        schema = _schema(request)
        if schema is not None:
            return json.dumps(
                _with(satisfying(schema, schema), self._verdict(prompt, schema)), ensure_ascii=False
            )
        digest = f"d1{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"
        if self._script.answer is None:
            return f"{self.name} on {digest}: {prompt[:80]}"
        return (
            self._script.answer.replace("{model}", self.name)
            .replace("{digest}", digest)
            .replace("{prompt}", prompt)
        )

    def _verdict(self, prompt: str, schema: Mapping[str, Any]) -> dict[str, str]:
        """The reason that a judge gives, and its winner: the candidate whose text sorts first."""
        labels = schema.get("properties", {}).get("winner", {}).get("enum", ())
        texts = {label: text for label, text in _CANDIDATE.findall(prompt) if label in labels}
        if not texts:
            return {}
        reason = {"reason": self._script.reason} if self._script.reason else {}
        if self._script.judges == "first":
            return reason
        return reason | {"winner": min(texts, key=lambda label: texts[label])}

    def calls(self, request: Mapping[str, Any]) -> tuple[ScriptedCall, ...]:
        """The tool calls in place of a text; none if the request offers or allows no tools."""
        messages = request.get("messages") or []
        is_answered = bool(messages) and messages[-1].get("role") == "tool"
        if not request.get("tools") or request.get("tool_choice") == "none" or is_answered:
            return ()
        rule = self._rule(last_user_message(request))
        return rule.calls if rule is not None else self._script.calls

    @property
    def beside(self) -> str:
        """What it says in the same turn as its calls."""
        return self._script.beside

    def _rule(self, prompt: str) -> Rule | None:
        return next((rule for pattern, rule in self._rules if pattern.search(prompt)), None)


def _with(value: Any, verdict: Mapping[str, str]) -> Any:
    return {**value, **verdict} if verdict else value


def last_user_message(request: Mapping[str, Any]) -> str:
    """The text of a chat request's last user message; empty if it has none."""
    for message in reversed(request.get("messages") or []):
        if message.get("role") == "user":
            return text_of(message.get("content"))
    return ""


def text_of(content: object) -> str:
    """The text of a message's content, which is a text or a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content if isinstance(content, str) else ""


def _schema(request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema that is asked for, in `response_format` or in the text of a message."""
    response_format = request.get("response_format") or {}
    schema = (response_format.get("json_schema") or {}).get("schema")
    for message in request.get("messages") or []:
        if schema or message.get("role") == "user":
            continue
        if match := _WORDS.search(text_of(message.get("content"))):
            schema = json.loads(match[1])
    return schema if isinstance(schema, dict) else None


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    """The schema that a `$ref` within the document refers to."""
    target: Any = root
    for part in reference.removeprefix("#/").split("/"):
        target = target[part]
    return target


def satisfying(schema: Mapping[str, Any], root: Mapping[str, Any], index: int = 0) -> Any:
    """A small value that fits a JSON Schema of the kinds that judges use.

    Understands `$ref` within the document, `const`, `enum` (the value at `index`, so the first),
    `anyOf`, `oneOf`, `allOf` (their first), types, and lengths and bounds of strings, numbers and
    arrays.
    """
    if "$ref" in schema:
        return satisfying(_resolve(str(schema["$ref"]), root), root, index)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][index % len(schema["enum"])]
    for several in ("anyOf", "oneOf", "allOf"):
        if schema.get(several):
            return satisfying(schema[several][0], root, index)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    return _of_type(kind[0] if isinstance(kind, list) else kind, schema, root, index)


def _string(schema: Mapping[str, Any]) -> str:
    # Anthropic's requests have bounds in the description.
    match = re.search(r"minLength: (\d+)", str(schema.get("description", "")))
    least = schema.get("minLength", int(match[1]) if match else 0)
    return "fits".ljust(least, ".")[: schema.get("maxLength", 4096)]


def _of_type(kind: str, schema: Mapping[str, Any], root: Mapping[str, Any], index: int) -> Any:
    if kind == "object":
        return {
            name: satisfying(inner, root) for name, inner in schema.get("properties", {}).items()
        }
    if kind == "array":
        item = schema.get("items") or {}
        return [satisfying(item, root, i) for i in range(schema.get("minItems", 0))]
    if kind == "string":
        return _string(schema)
    if kind in {"integer", "number"}:
        low = schema.get(
            "minimum", schema.get("exclusiveMinimum", 0) + ("exclusiveMinimum" in schema)
        )
        return min(low + index, schema.get("maximum", low + index))
    return True if kind == "boolean" else None
