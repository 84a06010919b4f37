"""What each member is worth, as a table of 80 columns and a sentence for each. Pure."""

import io
import textwrap
from collections.abc import Sequence

from fusewire.analysis.ablation import MemberValue, Rate
from fusewire.analysis.measures import LEAST_N
from fusewire.analysis.money import usd

WIDTH = 80
UNSEEN = "–"
"""In place of a value that too few observations would give."""


def table(pool: str, outcomes: int, left_out: int, values: Sequence[MemberValue]) -> str:
    """The table, the verdicts and what the marks mean."""
    parts = [_title(pool, outcomes, left_out), _rows(values)]
    parts += [_wrap(f"{value.member}: {verdict(value)}") for value in values]
    parts.append("")
    parts += [_wrap(line) for line in _legend(values)]
    return "\n".join(parts)


def _title(pool: str, outcomes: int, left_out: int) -> str:
    rest = f" ({left_out:,} others have no panel of it)" if left_out else ""
    return _wrap(f"pool {pool}: {outcomes:,} outcomes, each member left out in turn{rest}") + "\n"


def _wrap(line: str) -> str:
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _rows(values: Sequence[MemberValue]) -> str:
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    grid.add_column("member", overflow="fold", max_width=18)
    for column in ("n", "loss, points", "changed", "alone right", "USD/1,000", "saved ms"):
        grid.add_column(column, justify="right", no_wrap=True)
    for value in values:
        mark = "~" if value.is_estimate else ""
        grid.add_row(
            value.member,
            f"{value.n:,}",
            mark + points(value.loss),
            mark + percent(value.changed),
            percent(value.sole_right),
            usd(value.cost_per_1000_usd),
            UNSEEN if value.saved_ms is None else f"{value.saved_ms:,.0f}",
        )
    file = io.StringIO()
    Console(file=file, width=WIDTH, no_color=True).print(grid)
    return file.getvalue()


def points(rate: Rate) -> str:
    """A difference in points, with its interval if there are observations."""
    if not rate.n:
        return UNSEEN
    bounds = f"({100 * rate.low:+.1f} to {100 * rate.high:+.1f})"
    return f"{UNSEEN if rate.value is None else f'{100 * rate.value:+.1f}'} {bounds}"


def percent(rate: Rate) -> str:
    """A share in percent."""
    return UNSEEN if rate.value is None else f"{100 * rate.value:.1f} %"


def verdict(value: MemberValue) -> str:
    """What a member is worth, in plain words."""
    match value.verdict:
        case "too_few":
            text = f"too few to say (n = {value.n}, at least {LEAST_N} are needed)"
        case "needs_replay":
            text = f"only {value.changed.n} of {value.n} outcomes are known without it: --replay"
        case "worth_it":
            text = f"worth it: without it accuracy falls by {_loss(value)}"
        case "harmful":
            text = f"better without it: accuracy then rises by {_gain(value)}"
        case "changes_unlabelled":
            text = (
                f"changes {_share(value.changed)} of the outcomes; whether for the better, labelled"
                f" prompts would tell{_win_loss(value)}"
            )
        case "nothing_seen":
            text = f"{_price(value)} adds nothing seen ({_evidence(value)})"
    return f"{text}.{_details(value)}"


def _price(value: MemberValue) -> str:
    if value.cost_per_1000_usd is None:
        return "its price is unknown, and it"
    return "costs and" if value.cost_per_1000_usd else "is free and"


def _loss(value: MemberValue) -> str:
    loss = value.loss
    return _difference(loss.value, loss.low, loss.high, loss.n)


def _gain(value: MemberValue) -> str:
    loss = value.loss
    return _difference(-(loss.value or 0.0), -loss.high, -loss.low, loss.n)


def _difference(value: float | None, low: float, high: float, n: int) -> str:
    number = UNSEEN if value is None else f"{100 * value:.1f}"
    return f"{number} points ({100 * low:.1f} to {100 * high:.1f}, n = {n:,})"


def _evidence(value: MemberValue) -> str:
    if value.loss.n >= LEAST_N:
        return f"loss {_loss(value)}"
    return f"changed {_share(value.changed)}"


def _share(rate: Rate) -> str:
    return f"{percent(rate)} ({100 * rate.low:.1f} to {100 * rate.high:.1f}, n = {rate.n:,})"


def _win_loss(value: MemberValue) -> str:
    if value.win_loss is None:
        return ""
    return f"; by the judges' own win rates ~{100 * value.win_loss:+.1f} points are lost without it"


def _details(value: MemberValue) -> str:
    """What the table has no room for."""
    details = []
    if value.accuracy.value is not None:
        details.append(
            f"right {percent(value.accuracy)} with it, {percent(value.accuracy_without)} without"
        )
    if value.agreement.value is not None:
        details.append(f"says what most others say {_share(value.agreement)}")
    if value.cost_share:
        details.append(f"{100 * value.cost_share:.1f} % of the cost")
    if value.last.value:
        details.append(f"waited for last {_share(value.last)}")
    if not details:
        return ""
    text = "; ".join(details)
    return f" {text[0].upper()}{text[1:]}."


def _legend(values: Sequence[MemberValue]) -> list[str]:
    explanation = (
        "loss: accuracy lost without the member, with its 95 % interval, paired over the same"
        " labelled prompts. saved ms: an estimate."
    )
    lines = [explanation]
    if any(value.is_estimate for value in values):
        kept_count = sum(value.n_kept for value in values)
        estimates = sum(value.n_estimated for value in values)
        lines.append(
            f"~ estimated in part: {kept_count:,} times a judge had chosen another member, which is"
            f" taken to win again; {estimates:,} times stored verdicts say who would have won."
            " --replay judges again."
        )
    if unknown := sum(value.n_unknown for value in values):
        lines.append(
            f"{unknown:,} results are left out: merges and debates without a member, and members"
            " that were never called, cannot be computed. --replay judges merges again."
        )
    return lines
