"""What a route knows of a prompt before anybody is asked: cheap features, hashed. Pure.

Lengths, the kind of answer that is asked for, the script, and the words of the last turn. Each is a
name that is hashed to one of `DIMENSION` places ("the hashing trick", Weinberger et al., 2009), so
a model over them has a fixed size, whatever people write.
"""

import math
import re
import zlib
from collections.abc import Iterable, Iterator

from fusewire.contracts import Message, Prompt

FACT_PLACES = 256
GRAM_PLACES = 768
DIMENSION = FACT_PLACES + GRAM_PLACES
"""Facts and words have places of their own, so that no word looks like a length."""
MOST_CHARS = 2000
"""Characters of the last turn whose words count: its first and its last half of so many."""
MOST_GRAMS = 40
"""Words and pairs of words that count. A feature costs time in each prediction."""
GRAM_SHARE = 2.0
"""The length of the vector of all words together, where each fact has 1."""

Features = tuple[tuple[int, float], ...]
"""Places, each once and ascending, with their values."""

_WORD = re.compile(r"[^\W\d_]+|\d+")
_CODE = re.compile(r"```|[{};]\s*$|^\s*(def|class|import|SELECT|function|#include)\b", re.MULTILINE)
_SCRIPTS = (
    ("latin", 0x0041, 0x024F),
    ("greek", 0x0370, 0x03FF),
    ("cyrillic", 0x0400, 0x052F),
    ("hebrew", 0x0590, 0x05FF),
    ("arabic", 0x0600, 0x06FF),
    ("indic", 0x0900, 0x0DFF),
    ("thai", 0x0E00, 0x0E7F),
    ("kana", 0x3040, 0x30FF),
    ("han", 0x3400, 0x9FFF),
    ("hangul", 0xAC00, 0xD7AF),
)
"""First and last code points. Of the languages in one script, the words tell."""


def prompt_features(prompt: Prompt) -> Features:
    """The features of a prompt."""
    text = _last_turn(prompt.messages)
    values = {_place(name, 0, FACT_PLACES): 1.0 for name in _facts(prompt, text)}
    grams = list(dict.fromkeys(_grams(text)))[:MOST_GRAMS]
    for gram in grams:
        place = _place(gram, FACT_PLACES, GRAM_PLACES)
        values[place] = values.get(place, 0.0) + GRAM_SHARE / math.sqrt(len(grams))
    return tuple(sorted(values.items()))


def _place(name: str, first: int, count: int) -> int:
    # Not `hash`, which differs from process to process.
    return first + zlib.crc32(name.encode("utf-8", "surrogatepass")) % count


def _last_turn(messages: Iterable[Message]) -> str:
    """The text of the last turn of a user; of a long one, its beginning and its end."""
    text = ""
    for message in messages:
        if message.role == "user":
            text = message.content
    if len(text) <= MOST_CHARS:
        return text
    return f"{text[: MOST_CHARS // 2]}\n{text[-MOST_CHARS // 2 :]}"


def _facts(prompt: Prompt, text: str) -> Iterator[str]:
    chars = sum(len(message.content) for message in prompt.messages)
    yield "any"
    yield f"mode {prompt.mode}"
    yield f"chars {_magnitude(chars)}"
    yield f"turn {_magnitude(len(text))}"
    yield f"turns {min(len(prompt.messages), 8)}"
    yield f"form {_form(prompt)}"
    yield f"script {_script(text)}"
    yield f"limit {_magnitude(prompt.sampling.max_tokens or 0)}"
    yield f"digits {_magnitude(sum(map(str.isdigit, text)))}"
    yield f"lines {_magnitude(text.count(chr(10)))}"
    for name, is_so in (
        ("system", any(message.role == "system" for message in prompt.messages)),
        ("images", any(message.images for message in prompt.messages)),
        ("long text", any(message.texts for message in prompt.messages)),
        ("code", bool(_CODE.search(text))),
        ("question", "?" in text or "？" in text),
    ):
        if is_so:
            yield name


def _form(prompt: Prompt) -> str:
    """The form of answer that is asked for."""
    if prompt.sampling.response_schema is not None:
        return "schema"
    if not prompt.tools or prompt.tool_choice == "none":
        return "text"
    return "call" if prompt.tool_choice != "auto" else "text or call"


def _magnitude(number: int) -> int:
    """The number of binary digits."""
    return number.bit_length()


def _script(text: str) -> str:
    """The script of most letters; empty if there are none."""
    counts: dict[str, int] = {}
    for char in text[:400]:
        code = ord(char)
        for name, first, last in _SCRIPTS:
            if first <= code <= last and char.isalpha():
                counts[name] = counts.get(name, 0) + 1
                break
    return max(counts, key=lambda name: counts[name]) if counts else ""


def _grams(text: str) -> Iterator[str]:
    """Words and pairs of neighbours; numbers by how many digits they have."""
    before = ""
    for match in _WORD.finditer(text.lower()):
        word = match.group()
        if word.isdigit():
            word = f"0{len(word)}"
        elif len(word) > 20:
            # Scripts without spaces: pairs of characters stand for words.
            yield from (word[at : at + 2] for at in range(min(len(word), 80) - 1))
        yield word[:20]
        if before:
            yield f"{before} {word[:20]}"
        before = word[:20]
