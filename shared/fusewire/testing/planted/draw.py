"""Draw prompts, answers and verdicts by the truth, and decide as the judge does.

`tests/conformance/test_planted.py` compares with the judge itself.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import chain, combinations
from random import Random

from fusewire import ids
from fusewire.contracts import Status, VerdictKind
from fusewire.testing.planted.truth import JudgeTruth, MemberTruth, PoolTruth, Truth

REASON = "It is right."
"""A judge's reason, of each verdict."""
MOST_TURNS = 4
"""As in fusewire_judge.strategies.best_of."""
_RIGHT, _SHARED_ERROR, _OWN_ERROR = 0, 1, 2
_VALUES = 100
"""Numbers for each prompt: the right answer and the wrong ones."""
_OWN_WORDS, _WORD_CHARS, _MOST_WORDS = 12, 6, 700
# Similarities of two open texts, by their sets of words: 12 words of each one's own, and "so the
# answer is" with the value.
_SAME_VALUE, _OTHER_VALUE = 5 / 29, 4 / 30
_NEVER = -1000.0


@dataclass(slots=True)
class Question:
    """A prompt, before it is given to a pool."""

    number: int
    tenant: str
    at: datetime
    day: float
    """Days since the first prompt."""
    is_open: bool
    has_gold: bool
    batch: int | None
    luck: float | None
    """The difficulty that all models share; None if each has its own."""

    @property
    def text(self) -> str:
        """What is asked."""
        if self.is_open:
            return f"Explain how you get the number of row {self.number}."
        return f"What is the number of row {self.number}?"

    @property
    def gold(self) -> tuple[str, str] | None:
        """The right answer and how it is matched; None without a label."""
        if not self.has_gold:
            return None
        right = self.number * _VALUES
        return (f"w{right}", "exact") if self.is_open else (str(right), "number")


@dataclass(slots=True, eq=False)
class Reply:
    """What came of a member's call."""

    member: MemberTruth
    latency_ms: int
    content: str | None
    """None for a failure."""
    value: int
    """Equal for answers that say the same."""

    @property
    def is_right(self) -> bool:
        """Whether it is the right answer."""
        return self.content is not None and self.value == _RIGHT


@dataclass(slots=True)
class Ballot:
    """One verdict."""

    call: str
    kind: VerdictKind
    shown: list[Reply]
    winner: Reply
    latency_ms: int
    is_consistent: bool | None = None


@dataclass(slots=True)
class Choice:
    """How a fusion ended, in the words of an outcome."""

    status: Status
    winner: Reply | None = None
    reason: str | None = None
    agreement: float | None = None
    rounds: list[list[Ballot]] = field(default_factory=list)
    error: str | None = None


def questions(truth: Truth, rng: Random, numbers: range, count: int) -> Iterator[Question]:
    """Draw some of `count` prompts, in the order of their submission."""
    first_at = truth.now - timedelta(days=truth.days)
    span_ms = (truth.days * 86_400 - 600) * 1000
    for number in numbers:
        elapsed_ms = int(span_ms * number / count)
        is_line = rng.random() < truth.batch_share
        yield Question(
            number=number,
            tenant=rng.choice(truth.tenants),
            at=first_at + timedelta(milliseconds=elapsed_ms),
            day=elapsed_ms / 86_400_000,
            is_open=rng.random() < truth.open_share,
            has_gold=rng.random() < truth.gold_share,
            batch=number // truth.batch_size if is_line else None,
            luck=rng.random() if rng.random() < truth.correlation else None,
        )


# -- answers ----------------------------------------------------------------------------------


def replies(truth: Truth, pool: PoolTruth, question: Question, rng: Random) -> list[Reply]:
    """Draw what the members of a pool answer, in the pool's order."""
    panel = [
        _reply(truth, member, place, question, rng) for place, member in enumerate(pool.members)
    ]
    last_reply = panel[-1]
    if last_reply.member.is_useless and not any(reply.content for reply in panel[:-1]):
        # As the only answer it would be the outcome.
        last_reply.content = None
    return panel


