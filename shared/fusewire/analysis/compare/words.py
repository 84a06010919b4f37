"""The figures of a comparison as words, for the terminal and for the page."""

from collections.abc import Callable

from fusewire.analysis.compare.comparison import Comparison
from fusewire.analysis.compare.cost_lens import Price
from fusewire.analysis.compare.human import HumanVotes
from fusewire.analysis.compare.verdict import Header, Look
from fusewire.analysis.measures import LEAST_N, Interval
from fusewire.analysis.money import usd

DASH = "–"
RULE = (
    "Ship a side if it is not worse (the 95 % interval of quality lies above minus the margin) and"
    " has a reason: better, cheaper or faster, with a 99 % interval that excludes 0. Where nothing"
    " differs, at most 3 comparisons in 100 ship anything. If both sides may be shipped, or"
    " neither, it is too close."
)
STEP_RULE = (
    "A card says skip if B is worse by this lens beyond its 95 % interval (Founder: or over a"
    " budget), else ship; – if it cannot be told."
)


def title(comparison: Comparison) -> str:
    """What is compared, and on what."""
    names = comparison.names
    kind = "models" if names.kind == "models" else "pools"
    period = ""
    if comparison.since and comparison.until:
        period = f", {comparison.since:%Y-%m-%d} to {comparison.until:%Y-%m-%d}"
    return f"Two {kind} on the same {comparison.n:,} prompts{period}"


def decision(comparison: Comparison) -> str:
    """`SHIP B: model`, or `TOO CLOSE (about 1,200 more needed)`."""
    header = comparison.header
    if header.decision == "TOO CLOSE":
        if header.n_more is None:
            return "TOO CLOSE"
        return f"TOO CLOSE (about {round_up(header.n_more):,} more needed)"
    name = comparison.names.a if header.decision == "SHIP A" else comparison.names.b
    return f"{header.decision}: {name}"


def round_up(count: int) -> int:
    """A count rounded up to two digits, as it is an estimate."""
    step: int = 10 ** max(len(str(count)) - 2, 0)
    return -(-count // step) * step


def interval(bounds: Interval | None, show: Callable[[float], str] = "{:+z.1f}".format) -> str:
    """`+1.2 (-0.3 to +2.7)`."""
    if bounds is None:
        return DASH
    value, low, high = map(show, (bounds.value, bounds.low, bounds.high))
    return f"{value} ({low} to {high})"


def quality(header: Header) -> tuple[str, str]:
    """The difference in quality, and where it is from."""
    source = {"labels": "right by gold label", "judge": "preferred by the judge", None: DASH}
    return f"{interval(header.quality.interval)} points", source[header.quality_source]


def cost(look: Look) -> tuple[str, str]:
    """The difference in cost, and what each costs."""
    if look.interval is None or look.a is None or look.b is None:
        return DASH, f"{look.n:,} prompts have both prices; {LEAST_N} are the least"
    text = interval(look.interval, lambda amount: usd(1000 * amount, "+z"))
    return f"{text} USD per 1,000 prompts", f"A {usd(1000 * look.a)}, B {usd(1000 * look.b)}"


def latency(look: Look) -> tuple[str, str]:
    """The median difference in latency, and both medians."""
    if look.interval is None or look.a is None or look.b is None:
        return DASH, f"{look.n:,} prompts have both latencies; {LEAST_N} are the least"
    return (
        f"{interval(look.interval, '{:+z,.0f}'.format)} ms",
        f"medians: A {look.a:,.0f}, B {look.b:,.0f}",
    )


def price(side: Price) -> str:
    """`1.20 USD per 1,000 answers; 3 of 400 unpriced`."""
    note = f"{side.n_unpriced:,} of {side.n:,} unpriced" if side.n else "no answers"
    if side.usd_per_1000 is None:
        return f"price unknown; {note}"
    return f"{usd(side.usd_per_1000)} USD per 1,000 answers; {note}"


def strengths(phrases: tuple[str, ...]) -> str:
    """What a side is best for."""
    return ", ".join(phrases) or "nothing beyond doubt"


def panel(comparison: Comparison) -> str:
    """`4 ship / 1 skip`."""
    counts = comparison.panel
    unknown = f" / {counts.unknown} cannot be told" if counts.unknown else ""
    return f"{counts.ship} ship / {counts.skip} skip{unknown}"


def votes(people: HumanVotes) -> str:
    """Who people are for, and whether the judge agrees with them."""
    if not people.n:
        return "no votes yet"
    counts = (
        f"{people.for_a:,} for A, {people.for_b:,} for B, {people.ties:,} ties,"
        f" {people.other:,} for another or none (n {people.n:,})"
    )
    kappa = f"{people.kappa:.2f}" if people.kappa is not None else DASH
    return f"{counts}; kappa with the judge {kappa} (n {people.n_both:,})"


def score(value: float | None) -> str:
    """A score of a card."""
    return DASH if value is None else f"{value:.1f}"
