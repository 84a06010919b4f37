"""What OpenRouter's own addresses tell of keys and generations. Pure.

Their SDK wants every field; what has no meaning here is null, or what means "none".
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fusewire import replies
from fusewire_ingest.openai import chat_reply

PREFIX = "chatcmpl-"


def generation(body: Mapping[str, Any]) -> replies.openrouter.Generation:
    """An outcome as `GET /generation` tells of one.

    Args:
        body: the outcome's JSON.
    """
    used, cost = body.get("usage") or {}, body.get("cost_usd")
    reason = chat_reply.finish_reason(body)
    asked, answered = used.get("prompt_tokens"), used.get("completion_tokens")
    return {
        "id": PREFIX + body["fusion_id"],
        "model": f"fusewire/{body['pool']}",
        "origin": "",
        "router": "fusewire",
        "data_region": "global",
        "is_byok": False,
        "streamed": None,
        "cancelled": body["status"] == "cancelled",
        "created_at": body["submitted_at"],
        "latency": body.get("latency_ms"),
        "generation_time": body.get("latency_ms"),
        "finish_reason": reason,
        "native_finish_reason": reason,
        "tokens_prompt": asked,
        "tokens_completion": answered,
        "native_tokens_prompt": asked,
        "native_tokens_completion": answered,
        "native_tokens_cached": used.get("cached_tokens"),
        "native_tokens_reasoning": used.get("reasoning_tokens"),
        "upstream_inference_cost": cost,
        # They are no numbers there where nothing is known.
        "total_cost": cost or 0.0,
        "usage": cost or 0.0,
        "api_type": None,
        "app_id": None,
        "cache_discount": None,
        "external_user": None,
        "http_referer": None,
        "moderation_latency": None,
        "native_tokens_completion_images": None,
        "num_fetches": None,
        "num_input_audio_prompt": None,
        "num_media_completion": None,
        "num_media_prompt": None,
        "num_search_results": None,
        "preset_id": None,
        "provider_name": None,
        "provider_responses": None,
        "service_tier": None,
        "upstream_id": None,
        "user_agent": None,
        "web_search_engine": None,
        "workspace_id": None,
    }


def key(
    label: str, limit: float | None, spent: Mapping[str, float], expires_at: datetime | None
) -> replies.openrouter.Key:
    """What a client may know of its own key.

    Args:
        label: the key's id, or its tenant where it needs none.
        limit: what the tenant may spend in the period of its budget, USD; None where it has none.
        spent: USD by `total`, `day`, `week`, `month`, and of the budget's period by `period`.
        expires_at: the end of the key.
    """
    return {
        "label": label,
        "limit": limit,
        "limit_remaining": None if limit is None else max(limit - spent["period"], 0.0),
        "usage": spent["total"],
        "usage_daily": spent["day"],
        "usage_weekly": spent["week"],
        "usage_monthly": spent["month"],
        "byok_usage": 0.0,
        "byok_usage_daily": 0.0,
        "byok_usage_weekly": 0.0,
        "byok_usage_monthly": 0.0,
        "include_byok_in_limit": False,
        "is_free_tier": False,
        "is_management_key": False,
        "is_provisioning_key": False,
        "allowed_data_regions": [],
        "budgets": [],
        "free_model_daily_requests": {"limit": 0, "remaining": 0, "used": 0},
        "rate_limit": {"requests": -1, "interval": "10s", "note": "see the tenant's limits"},
        "expires_at": expires_at.isoformat() if expires_at else None,
        "creator_user_id": None,
        "effective_budget": None,
        "limit_reset": None,
        "organization_id": None,
        "workspace_id": None,
    }
