"""Compare answers: which say the same, which is most like the rest, how far they agree. Pure."""

import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from itertools import combinations
from typing import Any, Literal, cast

from fusewire.contracts import AnswerKind
from fusewire.json_schema import SchemaCheck, plain
from fusewire_judge.model import MemberAnswer

LABEL_CHARS = 32
LABEL_WORDS = 4

# No two adjacent parts may match the same text and backtrack: a model that loops writes pages of
# blanks, on which such a pattern takes quadratic time.
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
    r"^\W{0,4}(?:i['’]?m sorry|i am sorry|sorry|i apologi[sz]e|i can(?:no|['’])t"
    r"|i am (?:unable|not able)|i['’]m (?:unable|not able)|as an ai\b)"
    r"[^\n]{0,200}?\b(?:can(?:no|['’])t|unable|not able|won['’]t|decline)",
    re.IGNORECASE,
)
REFUSAL_CHARS = 400
"""A longer text holds something besides the refusal."""
LOOP_CHARS = 1000
LOOP_RATIO = 0.04
"""Text that zlib compresses to less than this share of its size repeats itself."""
COMPARED_CHARS = 12_000
"""Of longer texts, only this many characters from the beginning are compared."""
ALIKE = 0.8
"""Open answers whose mean similarity is at least this do not disagree."""
CLOSED_SHARE = 2 / 3
"""The share of the answers that must be closed for the question to count as closed."""


def flaw(text: str) -> Literal["empty", "refused", "looped"] | None:
    """Why a text is no answer; None if it is one."""
    text = text.strip()
    if not text:
        return "empty"
    if len(text) <= REFUSAL_CHARS and _REFUSAL.match(text):
        return "refused"
    if len(text) < LOOP_CHARS:
        return None
    compressed_size = len(zlib.compress(text.encode(), 1))
    return "looped" if compressed_size < LOOP_RATIO * len(text) else None


def canonical(content: str, schema: Mapping[str, Any] | None) -> str | None:
    """Normalize a closed answer to its kind and one spelling; None if the answer is open.

    Closed are: JSON that satisfies the schema where the prompt demanded one, a choice (`(b)`),
    a number, a label of up to four words, and any of these behind "The answer is" or on a last
    line behind "A:" or "####". A schema's references stay within it: nothing is ever fetched.

    >>> canonical("The answer is 42.0", None)
    'number:42'
    >>> canonical("(b)", None)
    'choice:B'
    """
    if schema is not None:
        return _json(content, schema)
    text = content.strip()
    final = _BOXED.search(text) or _LAST_LINE.search(text) or _FINAL.search(text)
    if final:
        text = final.group(1)
    text = text.lstrip("*_`\"' \n").rstrip("*_`\"' \n.!")
    if not text or "\n" in text or len(text) > LABEL_CHARS or len(text.split()) > LABEL_WORDS:
        return None
    choice = _CHOICE.match(text)
    if choice:
        return "choice:" + choice.group(1).upper()
    if _NUMBER.match(text):
        return _number(text)
    return "label:" + " ".join(text.casefold().split())


def unwrap_json(content: str, schema: Mapping[str, Any] | None) -> str:
    """Strip blanks and a code fence around JSON, if the answer satisfies the schema only then.

    Without a schema, or if the inner text does not satisfy it either, the answer stays as it is.
    """
    if schema is None or _json(content, schema) is not None:
        return content
    # Some models put JSON behind a fence, whatever they are asked for (docs/decisions/0039).
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
    """The kind of answer that a question has, by its answers.

    It is the most common closed kind if at least two thirds of the answers are closed; with a
    schema, if at least one is. Else it is open.
    """
    values = [canonical(content, schema) for content in contents]
    kinds = Counter(value.partition(":")[0] for value in values if value is not None)
    if not kinds or (schema is None and kinds.total() < CLOSED_SHARE * len(values) - 1e-9):
        return "open"
    return cast("AnswerKind", kinds.most_common(1)[0][0])


def _number(text: str) -> str | None:
    try:
        value = Decimal(re.sub(r"[$€£,%\s]", "", text))
    except InvalidOperation:
        return None
    # 42.0 and 42 are the same number; Decimal.normalize would round to 28 digits.
    digits = f"{value:f}"
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return "number:" + ("0" if digits == "-0" else digits)


def votes(
    answers: Sequence[MemberAnswer], schema: Mapping[str, Any] | None
) -> dict[str, list[MemberAnswer]]:
    """Group closed answers by their canonical value, the heaviest group first.

    Of equal weight, the group of more members is first, then the one whose first member is.
    An open answer has no vote, nor has one that breaks the schema.
    """
    groups: dict[str, list[MemberAnswer]] = {}
    for answer in answers:
        value = canonical(answer.content, schema)
        if value is not None:
            groups.setdefault(value, []).append(answer)
    places = {answer.member: place for place, answer in enumerate(answers)}

    def order(entry: tuple[str, list[MemberAnswer]]) -> tuple[float, int, int]:
        _, group = entry
        return -_weight(group), -len(group), places[group[0].member]

    return dict(sorted(groups.items(), key=order))


