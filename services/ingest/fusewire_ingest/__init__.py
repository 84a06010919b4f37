"""Ingest: the only door. What it has accepted is committed."""
