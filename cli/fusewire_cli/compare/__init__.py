"""`fusewire compare`: which of two models or pools to ship."""
