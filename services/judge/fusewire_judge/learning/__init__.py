"""Vote weights, latency percentiles and quarantine, learned from outcomes; the hedge budget."""
