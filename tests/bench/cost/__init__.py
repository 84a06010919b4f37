"""What Fusewire costs, beside what people would write: `python -m cost` in `tests/bench`."""
