"""The list of models, with the fields of both OpenAI's and OpenRouter's lists."""

from typing import Any, Literal

# Pydantic reads no other before Python 3.12.
from typing_extensions import TypedDict


class Architecture(TypedDict):
    """Kinds of input and output."""

    input_modalities: list[str]
    output_modalities: list[str]
    modality: None


class Pricing(TypedDict):
    """USD per token, as text; -1 if it varies."""

    prompt: str
    completion: str


class Model(TypedDict):
    """A name that requests may use: a fusion, a pool or a model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    name: str
    canonical_slug: str
    context_length: int | None
    architecture: Architecture
    pricing: Pricing
    supported_parameters: list[str]
    default_parameters: None
    per_request_limits: None
    supported_voices: None
    top_provider: dict[str, Any]
    links: dict[str, str]


class ModelList(TypedDict):
    """`GET /v1/models`."""

    object: Literal["list"]
    data: list[Model]
    total_count: int
    links: dict[str, Any]
