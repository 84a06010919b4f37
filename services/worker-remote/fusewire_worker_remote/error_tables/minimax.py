"""MiniMax's errors: numbers, in a body with status 200."""

from fusewire_worker_remote.error_tables.table import ErrorTable, wording

TABLE = ErrorTable(
    numbers={
        1002: "rate_limit_exceeded",
        1004: "invalid_api_key",
        1008: "insufficient_quota",
        1026: "content_filter",
        1027: "content_filter",
        1039: "context_length_exceeded",
        2013: "invalid_request_error",
    },
    wordings=(
        wording("context_length_exceeded", "(overflow|exceed).{0,20}context", statuses=(400, 422)),
    ),
)
