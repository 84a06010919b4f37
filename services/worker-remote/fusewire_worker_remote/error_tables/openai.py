"""OpenAI's errors, and Azure's."""

from fusewire_worker_remote.error_tables.table import ErrorTable, wording

TABLE = ErrorTable(
    codes={
        "insufficient_quota": "insufficient_quota",
        "billing_hard_limit_reached": "insufficient_quota",
        "billing_not_active": "insufficient_quota",
        "context_length_exceeded": "context_length_exceeded",
        "string_above_max_length": "context_length_exceeded",
        "content_filter": "refused",
        "content_policy_violation": "refused",
        "moderation_blocked": "refused",
        "responsibleaipolicyviolation": "refused",
        "model_not_found": "model_not_found",
        "deployment_not_found": "model_not_found",
        "deploymentnotfound": "model_not_found",
        "invalid_api_key": "unauthorized",
        "invalid_authentication": "unauthorized",
    },
    statuses={"rate_limit_exceeded": 429},
    wordings=(
        wording(
            "context_length_exceeded",
            r"(context|sequence|prompt|input|message)s?[ _](length|window|size)",
            r"maximum (context|prompt|input)",
            statuses=(400, 422),
        ),
    ),
)
