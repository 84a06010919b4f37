"""Messages and tools as OpenAI's chat completions write them, read into the contracts' own. Pure."""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NoReturn

from jsonschema import Draft202012Validator, SchemaError
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError, PydanticKnownError
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from fusewire.contracts import TOOL_NAME, Message, Tool, ToolCall

MOST_TOOLS = 128
MODES_OF_CHOICE = ("auto", "none", "required")


class _Shape(BaseModel):
    """What a client copies from an SDK's object has more fields than anyone needs here."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Called(_Shape):
    name: str = Field(pattern=TOOL_NAME)
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _is_object(cls, value: str) -> str:
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            _refuse('it must be the text of a JSON object, such as "{}"')
        return value


class _Call(_Shape):
    id: str = Field(min_length=1)
    type: Literal["function"] = "function"
    function: _Called


class Turn(_Shape):
    """One message. `content` may be null or absent where there are tool calls."""

    role: Literal["system", "user", "assistant", "tool"]
    tool_calls: tuple[_Call, ...] | None = None
    tool_call_id: str | None = Field(default=None, validate_default=True)
    # After `tool_calls`, which its validator looks at.
    content: str | None = Field(default=None, validate_default=True)

    @field_validator("tool_calls")
    @classmethod
    def _by_assistant(cls, value: tuple[_Call, ...] | None, info: ValidationInfo) -> tuple[_Call, ...] | None:
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
    def _is_there(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and not info.data.get("tool_calls"):
            raise PydanticKnownError("missing")
        return value

    def message(self) -> Message:
        """The contract's message."""
        calls = tuple(ToolCall(id=c.id, name=c.function.name, arguments=c.function.arguments) for c in self.calls)
        is_result = self.role == "tool"
        return Message(
            role=self.role,
            content=self.content or "",
            tool_calls=calls,
            tool_call_id=self.tool_call_id if is_result else None,
        )

    @property
    def calls(self) -> tuple[_Call, ...]:
        """The calls that it asks for."""
        return self.tool_calls or ()


class _Function(_Shape):
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
            _check_schema(value)
        return value


class FunctionTool(_Shape):
    """One tool. A `strict` is not kept: every call is checked against its schema, whatever the provider does."""

    type: Literal["function"]
    function: _Function

    def tool(self) -> Tool:
        """The contract's tool."""
        of = self.function
        return Tool(name=of.name, description=of.description or "", parameters=of.parameters or {})


def _refuse(reason: str) -> NoReturn:
    # Braces in a reason would be taken for places to fill in.
    raise PydanticCustomError("refused", "{reason}", {"reason": reason})


def _check_schema(schema: dict[str, Any]) -> None:
    """Refuse what no arguments could ever be checked against."""
    if schema.get("type", "object") != "object":
        _refuse("arguments are always an object; make its type 'object'")
    try:
        Draft202012Validator.check_schema(schema)
        # No registry that could fetch anything: a reference leads within the schema or nowhere.
        resolver = Registry().resolver_with_root(DRAFT202012.create_resource(schema))
        for ref in _refs(schema):
            resolver.lookup(ref)
    except SchemaError as exc:
        _refuse(f"it is no valid JSON Schema (draft 2020-12) at {exc.json_path[:80]}; mend that part")
    except Exception:  # noqa: BLE001 - the library raises whatever a wrong reference runs into
        _refuse("a $ref in it leads out of the schema or nowhere; put what it names under $defs")


def _refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("$ref", "$dynamicRef") and isinstance(inner, str):
                yield inner
            else:
                yield from _refs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _refs(inner)


def _distinct(tools: tuple[FunctionTool, ...]) -> tuple[FunctionTool, ...]:
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        _refuse(f"two tools are called '{twice}'; give each a name of its own")
    return tools


def _answering(turns: tuple[Turn, ...] | None) -> tuple[Turn, ...] | None:
    asked: set[str] = set()
    for number, turn in enumerate(turns or ()):
        if turn.role == "tool" and turn.tool_call_id not in asked:
            _refuse(f"message {number} answers a tool call that no earlier message makes; send that message too")
        asked.update(call.id for call in turn.calls)
    return turns


def _named(value: object) -> object:
    """The name within `{"type": "function", "function": {"name": …}}`."""
    if not isinstance(value, dict):
        return value
    function = value.get("function")
    name = function.get("name") if isinstance(function, dict) and value.get("type") == "function" else None
    if not isinstance(name, str):
        _refuse('name one tool as {"type": "function", "function": {"name": "…"}}')
    return name


def check_choice(choice: str | None, tools: Sequence[FunctionTool]) -> str | None:
    """Refuse a choice that the tools do not offer. Raises PydanticCustomError."""
    if choice is None:
        return None
    if not tools:
        _refuse("there are no tools to choose from; give `tools`, or leave this out")
    names = [tool.function.name for tool in tools]
    if choice not in (*MODES_OF_CHOICE, *names):
        _refuse(f"it is neither {', '.join(MODES_OF_CHOICE)} nor one of the tools: {', '.join(names)[:400]}")
    return choice


Turns = Annotated[tuple[Turn, ...] | None, Field(min_length=1), AfterValidator(_answering)]
Tools = Annotated[tuple[FunctionTool, ...], Field(max_length=MOST_TOOLS), AfterValidator(_distinct)]
Choice = Annotated[str | None, BeforeValidator(_named)]
