"""Parse a body of `POST /v1/chat/completions` into a submission. Pure.

The body has OpenAI's form, with OpenRouter's and Fusewire's additions.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusewire import ids
from fusewire_ingest.admission.admit import (
    PoolRule,
    Submission,
    resolve_model,
    validate_submission,
)
from fusewire_ingest.admission.model_names import ModelNames
from fusewire_ingest.admission.refusal import Code, RefusedError, invalid_error, unknown, validate
from fusewire_ingest.openai.chat_parameters import PASSED_ON, WARNED, ignored_names, is_neutral
from fusewire_ingest.openai.fusion_options import (
    PRESETS,
    FusionOptions,
    FusionPlugin,
    RequestOptions,
)

FUSION = ("openrouter/fusion", "openrouter/openrouter/fusion", "fusion")
"""Names of models that mean a fusion of the default pool."""
POOL = "fusewire/"
"""Prefix of a pool's name that stands in place of a model."""
FUSION_TOOL = "openrouter:fusion"
SERVER_TOOL = "openrouter:"
"""Prefix of the types of tools that OpenRouter's server runs."""
PRESET_MARK = "@preset/"
_NO_ROUTING = "a model is asked where it is configured"
VARIANTS = {
    "online": "nothing is looked up by the server; members answer from what they know",
    "nitro": _NO_ROUTING,
    "floor": _NO_ROUTING,
    "free": _NO_ROUTING,
    "exacto": _NO_ROUTING,
    "extended": _NO_ROUTING,
    "thinking": "models reason as their providers have it by default",
}
"""Suffixes of OpenRouter's model names, and what happens instead."""
_FLASH = tuple(f"{name}-flash" for name in FUSION)

_NO_SERVER_TOOLS = "nothing is looked up by the server; members answer from what they know"
_IGNORED_IN_FUSION = {
    "tools": _NO_SERVER_TOOLS,
    "max_tool_calls": WARNED["max_tool_calls"],
    "reasoning": WARNED["reasoning"],
    "cache_control": WARNED["cache_control"],
}


@dataclass(frozen=True)
class ChatRequest:
    """A request. The submission has neither custom_id nor batch_id."""

    model: str
    """As the client named it, for the reply."""
    submission: Submission
    is_streamed: bool
    with_usage: bool
    """Whether a chunk of usage ends the stream."""
    warnings: tuple[str, ...] = ()
    """Parts that are ignored, and what happens instead."""
    cancel_on_disconnect: bool = False


def read(
    body: dict[str, Any],
    pools: Mapping[str, PoolRule],
    default_pool: str,
    *,
    pool: str | None = None,
    mode: str | None = None,
) -> ChatRequest:
    """Parse a request.

    Args:
        body: as `admission.parse_object` returns it.
        pools: all configured pools, by name.
        default_pool: the pool of the fusion models.
        pool: used in place of `model`, unless the body names a pool.
        mode: of a fusion, where the body names none.

    Raises:
        RefusedError: the body is invalid or not supported; `param` is a path in it.
    """
    reader = _Reader(body)
    reader.read_names()
    reader.read_tools()
    reader.read_plugins()
    reader.read_sampling()
    model = reader.choose_panel(pools, default_pool, pool, mode)
    stream, stream_options = body.get("stream") or False, body.get("stream_options") or {}
    if not isinstance(stream, bool):
        raise invalid_error("stream", "it must be true or false")
    if not isinstance(stream_options, dict):
        raise invalid_error(
            "stream_options", 'it must be an object such as {"include_usage": true}'
        )
    return ChatRequest(
        model=model,
        submission=reader.submission(),
        is_streamed=stream,
        with_usage=stream and stream_options.get("include_usage") is True,
        warnings=reader.warnings(),
        cancel_on_disconnect=reader.options.cancel_on_disconnect,
    )


def request_hash(tenant: str, key_id: str | None, body: dict[str, Any]) -> str:
    """SHA-256 of a request, hex.

    It is equal for requests of the same tenant's key that ask for the same, streamed or not.
    """
    relevant = {
        name: value for name, value in body.items() if name not in ("stream", "stream_options")
    }
    text = json.dumps(relevant, sort_keys=True, separators=(",", ":"))
    return ids.digest("request", tenant, key_id or "", text).hex()