def _weight(answers: Sequence[MemberAnswer]) -> float:
    return sum(answer.weight for answer in answers)


def is_tied(groups: Mapping[str, Sequence[MemberAnswer]]) -> bool:
    """Whether the two heaviest groups weigh the same."""
    weights = [_weight(group) for group in groups.values()]
    return len(weights) > 1 and abs(weights[0] - weights[1]) < 1e-9


def heaviest_group(
    groups: Mapping[str, Sequence[MemberAnswer]], answers: Sequence[MemberAnswer]
) -> tuple[Sequence[MemberAnswer], str | None]:
    """The group that wins a vote without a judge, and the rule if it was a tie.

    Of groups that weigh the same, the one whose heaviest member has the best record and configured
    weight; if these are the same too, the one with the answer most like the others.

    Args:
        groups: as `votes` returns them.
        answers: all of them, for what is most like the others.
    """
    by_weight = list(groups.values())
    if not is_tied(groups):
        return by_weight[0], None
    leading = _highest(by_weight, _weight)
    leading = _highest(leading, lambda group: max(answer.weight for answer in group))
    if len(leading) == 1:
        return leading[0], "tie, the member with the best record"
    most_alike = _highest(leading, lambda group: max(gain(a, answers) for a in group))
    return most_alike[0], "tie, the answer most like the others"


def _highest(
    groups: Sequence[Sequence[MemberAnswer]], key: Callable[[Sequence[MemberAnswer]], float]
) -> list[Sequence[MemberAnswer]]:
    """The groups with the highest value; equal values may differ in their last digit."""
    values = [key(group) for group in groups]
    return [g for g, value in zip(groups, values, strict=True) if value > max(values) - 1e-9]


def share(groups: Mapping[str, Sequence[MemberAnswer]]) -> float:
    """The heaviest group's share of the weight."""
    weights = [_weight(group) for group in groups.values()]
    return weights[0] / sum(weights)


def similarity(a: str, b: str) -> float:
    """Jaccard similarity of the words of two texts, 0 to 1; of long texts, of their beginnings."""
    words_a, words_b = _words(a[:COMPARED_CHARS]), _words(b[:COMPARED_CHARS])
    all_words = words_a | words_b
    return len(words_a & words_b) / len(all_words) if all_words else 1.0


@lru_cache(maxsize=128)
def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.casefold()))


def agreement(answers: Sequence[MemberAnswer]) -> float:
    """Mean similarity over all pairs, 0 to 1; 1 for a single answer."""
    similarities = [similarity(a.content, b.content) for a, b in combinations(answers, 2)]
    return sum(similarities) / len(similarities) if similarities else 1.0


def gain(answer: MemberAnswer, answers: Sequence[MemberAnswer]) -> float:
    """How similar an answer is to all answers, each similarity times the other's weight.

    Minimum Bayes risk selection (Kumar and Byrne, 2004) with word overlap as the gain. The answer
    itself counts too, or of two answers the lighter would always win.
    """
    return answer.weight + sum(
        other.weight * similarity(answer.content, other.content)
        for other in answers
        if other is not answer
    )


def medoid(answers: Sequence[MemberAnswer]) -> MemberAnswer:
    """The answer most like the others; the first of equals."""
    return max(answers, key=lambda answer: gain(answer, answers))


def agrees_with_others(member: str, groups: Mapping[str, Sequence[MemberAnswer]]) -> bool | None:
    """Whether a member gave the answer that most of the other members gave.

    Members are counted, not weighed, and its own vote is left out: it is not right because it is
    heavy (docs/decisions/0011).

    Returns:
        None if it has no vote, if no two others strictly lead, or if two answers lead alike: each
        would be wrong by the other.
    """
    if _is_lead_shared(len(group) for group in groups.values()):
        return None
    own_value = _own_value(member, groups)
    other_votes = {}
    for value, group in groups.items():
        other_votes[value] = sum(answer.member != member for answer in group)
    if own_value is None or _is_lead_shared(other_votes.values()):
        return None
    most_votes = max(other_votes.values())
    return None if most_votes < 2 else other_votes[own_value] == most_votes


def _own_value(member: str, groups: Mapping[str, Sequence[MemberAnswer]]) -> str | None:
    for value, group in groups.items():
        if any(answer.member == member for answer in group):
            return value
    return None


def _is_lead_shared(counts: Iterable[int]) -> bool:
    """Whether the two highest counts are equal."""
    highest = sorted(counts, reverse=True)[:2]
    return len(highest) == 2 and highest[0] == highest[1]


def posterior(leading: int, trailing: int) -> float:
    """The probability that the leading answer is the majority's, whoever else is called.

    P(Beta(leading + 1, trailing + 1) > 1/2), the stopping rule of Adaptive-Consistency (Aggarwal
    et al., 2023).

    >>> posterior(2, 0), posterior(3, 0), posterior(3, 1)
    (0.875, 0.9375, 0.8125)
    """
    trials = leading + trailing + 1
    return sum(math.comb(trials, hits) for hits in range(leading + 1)) / float(2**trials)
