"""worker-remote: runs tasks on hosted models over HTTP, and keeps the paid-call ledger."""
