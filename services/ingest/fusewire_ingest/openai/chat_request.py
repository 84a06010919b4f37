"""A body of `POST /v1/chat/completions`, in OpenAI's or OpenRouter's shape, read into a submission. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fusewire import ids
from fusewire.contracts import Mode, PresetName, Priority, Residency
from fusewire_ingest.admission.admit import PoolRule, Submission, resolve, submission
from fusewire_ingest.admission.model_names import ModelNames
from fusewire_ingest.admission.refusal import Code, RefusedError, unknown, validated, wrong
from fusewire_ingest.openai.chat_parameters import PASSED_ON, WARNED, is_neutral, undone

FUSION = ("openrouter/fusion", "openrouter/openrouter/fusion", "fusion")
"""Models by which a client asks for a fusion of the default pool."""
POOL = "fusewire/"
"""Before the name of a pool in place of a model's."""
FUSION_TOOL = "openrouter:fusion"
MOST_ANALYSTS = 8
PRESET_MARK = "@preset/"
_ROUTED = "a model is asked where it is configured"
VARIANTS = {
    "online": "nothing is looked up by the server; members answer from what they know",
    "nitro": _ROUTED,
    "floor": _ROUTED,
    "free": _ROUTED,
    "exacto": _ROUTED,
    "extended": _ROUTED,
    "thinking": "models reason as their providers have it by default",
}
"""What OpenRouter's clients put behind a model's name, and what happens in its place."""

PRESETS: dict[str, PresetName] = {
    "general-high": "high",
    "general-budget": "budget",
    "general-fast": "fast",
    "high": "high",
    "budget": "budget",
    "fast": "fast",
}
_FLASH = tuple(f"{name}-flash" for name in FUSION)

_NO_SERVER_TOOLS = "nothing is looked up by the server; members answer from what they know"
_UNDONE_IN_FUSION = {
    "tools": _NO_SERVER_TOOLS,
    "max_tool_calls": WARNED["max_tool_calls"],
    "reasoning": WARNED["reasoning"],
    "cache_control": WARNED["cache_control"],
}


@dataclass(frozen=True)
class ChatRequest:
    """What a client asks for. The submission has neither custom_id nor batch_id."""

    model: str
    """As asked, for the reply."""
    submission: Submission
    is_streamed: bool
    with_usage: bool
    """Whether the stream shall end with a chunk of usage."""
    warnings: tuple[str, ...] = ()
    """What was asked, is not done, and what happens in its place."""
    cancel_on_disconnect: bool = False


class _FusewireFields(BaseModel):
    """Our additions: in the body's `fusewire` object, and among the parameters of a fusion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: str | None = None
    mode: Mode | None = None
    criteria: str | None = Field(default=None, min_length=1, max_length=4000)
    residency: Residency | None = None
    strict: bool = False


class _Options(_FusewireFields):
    deadline_s: float | None = Field(default=None, gt=0, le=604_800)
    priority: Priority | None = None
    cancel_on_disconnect: bool = False


class _Fusion(_FusewireFields):
    """OpenRouter's parameters of the fusion tool."""

    analysis_models: tuple[str, ...] | None = Field(
        default=None, min_length=1, max_length=MOST_ANALYSTS
    )
    model: str | None = None
    preset: str | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1, le=131_072)
    temperature: float | None = Field(default=None, ge=0, le=2)
    tools: tuple[dict[str, Any], ...] | None = None
    max_tool_calls: int | None = None
    reasoning: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None


class _Plugin(_Fusion):
    id: Literal["fusion"]
    enabled: bool = True


