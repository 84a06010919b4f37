"""Parse messages and tools of OpenAI's chat completions into those of the contracts. Pure."""

import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, NoReturn

from jsonschema_rs import Draft202012Validator, ValidationError
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from fusewire.contracts import TOOL_NAME, Image, Message, Tool, ToolCall
from fusewire.json_schema import is_pattern
from fusewire_ingest.admission.refusal import TAG, UNSUPPORTED

MOST_TOOLS = 128
MODES_OF_CHOICE = ("auto", "none", "required")
MOST_IMAGES = 64
MOST_NAME_CHARS = 64
ROLES = ("developer", "system", "user", "assistant", "tool")
OTHER_PARTS = (
    "input_audio",
    "file",
    "video_url",
    "input_video",
    "input_text",
    "input_image",
    "document",
)
IMAGE_URL = re.compile(r"https://\S+|data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}")


def _fetch_nothing(uri: str) -> NoReturn:
    raise ValueError(f"{uri} is not fetched")


# The library's own `meta` goes by a schema's $schema, and would fetch it.
_SCHEMA_OF_SCHEMAS = Draft202012Validator(
    {"$ref": "https://json-schema.org/draft/2020-12/schema"},
    retriever=_fetch_nothing,
    validate_formats=False,
)


class _LenientModel(BaseModel):
    """Ignores further fields: clients copy whole objects of an SDK."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _CalledFunction(_LenientModel):
    name: str = Field(pattern=TOOL_NAME)
    arguments: str
    """Any text, valid JSON or not: it is what a model wrote earlier in the conversation."""


class _MessageCall(_LenientModel):
    id: str = Field(min_length=1)
    type: Literal["function"] = "function"
    function: _CalledFunction


class _TextPart(_LenientModel):
    type: Literal["text"]
    text: str


class _RefusalPart(_LenientModel):
    """A refusal that a model wrote in place of an answer. Later models are sent it as text."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


class _ImageUrl(_LenientModel):
    url: str
    detail: Literal["auto", "low", "high"] | None = None

    @field_validator("url")
    @classmethod
    def _is_reachable(cls, value: str) -> str:
        if not IMAGE_URL.fullmatch(value):
            _refuse("it must be https://… or data:image/<png, jpeg, gif or webp>;base64,…")
        return value


class _ImagePart(_LenientModel):
    type: Literal["image_url"]
    image_url: _ImageUrl


def _check_part(value: object) -> object:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str):
        _refuse('it must be a part such as {"type": "text", "text": "…"}')
    if kind not in ("text", "image_url", "refusal"):
        # Only types that OpenAI knows are repeated: another text may be the prompt's own.
        subject = f"parts of type '{kind}'" if kind in OTHER_PARTS else "parts of this type"
        reason = f"{subject} are not supported; send text and image_url parts"
        raise PydanticCustomError(UNSUPPORTED, "{reason}", {"reason": reason})
    return value


def _part_tag(value: object) -> str | None:
    return TAG + str(value.get("type")) if isinstance(value, dict) else None


def _content_tag(value: object) -> str | None:
    if isinstance(value, str):
        return _TEXT
    if isinstance(value, list | tuple):
        return _PARTS
    return None


_TEXT, _PARTS = f"{TAG}text", f"{TAG}parts"
_Part = Annotated[
    Annotated[_TextPart, Tag(f"{TAG}text")]
    | Annotated[_RefusalPart, Tag(f"{TAG}refusal")]
    | Annotated[_ImagePart, Tag(f"{TAG}image_url")],
    Discriminator(_part_tag),
    BeforeValidator(_check_part),
]
# Tagged, so that a fault in one part is not also reported as "should be a string".
_Content = Annotated[
    Annotated[str, Tag(_TEXT)] | Annotated[tuple[_Part, ...], Tag(_PARTS)],
    Discriminator(
        _content_tag,
        custom_error_type="refused",
        custom_error_message="it must be a text, or a list of text and image parts",
    ),
]


def _as_system(role: object) -> object:
    if role not in ROLES:
        _refuse(f"it must be {', '.join(ROLES[:-1])} or {ROLES[-1]}")
    return "system" if role == "developer" else role


