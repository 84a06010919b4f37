"""`fusewire batch`: a file of prompts in, a file of outcomes out."""

GROUP = 50
"""Lines that are submitted, or written, at a time."""
POLL_S = 0.2
"""Pause between two looks at what has settled, s."""
