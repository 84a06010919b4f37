"""What is checked and changed in the text of a statement before a database sees it."""

import contextlib
import datetime as dt
import re
from collections.abc import Mapping
from typing import Any

from fusewire.store.analyst.result import QueryRefused
from fusewire.store.views import VIEWS

_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d")
VERBS = ("SELECT", "WITH", "VALUES", "EXPLAIN")
_GAP = re.compile(r"(?:\s+|--[^\n]*(?:\n|$)|/\*.*?\*/|\()*", re.DOTALL)
_TOKEN = re.compile(
    r"""(?P<skip>
        [eE]'(?:[^'\\]|\\.|'')*'          # a text with backslashes
      | '(?:[^']|'')*'                    # a text
      | "(?:[^"]|"")*"                    # a name
      | --[^\n]*
      | /\*.*?\*/
      | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$   # a text in dollars
      | ::
    )
      | (?<![\w:]):(?P<name>[A-Za-z_]\w*)""",
    re.DOTALL | re.VERBOSE,
)


def views_hint() -> str:
    """Which views there are."""
    names = ", ".join(view.name for view in VIEWS)
    return f"the views are {names}; `fusewire schema` has their columns"


def first_word(sql: str) -> str:
    """The first word of a statement, in capitals; comments and brackets are passed over."""
    start = _GAP.match(sql)
    word = re.compile(r"\w*").match(sql, start.end() if start else 0)
    return word.group().upper() if word else ""


def check_verb(sql: str) -> None:
    """Refuse what does not begin as a statement that reads. Raises QueryRefused."""
    if not first_word(sql):
        raise QueryRefused("there is no statement", "write a SELECT")
    if first_word(sql) not in VERBS:
        raise QueryRefused(
            "only a statement that reads is run here",
            "write a SELECT: what is stored is changed by Fusewire alone",
        )


def without_end(sql: str) -> str:
    """A statement without comments, and without the semicolon after it."""
    text = _TOKEN.sub(
        lambda match: " " if match.group().startswith(("--", "/*")) else match.group(), sql
    )
    return text.rstrip().removesuffix(";")


def check_parameters(sql: str, parameters: Mapping[str, object]) -> None:
    """Refuse parameters that are not in the statement, and those without a value."""
    names = set(parameter_names(sql))
    if missing := sorted(names - set(parameters)):
        raise QueryRefused(
            f"the parameter :{missing[0]} has no value", f"give it: --param {missing[0]}=VALUE"
        )
    if surplus := sorted(set(parameters) - names):
        raise QueryRefused(
            f"the statement has no parameter :{surplus[0]}",
            "write it where its value belongs, or leave it out",
        )


def parameter_names(sql: str) -> list[str]:
    """The names of a statement's parameters, each once, in the order in which they stand."""
    matches = (match.group("name") for match in _TOKEN.finditer(sql))
    return list(dict.fromkeys(name for name in matches if name))


def parameter_value(text: str) -> object:
    """What a person wrote as a value: a number where the text is just how a number is written.

    >>> parameter_value("7"), parameter_value("007")
    (7, '007')
    """
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            if str(kind(text)) == text:
                return kind(text)
    return text


def number_parameters(sql: str) -> tuple[str, list[str]]:
    """Replace `:name` by PostgreSQL's `$1`. Returns the statement, and the names by number."""
    names = parameter_names(sql)

    def replace(match: re.Match[str]) -> str:
        name = match.group("name")
        return f"${names.index(name) + 1}" if name else match.group()

    return _TOKEN.sub(replace, sql), names


def sqlite_value(value: object) -> Any:
    """A parameter as SQLite stores such a value."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, dt.datetime):
        moment = value.astimezone(dt.UTC) if value.tzinfo else value
        return moment.strftime("%Y-%m-%d %H:%M:%S.%f")
    if isinstance(value, str) and _TIME.match(value):
        # Times are compared as texts there, so this has to be one as they are stored.
        # OverflowError: in UTC it is before the year 1, or after 9999.
        with contextlib.suppress(ValueError, OverflowError):
            return sqlite_value(dt.datetime.fromisoformat(value))
    return value.isoformat() if isinstance(value, dt.date) else value


def postgresql_value(name: str, value: object, type_name: str) -> Any:
    """A parameter as asyncpg wants it for a type. Raises QueryRefused if it is none such."""
    if value is None:
        return None
    try:
        return _convert(value, type_name)
    except (TypeError, ValueError):
        raise QueryRefused(
            f"the parameter :{name} is no {type_name}", "give a value that fits where it stands"
        ) from None


def _convert(value: object, type_name: str) -> Any:
    text = value.isoformat() if isinstance(value, dt.date) else str(value)
    if type_name in ("int2", "int4", "int8", "oid"):
        return int(text)
    if type_name in ("float4", "float8", "numeric"):
        return float(text)
    if type_name == "bool":
        return _boolean(text)
    if type_name == "date":
        return dt.date.fromisoformat(text[:10])
    if type_name in ("timestamptz", "timestamp"):
        moment = dt.datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
        return moment if type_name == "timestamptz" else moment.replace(tzinfo=None)
    return text


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError(text)
    return text.lower() in ("true", "1")
