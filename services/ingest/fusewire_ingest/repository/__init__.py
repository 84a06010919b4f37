"""Ingest's tables: written here and nowhere else."""
