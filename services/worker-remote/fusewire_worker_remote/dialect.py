"""What a model was found not to take, and requests written so that it takes them. No IO.

Servers that speak one protocol differ in the parameters that they accept, and name the one that they refuse. So
nothing is assumed: a refusal drops or renames that parameter, and the call is made again.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SchemaForm = Literal["schema", "json", "words"]
"""How the form of an answer is asked for: by a JSON Schema, as any JSON object, or in the prompt alone."""

_NEXT_FORM: dict[SchemaForm, SchemaForm] = {"schema": "json", "json": "words"}
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
"""Parameters that can be left out. What is not here changes what is asked, and its refusal is the answer."""
_RENAMES = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
_VALUE = re.compile(
    r"less than|greater than|more than|at (most|least)|maximum|minimum|between|range|[<>]=?|exceed"
    r"|too (large|many|long|small|high)"
)
_NEVER = re.compile(
    r"\bonly\b|default|unsupported|not support|deprecated|unknown|unrecognized|unexpected|not permitted|not allowed"
    r"|forbidden|unavailable|extra (inputs|fields)"
)
"""Words of an error by which a value is refused, and by which a parameter is."""
_NESTED = "generationConfig"
_MOST_TEXT = 4_000


class Dialect(BaseModel):
    """What one model at one address takes."""

    model_config = ConfigDict(frozen=True)

    dropped: tuple[str, ...] = ()
    renamed: dict[str, str] = {}
    schema_form: SchemaForm = "schema"
    system_role: Literal["system", "developer", "user"] = "system"
    is_thinking: bool = False
    """Whether it was seen to think before it answers."""

    def told(self) -> str:
        """What was found, for people; empty where that is nothing."""
        parts = [f"without {name}" for name in self.dropped]
        parts += [f"{ours} as {theirs}" for ours, theirs in sorted(self.renamed.items())]
        parts += [f"schema as {self.schema_form}"] if self.schema_form != "schema" else []
        parts += [f"system as {self.system_role}"] if self.system_role != "system" else []
        parts += ["thinks"] if self.is_thinking else []
        return ", ".join(parts)

    def merged(self, other: "Dialect") -> "Dialect":
        """What was found here and elsewhere."""
        forms: list[SchemaForm] = ["schema", "json", "words"]
        return Dialect(
            dropped=tuple(sorted({*self.dropped, *other.dropped})),
            renamed={**self.renamed, **other.renamed},
            schema_form=max(self.schema_form, other.schema_form, key=forms.index),
            system_role=other.system_role if self.system_role == "system" else self.system_role,
            is_thinking=self.is_thinking or other.is_thinking,
        )

    def applied(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The request, in the words that are taken."""
        found = _written(payload, self)
        if isinstance(nested := found.get(_NESTED), dict):
            found[_NESTED] = _written(nested, self)
        if self.system_role != "system" and isinstance(messages := found.get("messages"), list):
            found["messages"] = [
                {**message, "role": self.system_role}
                if message.get("role") == "system"
                else message
                for message in messages
            ]
        return found


PLAIN = Dialect()


def _written(payload: Mapping[str, Any], dialect: Dialect) -> dict[str, Any]:
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
    """What is known now."""


def refusal(payload: Mapping[str, Any], body: bytes, known: Dialect) -> Refusal | None:
    """What a refusal teaches, or None where it names nothing that could be left out.

    Args:
        payload: the request that was refused, as it was sent.
        body: the response, with status 400 or 422.
        known: with what it was written.
    """
    named, text = _named(body)
    if (
        _has_system(payload)
        and "role" in f"{named} {text}"
        and ("system" in text or "developer" in text)
    ):
        role = "developer" if known.system_role == "system" and "developer" in text else "user"
        return Refusal("role", known.model_copy(update={"system_role": role}))
    if _VALUE.search(text) and not _NEVER.search(text):
        # This value is wrong, and another would be taken: whoever gave it has to know.
        return None
    sent = _sent(payload)
    head = re.split(r"[.\[]", named)[0]
    found = next((name for name in sent if name.lower() == head), None)
    found = found or _mentioned(sent, text)
    return Refusal(found, _without(found, text, known)) if found else None


def _without(name: str, text: str, known: Dialect) -> Dialect:
    if name in _SCHEMA_KEYS and known.schema_form != "words":
        return known.model_copy(update={"schema_form": _NEXT_FORM[known.schema_form]})
    origin = next((ours for ours, theirs in known.renamed.items() if theirs == name), name)
    other = _RENAMES.get(name)
    if other and other in text and origin not in known.renamed:
        return known.model_copy(update={"renamed": {**known.renamed, name: other}})
    renamed = {ours: theirs for ours, theirs in known.renamed.items() if ours != origin}
    return known.model_copy(
        update={"renamed": renamed, "dropped": tuple(sorted({*known.dropped, origin}))}
    )


def _sent(payload: Mapping[str, Any]) -> list[str]:
    nested = payload.get(_NESTED)
    names = [*payload, *(nested if isinstance(nested, dict) else ())]
    return [name for name in _NEGOTIABLE if name in names]


def _has_system(payload: Mapping[str, Any]) -> bool:
    messages = payload.get("messages")
    roles = (
        [m.get("role") for m in messages if isinstance(m, dict)]
        if isinstance(messages, list)
        else []
    )
    return "system" in roles or "developer" in roles


def _mentioned(sent: list[str], text: str) -> str | None:
    """The longest name of a parameter that was sent and that the message names as a word."""
    found = [
        name
        for name in sent
        if re.search(rf"(?<![a-z0-9_]){re.escape(name.lower())}(?![a-z0-9_])", text)
    ]
    if not found and ("json_schema" in text or "structured output" in text or "json mode" in text):
        found = [name for name in sent if name in _SCHEMA_KEYS]
    return max(found, key=len, default=None)


def _named(body: bytes) -> tuple[str, str]:
    """The parameter that an error names, and all of its text, both in lower case."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return "", body[:_MOST_TEXT].decode(errors="replace").lower()
    if isinstance(parsed, list) and parsed:
        parsed = parsed[0]
    if not isinstance(parsed, dict):
        return "", ""
    error = parsed.get("error", parsed)
    error = error if isinstance(error, dict) else {"message": error}
    if isinstance(error.get("message"), dict):  # Mistral's form
        error = {**error, **error["message"], "message": ""}
    param = error.get("param")
    places = error.get("detail", parsed.get("detail"))
    if isinstance(places, list) and places and isinstance(places[0], dict):
        # FastAPI's form: {"loc": ["body", "seed"], "msg": …, "type": "extra_forbidden"}.
        path = [str(part) for part in places[0].get("loc", ()) if part != "body"]
        param = param or ".".join(path)
        error = {
            **error,
            "message": f"{error.get('message', '')} {' '.join(path)} {places[0].get('msg', '')}",
        }
    text = " ".join(str(error.get(key, "")) for key in ("message", "code", "type"))
    return str(param or "").lower(), text[:_MOST_TEXT].lower()


def asked_in_words(schema: Mapping[str, Any]) -> str:
    """What tells a model to answer by a schema, where the server has no way to see to it."""
    wanted = json.dumps(schema, ensure_ascii=False)
    return f"Answer with one JSON value and nothing else, not even a code fence. It satisfies this schema: {wanted}"


def without_fence(text: str) -> str:
    """JSON that stands in a code fence, without it; any other text as it is."""
    found = _FENCE.fullmatch(text.strip())
    return found[1] if found else text


_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL | re.IGNORECASE)
