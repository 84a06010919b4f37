"""A prompt into a plan and tasks, a round into tasks. Pure."""
