"""`fusewire query`: read-only SQL on stored outcomes."""

from fusewire_cli.query.command import Request, Source, explain_view, list_saved, run, save

__all__ = ["Request", "Source", "explain_view", "list_saved", "run", "save"]
