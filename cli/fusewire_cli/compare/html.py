"""A comparison as one self-contained page: no script, and nothing is requested."""

from fusewire.analysis.compare import drawing, words
from fusewire.analysis.compare.comparison import Comparison


def render(comparison: Comparison) -> str:
    """The page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fusewire_cli.compare", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html")
    return page.render(
        it=comparison,
        words=words,
        width=drawing.WIDTH,
        title=words.title(comparison),
        looks=drawing.look_figures(comparison),
        cards=[drawing.card_figure(card) for card in comparison.cards],
    )
