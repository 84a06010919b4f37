"""Batches: changes that clients request, the check of inputs, the runner, and output files."""
