"""What edge models give on this machine: alone, in batches, and beside llama.cpp."""
