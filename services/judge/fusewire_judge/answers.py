"""Answers compared with each other: what is the same, what is most like the rest. Pure."""

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from fusewire_judge.fusion.case import Said

LABEL_CHARS = 32
LABEL_WORDS = 4

# Nothing here may repeat without a bound next to its like: a model that loops writes pages of blanks.
_FINAL = re.compile(r"(?:^|\n|\. )\W{0,8}(?:the )?(?:final )?answer(?: is:?|:)\s*(.+)$", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\{([^{}]+)\}")
_CHOICE = re.compile(r"^\(?([A-Ha-h])\)?[.):]?$")
_NUMBER = re.compile(r"^[-+]?[$€£]?\s*[-+]?\d[\d,]*(?:\.\d+)?\s*%?$")
_WORD = re.compile(r"\w+")


def canonical(content: str, schema: Mapping[str, Any] | None) -> str | None:
    """What a closed answer says, in one spelling; None if it is an open one.

    Closed are: JSON where the prompt demanded a schema, a choice (`(b)`), a number, a label
    of up to four words, and any of these behind "The answer is".
    """
    if schema is not None:
        try:
            return "json:" + json.dumps(json.loads(content), sort_keys=True, separators=(",", ":"))
        except (ValueError, RecursionError):
            return None
    text = content.strip()
    if found := (_BOXED.search(text) or _FINAL.search(text)):
        text = found.group(1)
    text = text.lstrip("*_`\"' \n").rstrip("*_`\"' \n.!")
    if not text or "\n" in text or len(text) > LABEL_CHARS or len(text.split()) > LABEL_WORDS:
        return None
    if choice := _CHOICE.match(text):
        return "choice:" + choice.group(1).upper()
    if _NUMBER.match(text):
        return _number(text)
    return "label:" + " ".join(text.casefold().split())


def _number(text: str) -> str | None:
    try:
        value = Decimal(re.sub(r"[$€£,%\s]", "", text))
    except InvalidOperation:
        return None
    # 42.0 and 42 are one number, and normalize alone would write 4.2E+1.
    return f"number:{value.normalize():f}"


def votes(said: Sequence[Said], schema: Mapping[str, Any] | None) -> dict[str, list[Said]] | None:
    """Answers by what they say, heaviest first; None unless all of them are closed.

    An answer that breaks a demanded schema has no vote, unless all break it.
    """
    grouped: dict[str, list[Said]] = {}
    for one in said:
        value = canonical(one.content, schema)
        if value is None and schema is None:
            return None
        if value is not None:
            grouped.setdefault(value, []).append(one)
    if not grouped:
        return None
    order = {one.member: place for place, one in enumerate(said)}
    return dict(sorted(grouped.items(), key=lambda kv: (-_weight(kv[1]), -len(kv[1]), order[kv[1][0].member])))


def _weight(said: Sequence[Said]) -> float:
    return sum(one.weight for one in said)


def is_tied(groups: Mapping[str, Sequence[Said]]) -> bool:
    """Whether the two heaviest groups weigh the same."""
    weights = [_weight(group) for group in groups.values()]
    return len(weights) > 1 and abs(weights[0] - weights[1]) < 1e-9


def share(groups: Mapping[str, Sequence[Said]]) -> float:
    """The heaviest group's share of the weight."""
    weights = [_weight(group) for group in groups.values()]
    return weights[0] / sum(weights)


def similarity(a: str, b: str) -> float:
    """Jaccard similarity of the two texts' words, 0 to 1."""
    left, right = set(_WORD.findall(a.casefold())), set(_WORD.findall(b.casefold()))
    return len(left & right) / len(left | right) if left | right else 1.0


def agreement(said: Sequence[Said]) -> float:
    """Mean similarity over all pairs, 0 to 1; 1 for a single answer."""
    pairs = [similarity(a.content, b.content) for i, a in enumerate(said) for b in said[i + 1 :]]
    return sum(pairs) / len(pairs) if pairs else 1.0


def medoid(said: Sequence[Said]) -> Said:
    """The answer most like the others, each counted by its weight; the first of equals.

    Minimum Bayes risk selection (Kumar and Byrne, 2004) with word overlap as the gain.
    """

    def gain(one: Said) -> float:
        return sum(other.weight * similarity(one.content, other.content) for other in said if other is not one)

    return max(said, key=gain)
