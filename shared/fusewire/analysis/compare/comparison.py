"""The whole comparison: header, prices, lens cards, the panel's verdict, and human votes. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain

from fusewire.analysis.compare.cards import Card, SideName
from fusewire.analysis.compare.cost_lens import Price, founder, prices
from fusewire.analysis.compare.human import HumanVotes, count_votes
from fusewire.analysis.compare.quality_lenses import builder, creator, skeptic
from fusewire.analysis.compare.rows import (
    HumanVote,
    Names,
    Pair,
    Rules,
    newest_by_prompt,
)
from fusewire.analysis.compare.trend_lens import futurist
from fusewire.analysis.compare.verdict import Header, Look, judge_header


@dataclass(frozen=True)
class Panel:
    """How many cards say what, of B against A."""

    ship: int
    skip: int
    unknown: int


@dataclass(frozen=True)
class Comparison:
    """What `fusewire compare` shows."""

    names: Names
    rules: Rules
    n: int
    since: datetime | None
    until: datetime | None
    """The oldest and the newest prompt."""
    header: Header
    price_a: Price
    price_b: Price
    best_for_a: tuple[str, ...]
    best_for_b: tuple[str, ...]
    cards: tuple[Card, ...]
    panel: Panel
    votes: HumanVotes
    judges: tuple[str, ...]
    """Whose verdicts between the two count."""
    notes: tuple[str, ...]
    """What a reader has to know before believing it."""

    @property
    def is_skip(self) -> bool:
        """Whether `--fail-if skip` fails: the header ships A, or more cards skip than ship."""
        return self.header.decision == "SHIP A" or self.panel.skip > self.panel.ship


def compare(
    names: Names, rules: Rules, pairs: Sequence[Pair], votes: Iterable[HumanVote]
) -> Comparison:
    """Compare A and B on the prompts that both had.

    A prompt counts once, with its newest pair; only the trend looks at all pairs.
    """
    all_pairs, pairs = pairs, newest_by_prompt(pairs)
    header = judge_header(pairs, rules.margin_points)
    cards = (
        builder(pairs),
        skeptic(pairs),
        futurist(all_pairs),
        founder(pairs, rules),
        creator(names, pairs),
    )
    steps = Counter(card.step for card in cards)
    price_a, price_b = prices(pairs)
    times = [pair.at for pair in pairs]
    judges = tuple(sorted(set(chain.from_iterable(pair.judgement.judges for pair in pairs))))
    return Comparison(
        names=names,
        rules=rules,
        n=len(pairs),
        since=min(times, default=None),
        until=max(times, default=None),
        header=header,
        price_a=price_a,
        price_b=price_b,
        best_for_a=_best_for("a", header, cards),
        best_for_b=_best_for("b", header, cards),
        cards=cards,
        panel=Panel(steps["ship"], steps["skip"], steps["–"]),
        votes=count_votes(all_pairs, votes),
        judges=judges,
        notes=_notes(names, header, judges),
    )


def _notes(names: Names, header: Header, judges: Sequence[str]) -> tuple[str, ...]:
    notes = []
    if names.kind == "pools" and header.quality_source is None:
        notes.append(
            "the quality of pools can be compared only with gold labels: judges compare answers"
            " inside a pool; cost, latency and rates are compared all the same"
        )
    if header.quality_source == "judge":
        notes.append(f"quality is what {' and '.join(judges)} prefers: no labels say who is right")
        own = [name for name in judges if name in {names.a, names.b}]
        notes += [f"{name} judges answers of its own (self-graded)" for name in own]
    return tuple(notes)


_STRENGTHS = {
    "Builder": "usable answers",
    "Skeptic": "the worst 5 %",
    "Futurist": "the trend",
    "Founder": "cost per accepted answer",
    "Creator": "open prompts",
}


def _best_for(name: SideName, header: Header, cards: Sequence[Card]) -> tuple[str, ...]:
    """What a side is better at beyond doubt, in words: the header's reasons, then lenses."""
    reasons = header.reasons_a if name == "a" else header.reasons_b
    strengths = [_reason_text(reason, header) for reason in reasons]
    sign = 1 if name == "b" else -1
    for card in cards:
        bounds = card.difference
        if bounds is None or sign * bounds.low <= 0 or sign * bounds.high <= 0:
            continue
        if card.name == "Founder" and "cheaper" in reasons:
            continue
        strengths.append(_STRENGTHS[card.name])
    return tuple(strengths)


def _reason_text(reason: str, header: Header) -> str:
    if reason == "better":
        source = "right" if header.quality_source == "labels" else "preferred"
        assert header.quality.interval is not None
        return f"{source} more often by {abs(header.quality.interval.value):.1f} points"
    look = header.cost if reason == "cheaper" else header.latency
    return f"{reason}{_share_text(look)}"


def _share_text(look: Look) -> str:
    """` by 38 %`: how much less the lower value is than the higher one."""
    if not look.a or not look.b:
        return ""
    low, high = sorted((look.a, look.b))
    return f" by {100 * (1 - low / high):.0f} %"
