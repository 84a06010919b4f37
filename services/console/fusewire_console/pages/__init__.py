"""The pages, each a module with its routes, in the order of the navigation."""

from fusewire_console.pages import ask, outcomes

ALL = (ask, outcomes)
