"""`fusewire batch`: a file of prompts in, a file of outcomes out."""

ANSWERED = ("fused", "voted", "single")
"""How an outcome stands that holds an answer."""
GROUP = 50
POLL_S = 0.2