@dataclass(frozen=True)
class _LenientRefusal:
    """The refusal of a harmless part: a warning, unless the body is strict."""

    code: Code
    path: str
    instead: str
    """What happens in its place."""


class _Reader:
    """Collects the fields of a submission, and the path of each in the body."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = {name: value for name, value in body.items() if value is not None}
        self._sources: list[tuple[str, dict[str, Any]]] = []
        """Settings of the fusion by path; the first source that has a setting wins."""
        self._has_fusion = False
        """Whether the body has the fusion tool or plugin."""
        self.options = _NO_OPTIONS
        if "fusewire" in self.body:
            self.options = validate(RequestOptions, self.body["fusewire"], "fusewire")
            self._sources.append(("fusewire", dict(self.options)))
        self._fields: dict[str, Any] = {}
        self._origins: dict[str, str] = {}
        """Path in the submission to path in the body, where they differ."""
        self._lenient_refusals: list[_LenientRefusal] = []
        self._notes: list[str] = []
        """Warnings about parts that only some members support."""

    def _put(self, name: str, value: Any, origin: str) -> None:
        self._fields[name] = value
        self._origins[name] = origin

    def _ignore(self, path: str, instead: str, code: Code = "unsupported_parameter") -> None:
        self._lenient_refusals.append(_LenientRefusal(code, path, instead))

    def _fusion_setting(self, name: str) -> tuple[Any, str] | None:
        """A setting of the fusion and its path; None if the body does not set it."""
        for path, source in self._sources:
            if (value := source.get(name)) is not None:
                return value, f"{path}.{name}"
        return None

    def _put_fusion_setting(self, name: str) -> None:
        if setting := self._fusion_setting(name):
            self._put(name, *setting)

    def read_names(self) -> None:
        """Refuse parameters that would change the answer, and note those that are ignored."""
        for name in ignored_names(self.body):
            self._ignore(name, WARNED[name])

    def read_plugins(self) -> None:
        """Find the fusion plugin."""
        for number, plugin in enumerate(_list(self.body, "plugins")):
            path = f"plugins.{number}"
            if not isinstance(plugin, dict) or not isinstance(plugin.get("id"), str):
                raise invalid_error(path, 'it must be an object such as {"id": "fusion"}')
            if plugin["id"] == "fusion":
                self._read_fusion_plugin(plugin, path)
            elif plugin.get("enabled") is not False:
                self._ignore(path, "there is no plugin but 'fusion'")

    def _read_fusion_plugin(self, plugin: dict[str, Any], path: str) -> None:
        parameters = validate(FusionPlugin, plugin, path)
        if parameters.enabled:
            self._has_fusion = True
            self._sources.append((path, dict(parameters)))

    def read_tools(self) -> None:
        """Separate the client's functions from tools of the server."""
        functions: list[Any] = []
        choice = self.body.get("tool_choice")
        for number, tool in enumerate(_list(self.body, "tools")):
            path = f"tools.{number}"
            kind = tool.get("type") if isinstance(tool, dict) else None
            if kind in ("function", None):
                self._origins[f"tools.{len(functions)}"] = path
                functions.append(tool)
            elif kind == FUSION_TOOL:
                self._read_fusion_tool(tool, f"{path}.parameters", choice)
            else:
                self._ignore_tool(kind, path)
        self._fields["tools"] = functions
        self._read_choice(choice, functions)

    def _read_choice(self, choice: object, functions: list[Any]) -> None:
        # Dropped where only tools of the server were there to choose from.
        has_choice = bool(functions) or "tools" not in self.body
        if choice is not None and has_choice and not _is_server_choice(choice):
            self._fields["tool_choice"] = choice
        if self.body.get("parallel_tool_calls") is not None:
            self._fields["parallel_tool_calls"] = self.body["parallel_tool_calls"]

    def _read_fusion_tool(self, tool: dict[str, Any], path: str, choice: object) -> None:
        if choice == "none":
            return
        parameters = validate(FusionOptions, tool.get("parameters") or {}, path)
        self._has_fusion = True
        self._sources.append((path, dict(parameters)))

    def _ignore_tool(self, kind: object, path: str) -> None:
        if isinstance(kind, str) and kind.startswith(SERVER_TOOL):
            self._ignore(path, _NO_SERVER_TOOLS, "unsupported_tool")
            return
        reason = "tools of this type are not supported; send functions, and run them yourself"
        raise RefusedError("unsupported_tool", f"'{path}': {reason}", path)

    def read_sampling(self) -> None:
        """Read messages, parameters of sampling, and the form of the answer."""
        for name in ("messages", "temperature", "top_p", "seed"):
            if name in self.body:
                self._fields[name] = self.body[name]
        self._read_passed_on()
        if (stop := self.body.get("stop")) is not None:
            self._fields["stop"] = (stop,) if isinstance(stop, str) else stop
        if (schema := _schema(self.body.get("response_format"))) is not None:
            self._put("response_schema", schema, "response_format")
        self._put_fusion_setting("temperature")
        self._read_max_tokens()

    def _read_passed_on(self) -> None:
        for name in PASSED_ON:
            if name in self.body and not is_neutral(name, self.body[name]):
                self._fields[name] = self.body[name]
                self._notes.append(
                    f"'{name}' goes to members whose providers take it; others sample without it"
                )

    def _read_max_tokens(self) -> None:
        for name in ("max_tokens", "max_completion_tokens"):
            if name in self.body:
                self._put("max_tokens", self.body[name], name)
        setting = self._fusion_setting("max_completion_tokens")
        if setting is None:
            return
        # OpenRouter has one limit for the reply and one for members. Here a member's limit is also
        # that of the reply, so the lower one holds.
        reply_limit = self._fields.get("max_tokens")
        if not isinstance(reply_limit, int) or reply_limit > setting[0]:
            self._put("max_tokens", *setting)

    def choose_panel(
        self, pools: Mapping[str, PoolRule], default_pool: str, pool: str | None, mode: str | None
    ) -> str:
        """Choose pool, members, judge and mode. Returns the model's name for the reply."""
        names = pools[default_pool].names if default_pool in pools else ModelNames()
        model = self.body.get("model", POOL + (pool or default_pool))
        if not isinstance(model, str):
            raise invalid_error("model", "it must be a text")
        plain_model = self._without_variant(model, names)
        outer_model, model_pool = self._resolve_outer(
            plain_model, default_pool, names, is_overruled=pool is not None
        )
        body_pool = self._fusion_setting("pool")
        self._choose_pool(pools, body_pool or ((pool, "pool") if pool else (model_pool, "model")))
        is_alone = outer_model is not None and body_pool is None and not self._has_fusion
        self._read_logit_bias(is_alone=is_alone)
        if is_alone:
            self._put("members", (outer_model,), "model")
        elif outer_model is not None:
            self._use_as_judge(outer_model)
        self._choose_mode(mode, is_alone=is_alone)
        for name in ("criteria", "residency", "deadline_s", "priority"):
            self._put_fusion_setting(name)
        self._read_members(names)
        self._read_judge(names)
        self._read_preset()
        self._ignore_fusion_settings()
        return model

    def _choose_pool(self, pools: Mapping[str, PoolRule], choice: tuple[str, str]) -> None:
        pool, origin = choice
        if pool not in pools:
            raise RefusedError("unknown_pool", unknown("pool", pool, pools), origin)
        self._put("pool", pool, origin)

    def _choose_mode(self, mode: str | None, *, is_alone: bool) -> None:
        if setting := self._fusion_setting("mode"):
            self._put("mode", *setting)
        elif is_alone:
            self._put("mode", "best-of", "model")
        elif mode:
            self._put("mode", mode, "mode")

    def _without_variant(self, model: str, names: ModelNames) -> str:
        """Cut OpenRouter's suffix from a model's name. Raises RefusedError for its presets."""
        if PRESET_MARK in model:
            mend = (
                "there are no presets of OpenRouter's here; set `plugins.0.preset`, or a pool's own"
            )
            raise RefusedError("invalid_request", f"'model': {mend}", "model")
        plain_model, colon, variant = model.rpartition(":")
        if not colon or variant not in VARIANTS or model in names.spellings:
            return model
        self._ignore("model", f"':{variant}': {VARIANTS[variant]}")
        return plain_model

    def _read_logit_bias(self, *, is_alone: bool) -> None:
        bias = self.body.get("logit_bias")
        if bias and is_alone:
            self._fields["logit_bias"] = bias
        elif bias:
            instead = "its token ids are those of one model; name that model, or leave it out"
            self._ignore("logit_bias", instead)

    def _resolve_outer(
        self, model: str, default_pool: str, names: ModelNames, *, is_overruled: bool
    ) -> tuple[str | None, str]:
        """The configured model that the body names, or None for a fusion; and the pool."""
        if model in _FLASH:
            self._put("preset", "fast", "model")
        if model in FUSION or model in _FLASH:
            return None, default_pool
        if model.startswith(POOL):
            return None, model.removeprefix(POOL)
        if is_overruled:
            return None, default_pool
        return resolve_model(model, names, "model"), default_pool

    def _use_as_judge(self, outer_model: str) -> None:
        """Make the model beside a fusion its judge, as OpenRouter does, unless it names one."""
        if not self._has_fusion:
            self._ignore("model", "the pool answers that `fusewire.pool` names")
        elif self._fusion_setting("model"):
            self._ignore("model", "the model of the fusion judges and writes")
        else:
            self._put("judge", outer_model, "model")

    def _read_members(self, names: ModelNames) -> None:
        setting = self._fusion_setting("analysis_models")
        if setting is None:
            return
        models, path = setting
        members = tuple(
            resolve_model(model, names, f"{path}.{number}") for number, model in enumerate(models)
        )
        if len(set(members)) < len(members):
            self._ignore(path, "a model that is named twice is asked once")
        self._put("members", members, path)

    def _read_judge(self, names: ModelNames) -> None:
        if setting := self._fusion_setting("model"):
            judge, path = setting
            self._put("judge", resolve_model(judge, names, path), path)

    def _read_preset(self) -> None:
        if setting := self._fusion_setting("preset"):
            preset, path = setting
            if preset not in PRESETS:
                raise RefusedError("invalid_request", unknown("preset", preset, PRESETS), path)
            self._put("preset", PRESETS[preset], path)

    def _ignore_fusion_settings(self) -> None:
        for name, instead in _IGNORED_IN_FUSION.items():
            value, path = self._fusion_setting(name) or (None, "")
            if value:
                code: Code = "unsupported_tool" if name == "tools" else "unsupported_parameter"
                self._ignore(path, instead, code)

    def warnings(self) -> tuple[str, ...]:
        """Texts about ignored parts. Raises RefusedError for them if the body is strict."""
        is_strict = any(source["strict"] for _, source in self._sources)
        if self._lenient_refusals and is_strict:
            refusal = self._lenient_refusals[0]
            raise RefusedError(
                refusal.code,
                f"'{refusal.path}' is not supported: {refusal.instead}; "
                "remove it, or do not be strict",
                refusal.path,
            )
        texts = (
            f"'{refusal.path}' was ignored: {refusal.instead}" for refusal in self._lenient_refusals
        )
        return (*self._notes, *texts)

    def submission(self) -> Submission:
        """The submission. Raises RefusedError with the path in the body."""
        try:
            return validate_submission(self._fields)
        except RefusedError as exc:
            raise exc.relocate(self._origin) from None

    def _origin(self, path: str) -> str:
        """The path in the body of a path in the submission."""
        parts = path.split(".")
        for length in (2, 1):
            if origin := self._origins.get(".".join(parts[:length])):
                return ".".join((origin, *parts[length:]))
        return path


_NO_OPTIONS = RequestOptions()


def _is_server_choice(choice: object) -> bool:
    """Whether a `tool_choice` names a tool of the server."""
    return isinstance(choice, dict) and str(choice.get("type", "")).startswith(SERVER_TOOL)


def _list(body: dict[str, Any], name: str) -> list[Any]:
    value = body.get(name, [])
    if not isinstance(value, list):
        raise invalid_error(name, "it must be a list")
    return value


def _schema(response_format: object) -> dict[str, Any] | None:
    """The JSON Schema that a `response_format` stands for; None for plain text."""
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if not isinstance(response_format, dict) or kind not in ("text", "json_object", "json_schema"):
        raise invalid_error("response_format.type", "it must be text, json_object or json_schema")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    json_schema = response_format.get("json_schema")
    schema = json_schema.get("schema") if isinstance(json_schema, dict) else None
    if not isinstance(schema, dict):
        raise invalid_error(
            "response_format.json_schema.schema", "it must be a JSON Schema, an object"
        )
    return schema
