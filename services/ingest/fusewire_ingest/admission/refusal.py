"""How what a client sent is refused: what is wrong, where, and how to mend it. Pure."""

import difflib
from collections.abc import Callable, Iterable
from typing import Literal, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

UNSUPPORTED = "unsupported"
"""The type of a validator's error about what is well written and yet not done here."""
TAG = "\x00"
"""Begins the tags of unions, so that none is taken for a key: no key that is let in has this character."""

_IN_JSON = {
    "missing": "it is missing",
    "model_type": "it must be an object",
    "model_attributes_type": "it must be an object",
    "dict_type": "it must be an object",
    "tuple_type": "it must be a list",
    "list_type": "it must be a list",
    "string_type": "it must be a text",
    "int_type": "it must be a whole number",
    "int_parsing": "it must be a whole number",
    "int_from_float": "it must be a whole number",
    "float_type": "it must be a number",
    "float_parsing": "it must be a number",
    "bool_type": "it must be true or false",
    "bool_parsing": "it must be true or false",
}
"""What must be there, by pydantic's type of an error: its own words are Python's."""

_M = TypeVar("_M", bound=BaseModel)

Code = Literal[
    "invalid_json",
    "invalid_request",
    "prompt_too_large",
    "unknown_pool",
    "unknown_mode",
    "model_not_found",
    "unsupported_parameter",
    "unsupported_tool",
    "custom_id_conflict",
    "recursion",
    "budget_exceeded",
    "price_unknown",
    "file_too_large",
    "file_in_use",
    "unknown_file",
    "unknown_response",
    "idempotency_conflict",
    "batch_state",
]


class RefusedError(Exception):
    """A submission that cannot be accepted: what, why, how to mend it."""

    def __init__(
        self,
        code: Code,
        message: str,
        param: str | None = None,
    ) -> None:
        self.code = code
        self.message = message
        self.param = param
        super().__init__(message)

    def moved(self, at: Callable[[str], str]) -> "RefusedError":
        """The same refusal of a part of something larger; `at` says where there a path leads."""
        if self.param is None:
            return self
        param, named = at(self.param), f"'{self.param}'"
        message = (
            f"'{param}'{self.message.removeprefix(named)}"
            if self.message.startswith(named)
            else self.message
        )
        return RefusedError(self.code, message, param)


def wrong(path: str, reason: str) -> RefusedError:
    """The refusal of what is not written as it must be."""
    return RefusedError("invalid_request", f"'{path}': {reason}", path)


def unsupported(path: str, reason: str) -> RefusedError:
    """The refusal of what is well written and yet not done here."""
    return RefusedError("unsupported_parameter", f"'{path}': {reason}", path)


def validated(model: type[_M], value: object, at: str = "") -> _M:
    """Read a value as a model.

    Args:
        model: what it shall be.
        value: what a client sent.
        at: where it stands in what the client sent.

    Raises:
        RefusedError: it names the first fault, and never repeats the value.
    """
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
    path = _path(first["loc"])
    reason = _reason(first)
    path = f"{at}.{path}".strip(".") if at else path
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path.rpartition(".")[2], model.model_fields, n=1)
        hint = (
            f"did you mean '{near[0]}'?" if near else f"known are {', '.join(model.model_fields)}"
        )
        return _refuse("invalid_request", f"'{path[:80]}' is not supported; {hint}", path[:80])
    code: Code = "unsupported_parameter" if first["type"] == UNSUPPORTED else "invalid_request"
    return _refuse(code, f"'{path}': {reason}", path)


def _reason(error: ErrorDetails) -> str:
    """What is wrong, in the words of JSON, and without the value."""
    kind = error["type"]
    if kind == "literal_error":
        return f"it must be {error['ctx']['expected']}"
    said = _IN_JSON.get(kind)
    if said is None:
        return str(error["msg"])
    return f"{said}, and not null" if error["input"] is None and kind != "missing" else said


def _refuse(code: Code, message: str, param: str) -> NoReturn:
    raise RefusedError(code, message, param)


def _path(loc: tuple[int | str, ...]) -> str:
    """Where a fault is, as the client wrote it: without the tags that a union puts into its path."""
    return ".".join(str(step) for step in loc if not str(step).startswith(TAG))


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """What to say of a name that does not exist."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"there is no {kind} '{name[:63]}'; {hint}known: {', '.join(names) or 'none'}"
