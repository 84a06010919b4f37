"""Mistral's errors."""

from fusewire_worker_remote.error_tables.table import ErrorTable

TABLE = ErrorTable(statuses={"rate_limited": 429})
