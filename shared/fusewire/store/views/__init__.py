"""The views that analysts query: contract `fusewire_v1`.

Names and columns are the same on both databases, and changes only add columns. `migrate.upgrade`
updates the views after every migration (docs/decisions/0010).
"""

from fusewire.store.views.batches import V_BATCH
from fusewire.store.views.outcomes import V_ANSWER, V_EVENT, V_OUTCOME, V_VOTE
from fusewire.store.views.sums import (
    V_ABLATION,
    V_JUDGE_BIAS,
    V_LATENCY_HIST,
    V_LIFT,
    V_MODEL,
    V_MODEL_DAY,
    V_POOL_DAY,
    V_TENANT_DAY,
    V_WIN_MATRIX,
)
from fusewire.store.views.verdicts import V_PAIR, V_VERDICT
from fusewire.store.views.view import View, ViewColumn

CONTRACT = "fusewire_v1"

VIEWS: tuple[View, ...] = (
    V_OUTCOME,
    V_ANSWER,
    V_EVENT,
    V_VERDICT,
    V_PAIR,
    V_VOTE,
    V_BATCH,
    V_POOL_DAY,
    V_TENANT_DAY,
    V_MODEL,
    V_MODEL_DAY,
    V_WIN_MATRIX,
    V_JUDGE_BIAS,
    V_ABLATION,
    V_LIFT,
    V_LATENCY_HIST,
)

__all__ = ["CONTRACT", "VIEWS", "View", "ViewColumn"]
