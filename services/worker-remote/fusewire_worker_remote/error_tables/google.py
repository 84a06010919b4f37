"""Google's errors, which give the reason in their details."""

from fusewire_worker_remote.error_tables.table import ErrorTable, wording

TABLE = ErrorTable(
    codes={"permission_denied": "unauthorized"},
    reasons={"API_KEY_INVALID": "unauthorized", "PerDay": "insufficient_quota"},
    wordings=(
        wording(
            "context_length_exceeded",
            "exceeds the maximum number of tokens",
            "token count .{0,40}exceeds",
            statuses=(400, 422),
        ),
    ),
)
