"""Replies at OpenRouter's addresses.

Its SDK needs every field; those without a meaning here are null.
"""

from typing import Literal

# Pydantic reads no other before Python 3.12.
from typing_extensions import TypedDict


class Generation(TypedDict):
    """An outcome in the form of OpenRouter's generations."""

    id: str
    model: str
    origin: str
    router: str
    data_region: str
    is_byok: bool
    streamed: None
    cancelled: bool
    created_at: str
    latency: float | None
    """Milliseconds."""
    generation_time: float | None
    """Milliseconds."""
    finish_reason: str | None
    native_finish_reason: str | None
    tokens_prompt: int | None
    tokens_completion: int | None
    native_tokens_prompt: int | None
    native_tokens_completion: int | None
    native_tokens_cached: int | None
    native_tokens_reasoning: int | None
    native_tokens_completion_images: None
    upstream_inference_cost: float | None
    """USD; null if it is unknown."""
    total_cost: float
    """USD; 0 if it is unknown."""
    usage: float
    """The same as `total_cost`."""
    api_type: None
    app_id: None
    cache_discount: None
    external_user: None
    http_referer: None
    moderation_latency: None
    num_fetches: None
    num_input_audio_prompt: None
    num_media_completion: None
    num_media_prompt: None
    num_search_results: None
    preset_id: None
    provider_name: None
    provider_responses: None
    service_tier: None
    upstream_id: None
    user_agent: None
    web_search_engine: None
    workspace_id: None


class GenerationReply(TypedDict):
    """`GET /generation`."""

    data: Generation


class FreeRequests(TypedDict):
    """Requests to models without a price, which are not counted."""

    limit: int
    remaining: int
    used: int


class RateLimit(TypedDict):
    """A field that OpenRouter has deprecated."""

    requests: int
    interval: str
    note: str


class Key(TypedDict):
    """A client's own key, USD: its budget where it has one, else its tenant's.

    Of several limits, the one with the least left.
    """

    label: str
    limit: float | None
    limit_remaining: float | None
    """What is left, without what running requests may cost."""
    limit_reset: Literal["daily", "monthly"] | None
    """When spending begins anew, UTC; null for a limit for ever."""
    usage: float
    usage_daily: float
    usage_weekly: float
    usage_monthly: float
    byok_usage: float
    byok_usage_daily: float
    byok_usage_weekly: float
    byok_usage_monthly: float
    include_byok_in_limit: bool
    is_free_tier: bool
    is_management_key: bool
    is_provisioning_key: bool
    allowed_data_regions: list[str]
    budgets: list[str]
    free_model_daily_requests: FreeRequests
    rate_limit: RateLimit
    expires_at: str | None
    creator_user_id: None
    effective_budget: None
    organization_id: None
    workspace_id: None


class KeyReply(TypedDict):
    """`GET /key`."""

    data: Key


class Credits(TypedDict):
    """The limit of `GET /key`, USD. Their difference is what is left of it."""

    total_credits: float
    """The limit; 0 if there is none."""
    total_usage: float
    """Spent and reserved of it in its period; all that the tenant has spent if there is none."""


class CreditsReply(TypedDict):
    """`GET /credits`."""

    data: Credits


class ModelCount(TypedDict):
    """The number of models."""

    count: int


class ModelCountReply(TypedDict):
    """`GET /models/count`."""

    data: ModelCount


class TenantKey(TypedDict):
    """A key of the tenant, for those who manage it: never the key itself."""

    hash: str
    """Its id."""
    name: str
    label: str
    """The beginning of the key."""
    disabled: bool
    """Whether it is revoked."""
    scopes: list[str]
    """What it may be used for; OpenRouter's keys have none."""
    limit: float | None
    """USD."""
    limit_remaining: float | None
    limit_reset: str | None
    """`daily`, `monthly`, or null for a limit in total."""
    include_byok_in_limit: bool
    usage: float
    """USD spent, as far as it is counted: since the key has a limit."""
    usage_daily: float
    usage_weekly: float
    usage_monthly: float
    byok_usage: float
    byok_usage_daily: float
    byok_usage_weekly: float
    byok_usage_monthly: float
    created_at: str
    updated_at: None
    expires_at: str | None
    last_used_at: str | None
    """Right to a minute or two."""
    creator_user_id: None
    external_user: None
    workspace_id: str
    """The tenant."""


class TenantKeyReply(TypedDict):
    """`GET` and `PATCH /keys/{hash}`."""

    data: TenantKey


class TenantKeyList(TypedDict):
    """`GET /keys`."""

    data: list[TenantKey]


class CreateKeyReply(TypedDict):
    """`POST /keys`."""

    data: TenantKey
    key: str
    """The key itself, which is shown this once."""


class KeyDeletion(TypedDict):
    """`DELETE /keys/{hash}`."""

    deleted: Literal[True]
