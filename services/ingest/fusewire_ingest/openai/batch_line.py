"""One line of a batch's input: OpenAI's (chat or responses), Mistral's, Anthropic's, or a bare prompt. Pure."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fusewire_ingest.admission.admit import MOST_ID_CHARS, PoolRule, Submission, submission
from fusewire_ingest.admission.refusal import RefusedError, unknown, wrong
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
    """What a line asks for. The submission has neither custom_id nor batch_id."""

    custom_id: str | None
    submission: Submission
    form: Form
    warnings: tuple[str, ...] = ()
    """What was asked, is not done, and what happens in its place."""


@dataclass(frozen=True)
class _LineDefaults:
    """What a batch says about all of its lines."""

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
    """Read a line.

    Args:
        data: its bytes, without the line break, and without a byte order mark at the start of a file.
        limit: the most bytes it may have.
        pools: those that exist.
        default_pool: the one that the fusion models stand for.
        pool: asked in place of the models that lines name; a pool that a line itself names wins.
        mode: of fusions; a mode that a line itself names wins.
        endpoint: of the batch. It decides the shape of all results, so responses have a batch of their own.

    Raises:
        RefusedError: it cannot be done as it stands. `param` is a path in the line, such as `body.max_tokens`.
    """
    line = parse_object(data, limit)
    asked = _LineDefaults(pools, default_pool, pool, mode)
    form = _form(line)
    custom_id = _custom_id(line)
    if form == "bare":
        rest = {name: value for name, value in line.items() if name != "custom_id"}
        found, warnings = _chat(rest, asked) if "model" in rest else (_own(rest, asked), ())
        return BatchLine(custom_id, found, form, warnings)
    _check_keys(line, form)
    name = "params" if form == "anthropic" else "body"
    url = _url(line, endpoint) if form == "openai" else endpoint
    inner = line.get(name)
    if not isinstance(inner, dict):
        raise wrong(name, "it must be an object")
    try:
        if form == "anthropic":
            found, warnings = _rewritten(anthropic_shape.chat_body(inner), asked)
        elif url == RESPONSES_URL:
            found, warnings = _rewritten(responses_shape.chat_body(inner), asked)
        elif url == FUSIONS_URL and form == "openai":
            found, warnings = _own(inner, asked), ()
        else:
            found, warnings = _chat(inner, asked)
    except RefusedError as exc:
        raise exc.moved(lambda path: f"{name}.{path}") from None
    return BatchLine(custom_id, found, form, warnings)


def _form(line: dict[str, Any]) -> Form:
    if "params" in line:
        return "anthropic"
    if "method" in line or "url" in line:
        return "openai"
    return "mistral" if "body" in line else "bare"


def _custom_id(line: dict[str, Any]) -> str | None:
    value = line.get("custom_id")
    if value is not None and not (isinstance(value, str) and 0 < len(value) <= MOST_ID_CHARS):
        raise wrong("custom_id", f"it must be a text of 1 to {MOST_ID_CHARS} characters")
    return value


def _check_keys(line: dict[str, Any], form: Form) -> None:
    for name in line:
        if name not in _KEYS[form]:
            near = difflib.get_close_matches(name[:80], _KEYS[form], n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(_KEYS[form])}"
            raise RefusedError(
                "invalid_request", f"'{name[:80]}' is not supported; {hint}", name[:80]
            )
    if form == "openai" and line.get("method") != "POST":
        raise wrong("method", "it must be POST")


def url_of(data: bytes) -> str:
    """The endpoint for a batch that begins with this line, which may be broken; then any will do."""
    try:
        url = json.loads(data).get("url")
    except (ValueError, AttributeError):
        return CHAT_URL
    return RESPONSES_URL if url == RESPONSES_URL else CHAT_URL


def _url(line: dict[str, Any], endpoint: str) -> str:
    url = line.get("url")
    if url not in URLS:
        raise wrong("url", f"it must be {', '.join(URLS[:-1])} or {URLS[-1]}")
    if (url == RESPONSES_URL) != (endpoint == RESPONSES_URL):
        raise wrong("url", f"the batch's endpoint is {endpoint}; give {url} a batch of its own")
    return str(url)


def _chat(body: dict[str, Any], asked: _LineDefaults) -> tuple[Submission, tuple[str, ...]]:
    found = chat_request.read(
        body, asked.pools, asked.default_pool, pool=asked.pool, mode=asked.mode
    )
    if found.is_streamed:
        raise wrong("stream", "nobody reads a batch along; remove it")
    return found.submission, found.warnings


def _rewritten(written: RewrittenBody, asked: _LineDefaults) -> tuple[Submission, tuple[str, ...]]:
    try:
        return _chat(written.body, asked)
    except RefusedError as exc:
        raise exc.moved(written.origin) from None


def _own(body: dict[str, Any], asked: _LineDefaults) -> Submission:
    for name in ("custom_id", "batch_id"):
        if name in body:
            raise wrong(name, "the line and the batch say that; remove it")
    chosen = {"pool": asked.pool or asked.default_pool, "mode": asked.mode}
    found = submission(body | {name: value for name, value in chosen.items() if name not in body})
    if found.pool not in asked.pools:
        raise RefusedError("unknown_pool", unknown("pool", found.pool, asked.pools), "pool")
    return found
