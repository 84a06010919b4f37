"""Dispatcher: the only one that publishes tasks."""
