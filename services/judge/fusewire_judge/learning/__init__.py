"""Vote weights, latency percentiles and judge quarantine, learned from stored outcomes. Pure."""
