"""The simulated models behind the calls of a fusion. They read a call's messages as a model would.

Nothing here knows which member stands behind a label: a judge, a writer or a debater finds the
candidates between the fences that the call's messages speak of, and knows what each claims by its
text alone.
"""

import json
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fusewire.contracts import Call

from .world import Member, Question

_FENCE = re.compile(r"\[\[([0-9a-f]{16,}) X+\]\]")
_CANDIDATE = re.compile(r"\[\[([0-9a-f]{16,}) (\w+)\]\]\n(.*?)\n\[\[/\1 \2\]\]", re.DOTALL)
_OWN = re.compile(r"Your answer was:\n(.*?)\n\nOthers answered", re.DOTALL)
REASON = "It is the one that the records support."
HEDGE = "h"


@dataclass(frozen=True)
class LineupEntry:
    """One candidate as a call shows it."""

    label: str
    text: str


def read_lineup(call: Call) -> list[LineupEntry]:
    """The candidates of a call, in the order shown."""
    text = "\n".join(m.content for m in call.messages)
    opening = _FENCE.search(text)
    if opening is None:
        raise ValueError(f"{call.name}: no fence is spoken of")
    # A genuine fence opens before anything that a candidate could hold.
    return [
        LineupEntry(match[2], match[3])
        for match in _CANDIDATE.finditer(text)
        if match[1] == opening.group(1)
    ]


def labels(call: Call) -> list[str]:
    """The labels among which a verdict chooses."""
    schema = call.sampling.response_schema or {}
    return list(schema["properties"]["winner"]["enum"])


def as_verdict(winner: str) -> str:
    """A verdict that keeps to its schema."""
    return json.dumps({"reason": REASON, "winner": winner})


class CallHandler(Protocol):
    """Anything that answers calls of one kind."""

    def reply(self, call: Call, question: Question) -> str:
        """What it writes."""
        ...


@dataclass(frozen=True)
class Judge:
    """A judge: Plackett and Luce's choice, with faults planted.

    Each candidate has the merit logit(discrimination) if it is right and 0 if it is wrong, far less
    if it claims nothing; to it comes a Gumbel noise of unit scale. So it prefers the right one of a
    pair with probability `discrimination`. The noise belongs to the judge and the text, the same in
    all its calls, but in a share `fresh` of its calls it is drawn anew. With probability `first` a
    call ignores all this and names what is shown first.
    """

    name: str = "judge"
    discrimination: float = 0.8
    fresh: float = 0.25
    first: float = 0.0
    length: float = 0.0
    """Merit per unit of log length."""

    @property
    def edge(self) -> float:
        """The merit of being right."""
        return math.log(self.discrimination / (1 - self.discrimination))

    def merit(self, text: str, question: Question) -> float:
        """Of one text, noise apart."""
        claim = question.find_claim(text)
        base = -6.0 if claim is None else self.edge if claim == 0 else 0.0
        return base + self.length * math.log(max(len(text), 1))

    def fixed_noise(self, text: str, question: Question) -> random.Random:
        """The noise that it has for a text in all its calls."""
        return random.Random(f"{question.world.seed}/{question.number}/{self.name}/{text}")

    def prefers(
        self, call: Call, entries: Sequence[LineupEntry], question: Question
    ) -> LineupEntry:
        """The one it names."""
        chance = random.Random(f"{question.world.seed}/{question.number}/{self.name}/{call.name}")
        if chance.random() < self.first:
            return entries[0]
        is_fresh = chance.random() < self.fresh

        def utility(entry: LineupEntry) -> float:
            rng = chance
            if not is_fresh:
                rng = self.fixed_noise(entry.text, question)
            return self.merit(entry.text, question) - math.log(-math.log(rng.random() or 1e-300))

        return max(entries, key=utility)

    def reply(self, call: Call, question: Question) -> str:
        """A verdict."""
        entries = read_lineup(call)
        if {entry.label for entry in entries} != set(labels(call)):
            raise ValueError(f"{call.name}: the labels shown are not those asked for")
        return as_verdict(self.prefers(call, entries, question).label)

    def same_twice(self, right: int, wrong: int) -> float:
        """The chance that two calls on the same candidates in opposite orders name the same one.

        Two unbiased calls do if both use the kept noise, or by chance where one is fresh; where one
        call names the first shown and the other does not, in one of n cases; where both do, never
        (there are at least two).
        """
        n = right + wrong
        edge = math.exp(self.edge)
        total = right * edge + wrong
        same_by_chance = right * (edge / total) ** 2 + wrong * (1 / total) ** 2
        fixed_noise = (1 - self.fresh) ** 2
        same_unbiased = fixed_noise + (1 - fixed_noise) * same_by_chance
        return (1 - self.first) ** 2 * same_unbiased + 2 * self.first * (1 - self.first) / n


