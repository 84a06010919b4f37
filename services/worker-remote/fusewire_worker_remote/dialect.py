"""Which parameters a model refuses or renames, and requests adapted to that. No IO.

Servers that speak one protocol differ in the parameters that they accept, and name the one that
they refuse. So nothing is assumed: a refusal drops or renames that parameter, and the call is made
again (docs/decisions/0035).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SchemaForm = Literal["schema", "json", "words"]
"""How a request asks for JSON: by a JSON Schema, as any JSON object, or in the prompt alone."""

_NEXT_FORM: dict[SchemaForm, SchemaForm] = {"schema": "json", "json": "words"}
"""The form to try after one that was refused."""
_SCHEMA_KEYS = ("response_format", "output_config", "responseJsonSchema", "responseMimeType")
_NEGOTIABLE = (
    "temperature",
    "top_p",
    "topP",
    "top_k",
    "topK",
    "min_p",
    "frequency_penalty",
    "frequencyPenalty",
    "presence_penalty",
    "presencePenalty",
    "repetition_penalty",
    "logit_bias",
    "seed",
    "random_seed",
    "stop",
    "stop_sequences",
    "stopSequences",
    "max_tokens",
    "max_completion_tokens",
    "maxOutputTokens",
    "stream_options",
    "parallel_tool_calls",
    "reasoning_effort",
    *_SCHEMA_KEYS,
)
"""Parameters that can be left out.

Any other one changes what the request means, so its refusal is the answer.
"""
_RENAMES = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
_VALUE_WORDS = re.compile(
    r"less than|greater than|more than|at (most|least)|maximum|minimum|between|range|[<>]=?|exceed"
    r"|too (large|many|long|small|high)"
)
"""Words of an error that refuses a parameter's value."""
_PARAMETER_WORDS = re.compile(
    r"\bonly\b|default|unsupported|not support|deprecated|unknown|unrecognized|unexpected"
    r"|not permitted|not allowed|forbidden|unavailable|extra (inputs|fields)"
)
"""Words of an error that refuses the parameter itself."""
_SCHEMA_WORDS = ("json_schema", "structured output", "json mode")
_NESTED = "generationConfig"
"""The member of Gemini's requests that holds further parameters."""
_MOST_TEXT = 4_000
"""Most characters of an error that are searched."""
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL | re.IGNORECASE)