def read(
    body: dict[str, Any],
    pools: Mapping[str, PoolRule],
    default_pool: str,
    *,
    pool: str | None = None,
    mode: str | None = None,
) -> ChatRequest:
    """Read a request.

    Args:
        body: as `admission.parse_object` gives it.
        pools: those that exist.
        default_pool: the one that the fusion models stand for.
        pool: asked in place of what `model` names, unless the body itself names a pool.
        mode: of a fusion, where the body does not say.

    Raises:
        RefusedError: it cannot be done as it stands; `param` says where in the body.
    """
    reader = _Reader(body)
    reader.check_names()
    reader.read_tools()
    reader.read_plugins()
    reader.read_sampling()
    model = reader.choose(pools, default_pool, pool, mode)
    stream, extras = body.get("stream") or False, body.get("stream_options") or {}
    if not isinstance(stream, bool):
        raise wrong("stream", "it must be true or false")
    if not isinstance(extras, dict):
        raise wrong("stream_options", 'it must be an object such as {"include_usage": true}')
    return ChatRequest(
        model=model,
        submission=reader.submission(),
        is_streamed=stream,
        with_usage=stream and extras.get("include_usage") is True,
        warnings=reader.warnings(),
        cancel_on_disconnect=reader.options.cancel_on_disconnect,
    )


def request_hash(tenant: str, key_id: str | None, body: dict[str, Any]) -> str:
    """SHA-256, hex: equal for requests of one tenant's key that differ at most in how the reply shall travel."""
    asked = {
        name: value for name, value in body.items() if name not in ("stream", "stream_options")
    }
    return ids.digest(
        "request", tenant, key_id or "", json.dumps(asked, sort_keys=True, separators=(",", ":"))
    ).hex()


