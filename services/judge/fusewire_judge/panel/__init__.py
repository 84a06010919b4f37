"""The panel: which answers count, whom to wait for, hedge or skip. Pure."""