@dataclass(frozen=True)
class Checker:
    """A judge that is asked whether one answer is right.

    It passes a right one with probability `right`, and a wrong one with `wrong`. What it thinks of
    a text is the same in all its calls, but in a share `fresh` of them it is drawn anew.
    """

    right: float = 0.85
    wrong: float = 0.45
    fresh: float = 0.25

    def reply(self, call: Call, question: Question) -> str:
        """A check."""
        (entry,) = read_lineup(call)
        chance = random.Random(f"{question.world.seed}/{question.number}/{call.name}")
        text = random.Random(f"{question.world.seed}/{question.number}/check/{entry.text}")
        rng = chance if chance.random() < self.fresh else text
        passes = rng.random() < (self.right if question.find_claim(entry.text) == 0 else self.wrong)
        return json.dumps({"reason": REASON, "passes": passes})


@dataclass(frozen=True)
class Writer:
    """Analyses, and writes merges.

    A merge is right with a probability that depends on how many of the candidates shown are: all,
    more than half, any, none. Otherwise it claims what most of the wrong ones do (the lure if none
    is). In a share `invents` it states a number besides that no candidate has.
    """

    all_right: float = 0.98
    most_right: float = 0.93
    any_right: float = 0.60
    none_right: float = 0.03
    invents: float = 0.03

    def reply(self, call: Call, question: Question) -> str:
        """An analysis or a merge."""
        if call.kind == "analysis":
            parts = (
                "consensus",
                "contradictions",
                "partial_coverage",
                "unique_insights",
                "blind_spots",
            )
            return json.dumps({part: [] for part in parts})
        claims = [question.find_claim(entry.text) for entry in read_lineup(call)]
        right = claims.count(0)
        chance = random.Random(f"{question.world.seed}/{question.number}/write")
        claim = 0
        if chance.random() >= self._chance_of_right(right, len(claims)):
            wrong = Counter(claim for claim in claims if claim)
            claim = wrong.most_common(1)[0][0] if wrong else 1
        text = question.say(claim, "writer")
        if chance.random() < self.invents:
            text += f" It happened {chance.randrange(100_000, 999_999)} times."
        return text

    def _chance_of_right(self, right: int, total: int) -> float:
        """The probability of a right merge of `total` candidates of which `right` are right."""
        if right == total:
            return self.all_right
        if not right:
            return self.none_right
        return self.any_right if right * 2 <= total else self.most_right


@dataclass(frozen=True)
class Debater:
    """A member in a debate.

    A wrong one mends itself with probability `mends_seen` if the right claim is among the others',
    with `mends_unseen` if it is not. One that does not, and one that was right, takes up what most
    of the others say (a strict plurality of them) with probability `conforms`, if that is something
    else.
    """

    mends_seen: float = 0.30
    mends_unseen: float = 0.05
    conforms: float = 0.40

    def reply(self, call: Call, question: Question) -> str:
        """What it holds now, in the form that the call asks for."""
        own = _OWN.search(call.messages[-1].content)
        if own is None:
            raise ValueError(f"{call.name}: its own answer is not shown")
        before, other_claims = (
            own.group(1),
            [question.find_claim(entry.text) for entry in read_lineup(call)],
        )
        mine = question.find_claim(before)
        chance = random.Random(
            f"{question.world.seed}/{question.number}/{call.name}/{other_claims}/{mine}"
        )
        after = mine
        if mine != 0 and chance.random() < (
            self.mends_seen if 0 in other_claims else self.mends_unseen
        ):
            after = 0
        else:
            (most, count), *rest = Counter(other_claims).most_common()
            is_plurality = not rest or rest[0][1] < count
            if is_plurality and most not in {mine, None} and chance.random() < self.conforms:
                after = most
        if after == mine or after is None:
            return json.dumps({"error": "", "answer": before})
        return json.dumps(
            {
                "error": "The records say otherwise.",
                "answer": question.say(after, call.member or ""),
            }
        )


@dataclass(frozen=True)
class ModelPool:
    """Who answers which call, and how fast."""

    judges: dict[str, Any]
    """By model: anything that replies to a verdict call."""
    writer: Writer = Writer()
    debater: Debater = Debater()
    checker: Checker = Checker()
    judging: Member = field(default_factory=lambda: Member("judging", 0.5, p50_s=1.5))
    """Only its latency is used."""

    def reply(self, call: Call, question: Question) -> str:
        """What the model behind a call writes."""
        if call.kind == "answer":
            return question.answer(self.member(question, call.member or ""), sample_of(call.name))
        minds: dict[str, CallHandler | None] = {
            "debate": self.debater,
            "verdict": self.judges.get(call.model),
            "check": self.checker,
        }
        mind = minds.get(call.kind) or self.writer
        return mind.reply(call, question)

    def latency_s(self, call: str, member: str | None, question: Question) -> float:
        """How long a call takes."""
        who = self.member(question, member) if member else self.judging
        return who.latency_s(
            random.Random(f"{question.world.seed}/{question.number}/latency/{call}")
        )

    @staticmethod
    def member(question: Question, name: str) -> Member:
        """By name."""
        return next(m for m in question.world.members if m.name == name)


def sample_of(call: str) -> int:
    """The number of a member's sample: 1 of call `a`, 2 of `a=2` and of the hedge `a=h`, …"""
    _, _, which = call.partition("=")
    return 1 if not which else 2 if which == HEDGE else int(which)
