"""Ingest: the only intake. What it has accepted is committed."""
