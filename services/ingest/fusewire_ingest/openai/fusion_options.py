"""Fusewire's and OpenRouter's settings of a fusion, in the body of a chat completion. Pure."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fusewire.contracts import Mode, PresetName, Priority, Residency

MOST_ANALYSTS = 8
PRESETS: dict[str, PresetName] = {
    "general-high": "high",
    "general-budget": "budget",
    "general-fast": "fast",
    "high": "high",
    "budget": "budget",
    "fast": "fast",
}
"""OpenRouter's presets, and Fusewire's own names."""


class FusewireFields(BaseModel):
    """Fusewire's own settings, which both `fusewire` and the parameters of a fusion may hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: str | None = None
    mode: Mode | None = None
    criteria: str | None = Field(default=None, min_length=1, max_length=4000)
    residency: Residency | None = None
    strict: bool = False


class RequestOptions(FusewireFields):
    """The body's `fusewire` object."""

    deadline_s: float | None = Field(default=None, gt=0, le=604_800)
    priority: Priority | None = None
    cancel_on_disconnect: bool = False


class FusionOptions(FusewireFields):
    """OpenRouter's parameters of the fusion tool."""

    analysis_models: tuple[str, ...] | None = Field(
        default=None, min_length=1, max_length=MOST_ANALYSTS
    )
    model: str | None = None
    preset: str | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1, le=131_072)
    temperature: float | None = Field(default=None, ge=0, le=2)
    tools: tuple[dict[str, Any], ...] | None = None
    max_tool_calls: int | None = None
    reasoning: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None


class FusionPlugin(FusionOptions):
    """OpenRouter's fusion plugin."""

    id: Literal["fusion"]
    enabled: bool = True
