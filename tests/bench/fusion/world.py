"""Prompts with known answers, and who knows them. Everything follows from a seed.

The generator. Each prompt has a difficulty z ~ N(0, 1) that all members share. Member m is right if
sqrt(rho) z + sqrt(own) e_m + sqrt(1 - rho - own) e <= quantile(p_m), where e_m ~ N(0, 1) is drawn
once per prompt and e once per sample: a one-factor Gaussian copula (Vasicek, 1987) with a second
factor for what the samples of one member share. So p_m is the member's accuracy exactly, rho the
(tetrachoric) correlation of any two members' errors, and rho + own that of two samples of one
member.

Wrong answers. Of WRONGS alternatives one, the lure, is taken with probability q, each other with
the same remaining probability; q is solved from the rate `collision` at which two wrong answers are
to be the same. A further sample of one member that is wrong again repeats that member's first wrong
answer with probability `habit`.

Closed answers are numbers, written in the ways models write them. Open ones are a few sentences
around a claim: the words of one claim are shared by all that make it, the rest is each member's
own; whether a text is right is looked up by the claim that it states.
"""

import math
import random
import re
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist

WRONGS = 8
_NORMAL = NormalDist()

_SYLLABLES = [
    "ba",
    "be",
    "bi",
    "bo",
    "ba",
    "ka",
    "ke",
    "ki",
    "ko",
    "ku",
    "la",
    "le",
    "li",
    "lo",
    "lu",
    "ma",
    "me",
    "mi",
    "mo",
    "mu",
    "na",
    "ne",
    "ni",
    "no",
    "nu",
    "ra",
    "re",
    "ri",
    "ro",
    "ru",
    "ta",
    "te",
    "ti",
]
_FORMS = (
    "{}",
    "The answer is {}.",
    "{}.0",
    "**{}**",
    "Step by step this gives the total.\nFinal answer: {}",
)
_OPENINGS = (
    "In short,",
    "As far as is known,",
    "Put simply,",
    "Looking at it closely,",
    "To answer this,",
    "On balance,",
)
_MARKS = "abcdefghi"
_CLAIM = re.compile(rf"\bclaim-([{_MARKS}])\b")
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Member:
    """A simulated member: how often it is right, and how long it takes."""

    name: str
    accuracy: float
    p50_s: float = 2.0
    tail: float = 3.0
    """p99 of its latency over p50."""
    words: int = 24
    """About how many of its own words it puts into an open answer."""

    def latency_s(self, rng: random.Random) -> float:
        """Lognormal."""
        sigma = math.log(self.tail) / _NORMAL.inv_cdf(0.99)
        return self.p50_s * math.exp(sigma * rng.gauss(0.0, 1.0))

    def latency_quantile_s(self, q: float) -> float:
        """The latency that a share of q stays below."""
        return self.p50_s * math.exp(
            math.log(self.tail) / _NORMAL.inv_cdf(0.99) * _NORMAL.inv_cdf(q)
        )


@dataclass(frozen=True)
class World:
    """A population of prompts."""

    members: tuple[Member, ...]
    seed: str
    rho: float = 0.3
    own: float = 0.3
    collision: float = 0.25
    habit: float = 0.5
    is_open: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rho + self.own <= 1:
            raise ValueError("rho and own are shares of one variance")
        if not 1 / WRONGS <= self.collision <= 1:
            raise ValueError(f"{WRONGS} alternatives collide at least once in {WRONGS}")

    @cached_property
    def lure(self) -> float:
        """q with q^2 + (1 - q)^2 / (WRONGS - 1) = collision."""
        k = WRONGS - 1
        # (k + 1) q^2 - 2 q + 1 - k c = 0; rounding may push the uniform case's root below zero.
        return (1 + math.sqrt(max(1 - (k + 1) * (1 - k * self.collision), 0.0))) / (k + 1)

    @property
    def best(self) -> Member:
        """Who is right most often."""
        return max(self.members, key=lambda m: m.accuracy)

    def question(self, number: int) -> "Question":
        """The prompt of this number."""
        return Question(self, number)


