"""`fusewire report`: figures with their intervals from stored outcomes."""
