"""A comparison for a terminal of 80 columns."""

import textwrap

from fusewire.analysis.compare import words
from fusewire.analysis.compare.cards import Card
from fusewire.analysis.compare.comparison import Comparison

WIDTH = 79


def render(comparison: Comparison) -> str:
    """The comparison as plain text."""
    header, names = comparison.header, comparison.names
    lines = [
        words.title(comparison),
        f"  A  {names.a}",
        f"  B  {names.b}",
        "",
        words.decision(comparison),
        *_wrap(header.because, 2),
        "",
        *_looks(comparison),
        "",
        f"  {'price':9}A: {words.price(comparison.price_a)}",
        f"  {'':9}B: {words.price(comparison.price_b)}",
        *_wrap(f"A: {words.strengths(comparison.best_for_a)}", 11, "  best for "),
        *_wrap(f"B: {words.strengths(comparison.best_for_b)}", 11),
        *_wrap(words.votes(comparison.votes), 11, "  people   "),
    ]
    for sentence in comparison.notes:
        lines += _wrap(sentence, 11, "  note     ")
    lines += ["", f"Five lenses on B against A: {words.panel(comparison)}"]
    for card in comparison.cards:
        lines += ["", *_card(card)]
    lines += ["", *_wrap(words.RULE, 0), *_wrap(words.STEP_RULE, 0)]
    return "\n".join(map(_plain, lines))


def _looks(comparison: Comparison) -> list[str]:
    header = comparison.header
    margin = f"margin {header.margin_points:g}"
    rows = [
        ("quality", *words.quality(header), header.quality.n),
        ("cost", *words.cost(header.cost), header.cost.n),
        ("latency", *words.latency(header.latency), header.latency.n),
    ]
    lines = [f"  {'':9}B less A, with its 95 % interval ({margin})"]
    for name, difference, source, n in rows:
        lines += _wrap(f"{difference}, n {n:,}", 11, f"  {name:9}")
        lines += _wrap(source, 11)
    return lines


def _card(card: Card) -> list[str]:
    scores = f"A {words.score(card.a):>5}   B {words.score(card.b):>5}"
    lines = [f"{card.name:9} {card.step:5} {scores}   n {card.n:,}"]
    lines += _wrap(card.question, 2)
    if card.difference is not None:
        lines += _wrap(f"B less A: {words.interval(card.difference)} {card.unit}", 2)
    if card.missing:
        lines += _wrap(f"{words.DASH} {card.missing}", 2)
    for detail in card.details:
        lines += _wrap(detail, 2)
    lines += _wrap(f"= {card.formula}", 2)
    if card.evidence:
        evidence = card.evidence
        sentence = textwrap.shorten(evidence.sentence, 300, placeholder=" …")
        lines += _wrap(f"{evidence.speaks}, {evidence.author}: “{sentence}”", 2)
        lines.append(f"    fusewire trace {evidence.outcome_id}")
    return lines


def _plain(text: str) -> str:
    """Text without what would steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def _wrap(text: str, indent: int, first: str | None = None) -> list[str]:
    margin = " " * indent
    return textwrap.wrap(
        text, WIDTH, initial_indent=margin if first is None else first, subsequent_indent=margin
    )
