"""`fusewire batch`: a file of prompts in, a file of outcomes out."""

ANSWERED = ("fused", "voted", "single")
"""The statuses of outcomes that hold an answer."""
GROUP = 50
"""Lines that are submitted, or written, at a time."""
POLL_S = 0.2
"""Pause between two looks at what has settled, s."""