def _reply(truth: Truth, member: MemberTruth, place: int, question: Question, rng: Random) -> Reply:
    latency_ms = _lognormal(rng, member.latency_ms, member.latency_spread)
    if rng.random() < member.failure_rate:
        return Reply(member, latency_ms, None, _OWN_ERROR + place)
    value = _value(truth, member, place, question, rng)
    number = question.number * _VALUES + value
    content = str(number)
    if question.is_open:
        chars = _lognormal(rng, member.chars, member.chars_spread)
        content = f"{_words(place, chars)}, so the answer is w{number}."
    return Reply(member, latency_ms, content, value)


def _value(truth: Truth, member: MemberTruth, place: int, question: Question, rng: Random) -> int:
    if member.is_useless:
        return _OWN_ERROR + place
    luck = rng.random() if question.luck is None else question.luck
    if luck < member.accuracy:
        return _RIGHT
    return _SHARED_ERROR if rng.random() < truth.shared_error_rate else _OWN_ERROR + place


def _lognormal(rng: Random, median: float, spread: float) -> int:
    return max(round(median * math.exp(spread * rng.gauss(0.0, 1.0))), 1)


def _words(place: int, chars: int) -> str:
    """A text of about so many characters, with its rest, of the words of one place in the pool."""
    count = min(max(chars // _WORD_CHARS - 4, _OWN_WORDS), _MOST_WORDS)
    return _long_text(place)[: count * _WORD_CHARS - 1]


@lru_cache
def _long_text(place: int) -> str:
    letter = chr(ord("a") + place)
    words = [f"{letter}{chr(ord('a') + number)}ord" for number in range(_OWN_WORDS)]
    rng = Random(place)
    return " ".join([*words, *rng.choices(words, k=_MOST_WORDS - _OWN_WORDS)])


# -- the decision -----------------------------------------------------------------------------


def choose(pool: PoolTruth, question: Question, panel: Sequence[Reply], rng: Random) -> Choice:
    """Decide as the judge's best-of does, with verdicts drawn by the truth."""
    answers = [reply for reply in panel if reply.content is not None]
    if not answers:
        return Choice("failed", error="every member failed (timeout)")
    if len(answers) == 1:
        reason = f"the only answer of {len(panel)} members"
        return Choice("single", answers[0], "the only member" if len(panel) == 1 else reason)
    if not question.is_open:
        choice = _vote(answers, has_judge=pool.judge is not None)
        if choice:
            return choice
    if pool.judge is None:
        winner = max(answers, key=lambda answer: _gain(answer, answers, question))
        reason = "no judge, the answer most like the others"
        return Choice("voted", winner, reason, _agreement(answers, question))
    return _Judge(pool.judge, question, answers, rng).judge()


def groups(answers: Sequence[Reply]) -> list[list[Reply]]:
    """Group closed answers that say the same, the heaviest group first."""
    by_value: dict[int, list[Reply]] = {}
    for answer in answers:
        by_value.setdefault(answer.value, []).append(answer)
    # Sorting keeps the order of the first answers of equals.
    return sorted(by_value.values(), key=lambda group: (-_weight(group), -len(group)))


def _weight(answers: Sequence[Reply]) -> float:
    return sum(answer.member.weight for answer in answers)


def _vote(answers: Sequence[Reply], *, has_judge: bool) -> Choice | None:
    found_groups = groups(answers)
    weights = [_weight(group) for group in found_groups]
    leading_groups = [group for group in found_groups if _weight(group) > weights[0] - 1e-9]
    if len(leading_groups) > 1 and has_judge:
        return None
    winners, reason = found_groups[0], _vote_reason(found_groups)
    if len(leading_groups) > 1:
        winners, reason = _break_tie(leading_groups)
    return Choice("voted", winners[0], reason, weights[0] / sum(weights))


def _break_tie(tied_groups: Sequence[list[Reply]]) -> tuple[list[Reply], str]:
    """The group of the heaviest member; if there are several, no answer is like another."""
    heaviest = [_heaviest(group) for group in tied_groups]
    reason = "tie, the answer most like the others"
    if heaviest.count(max(heaviest)) == 1:
        reason = "tie, the member with the best record"
    return tied_groups[heaviest.index(max(heaviest))], reason


def _heaviest(group: Sequence[Reply]) -> float:
    return max(answer.member.weight for answer in group)


def _vote_reason(found_groups: Sequence[Sequence[Reply]]) -> str:
    winners = found_groups[0]
    losers = [answer.member.weight for answer in chain.from_iterable(found_groups[1:])]
    if len(winners) > 1 and len(winners) >= max(map(len, found_groups)):
        return f"vote, {len(winners)} of {len(winners) + len(losers)} say the same"
    rival_weight = 0.0
    for count, weight in enumerate(sorted(losers, reverse=True), 1):
        rival_weight += weight
        if rival_weight > _weight(winners):
            return f"vote by record, {count} of the {len(losers)} others would have to agree"
    return "vote by record, which no agreement of the others outweighs"


def _similarity(answer: Reply, other: Reply, question: Question) -> float:
    is_same = answer.value == other.value
    if not question.is_open:
        return 1.0 if is_same else 0.0
    return _SAME_VALUE if is_same else _OTHER_VALUE


def _agreement(answers: Sequence[Reply], question: Question) -> float:
    similarities = [_similarity(a, b, question) for a, b in combinations(answers, 2)]
    return sum(similarities) / len(similarities)


def _gain(answer: Reply, answers: Sequence[Reply], question: Question) -> float:
    return answer.member.weight + sum(
        other.member.weight * _similarity(answer, other, question)
        for other in answers
        if other is not answer
    )


class _Judge:
    """The judge of one fusion."""

    def __init__(
        self, judge: JudgeTruth, question: Question, answers: Sequence[Reply], rng: Random
    ) -> None:
        self._judge, self._question, self._answers, self._rng = judge, question, answers, rng
        self._merits = {answer.member.model: self._merit(answer) for answer in answers}
        self._thoughts = self._think()
        self._order_seed = str(seed(question))

    def judge(self) -> Choice:
        answers = self._answers
        order = self._order(answers, "verdict-1")
        ballots = self._poll("verdict-1", "listwise", [order, order[::-1]])
        rounds, leaders = [ballots], _leaders(ballots)
        if len(leaders) > 1 and len(answers) > 2:
            ballots, leaders = self._break_tie(ballots, leaders)
            rounds.append(ballots)
        finalists = self._in_order(leaders)
        reason = REASON
        if len(finalists) > 1:
            reason = "the judges are tied; most like the others, then by weight, then by cost"
        winner = min(finalists, key=self._preference)
        return Choice("selected", winner, reason, _agreement(answers, self._question), rounds)

    def _break_tie(
        self, ballots: list[Ballot], leaders: list[Reply]
    ) -> tuple[list[Ballot], list[Reply]]:
        """Poll once more, as fusewire_judge.strategies.best_of does."""
        follows_place = all(ballot.winner is ballot.shown[0] for ballot in ballots)
        if follows_place and len(self._answers) <= MOST_TURNS:
            trailing = [answer for answer in ballots[0].shown if answer not in leaders]
            orders = [self._order(self._answers, "turn-1", answer) for answer in trailing]
            turns = self._poll("turn-1", "listwise", orders)
            return turns, _leaders([*ballots, *turns])
        first_two = sorted(self._in_order(leaders), key=self._preference)[:2]
        order = self._order(self._in_order(first_two), "pair-1")
        pair_ballots = self._poll("pair-1", "pair", [order, order[::-1]])
        return pair_ballots, _leaders(pair_ballots)

    def _in_order(self, chosen_answers: list[Reply]) -> list[Reply]:
        """Some answers, in the pool's order."""
        return [answer for answer in self._answers if answer in chosen_answers]

    def _order(
        self, answers: Sequence[Reply], turn: str, first: Reply | None = None
    ) -> list[Reply]:
        key = f"{turn}-{first.member.model}" if first else turn
        order = sorted(
            answers,
            key=lambda answer: ids.digest("order", self._order_seed, key, answer.member.model),
        )
        if first:
            order.sort(key=lambda answer: answer is not first)
        return order

    def _poll(self, turn: str, kind: VerdictKind, orders: list[list[Reply]]) -> list[Ballot]:
        ballots = []
        for number, order in enumerate(orders, 1):
            winner = max(order, key=lambda answer: self._appeal(answer, order[0]))
            latency_ms = _lognormal(self._rng, self._judge.latency_ms, 0.3)
            ballots.append(Ballot(f"{turn}-{number}", kind, order, winner, latency_ms))
            if self._rng.random() >= self._judge.repeatability:
                self._thoughts = self._think()
        if len(orders) == 2 and orders[0] == orders[1][::-1]:
            for ballot in ballots:
                ballot.is_consistent = ballots[0].winner is ballots[1].winner
        return ballots

    def _appeal(self, answer: Reply, first: Reply) -> float:
        bonus = self._judge.position_bias if answer is first else 0.0
        model = answer.member.model
        return self._merits[model] + self._thoughts[model] + bonus

    def _merit(self, answer: Reply) -> float:
        member, judge = answer.member, self._judge
        if member.is_useless:
            return _NEVER
        merit = member.strength + member.drift_per_day * self._question.day
        merit += judge.length_bias * math.log2(len(answer.content or " "))
        merit += judge.insight * answer.is_right
        return merit + judge.family_bias * (member.family == judge.family)

    def _think(self) -> dict[str, float]:
        """Gumbel noise, with which the greatest is chosen by Bradley and Terry's odds."""
        return {
            answer.member.model: -math.log(self._rng.expovariate(1.0) or 1e-300)
            for answer in self._answers
        }

    def _preference(self, answer: Reply) -> tuple[float, float, float]:
        cost_usd = math.inf if answer.member.cost_usd is None else answer.member.cost_usd
        gain = round(_gain(answer, self._answers, self._question), 9)
        return -gain, -answer.member.weight, cost_usd


def _leaders(ballots: Sequence[Ballot]) -> list[Reply]:
    """The answers with the highest share of wins in appearances."""
    appearances: dict[str, int] = {}
    wins: dict[str, int] = {}
    answers: dict[str, Reply] = {}
    for ballot in ballots:
        for answer in ballot.shown:
            model = answer.member.model
            answers[model] = answer
            appearances[model] = appearances.get(model, 0) + 1
            wins[model] = wins.get(model, 0) + (answer is ballot.winner)
    shares = {model: wins[model] / count for model, count in appearances.items()}
    best = max(shares.values())
    return [answers[model] for model, share in shares.items() if share > best - 1e-9]


def seed(question: Question) -> int:
    """The seed of a prompt's fusions."""
    return question.number % 2**31


def agrees(answer: Reply, answers: Sequence[Reply]) -> bool | None:
    """Whether a closed answer is what most of the others said, as the judge counts it."""
    counts: dict[int, int] = {}
    for other in answers:
        counts[other.value] = counts.get(other.value, 0) + 1
    if _is_lead_shared(counts):
        return None
    counts[answer.value] -= 1
    if _is_lead_shared(counts):
        return None
    most_votes = max(counts.values())
    return None if most_votes < 2 else counts[answer.value] == most_votes


def _is_lead_shared(counts: dict[int, int]) -> bool:
    highest = sorted(counts.values(), reverse=True)[:2]
    return len(highest) == 2 and highest[0] == highest[1]
