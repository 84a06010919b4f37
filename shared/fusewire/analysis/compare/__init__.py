"""`fusewire compare`: two models or two pools on the same prompts, from rows to a verdict. Pure."""

from fusewire.analysis.compare.comparison import Comparison, Panel, compare
from fusewire.analysis.compare.pairing import map_votes, pair_models, pair_pools
from fusewire.analysis.compare.rows import HumanVote, Judgement, Names, Pair, Rules, Side

__all__ = [
    "Comparison",
    "HumanVote",
    "Judgement",
    "Names",
    "Pair",
    "Panel",
    "Rules",
    "Side",
    "compare",
    "map_votes",
    "pair_models",
    "pair_pools",
]
