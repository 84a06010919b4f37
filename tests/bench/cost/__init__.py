"""What Fusewire itself costs, beside what people would write instead: `python -m cost`, from `tests/bench`."""
