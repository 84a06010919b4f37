"""Whether an answer is right by a prompt's gold label. Pure, and quick whatever the answer holds."""

import json
import re
from decimal import Decimal, InvalidOperation
from typing import Any

from fusewire.contracts import Gold

# Nothing here may repeat without a bound next to its like: an answer can be a megabyte of anything.
_MARK = re.compile(r"####|\\boxed\{|(?i:\banswer(?:\s{1,4}is\b|\W{0,4}:))|^\W{0,4}A:", re.MULTILINE)
_CHOICE_MARK = re.compile(r"####|\\boxed\{|(?i:\b(?:answer|option|choice)(?:\s{1,4}is\b|\W{0,4}:))")
_NUMBER = re.compile(
    r"(?<![\w.])([-−]?)[$€£]?([-−]?)((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE]([-+]?\d{1,6}))?"
)
_FRACTION = re.compile(r"\s{0,2}/\s{0,2}\d")
_LETTER = re.compile(r"\W{0,8}(?:text\{)?([A-Z]|[a-z](?=\W{0,8}$))(?![\w'’])")
_LEADING = re.compile(
    r"\W{0,8}(?:\(([A-Za-z])\)|([a-z])\)|([A-Z])[.):]|([A-Za-z])\W{0,8}(?:\n|\Z))"
)
_BRACKETED = re.compile(r"\(([A-Za-z])\)")
_FENCED = re.compile(r"```(?:json)?\s{0,8}\n?(.*?)```", re.DOTALL | re.IGNORECASE)
_EDGES = "*_`\"'.! "


def is_right(content: str | None, gold: Gold) -> bool:
    r"""Whether `content` gives the answer that `gold` demands, as `gold.match` says.

    An answer's final answer is the line that follows its last `A:` (at a line's beginning), `Answer:`,
    `answer is` or `####`, or what its last `\boxed{…}` holds. By `match`:

    - exact: the whole answer, or its final answer, is the gold's in another spacing and case at most;
    - number: the first number of the final answer (behind its last `=`), or without one the last of the
      text, has the gold's value; `$18`, `18 %`, `18 km`, `1,000` and `1e3` are numbers, `1/2` is not one;
    - choice: the letter, alone, before its text (`B) Paris`), or behind `answer is`;
    - json: the same JSON value, in a code block or not; 1 and 1.0 are the same, 1 and true are not.

    A gold that has no value of its kind accepts nothing.
    """
    if content is None:
        return False
    if gold.match == "exact":
        wanted = _plain(gold.answer)
        return wanted in {_plain(content), _plain(_final(content, _MARK) or "")} and bool(wanted)
    if gold.match == "number":
        return _same_number(content, gold.answer)
    if gold.match == "choice":
        letter = _letter(gold.answer)
        return letter is not None and _letter(content) == letter
    try:
        return _same_json(_json(content), _json(gold.answer))
    except (ValueError, ArithmeticError, RecursionError):
        return False


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(_EDGES)


def _final(text: str, mark: re.Pattern[str]) -> str | None:
    """The final answer; None where nothing marks one."""
    last = None
    for last in mark.finditer(text):  # noqa: B007 - the last one is what is wanted
        pass
    if last is None:
        return None
    rest = text[last.end() :]
    if last.group().endswith("{"):
        return _braced(rest)
    lines = rest.lstrip("*_: \t\r\n").splitlines()
    return lines[0] if lines else ""


def _braced(text: str) -> str:
    """Up to the brace that closes what was opened before the text."""
    depth = 1
    for found in re.finditer(r"[{}]", text):
        depth += 1 if found.group() == "{" else -1
        if not depth:
            return text[: found.start()]
    return text


def _same_number(content: str, answer: str) -> bool:
    final = _final(content, _MARK)
    said = _last_number(content) if final is None else _first_number(final.rpartition("=")[2])
    wanted = _first_number(answer)
    return said is not None and said == wanted


def _first_number(text: str) -> Decimal | None:
    found = _NUMBER.search(text)
    return _value(found, text) if found else None


def _last_number(text: str) -> Decimal | None:
    last = None
    for last in _NUMBER.finditer(text):  # noqa: B007 - the last one is what is wanted
        pass
    return _value(last, text) if last else None


def _value(found: re.Match[str], text: str) -> Decimal | None:
    if _FRACTION.match(text, found.end()):
        return None
    before, after, digits, exponent = found.groups()
    try:
        sign = "-" if before or after else ""
        return Decimal(f"{sign}{digits.replace(',', '')}e{exponent or 0}")
    except InvalidOperation:
        return None


def _letter(text: str) -> str | None:
    final = _final(text, _CHOICE_MARK)
    if final is None:
        final = _final(text, _MARK)
    if final is not None and (found := _LETTER.match(final)):
        return found.group(1).upper()
    for place in (text, text.rstrip().rpartition("\n")[2]):
        if found := _LEADING.match(place):
            return str(found.group(found.lastindex or 0)).upper()
    named = set(_BRACKETED.findall(text))
    return str(named.pop()).upper() if len(named) == 1 else None


def _json(text: str) -> Any:
    found = _FENCED.search(text)
    return json.loads(
        found.group(1) if found else text,
        parse_int=Decimal,
        parse_float=Decimal,
        parse_constant=_no_constant,
    )


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _same_json(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same_json(value, b[key]) for key, value in a.items())
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same_json, a, b))
    return bool(a == b)
