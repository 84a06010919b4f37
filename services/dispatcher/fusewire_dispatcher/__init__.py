"""Dispatcher: plans prompts, and is the only service that publishes tasks."""
