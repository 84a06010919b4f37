"""Answers compared with each other: what is the same, what is most like the rest. Pure."""

import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, Literal, cast

from fusewire.contracts import AnswerKind
from fusewire.json_schema import SchemaCheck, plain
from fusewire_judge.model import MemberAnswer

LABEL_CHARS = 32
LABEL_WORDS = 4

# Nothing here may repeat next to its like and give back what it took: a model that loops writes pages of blanks.
_FINAL = re.compile(
    r"(?:^|\n|\. )\W{0,8}(?:the )?(?:final )?answer(?: is:?|:)\s*+(.++)$", re.IGNORECASE
)
_LAST_LINE = re.compile(r"\n(?:A:|####)[ \t]*+([^\n]++)$")
_BOXED = re.compile(r"\\boxed\{([^{}]+)\}")
_CHOICE = re.compile(r"^\(?([A-Ha-h])\)?[.):]?$")
_NUMBER = re.compile(r"^[-+]?[$€£]?\s*[-+]?\d[\d,]*(?:\.\d+)?\s*%?$")
_FENCED = re.compile(r"^```(?:json)?[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
_WORD = re.compile(r"\w+")
_REFUSAL = re.compile(
    r"^\W{0,4}(?:i['’]?m sorry|i am sorry|sorry|i apologi[sz]e|i can(?:no|['’])t|i am (?:unable|not able)"
    r"|i['’]m (?:unable|not able)|as an ai\b)[^\n]{0,200}?\b(?:can(?:no|['’])t|unable|not able|won['’]t|decline)",
    re.IGNORECASE,
)
REFUSAL_CHARS = 400
"""A longer text has said something besides no."""
LOOP_CHARS = 1000
LOOP_RATIO = 0.04
"""Text that deflates to less than this share of itself repeats itself."""
COMPARED_CHARS = 12_000
CLOSED_SHARE = 2 / 3
"""The share of the answers that must be closed for the question to be."""


def flaw(text: str) -> Literal["empty", "refused", "looped"] | None:
    """What makes a text no answer; None if nothing does."""
    stripped = text.strip()
    if not stripped:
        return "empty"
    if len(stripped) <= REFUSAL_CHARS and _REFUSAL.match(stripped):
        return "refused"
    if len(stripped) >= LOOP_CHARS and len(zlib.compress(stripped.encode(), 1)) < LOOP_RATIO * len(
        stripped
    ):
        return "looped"
    return None


def canonical(content: str, schema: Mapping[str, Any] | None) -> str | None:
    """What a closed answer says, in one spelling behind its kind; None if it is an open one.

    Closed are: JSON that satisfies the schema where the prompt demanded one, a choice (`(b)`),
    a number, a label of up to four words, and any of these behind "The answer is" or on a last
    line behind "A:" or "####". A schema's references stay within it: nothing is ever fetched.
    """
    if schema is not None:
        return _json(content, schema)
    text = content.strip()
    if found := (_BOXED.search(text) or _LAST_LINE.search(text) or _FINAL.search(text)):
        text = found.group(1)
    text = text.lstrip("*_`\"' \n").rstrip("*_`\"' \n.!")
    if not text or "\n" in text or len(text) > LABEL_CHARS or len(text.split()) > LABEL_WORDS:
        return None
    if choice := _CHOICE.match(text):
        return "choice:" + choice.group(1).upper()
    if _NUMBER.match(text):
        return _number(text)
    return "label:" + " ".join(text.casefold().split())


def unwrapped(content: str, schema: Mapping[str, Any] | None) -> str:
    """An answer without what a model puts around JSON, where it satisfies the schema only so; else as it is."""
    if schema is None or _json(content, schema) is not None:
        return content
    blocks = _FENCED.findall(content)
    inner = blocks[0].strip() if len(blocks) == 1 else content.strip()
    return inner if _json(inner, schema) is not None else content


def _json(content: str, schema: Mapping[str, Any]) -> str | None:
    try:
        value = json.loads(content, parse_constant=_no_constant)
        if SchemaCheck(schema).fits(value):
            return "json:" + json.dumps(plain(value), sort_keys=True, separators=(",", ":"))
    except (ValueError, RecursionError):
        return None
    return None


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def kind_of(contents: Sequence[str], schema: Mapping[str, Any] | None) -> AnswerKind:
    """The kind of answer that a question has: closed if two thirds of the answers are, and at least one."""
    found = [canonical(content, schema) for content in contents]
    closed = Counter(value.partition(":")[0] for value in found if value is not None)
    if not closed or (schema is None and closed.total() < CLOSED_SHARE * len(found) - 1e-9):
        return "open"
    return cast("AnswerKind", closed.most_common(1)[0][0])


def _number(text: str) -> str | None:
    try:
        value = Decimal(re.sub(r"[$€£,%\s]", "", text))
    except InvalidOperation:
        return None
    # 42.0 and 42 are one number; normalize would round to 28 digits.
    plain = f"{value:f}"
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "number:" + ("0" if plain == "-0" else plain)


def votes(
    answers: Sequence[MemberAnswer], schema: Mapping[str, Any] | None
) -> dict[str, list[MemberAnswer]]:
    """Closed answers by what they say, heaviest first. An open answer has no vote, nor one that breaks the schema."""
    grouped: dict[str, list[MemberAnswer]] = {}
    for one in answers:
        value = canonical(one.content, schema)
        if value is not None:
            grouped.setdefault(value, []).append(one)
    order = {one.member: place for place, one in enumerate(answers)}
    return dict(
        sorted(
            grouped.items(), key=lambda kv: (-_weight(kv[1]), -len(kv[1]), order[kv[1][0].member])
        )
    )


def _weight(answers: Sequence[MemberAnswer]) -> float:
    return sum(one.weight for one in answers)


def is_tied(groups: Mapping[str, Sequence[MemberAnswer]]) -> bool:
    """Whether the two heaviest groups weigh the same."""
    weights = [_weight(group) for group in groups.values()]
    return len(weights) > 1 and abs(weights[0] - weights[1]) < 1e-9


def share(groups: Mapping[str, Sequence[MemberAnswer]]) -> float:
    """The heaviest group's share of the weight."""
    weights = [_weight(group) for group in groups.values()]
    return weights[0] / sum(weights)


def similarity(a: str, b: str) -> float:
    """Jaccard similarity of the two texts' words, 0 to 1; of long texts, of their beginnings."""
    left, right = _words(a[:COMPARED_CHARS]), _words(b[:COMPARED_CHARS])
    return len(left & right) / len(left | right) if left | right else 1.0


@lru_cache(maxsize=128)
def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.casefold()))


