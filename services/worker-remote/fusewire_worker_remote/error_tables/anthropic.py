"""Anthropic's errors."""

from fusewire_worker_remote.error_tables.table import ErrorTable, wording

TABLE = ErrorTable(
    codes={"authentication_error": "unauthorized"},
    statuses={
        "billing_error": 402,
        "permission_error": 403,
        "not_found_error": 404,
        "request_too_large": 413,
        "rate_limit_error": 429,
        "timeout_error": 504,
        "overloaded_error": 529,
    },
    wordings=(
        wording("insufficient_quota", "credit balance is too low", statuses=(400, 403, 429)),
        wording(
            "context_length_exceeded",
            "(prompt|request) (is |was )?too (long|large)",
            statuses=(400, 422),
        ),
        wording("refused", "content filtering policy", statuses=(400, 403, 500)),
    ),
)
