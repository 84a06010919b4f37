"""Replies about keys and generations in OpenRouter's form. Pure.

Their SDK requires every field; fields without a meaning here are null, or mean "none".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from fusewire import replies
from fusewire_ingest.admission.budgets import Period, describe, split_account
from fusewire_ingest.admission.refusal import BudgetRefusedError
from fusewire_ingest.openai import chat_reply

PREFIX = "chatcmpl-"
_RESETS: dict[Period, Literal["daily", "monthly"] | None] = {
    "day": "daily",
    "month": "monthly",
    "total": None,
}


def generation(body: Mapping[str, Any]) -> replies.openrouter.Generation:
    """An outcome in the form of `GET /generation`.

    Args:
        body: the outcome's JSON.
    """
    usage, cost = body.get("usage") or {}, body.get("cost_usd")
    reason = chat_reply.finish_reason(body)
    prompt_tokens = usage.get("prompt_tokens")
    completion_tokens = usage.get("completion_tokens")
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
        "tokens_prompt": prompt_tokens,
        "tokens_completion": completion_tokens,
        "native_tokens_prompt": prompt_tokens,
        "native_tokens_completion": completion_tokens,
        "native_tokens_cached": usage.get("cached_tokens"),
        "native_tokens_reasoning": usage.get("reasoning_tokens"),
        "upstream_inference_cost": cost,
        # OpenRouter's schema requires numbers, also where the cost is unknown.
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


def payment_metadata(error: BudgetRefusedError) -> dict[str, str]:
    """What OpenRouter tells of a request that a budget refuses, in `error.metadata`."""
    if error.fits_later:
        return {
            "reason": "in_flight_budget_exhausted",
            "limit_source": "openrouter_in_flight_budget",
            "remedy_hint": "What is reserved for running requests is settled when they end.",
        }
    if split_account(error.account)[0] == "key":
        return {
            "limit_source": "openrouter_key_limit",
            "remedy_hint": "Ask the operator for a higher budget of this key.",
        }
    return {
        "limit_source": "openrouter_credits",
        "remedy_hint": f"Ask the operator for a higher budget of {describe(error.account)}.",
    }


@dataclass(frozen=True)
class KeyLimit:
    """The tightest limit of a key, or of its tenant, USD.

    Attributes:
        usd: what may be spent in each period.
        free_usd: what is left of it, without what running requests may cost.
        period: when it begins anew.
    """

    usd: float
    free_usd: float
    period: Period


def key(
    label: str,
    limit: KeyLimit | None,
    usd_by_period: Mapping[str, float],
    expires_at: datetime | None,
) -> replies.openrouter.Key:
    """A key, as its own client may see it.

    Args:
        label: the key's id, or the tenant's name where no key is needed.
        limit: its limit; None if it has none.
        usd_by_period: USD spent, by `total`, `day`, `week` and `month`.
        expires_at: when the key expires.
    """
    return {
        "label": label,
        "limit": limit.usd if limit else None,
        "limit_remaining": limit.free_usd if limit else None,
        "usage": usd_by_period["total"],
        "usage_daily": usd_by_period["day"],
        "usage_weekly": usd_by_period["week"],
        "usage_monthly": usd_by_period["month"],
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
        "limit_reset": _RESETS[limit.period] if limit else None,
        "organization_id": None,
        "workspace_id": None,
    }
