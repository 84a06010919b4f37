"""The pages, each a module with its routes, in the order of the navigation."""

from fusewire_console.pages import batches, cost, models, outcomes, overview

ALL = (overview, outcomes, batches, cost, models)
