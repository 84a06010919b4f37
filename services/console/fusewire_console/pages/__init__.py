"""The pages, each a module with its routes, in the order of the navigation."""

from fusewire_console.pages import (
    ask,
    batches,
    compare,
    cost,
    judge,
    leaderboard,
    models,
    outcome,
    outcomes,
    overview,
    pools,
    sql,
)

ALL = (
    overview,
    ask,
    outcomes,
    outcome,
    batches,
    leaderboard,
    judge,
    pools,
    cost,
    compare,
    sql,
    models,
)
