"""Errors of further services and servers that speak OpenAI's protocol."""

from fusewire_worker_remote.error_tables.table import ErrorTable, wording

TABLE = ErrorTable(
    codes={
        # OpenRouter, DeepSeek, Moonshot, Alibaba
        "insufficient_credits": "insufficient_quota",
        "insufficient_balance": "insufficient_quota",
        "exceeded_current_quota_error": "insufficient_quota",
        "arrearage": "insufficient_quota",
        # llama.cpp, Copilot, MiniMax
        "exceed_context_size_error": "context_length_exceeded",
        "model_max_prompt_tokens_exceeded": "context_length_exceeded",
        "context_window_exceeded": "context_length_exceeded",
        # Alibaba
        "data_inspection_failed": "refused",
        "datainspectionfailed": "refused",
        # Together, Groq
        "model_not_available": "model_not_found",
    },
    wordings=(
        wording(
            "insufficient_quota",
            "insufficient (balance|credit|funds)",
            "out of credits",
            "used all available credits",
            statuses=(400, 403, 429),
        ),
        wording(
            "context_length_exceeded",
            "exceeds? the model'?s? (max|maximum|context)",  # sglang
            "`?inputs`? (tokens|must have)",  # TGI
            "max_prompt_tokens",  # Copilot
            "exceeded model token limit",  # Kimi
            "range of input length",  # DashScope
            "input (is |was )?too (long|large)",  # Bedrock
            "too many (input |total )?tokens",
            "number of tokens .{0,60}(greater|larger|more) than",  # LM Studio
            statuses=(400, 422),
        ),
        wording(
            "refused",
            r"moderation|flagged|violates? (our |the )?(content|usage|safety)|usage guidelines",
            statuses=(403,),
        ),
    ),
)