def agreement(answers: Sequence[MemberAnswer]) -> float:
    """Mean similarity over all pairs, 0 to 1; 1 for a single answer."""
    pairs = [
        similarity(a.content, b.content) for i, a in enumerate(answers) for b in answers[i + 1 :]
    ]
    return sum(pairs) / len(pairs) if pairs else 1.0


def gain(one: MemberAnswer, answers: Sequence[MemberAnswer]) -> float:
    """How like the answers one of them is, each counted by its weight.

    Minimum Bayes risk selection (Kumar and Byrne, 2004) with word overlap as the gain. It is
    itself among them, or of two the lighter would always win.
    """
    return one.weight + sum(
        other.weight * similarity(one.content, other.content)
        for other in answers
        if other is not one
    )


def medoid(answers: Sequence[MemberAnswer]) -> MemberAnswer:
    """The answer most like the others; the first of equals."""
    return max(answers, key=lambda one: gain(one, answers))


def agreed(member: str, groups: Mapping[str, Sequence[MemberAnswer]]) -> bool | None:
    """Whether a member said what most of the others said.

    Its own voice is left out, so that a member is not right because it is heavy.

    Returns:
        None if it has no vote, if no two others strictly lead, or if two answers lead alike: each would
        be wrong by the other.
    """
    heads = sorted((len(group) for group in groups.values()), reverse=True)
    if len(heads) > 1 and heads[0] == heads[1]:
        return None
    others = {value: sum(one.member != member for one in group) for value, group in groups.items()}
    own = next(
        (value for value, group in groups.items() if any(one.member == member for one in group)),
        None,
    )
    lead = sorted(others.values(), reverse=True)
    if own is None or lead[0] < 2 or (len(lead) > 1 and lead[1] == lead[0]):
        return None
    return others[own] == lead[0]


def posterior(leading: int, others: int) -> float:
    """The probability that the leading answer is the majority's, whoever else is asked.

    P(Beta(leading + 1, others + 1) > 1/2), as Adaptive-Consistency stops (Aggarwal et al.,
    2023): 2-0 is 0.875, 3-0 0.9375, 3-1 0.8125.
    """
    trials = leading + others + 1
    return sum(math.comb(trials, hits) for hits in range(leading + 1)) / float(2**trials)
