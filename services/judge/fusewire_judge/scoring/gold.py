"""Whether an answer is right by a prompt's gold label. Pure, and in linear time for any answer."""

import json
import re
from decimal import Decimal, InvalidOperation
from typing import Any

from fusewire.contracts import Gold

# Repetitions are bounded, lest a pattern take quadratic time: an answer can be a megabyte long.
_MARK = re.compile(r"####|\\boxed\{|(?i:\banswer(?:\s{1,4}is\b|\W{0,4}:))|^\W{0,4}A:", re.MULTILINE)
_CHOICE_MARK = re.compile(r"####|\\boxed\{|(?i:\b(?:answer|option|choice)(?:\s{1,4}is\b|\W{0,4}:))")
_NUMBER = re.compile(
    r"(?<![\w.])([-−]?)[$€£]?([-−]?)((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:[eE]([-+]?\d{1,6}))?"
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

    An answer's final answer is the line that follows its last `A:` (at a line's beginning),
    `Answer:`, `answer is` or `####`, or what its last `\boxed{…}` holds. By `match`:

    - exact: the whole answer, or its final answer, is the gold's but for spacing and case;
    - number: the first number of the final answer (behind its last `=`), or without one the last of
      the text, has the gold's value; `$18`, `18 %`, `18 km`, `1,000` and `1e3` are numbers, `1/2`
      is not one;
    - choice: the letter, alone, before its text (`B) Paris`), or behind `answer is`;
    - json: the same JSON value, in a code block or not; 1 and 1.0 are the same, 1 and true are not.

    A gold that has no value of its kind accepts nothing.
    """
    if content is None:
        return False
    if gold.match == "exact":
        label = _plain(gold.answer)
        final_answer = _final(content, _MARK) or ""
        return bool(label) and label in {_plain(content), _plain(final_answer)}
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
    """The text that follows the last mark of a final answer; None if there is no mark."""
    last_mark = None
    for last_mark in mark.finditer(text):  # noqa: B007 - the last one is what is wanted
        pass
    if last_mark is None:
        return None
    rest = text[last_mark.end() :]
    if last_mark.group().endswith("{"):
        return _braced_text(rest)
    lines = rest.lstrip("*_: \t\r\n").splitlines()
    return lines[0] if lines else ""


def _braced_text(text: str) -> str:
    """The text up to the brace that closes the one opened before it."""
    depth = 1
    for brace in re.finditer(r"[{}]", text):
        depth += 1 if brace.group() == "{" else -1
        if not depth:
            return text[: brace.start()]
    return text


def _same_number(content: str, answer: str) -> bool:
    final = _final(content, _MARK)
    number = _last_number(content) if final is None else _first_number(final.rpartition("=")[2])
    return number is not None and number == _first_number(answer)


def _first_number(text: str) -> Decimal | None:
    match = _NUMBER.search(text)
    return _value(match, text) if match else None


def _last_number(text: str) -> Decimal | None:
    last_match = None
    for last_match in _NUMBER.finditer(text):  # noqa: B007 - the last one is what is wanted
        pass
    return _value(last_match, text) if last_match else None


def _value(match: re.Match[str], text: str) -> Decimal | None:
    if _FRACTION.match(text, match.end()):
        return None
    # A minus stands before or after a currency sign.
    minus_before, minus_after, digits, exponent = match.groups()
    try:
        sign = "-" if minus_before or minus_after else ""
        return Decimal(f"{sign}{digits.replace(',', '')}e{exponent or 0}")
    except InvalidOperation:
        return None


def _letter(text: str) -> str | None:
    final = _final(text, _CHOICE_MARK)
    if final is None:
        final = _final(text, _MARK)
    letter = _LETTER.match(final) if final is not None else None
    if letter:
        return letter.group(1).upper()
    last_line = text.rstrip().rpartition("\n")[2]
    for passage in (text, last_line):
        leading = _LEADING.match(passage)
        if leading:
            return str(leading.group(leading.lastindex or 0)).upper()
    bracketed_letters = set(_BRACKETED.findall(text))
    return str(bracketed_letters.pop()).upper() if len(bracketed_letters) == 1 else None


def _json(text: str) -> Any:
    block = _FENCED.search(text)
    return json.loads(
        block.group(1) if block else text,
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
