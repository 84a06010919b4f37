"""What stored outcomes say: figures with their intervals, for reports and comparisons."""
