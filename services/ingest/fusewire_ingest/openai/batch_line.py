"""Parse one line of a batch's input. Pure.

A line has the form of OpenAI (chat or responses), Mistral or Anthropic, or is a bare prompt.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fusewire_ingest.admission.admit import (
    MOST_ID_CHARS,
    PoolRule,
    Submission,
    validate_submission,
)
from fusewire_ingest.admission.refusal import (
    RefusedError,
    invalid_error,
    unknown,
    unknown_key_error,
)
from fusewire_ingest.admission.strict_json import parse_object
from fusewire_ingest.openai import anthropic as anthropic_shape
from fusewire_ingest.openai import chat_request
from fusewire_ingest.openai import responses as responses_shape
from fusewire_ingest.openai.rewrite import RewrittenBody

Form = Literal["openai", "mistral", "anthropic", "bare"]

CHAT_URL = "/v1/chat/completions"
FUSIONS_URL = "/v1/fusions"
RESPONSES_URL = "/v1/responses"
URLS = (CHAT_URL, FUSIONS_URL, RESPONSES_URL)
_KEYS: dict[Form, tuple[str, ...]] = {
    "openai": ("custom_id", "method", "url", "body"),
    "mistral": ("custom_id", "body"),
    "anthropic": ("custom_id", "params"),
}


@dataclass(frozen=True)
class BatchLine:
    """A line. The submission has neither custom_id nor batch_id."""

    custom_id: str | None
    submission: Submission
    form: Form
    warnings: tuple[str, ...] = ()
    """Parts that are ignored, and what happens instead."""


@dataclass(frozen=True)
class _LineDefaults:
    """Settings of a batch for all of its lines."""

    pools: Mapping[str, PoolRule]
    default_pool: str
    pool: str | None
    mode: str | None


def read(
    data: bytes,
    limit: int,
    pools: Mapping[str, PoolRule],
    default_pool: str,
    *,
    pool: str | None = None,
    mode: str | None = None,
    endpoint: str = CHAT_URL,
) -> BatchLine:
    """Parse a line.

    Args:
        data: its bytes, without the line break, and without a file's byte order mark.
        limit: the most bytes it may have.
        pools: all configured pools, by name.
        default_pool: the pool of the fusion models.
        pool: used in place of the models that lines name; a pool that the line names wins.
        mode: of fusions; a mode that the line names wins.
        endpoint: the batch's. It decides the form of all results, so that lines for the Responses
            API cannot share a batch with others.

    Raises:
        RefusedError: the line is invalid or not supported. `param` is a path in the line, such as
            `body.max_tokens`.
    """
    line = parse_object(data, limit)
    defaults = _LineDefaults(pools, default_pool, pool, mode)
    form = _form(line)
    custom_id = _custom_id(line)
    if form == "bare":
        submission, warnings = _parse_bare(line, defaults)
        return BatchLine(custom_id, submission, form, warnings)
    _check_keys(line, form)
    name = "params" if form == "anthropic" else "body"
    url = _url(line, endpoint) if form == "openai" else endpoint
    body = line.get(name)
    if not isinstance(body, dict):
        raise invalid_error(name, "it must be an object")
    try:
        submission, warnings = _parse_body(body, form, url, defaults)
    except RefusedError as exc:
        raise exc.relocate(lambda path: f"{name}.{path}") from None
    return BatchLine(custom_id, submission, form, warnings)


def _parse_bare(
    line: dict[str, Any], defaults: _LineDefaults
) -> tuple[Submission, tuple[str, ...]]:
    fields = {name: value for name, value in line.items() if name != "custom_id"}
    if "model" in fields:
        return _parse_chat(fields, defaults)
    return _parse_submission(fields, defaults), ()


def _parse_body(
    body: dict[str, Any], form: Form, url: str, defaults: _LineDefaults
) -> tuple[Submission, tuple[str, ...]]:
    if form == "anthropic":
        return _parse_rewritten(anthropic_shape.chat_body(body), defaults)
    if url == RESPONSES_URL:
        return _parse_rewritten(responses_shape.chat_body(body), defaults)
    if url == FUSIONS_URL and form == "openai":
        return _parse_submission(body, defaults), ()
    return _parse_chat(body, defaults)


def _form(line: dict[str, Any]) -> Form:
    if "params" in line:
        return "anthropic"
    if "method" in line or "url" in line:
        return "openai"
    return "mistral" if "body" in line else "bare"


def _custom_id(line: dict[str, Any]) -> str | None:
    value = line.get("custom_id")
    if value is not None and not (isinstance(value, str) and 0 < len(value) <= MOST_ID_CHARS):
        raise invalid_error("custom_id", f"it must be a text of 1 to {MOST_ID_CHARS} characters")
    return value


def _check_keys(line: dict[str, Any], form: Form) -> None:
    for name in line:
        if name not in _KEYS[form]:
            raise unknown_key_error(name, name[:80], _KEYS[form])
    if form == "openai" and line.get("method") != "POST":
        raise invalid_error("method", "it must be POST")


def url_of(data: bytes) -> str:
    """The endpoint for a batch that begins with this line. A broken line counts as a chat."""
    try:
        url = json.loads(data).get("url")
    except (ValueError, AttributeError):
        return CHAT_URL
    return RESPONSES_URL if url == RESPONSES_URL else CHAT_URL


def _url(line: dict[str, Any], endpoint: str) -> str:
    url = line.get("url")
    if url not in URLS:
        raise invalid_error("url", f"it must be {', '.join(URLS[:-1])} or {URLS[-1]}")
    if (url == RESPONSES_URL) != (endpoint == RESPONSES_URL):
        raise invalid_error(
            "url", f"the batch's endpoint is {endpoint}; give {url} a batch of its own"
        )
    return str(url)


def _parse_chat(
    body: dict[str, Any], defaults: _LineDefaults
) -> tuple[Submission, tuple[str, ...]]:
    request = chat_request.read(
        body, defaults.pools, defaults.default_pool, pool=defaults.pool, mode=defaults.mode
    )
    if request.is_streamed:
        raise invalid_error("stream", "nobody reads a batch along; remove it")
    return request.submission, request.warnings


def _parse_rewritten(
    rewritten: RewrittenBody, defaults: _LineDefaults
) -> tuple[Submission, tuple[str, ...]]:
    try:
        return _parse_chat(rewritten.body, defaults)
    except RefusedError as exc:
        raise exc.relocate(rewritten.origin) from None


def _parse_submission(body: dict[str, Any], defaults: _LineDefaults) -> Submission:
    for name in ("custom_id", "batch_id"):
        if name in body:
            raise invalid_error(name, "the line and the batch say that; remove it")
    fields = {"pool": defaults.pool or defaults.default_pool, "mode": defaults.mode, **body}
    submission = validate_submission(fields)
    if submission.pool not in defaults.pools:
        message = unknown("pool", submission.pool, defaults.pools)
        raise RefusedError("unknown_pool", message, "pool")
    return submission