@dataclass
class Question:
    """A prompt, and what every member says to it, sample by sample. Claim 0 is the right one."""

    world: World
    number: int
    _claims: dict[str, list[int]] = field(default_factory=dict)
    _own: dict[str, float] = field(default_factory=dict)
    _rngs: dict[str, random.Random] = field(default_factory=dict)

    def rng(self, *parts: str) -> random.Random:
        """Chance of its own for each use, so that one use never shifts another."""
        name = "/".join(parts)
        if name not in self._rngs:
            self._rngs[name] = random.Random(f"{self.world.seed}/{self.number}/{name}")
        return self._rngs[name]

    @cached_property
    def difficulty(self) -> float:
        """z."""
        return self.rng("difficulty").gauss(0.0, 1.0)

    @property
    def text(self) -> str:
        """What is asked."""
        return f"Question {self.number}: what do the records say of {self.words(99, 2)}?"

    def claim(self, member: Member, sample: int = 1) -> int:
        """The claim of a member's nth answer: 0 if it is right, else the wrong alternative."""
        claims = self._claims.setdefault(member.name, [])
        while len(claims) < sample:
            claims.append(self._draw(member, claims))
        return claims[sample - 1]

    def _draw(self, member: Member, earlier: list[int]) -> int:
        world, rng = self.world, self.rng("claim", member.name)
        if member.name not in self._own:
            self._own[member.name] = rng.gauss(0.0, 1.0)
        x = math.sqrt(world.rho) * self.difficulty + math.sqrt(world.own) * self._own[member.name]
        if x + math.sqrt(1 - world.rho - world.own) * rng.gauss(0.0, 1.0) <= _NORMAL.inv_cdf(
            member.accuracy
        ):
            return 0
        earlier_wrong = next((claim for claim in earlier if claim), None)
        if earlier_wrong is not None and rng.random() < world.habit:
            return earlier_wrong
        return 1 if rng.random() < world.lure else rng.randrange(2, WRONGS + 1)

    def value(self, claim: int) -> int:
        """The number that a claim is."""
        return 1000 + (self.number * 7919) % 9000 + claim * 13

    def words(self, claim: int, count: int) -> str:
        """Words that all texts with this claim share."""
        rng = random.Random(f"{self.world.seed}/{self.number}/words/{claim}")
        return " ".join("".join(rng.choices(_SYLLABLES, k=3)) for _ in range(count))

    def answer(self, member: Member, sample: int = 1) -> str:
        """What a member says, as text."""
        return self.say(self.claim(member, sample), f"{member.name}/{sample}", member.words)

    def say(self, claim: int, voice: str, words: int = 24) -> str:
        """A claim in somebody's words."""
        rng = random.Random(f"{self.world.seed}/{self.number}/voice/{voice}/{claim}")
        if not self.world.is_open:
            return rng.choice(_FORMS).format(self.value(claim))
        own = [
            "".join(rng.choices(_SYLLABLES, k=3))
            for _ in range(rng.randrange(words // 2, words * 3 // 2))
        ]
        half = len(own) // 2
        statement = f"claim-{_MARKS[claim]}: {self.words(claim, 10)}"
        core = f"the records of {self.words(99, 2)} of {self.value(0)} tell {statement}"
        return f"{rng.choice(_OPENINGS)} {core}. {' '.join(own[:half])}. {' '.join(own[half:])}."

    def find_claim(self, text: str | None) -> int | None:
        """Which claim a text states; None if none that is known. What stands first counts."""
        if text is None:
            return None
        if self.world.is_open:
            match = _CLAIM.search(text)
            return _MARKS.index(match.group(1)) if match else None
        numbers = [int(n) - self.value(0) for n in _NUMBER.findall(text)]
        return next(
            (n // 13 for n in numbers if n >= 0 and n % 13 == 0 and n // 13 <= WRONGS), None
        )

    def is_right(self, text: str | None) -> bool:
        """Whether a text states the right claim."""
        return self.find_claim(text) == 0


def chances_of_right(world: World, steps: int = 400) -> list[float]:
    """The chances that 0, 1, … of the members are right: integrated over the difficulty."""
    total = [0.0] * (len(world.members) + 1)
    for step in range(steps):
        z = _NORMAL.inv_cdf((step + 0.5) / steps)
        row = [1.0]
        for member in world.members:
            cut = _NORMAL.inv_cdf(member.accuracy)
            p = (
                _NORMAL.cdf((cut - math.sqrt(world.rho) * z) / math.sqrt(1 - world.rho))
                if world.rho < 1
                else 0.0
            )
            row = [
                (row[k] * (1 - p) if k < len(row) else 0.0) + (row[k - 1] * p if k else 0.0)
                for k in range(len(row) + 1)
            ]
        total = [a + b / steps for a, b in zip(total, row, strict=True)]
    return total
