"""Outcomes as the judge would have stored them, of which the truth is known.

Reports are tested on them: what was planted has to be found. The same seed makes the same rows.
"""

from fusewire.testing.planted.fill import fill
from fusewire.testing.planted.rows import COLUMNS, Rows, planted_rows
from fusewire.testing.planted.truth import JudgeTruth, MemberTruth, PoolTruth, Truth

__all__ = [
    "COLUMNS",
    "JudgeTruth",
    "MemberTruth",
    "PoolTruth",
    "Rows",
    "Truth",
    "fill",
    "planted_rows",
]
