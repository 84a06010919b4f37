"""Refusals of what a client sent: what is wrong, where, and how to mend it. Pure."""

import difflib
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

UNSUPPORTED = "unsupported"
"""Type of a validator's error about a valid part that Fusewire does not support."""
TAG = "\x00"
"""Prefix of the tags of unions. No key looks like one: admission refuses keys with a NUL."""

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
"""What must be there, by pydantic's error type: its own messages use Python's terms."""

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
    "rate_limited",
    "price_unknown",
    "file_too_large",
    "file_in_use",
    "unknown_file",
    "unknown_response",
    "idempotency_conflict",
    "batch_state",
    "outcome_pending",
    "no_answer",
    "unknown_choice",
]


class RefusedError(Exception):
    """A submission that cannot be accepted.

    `message` says what is wrong and how to mend it; `param` is the path of the faulty part.
    """

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

    def relocate(self, outer_path: Callable[[str], str]) -> "RefusedError":
        """Translate the refusal of a part into one of the whole.

        Args:
            outer_path: maps a path in the part to the same place's path in the whole.
        """
        if self.param is None:
            return self
        param = outer_path(self.param)
        message = self.message
        prefix = f"'{self.param}'"
        if message.startswith(prefix):
            message = f"'{param}'{message.removeprefix(prefix)}"
        return RefusedError(self.code, message, param)


class BudgetRefusedError(RefusedError):
    """A submission that may cost more than is left of a budget.

    Attributes:
        account: whose budget it is (`admission.budgets`).
        fits_later: whether it fits once what is reserved is settled, if that costs nothing.
    """

    def __init__(self, message: str, *, account: str, fits_later: bool) -> None:
        self.account = account
        self.fits_later = fits_later
        super().__init__("budget_exceeded", message)


def invalid_error(path: str, reason: str) -> RefusedError:
    """The refusal of a part that is malformed."""
    return RefusedError("invalid_request", f"'{path}': {reason}", path)


def unsupported_error(path: str, reason: str) -> RefusedError:
    """The refusal of a part that is valid, and that Fusewire does not support."""
    return RefusedError("unsupported_parameter", f"'{path}': {reason}", path)


def validate(model: type[_M], value: object, at: str = "") -> _M:
    """Validate a value as a model.

    Args:
        model: the pydantic model.
        value: what a client sent.
        at: the path of the value in what the client sent.

    Raises:
        RefusedError: the value is invalid. The message names the first fault, and never repeats
            the value.
    """
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
    path = _path(first["loc"])
    path = f"{at}.{path}".strip(".") if at else path
    # Raised outside of the handler: its context would hold the value.
    if first["type"] == "extra_forbidden":
        raise unknown_key_error(path, path.rpartition(".")[2], model.model_fields)
    if first["type"] == UNSUPPORTED:
        raise unsupported_error(path, _reason(first))
    raise invalid_error(path, _reason(first))


def unknown_key_error(path: str, key: str, known_keys: Iterable[str]) -> RefusedError:
    """The refusal of a key that does not exist, with the nearest one that does."""
    keys = list(known_keys)
    near = difflib.get_close_matches(key, keys, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(keys)}"
    return RefusedError("invalid_request", f"'{path[:80]}' is not supported; {hint}", path[:80])


def _reason(error: ErrorDetails) -> str:
    """What is wrong, in the terms of JSON, and without the value."""
    kind = error["type"]
    if kind == "literal_error":
        return f"it must be {error['ctx']['expected']}"
    reason = _IN_JSON.get(kind)
    if reason is None:
        return str(error["msg"])
    if error["input"] is None and kind != "missing":
        return f"{reason}, and not null"
    return reason


def _path(loc: tuple[int | str, ...]) -> str:
    """The path of a fault as the client wrote it, without pydantic's tags of unions."""
    return ".".join(str(step) for step in loc if not str(step).startswith(TAG))


def unknown(kind: str, name: str, known_names: Iterable[str]) -> str:
    """The message about a name that does not exist."""
    names = sorted(known_names)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"there is no {kind} '{name[:63]}'; {hint}known: {', '.join(names) or 'none'}"
