"""Two models or two pools on the same prompts: what `fusewire compare` shows, as a page."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fusewire.analysis.compare import Comparison, Names, Rules, drawing, words
from fusewire.analysis.compare import compare as compare_pairs
from fusewire.analysis.period import parse_time
from fusewire.store.analyst import comparisons
from fusewire.store.analyst.comparisons import Kind, Selection
from fusewire_console.access import Visitor
from fusewire_console.pages import page
from fusewire_console.site import Site

MOST_OUTCOMES = 1000
"""The newest that a page compares, in about 0.15 s of CPU; `fusewire compare` takes far more."""

Choices = Mapping[Kind, set[str]]


@dataclass(frozen=True)
class Question:
    """Which two are compared, and on what."""

    parameters: Mapping[str, str]
    """As they stand in the address."""
    kind: Kind
    names: Names | None = None
    """None if there are not two that can be compared."""
    selection: Selection = field(default_factory=Selection)
    error: str | None = None
    """What is wrong with a parameter."""


def parse(parameters: Mapping[str, str], choices: Choices, now: datetime) -> Question:
    """Read what is to be compared from the parameters of an address.

    Args:
        parameters: those of the address.
        choices: the models and the pools that outcomes have.
        now: the time.
    """
    fields = {name: value.strip() for name, value in parameters.items() if value.strip()}
    pair = [fields[name] for name in ("a", "b") if name in fields]
    kind = _kind(fields.get("kind"), pair, choices)
    error = _refusal(pair, kind, choices)
    since = None
    try:
        since = parse_time(fields["since"], now) if "since" in fields else None
    except ValueError as exc:
        error = error or str(exc)
    names = Names(kind, *pair) if len(pair) == 2 and error is None else None
    pool = fields.get("pool") if kind == "models" else None
    return Question(fields, kind, names, Selection(kind, pool, None, since), error)


def _kind(text: str | None, pair: list[str], choices: Choices) -> Kind:
    if text == "pools" or (text != "models" and _are_pools(pair, choices)):
        return "pools"
    return "models"


def _are_pools(pair: list[str], choices: Choices) -> bool:
    """Whether an address that does not say so names pools, and no models."""
    return bool(pair) and set(pair) <= choices["pools"] - choices["models"]


def _refusal(pair: list[str], kind: Kind, choices: Choices) -> str | None:
    """Why two names cannot be compared; None if they can."""
    if len(pair) < 2:
        return None
    if pair[0] == pair[1]:
        return f"{pair[0]} would be compared with itself: choose two different {kind}"
    if missing := [name for name in pair if name not in choices[kind]]:
        return f"no outcome has the {kind.removesuffix('s')} {missing[0]}: choose another"
    return None


def routes(site: Site) -> list[Route]:
    """`/compare`."""

    async def show(request: Request, visitor: Visitor) -> Response:
        fetch = partial(site.views.of_all, visitor)
        choices = await comparisons.stored_names(fetch)
        question = parse(request.query_params, choices, site.clock())
        comparison, is_cut = None, False
        if question.names:
            reading = await comparisons.read(
                fetch, question.names, question.selection, MOST_OUTCOMES
            )
            is_cut = reading.is_cut
            if reading.pairs:
                comparison = compare_pairs(question.names, Rules(), reading.pairs, reading.votes)
        return page.render(
            site,
            "compare.html",
            visitor,
            question=question,
            choices=sorted(choices[question.kind]),
            pools=sorted(choices["pools"]),
            is_cut=is_cut,
            most=MOST_OUTCOMES,
            most_of_command=comparisons.MOST_OUTCOMES,
            words=words,
            width=drawing.WIDTH,
            **_figures(comparison),
        )

    return [page.route(site, "/compare", show)]


def _figures(comparison: Comparison | None) -> dict[str, object]:
    return {
        "it": comparison,
        "looks": drawing.look_figures(comparison) if comparison else [],
        "cards": [drawing.card_figure(card) for card in comparison.cards] if comparison else [],
    }
