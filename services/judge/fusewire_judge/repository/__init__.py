"""The judge's tables: written here and nowhere else."""
