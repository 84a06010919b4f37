"""Batches: their check, their run, their output."""