class _Reader:
    """One reading: the submission as it grows, and where each part of it stands in the body."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = {name: value for name, value in body.items() if value is not None}
        self._sources: list[tuple[str, dict[str, Any]]] = []
        """Settings of the fusion and where they stand, those first that win."""
        self._is_fusion = False
        self.options = _NO_OPTIONS
        if "fusewire" in self.body:
            self.options = validated(_Options, self.body["fusewire"], "fusewire")
            self._sources.append(("fusewire", dict(self.options)))
        self._fields: dict[str, Any] = {}
        self._written: dict[str, str] = {}
        """From paths in the submission to paths in the body, where they differ."""
        self._undone: list[tuple[Code, str, str]] = []
        self._told: list[str] = []
        """What is done, and perhaps not by everybody."""

    def _put(self, name: str, value: Any, written: str) -> None:
        self._fields[name] = value
        self._written[name] = written

    def _set(self, name: str) -> tuple[Any, str] | None:
        """What the body sets for the fusion, and where."""
        for path, source in self._sources:
            if (value := source.get(name)) is not None:
                return value, f"{path}.{name}"
        return None

    def check_names(self) -> None:
        """Refuse parameters that would change the answer and are not done; note those that would not."""
        self._undone += [
            ("unsupported_parameter", name, WARNED[name]) for name in undone(self.body)
        ]

    def read_plugins(self) -> None:
        """Find the fusion plugin."""
        for number, plugin in enumerate(_list(self.body, "plugins")):
            path = f"plugins.{number}"
            if not isinstance(plugin, dict) or not isinstance(plugin.get("id"), str):
                raise wrong(path, 'it must be an object such as {"id": "fusion"}')
            if plugin["id"] != "fusion":
                if plugin.get("enabled") is not False:
                    self._undone.append(
                        ("unsupported_parameter", path, "there is no plugin but 'fusion'")
                    )
            elif (found := validated(_Plugin, plugin, path)).enabled:
                self._is_fusion = True
                self._sources.append((path, dict(found)))

    def read_tools(self) -> None:
        """Take the tools of the server out of the client's."""
        kept: list[Any] = []
        choice = self.body.get("tool_choice")
        for number, tool in enumerate(_list(self.body, "tools")):
            path = f"tools.{number}"
            kind = tool.get("type") if isinstance(tool, dict) else None
            if kind == FUSION_TOOL:
                if choice != "none":
                    found = validated(_Fusion, tool.get("parameters") or {}, f"{path}.parameters")
                    self._is_fusion = True
                    self._sources.append((f"{path}.parameters", dict(found)))
            elif isinstance(kind, str) and kind.startswith("openrouter:"):
                self._undone.append(("unsupported_tool", path, _NO_SERVER_TOOLS))
            elif kind not in ("function", None):
                reason = (
                    "tools of this type are not supported; send functions, and run them yourself"
                )
                raise RefusedError("unsupported_tool", f"'{path}': {reason}", path)
            else:
                self._written[f"tools.{len(kept)}"] = path
                kept.append(tool)
        self._fields["tools"] = kept
        is_of_server = isinstance(choice, dict) and str(choice.get("type", "")).startswith(
            "openrouter:"
        )
        if choice is not None and not is_of_server and (kept or "tools" not in self.body):
            self._fields["tool_choice"] = choice
        if self.body.get("parallel_tool_calls") is not None:
            self._fields["parallel_tool_calls"] = self.body["parallel_tool_calls"]

    def read_sampling(self) -> None:
        """How to sample, and in which form to answer."""
        for name in ("messages", "temperature", "top_p", "seed"):
            if name in self.body:
                self._fields[name] = self.body[name]
        for name in PASSED_ON:
            if name in self.body and not is_neutral(name, self.body[name]):
                self._fields[name] = self.body[name]
                self._told.append(
                    f"'{name}' goes to members whose providers take it; others sample without it"
                )
        for name in ("max_tokens", "max_completion_tokens"):
            if name in self.body:
                self._put("max_tokens", self.body[name], name)
        if (stop := self.body.get("stop")) is not None:
            self._fields["stop"] = (stop,) if isinstance(stop, str) else stop
        if (schema := _schema(self.body.get("response_format"))) is not None:
            self._put("response_schema", schema, "response_format")
        if found := self._set("temperature"):
            self._put("temperature", *found)
        if found := self._set("max_completion_tokens"):
            most = self._fields.get("max_tokens")
            # The members' limit, and the reply's; an answer of ours is a member's.
            if not isinstance(most, int) or most > found[0]:
                self._put("max_tokens", *found)

    def choose(
        self, pools: Mapping[str, PoolRule], default_pool: str, pool: str | None, mode: str | None
    ) -> str:
        """Choose pool, members, judge and rules. Returns the model's name for the reply."""
        names = pools[default_pool].names if default_pool in pools else ModelNames()
        model = self.body.get("model", POOL + (pool or default_pool))
        if not isinstance(model, str):
            raise wrong("model", "it must be a text")
        plain = self._without_variant(model, names)
        outer, by_model = self._outer(plain, default_pool, names, is_overruled=pool is not None)
        own = self._set("pool")
        chosen, written = own or ((pool, "pool") if pool else (by_model, "model"))
        if chosen not in pools:
            raise RefusedError("unknown_pool", unknown("pool", chosen, pools), written)
        self._put("pool", chosen, written)
        is_alone = outer is not None and own is None and not self._is_fusion
        self._bias(is_alone=is_alone)
        if is_alone:
            self._put("members", (outer,), "model")
        elif outer is not None:
            self._outer_judges(outer)
        if found := self._set("mode") or (
            ("best-of", "model") if is_alone else (mode, "mode") if mode else None
        ):
            self._put("mode", *found)
        for name in ("criteria", "residency", "deadline_s", "priority"):
            if found := self._set(name):
                self._put(name, *found)
        self._panel(names)
        return model

    def _without_variant(self, model: str, names: ModelNames) -> str:
        """A model's name without what OpenRouter's clients put behind it. Raises RefusedError for a preset."""
        if PRESET_MARK in model:
            mend = (
                "there are no presets of OpenRouter's here; set `plugins.0.preset`, or a pool's own"
            )
            raise RefusedError("invalid_request", f"'model': {mend}", "model")
        plain, colon, variant = model.rpartition(":")
        if not colon or variant not in VARIANTS or model in names.spellings:
            return model
        self._undone.append(
            ("unsupported_parameter", "model", f"':{variant}': {VARIANTS[variant]}")
        )
        return plain

    def _bias(self, *, is_alone: bool) -> None:
        bias = self.body.get("logit_bias")
        if bias and is_alone:
            self._fields["logit_bias"] = bias
        elif bias:
            instead = "its token ids are those of one model; name that model, or leave it out"
            self._undone.append(("unsupported_parameter", "logit_bias", instead))

    def _outer(
        self, model: str, default_pool: str, names: ModelNames, *, is_overruled: bool
    ) -> tuple[str | None, str]:
        """The model that the body asks for, if it is one and not a fusion, and the pool."""
        if model in _FLASH:
            self._put("preset", "fast", "model")
        if model in FUSION or model in _FLASH:
            return None, default_pool
        if model.startswith(POOL):
            return None, model.removeprefix(POOL)
        return None if is_overruled else resolve(model, names, "model"), default_pool

    def _outer_judges(self, outer: str) -> None:
        if not self._is_fusion:
            self._undone.append(
                ("unsupported_parameter", "model", "the pool answers that `fusewire.pool` names")
            )
        elif self._set("model"):
            self._undone.append(
                ("unsupported_parameter", "model", "the model of the fusion judges and writes")
            )
        else:
            self._put("judge", outer, "model")

    def _panel(self, names: ModelNames) -> None:
        """What the parameters of a fusion say of members, judge and preset, and what of them is not done."""
        if found := self._set("analysis_models"):
            asked, path = found
            members = tuple(
                resolve(one, names, f"{path}.{number}") for number, one in enumerate(asked)
            )
            if len(set(members)) < len(members):
                self._undone.append(
                    ("unsupported_parameter", path, "a model that is named twice is asked once")
                )
            self._put("members", members, path)
        if found := self._set("model"):
            judge, path = found
            self._put("judge", resolve(judge, names, path), path)
        if found := self._set("preset"):
            preset, path = found
            if preset not in PRESETS:
                raise RefusedError("invalid_request", unknown("preset", preset, PRESETS), path)
            self._put("preset", PRESETS[preset], path)
        for name, instead in _UNDONE_IN_FUSION.items():
            if (found := self._set(name)) and found[0]:
                code: Code = "unsupported_tool" if name == "tools" else "unsupported_parameter"
                self._undone.append((code, found[1], instead))

    def warnings(self) -> tuple[str, ...]:
        """What is not done. Raises RefusedError where the body is strict about that."""
        if self._undone and any(source["strict"] for _, source in self._sources):
            code, path, instead = self._undone[0]
            raise RefusedError(
                code, f"'{path}' is not supported: {instead}; remove it, or do not be strict", path
            )
        return (
            *self._told,
            *(f"'{path}' was ignored: {instead}" for _, path, instead in self._undone),
        )

    def submission(self) -> Submission:
        """The submission. Raises RefusedError with the path in the body."""
        try:
            return submission(self._fields)
        except RefusedError as exc:
            raise exc.moved(self._where) from None

    def _where(self, path: str) -> str:
        parts = path.split(".")
        for length in (2, 1):
            if written := self._written.get(".".join(parts[:length])):
                return ".".join((written, *parts[length:]))
        return path


_NO_OPTIONS = _Options()


def _list(body: dict[str, Any], name: str) -> list[Any]:
    value = body.get(name, [])
    if not isinstance(value, list):
        raise wrong(name, "it must be a list")
    return value


def _schema(form: object) -> dict[str, Any] | None:
    """The JSON Schema that a `response_format` stands for."""
    if form is None:
        return None
    kind = form.get("type") if isinstance(form, dict) else None
    if not isinstance(form, dict) or kind not in ("text", "json_object", "json_schema"):
        raise wrong("response_format.type", "it must be text, json_object or json_schema")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    named = form.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        raise wrong("response_format.json_schema.schema", "it must be a JSON Schema, an object")
    return schema
