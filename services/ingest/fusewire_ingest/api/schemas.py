"""Schemas of bodies and replies, for the OpenAPI document.

FastAPI cannot derive them: the routes parse and write JSON themselves.
"""

from typing import Any, Final

from pydantic import TypeAdapter

from fusewire import replies
from fusewire.contracts import MODES, PRIORITIES
from fusewire_ingest.admission.admit import Submission
from fusewire_ingest.admission.votes import VoteRequest
from fusewire_ingest.openai.batch_request import CreateBatch, ResumeBatch, RetryBatch
from fusewire_ingest.openai.fusion_options import MOST_ANALYSTS, PRESETS
from fusewire_ingest.openai.key_request import ChangeKey, CreateKey

Schema = dict[str, Any]

_REFS = "#/components/schemas/{model}"
_TEXT: Schema = {"type": "string"}
_MAYBE_TEXT: Schema = {"type": ["string", "null"]}
_WHOLE: Schema = {"type": "integer"}
_FLAG: Schema = {"type": "boolean"}
_TOKENS: Schema = {"type": ["integer", "null"], "minimum": 1, "maximum": 131_072}
_TEMPERATURE: Schema = {"type": ["number", "null"], "minimum": 0, "maximum": 2}
_ANY: Schema = {"type": "object"}
_MAYBE_ANY: Schema = {"type": ["object", "null"]}
_ANY_VALUE: Schema = {}


def body(name: str, *media_types: str) -> Schema:
    """`openapi_extra` of a route with a body.

    Args:
        name: the component of a body in JSON.
        media_types: those of other bodies, which have no component.
    """
    content: Schema = {"application/json": {"schema": _ref(name)}}
    content |= {media_type: {"schema": _TEXT} for media_type in media_types}
    return {"requestBody": {"required": True, "content": content}}


def upload() -> Schema:
    """`openapi_extra` of a route that takes a form with a file."""
    file: Schema = {"type": "string", "format": "binary"}
    form = _object("purpose", "file", is_open=False, purpose={"const": "batch"}, file=file)
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


def reply(
    name: str, *media_types: str, status: int = 200, alternative: str | None = None
) -> dict[int | str, Schema]:
    """`responses` of a route.

    Args:
        name: the component of a reply in JSON.
        media_types: those of other replies, which have no component.
        status: the HTTP status.
        alternative: another component of a reply in JSON.
    """
    schema = _ref(name)
    if alternative:
        schema = {"anyOf": [schema, _ref(alternative)]}
    content: Schema = {"application/json": {"schema": schema}}
    content |= {media_type: {"schema": _TEXT} for media_type in media_types}
    return {status: {"description": "Done", "content": content}}


def _ref(name: str) -> Schema:
    return {"$ref": _REFS.format(model=name)}


def _list(items: Schema, **bounds: int) -> Schema:
    return {"type": "array", "items": items, **bounds}


def _object(*required_names: str, is_open: bool = True, **properties: Schema) -> Schema:
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": is_open}
    if required_names:
        schema["required"] = list(required_names)
    return schema


_IMAGE = _object("url", url={"type": "string", "pattern": "^(https://|data:image/)"}, detail=_TEXT)
_PART = {
    "oneOf": [
        _object("type", "text", type={"const": "text"}, text=_TEXT),
        _object("type", "image_url", type={"const": "image_url"}, image_url=_IMAGE),
    ]
}
_CALL = _object(
    "id",
    "type",
    "function",
    id=_TEXT,
    type={"const": "function"},
    function=_object("name", "arguments", name=_TEXT, arguments=_TEXT),
)
_MESSAGE = _object(
    "role",
    role={"enum": ["system", "developer", "user", "assistant", "tool"]},
    content={"anyOf": [_TEXT, _list(_PART), {"type": "null"}]},
    tool_calls=_list(_CALL),
    tool_call_id=_TEXT,
    reasoning_content={"type": ["string", "null"]},
    reasoning={"type": ["string", "null"]},
)
_OWN: Schema = {
    "pool": _TEXT,
    "mode": {"enum": list(MODES)},
    "criteria": {"type": "string", "minLength": 1, "maxLength": 4000},
    "residency": {"enum": ["any", "edge-only"]},
    "strict": _FLAG,
}
_FUSION: Schema = {
    **_OWN,
    "analysis_models": _list(_TEXT, minItems=1, maxItems=MOST_ANALYSTS),
    "model": _TEXT,
    "preset": {"enum": list(PRESETS)},
    "max_completion_tokens": _TOKENS,
    "temperature": _TEMPERATURE,
}
_TOOL = {
    "oneOf": [
        _object(
            "type",
            "function",
            type={"const": "function"},
            function=_object("name", name=_TEXT, parameters=_ANY),
        ),
        _object(
            "type",
            type={"const": "openrouter:fusion"},
            parameters=_object(is_open=False, **_FUSION),
        ),
    ]
}


