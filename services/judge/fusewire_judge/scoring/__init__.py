"""Answers compared with each other and with gold labels. Pure."""
