"""The pages, each a module with its routes, in the order of the navigation."""

from fusewire_console.pages import compare, outcomes, sql

ALL = (outcomes, compare, sql)