_Thought = Annotated[
    str | None, BeforeValidator(lambda value: value if isinstance(value, str) else None)
]
"""Reasoning. Anything but a text is dropped: no provider takes it back."""


class InputMessage(_LenientModel):
    """One message; a `developer` counts as `system`.

    `content` may be null or absent where there are tool calls, and a list of texts and images.
    """

    role: Annotated[Literal["system", "user", "assistant", "tool"], BeforeValidator(_as_system)]
    name: str | None = Field(default=None, max_length=MOST_NAME_CHARS)
    tool_calls: tuple[_MessageCall, ...] | None = None
    tool_call_id: str | None = Field(default=None, validate_default=True)
    reasoning_content: _Thought = None
    reasoning: _Thought = None
    """OpenRouter's name for the same."""
    # After `tool_calls`, which its validator looks at.
    content: _Content | None = Field(default=None, validate_default=True)

    @field_validator("tool_calls")
    @classmethod
    def _by_assistant(
        cls, value: tuple[_MessageCall, ...] | None, info: ValidationInfo
    ) -> tuple[_MessageCall, ...] | None:
        if value and info.data.get("role") != "assistant":
            _refuse("only an assistant's message calls tools; remove it or mend the role")
        return value

    @field_validator("tool_call_id")
    @classmethod
    def _of_result(cls, value: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("role") == "tool" and value is None:
            _refuse("a tool's message must name the call that it answers")
        return value

    @field_validator("content")
    @classmethod
    def _is_there(
        cls, value: str | tuple[_Part, ...] | None, info: ValidationInfo
    ) -> str | tuple[_Part, ...] | None:
        if value is None and not info.data.get("tool_calls"):
            _refuse(
                "it must be a text, or a list of text and image parts; "
                "it may be null only beside tool calls"
            )
        parts = value if isinstance(value, tuple) else ()
        images = [part for part in parts if isinstance(part, _ImagePart)]
        if images and info.data.get("role") != "user":
            _refuse("only a user's message shows images; move them there")
        if len(images) > MOST_IMAGES:
            _refuse(f"it holds {len(images)} images, the limit is {MOST_IMAGES}")
        return value

    def message(self) -> Message:
        """The same message in the contract's form."""
        tool_calls = tuple(
            ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in self.calls
        )
        reasoning = None
        if self.role == "assistant":
            reasoning = self.reasoning_content or self.reasoning
        text, images = _join_parts(self.content)
        return Message(
            role=self.role,
            name=self.name or None,
            content=text,
            images=images,
            tool_calls=tool_calls,
            tool_call_id=self.tool_call_id if self.role == "tool" else None,
            reasoning=reasoning,
        )

    @property
    def calls(self) -> tuple[_MessageCall, ...]:
        """The tool calls of the message, if any."""
        return self.tool_calls or ()


def _join_parts(content: str | tuple[_Part, ...] | None) -> tuple[str, tuple[Image, ...]]:
    """Join a message's texts, by line breaks between adjacent ones, and note where images stand."""
    if isinstance(content, str) or content is None:
        return content or "", ()
    text = ""
    images = []
    is_after_text = False
    for part in content:
        if not isinstance(part, _ImagePart):
            text += f"\n{part.text}" if is_after_text else part.text
            is_after_text = True
        else:
            is_after_text = False
            images.append(
                Image(url=part.image_url.url, detail=part.image_url.detail or "auto", at=len(text))
            )
    return text, tuple(images)


class _Function(_LenientModel):
    name: str = Field(pattern=TOOL_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None

    @field_validator("name")
    @classmethod
    def _is_no_mode(cls, value: str) -> str:
        if value in MODES_OF_CHOICE:
            _refuse(f"no tool can be called '{value}', which is a way to choose tools; rename it")
        return value

    @field_validator("parameters")
    @classmethod
    def _is_schema(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value:
            if value.get("type", "object") != "object":
                _refuse("arguments are always an object; make its type 'object'")
            check_schema(value)
        return value


class FunctionTool(_LenientModel):
    """One tool. `strict` is ignored: every call is checked against its schema here."""

    type: Literal["function"]
    function: _Function

    def tool(self) -> Tool:
        """The same tool in the contract's form."""
        function = self.function
        return Tool(
            name=function.name,
            description=function.description or "",
            parameters=function.parameters or {},
        )


def _refuse(reason: str) -> NoReturn:
    # As an argument: braces in a reason would be taken for placeholders.
    raise PydanticCustomError("refused", "{reason}", {"reason": reason})


def check_schema(schema: dict[str, Any]) -> None:
    """Refuse an invalid JSON Schema. Raises PydanticCustomError."""
    _check_schema_text(json.dumps(schema))


@lru_cache(256)  # all lines of a batch bring the same schema
def _check_schema_text(text: str) -> None:
    schema = json.loads(text)
    _check_against_draft(schema)
    _check_patterns(schema)
    _check_references(schema)


def _check_against_draft(schema: Any) -> None:
    try:
        _SCHEMA_OF_SCHEMAS.validate(schema)
    except ValidationError as exc:
        path = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in exc.instance_path
        )
        _refuse(f"it is no valid JSON Schema (draft 2020-12) at ${path[:80]}; mend that part")


def _check_patterns(schema: Any) -> None:
    for pattern in _patterns(schema):
        if not is_pattern(pattern):
            _refuse(f"the pattern '{pattern[:80]}' in it is no regular expression; mend it")


def _check_references(schema: Any) -> None:
    try:
        # An empty registry, which fetches nothing: a reference leads within the schema or nowhere.
        resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
        for ref in _refs(schema):
            resolver.lookup(ref)
    except Exception:  # noqa: BLE001 - the library raises whatever a wrong reference runs into
        _refuse("a $ref in it leads out of the schema or nowhere; put what it names under $defs")


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """All objects within a value, itself included."""
    if isinstance(value, dict):
        yield value
        for member in value.values():
            yield from _objects(member)
    elif isinstance(value, list):
        for element in value:
            yield from _objects(element)


def _patterns(schema: Any) -> Iterator[str]:
    for part in _objects(schema):
        if isinstance(pattern := part.get("pattern"), str):
            yield pattern
        if isinstance(patterns := part.get("patternProperties"), dict):
            yield from patterns


def _refs(schema: Any) -> Iterator[str]:
    for part in _objects(schema):
        for key in ("$ref", "$dynamicRef"):
            if isinstance(part.get(key), str):
                yield part[key]


def _check_tool_names(tools: tuple[FunctionTool, ...]) -> tuple[FunctionTool, ...]:
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        _refuse(f"two tools are called '{duplicate}'; give each a name of its own")
    return tools


def _check_tool_results(
    turns: tuple[InputMessage, ...] | None,
) -> tuple[InputMessage, ...] | None:
    call_ids: set[str] = set()
    for number, turn in enumerate(turns or ()):
        if turn.role == "tool" and turn.tool_call_id not in call_ids:
            _refuse(
                f"message {number} answers a tool call that no earlier message makes; "
                "send that message too"
            )
        call_ids.update(call.id for call in turn.calls)
    return turns


def _choice_name(value: object) -> object:
    """The name within `{"type": "function", "function": {"name": …}}`; other values unchanged."""
    if not isinstance(value, dict):
        return value
    function = value.get("function")
    name = None
    if isinstance(function, dict) and value.get("type") == "function":
        name = function.get("name")
    if not isinstance(name, str):
        _refuse('name one tool as {"type": "function", "function": {"name": "…"}}')
    return name


def check_choice(choice: str | None, tools: Sequence[FunctionTool]) -> str | None:
    """Refuse a tool choice that the tools do not offer. Raises PydanticCustomError."""
    if choice is None:
        return None
    if not tools:
        _refuse("there are no tools to choose from; give `tools`, or leave this out")
    names = [tool.function.name for tool in tools]
    if choice not in (*MODES_OF_CHOICE, *names):
        _refuse(
            f"it is neither {', '.join(MODES_OF_CHOICE)} "
            f"nor one of the tools: {', '.join(names)[:400]}"
        )
    return choice


Turns = Annotated[
    tuple[InputMessage, ...] | None, Field(min_length=1), AfterValidator(_check_tool_results)
]
Tools = Annotated[
    tuple[FunctionTool, ...], Field(max_length=MOST_TOOLS), AfterValidator(_check_tool_names)
]
Choice = Annotated[str | None, BeforeValidator(_choice_name)]
