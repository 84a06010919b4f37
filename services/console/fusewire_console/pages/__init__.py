"""The pages, each a module with its routes, in the order of the navigation."""

from fusewire_console.pages import judge, leaderboard, outcomes, pools

ALL = (outcomes, leaderboard, judge, pools)