def _number(least: float, most: float) -> Schema:
    return {"type": ["number", "null"], "minimum": least, "maximum": most}


_CHAT = _object(
    "messages",
    model={
        "type": "string",
        "description": "`openrouter/fusion`, `fusewire/<pool>`, "
        "or a model that `/v1/models` lists.",
    },
    messages=_list(_MESSAGE, minItems=1),
    stream=_FLAG,
    stream_options=_object(include_usage=_FLAG),
    max_tokens=_TOKENS,
    max_completion_tokens=_TOKENS,
    temperature=_TEMPERATURE,
    top_p={"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
    seed={"type": ["integer", "null"]},
    top_k={"type": ["integer", "null"], "minimum": 0},
    min_p=_number(0, 1),
    frequency_penalty=_number(-2, 2),
    presence_penalty=_number(-2, 2),
    repetition_penalty={"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 2},
    logit_bias={"type": ["object", "null"], "additionalProperties": {"type": "number"}},
    stop={"anyOf": [_TEXT, _list(_TEXT, maxItems=4), {"type": "null"}]},
    tools=_list(_TOOL),
    tool_choice={"anyOf": [{"enum": ["none", "auto", "required"]}, _ANY]},
    parallel_tool_calls=_FLAG,
    response_format=_object(
        "type", type={"enum": ["text", "json_object", "json_schema"]}, json_schema=_ANY
    ),
    plugins=_list(_object("id", id={"const": "fusion"}, enabled=_FLAG, **_FUSION)),
    fusewire=_object(
        is_open=False,
        **_OWN,
        deadline_s={"type": "number", "exclusiveMinimum": 0, "maximum": 604_800},
        priority={"enum": list(PRIORITIES)},
        cancel_on_disconnect=_FLAG,
    ),
)
_RESPONSE_REQUEST = _object(
    "input",
    model=_CHAT["properties"]["model"],
    input={"anyOf": [_TEXT, _list(_ANY, minItems=1)]},
    instructions=_MAYBE_TEXT,
    previous_response_id=_MAYBE_TEXT,
    stream=_FLAG,
    max_output_tokens=_TOKENS,
    temperature=_TEMPERATURE,
    text=_object(format=_ANY),
    tools=_list(_ANY),
    tool_choice=_ANY_VALUE,
)


def components(**types: Any) -> dict[str, Schema]:
    """Schemas of models and typed dictionaries, and of all types within them, by name.

    Raises:
        ValueError: two types have the same name and different schemas.
    """
    schemas: dict[str, Schema] = {}
    for type_name, model in types.items():
        type_schema = TypeAdapter(model).json_schema(ref_template=_REFS)
        inner_schemas = type_schema.pop("$defs", {})
        for name, schema in {**inner_schemas, type_name: type_schema}.items():
            if schemas.setdefault(name, schema) != schema:
                raise ValueError(f"two components are called {name}; rename one")
    return schemas


REPLIES = (
    replies.chat.ChatCompletion,
    replies.responses.Response,
    replies.fusions.Fusion,
    replies.fusions.FusionList,
    replies.fusions.SubmittedLines,
    replies.fusions.ImageDeletion,
    replies.batches.File,
    replies.batches.FileList,
    replies.batches.FileDeletion,
    replies.batches.Batch,
    replies.batches.BatchList,
    replies.models.Model,
    replies.models.ModelList,
    replies.votes.Vote,
    replies.votes.VoteCounts,
    replies.openrouter.GenerationReply,
    replies.openrouter.KeyReply,
    replies.openrouter.CreditsReply,
    replies.openrouter.ModelCountReply,
    replies.openrouter.TenantKeyReply,
    replies.openrouter.TenantKeyList,
    replies.openrouter.CreateKeyReply,
    replies.openrouter.KeyDeletion,
    replies.console.Caller,
    replies.console.SubmittedPrompt,
    replies.console.Status,
    replies.events.PlanEvent,
    replies.events.RoundEvent,
    replies.events.CandidateEvent,
    replies.events.ErrorEvent,
    replies.errors.Error,
)


SCHEMAS: Final[dict[str, Schema]] = {
    **components(
        Submission=Submission,
        NewBatch=CreateBatch,
        ResumedBatch=ResumeBatch,
        RetriedBatch=RetryBatch,
        VoteRequest=VoteRequest,
        NewKey=CreateKey,
        ChangedKey=ChangeKey,
        **{reply_type.__name__: reply_type for reply_type in REPLIES},
    ),
    "ChatCompletionRequest": _CHAT,
    "ResponseRequest": _RESPONSE_REQUEST,
}
"""Schemas of all components, by name."""