class Dialect(BaseModel):
    """What one model at one address accepts. Immutable."""

    model_config = ConfigDict(frozen=True)

    dropped: tuple[str, ...] = ()
    renamed: dict[str, str] = {}
    schema_form: SchemaForm = "schema"
    system_role: Literal["system", "developer", "user"] = "system"
    is_thinking: bool = False
    """Whether the model was seen to think before it answers."""

    def describe(self) -> str:
        """Describe the differences for people; empty if there are none.

        >>> Dialect(dropped=("seed",), schema_form="json").describe()
        'without seed, schema as json'
        """
        parts = [f"without {name}" for name in self.dropped]
        parts += [f"{ours} as {theirs}" for ours, theirs in sorted(self.renamed.items())]
        if self.schema_form != "schema":
            parts.append(f"schema as {self.schema_form}")
        if self.system_role != "system":
            parts.append(f"system as {self.system_role}")
        if self.is_thinking:
            parts.append("thinks")
        return ", ".join(parts)

    def merge(self, other: "Dialect") -> "Dialect":
        """Return the dialect with the differences of both; `other` wins on names."""
        if other is PLAIN:
            return self
        forms: list[SchemaForm] = ["schema", "json", "words"]
        return Dialect(
            dropped=tuple(sorted({*self.dropped, *other.dropped})),
            renamed={**self.renamed, **other.renamed},
            schema_form=max(self.schema_form, other.schema_form, key=forms.index),
            system_role=other.system_role if self.system_role == "system" else self.system_role,
            is_thinking=self.is_thinking or other.is_thinking,
        )

    def apply(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Return the payload without dropped parameters, and with renamed ones and roles.

        >>> Dialect(dropped=("seed",), renamed={"stop": "ends"}).apply({"seed": 1, "stop": ["x"]})
        {'ends': ['x']}
        """
        request = _rename(payload, self)
        if isinstance(nested := request.get(_NESTED), dict):
            request[_NESTED] = _rename(nested, self)
        if self.system_role != "system" and isinstance(messages := request.get("messages"), list):
            request["messages"] = [self._with_role(message) for message in messages]
        return request

    def _with_role(self, message: dict[str, Any]) -> dict[str, Any]:
        if message.get("role") != "system":
            return message
        return {**message, "role": self.system_role}


PLAIN = Dialect()
"""The protocol without any difference."""


def _rename(payload: Mapping[str, Any], dialect: Dialect) -> dict[str, Any]:
    return {
        dialect.renamed.get(name, name): value
        for name, value in payload.items()
        if name not in dialect.dropped
    }


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that was refused for one of its parameters."""

    parameter: str
    dialect: Dialect
    """The dialect to use from now on."""


def parse_refusal(payload: Mapping[str, Any], body: bytes, dialect: Dialect) -> Refusal | None:
    """Read which parameter a server refuses; None where it names none that could be left out.

    Args:
        payload: the request that was refused, as it was sent.
        body: the response, with status 400 or 422.
        dialect: the dialect in which the request was written.
    """
    param, text = _parse_error(body)
    if _is_role_refused(payload, param, text):
        role = "developer" if dialect.system_role == "system" and "developer" in text else "user"
        return Refusal("role", dialect.model_copy(update={"system_role": role}))
    if _VALUE_WORDS.search(text) and not _PARAMETER_WORDS.search(text):
        # Another value would be accepted: whoever chose this one has to know.
        return None
    candidates = _negotiable_names(payload)
    head = re.split(r"[.\[]", param)[0]
    name = next((name for name in candidates if name.lower() == head), None)
    name = name or _find_mention(candidates, text)
    return Refusal(name, _adapt(name, text, dialect)) if name else None


def _is_role_refused(payload: Mapping[str, Any], param: str, text: str) -> bool:
    if not _has_system(payload) or "role" not in f"{param} {text}":
        return False
    return "system" in text or "developer" in text


def _adapt(name: str, text: str, dialect: Dialect) -> Dialect:
    """Return the dialect that weakens, renames or drops a parameter.

    Args:
        name: the parameter, as it was sent.
        text: text of the refusal, in lower case.
        dialect: the dialect in which the request was written.
    """
    if name in _SCHEMA_KEYS and dialect.schema_form != "words":
        return dialect.model_copy(update={"schema_form": _NEXT_FORM[dialect.schema_form]})
    origin = next((ours for ours, theirs in dialect.renamed.items() if theirs == name), name)
    other_name = _RENAMES.get(name)
    if other_name and other_name in text and origin not in dialect.renamed:
        return dialect.model_copy(update={"renamed": {**dialect.renamed, name: other_name}})
    renames = {ours: theirs for ours, theirs in dialect.renamed.items() if ours != origin}
    return dialect.model_copy(
        update={"renamed": renames, "dropped": tuple(sorted({*dialect.dropped, origin}))}
    )


def _negotiable_names(payload: Mapping[str, Any]) -> list[str]:
    """Return the parameters of a request that can be left out."""
    nested = payload.get(_NESTED)
    names = [*payload, *(nested if isinstance(nested, dict) else ())]
    return [name for name in _NEGOTIABLE if name in names]


def _has_system(payload: Mapping[str, Any]) -> bool:
    messages = payload.get("messages")
    if not isinstance(messages, list):
        return False
    roles = [message.get("role") for message in messages if isinstance(message, dict)]
    return "system" in roles or "developer" in roles


def _find_mention(names: list[str], text: str) -> str | None:
    """Return the longest of the names that the text holds as a word."""
    mentions = [
        name
        for name in names
        if re.search(rf"(?<![a-z0-9_]){re.escape(name.lower())}(?![a-z0-9_])", text)
    ]
    if not mentions and any(words in text for words in _SCHEMA_WORDS):
        mentions = [name for name in names if name in _SCHEMA_KEYS]
    return max(mentions, key=len, default=None)


def _parse_error(body: bytes) -> tuple[str, str]:
    """Return the parameter that an error names, and its whole text, both in lower case."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return "", body[:_MOST_TEXT].decode(errors="replace").lower()
    if isinstance(document, list) and document:
        document = document[0]
    if not isinstance(document, dict):
        return "", ""
    error = _error_object(document)
    param = error.get("param")
    message = error.get("message", "")
    detail = _first_detail(error.get("detail", document.get("detail")))
    if detail is not None:
        path = [str(step) for step in detail.get("loc", ()) if step != "body"]
        param = param or ".".join(path)
        message = f"{message} {' '.join(path)} {detail.get('msg', '')}"
    text = f"{message} {error.get('code', '')} {error.get('type', '')}"
    return str(param or "").lower(), text[:_MOST_TEXT].lower()


def _error_object(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a body's error; the body itself if it has none."""
    error = document.get("error", document)
    if not isinstance(error, dict):
        return {"message": error}
    message = error.get("message")
    if isinstance(message, dict):  # Mistral's form
        return {**error, **message, "message": ""}
    return error


def _first_detail(details: object) -> dict[str, Any] | None:
    """Return the first of FastAPI's details.

    Their form: `{"loc": ["body", "seed"], "msg": …, "type": "extra_forbidden"}`.
    """
    first = details[0] if isinstance(details, list) and details else None
    return first if isinstance(first, dict) else None


def schema_instruction(schema: Mapping[str, Any]) -> str:
    """Return the prompt that asks for JSON by a schema, for servers that cannot enforce it."""
    json_schema = json.dumps(schema, ensure_ascii=False)
    return (
        "Answer with one JSON value and nothing else, not even a code fence. "
        f"It satisfies this schema: {json_schema}"
    )


def without_fence(text: str) -> str:
    """Return JSON without the code fence around it; any other text unchanged."""
    match = _FENCE.fullmatch(text.strip())
    return match[1] if match else text
