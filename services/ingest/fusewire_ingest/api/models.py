"""List what requests may name as their model: the fusion, the pools and the models.

The form is one that OpenAI's and OpenRouter's SDKs both parse.
"""

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from fusewire import pricing, replies
from fusewire.settings import RemoteModel
from fusewire_ingest.access import Caller
from fusewire_ingest.admission.admit import resolve_model
from fusewire_ingest.admission.model_names import ModelNames
from fusewire_ingest.admission.rules import usable_models
from fusewire_ingest.api import schemas
from fusewire_ingest.api.dependencies import Dependencies, ReadCaller
from fusewire_ingest.api.errors import HttpError
from fusewire_ingest.openai.chat_request import FUSION, POOL

FREE, VARIES = "0", "-1"
"""OpenRouter's texts for prices per token; -1 where the price depends on the request."""
PARAMETERS = (
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "seed",
    "stop",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
    "response_format",
    "structured_outputs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
)


def routes(dependencies: Dependencies) -> APIRouter:
    """`/models`."""
    router = APIRouter(tags=["models"])

    @router.get("/models", summary="List models", responses=schemas.reply("ModelList"))
    async def list_all(caller: ReadCaller) -> Response:
        data = [await _model(dependencies, name) for name in _names(dependencies, caller)]
        reply: replies.models.ModelList = {
            "object": "list",
            "data": data,
            "total_count": len(data),
            "links": {"next": None},
        }
        return JSONResponse(reply)

    @router.get("/models/count", summary="Count models", responses=schemas.reply("ModelCountReply"))
    async def count(caller: ReadCaller) -> Response:
        reply: replies.openrouter.ModelCountReply = {
            "data": {"count": len(_names(dependencies, caller))}
        }
        return JSONResponse(reply)

    @router.get("/models/{model:path}", summary="One model", responses=schemas.reply("Model"))
    async def get(model: str, caller: ReadCaller) -> Response:
        return JSONResponse(await _model(dependencies, _find_name(dependencies, caller, model)))

    # The address of OpenRouter's SDK.
    @router.get("/model/{model:path}", include_in_schema=False)
    async def get_data(model: str, caller: ReadCaller) -> Response:
        return JSONResponse(
            {"data": await _model(dependencies, _find_name(dependencies, caller, model))}
        )

    return router


def _names(dependencies: Dependencies, caller: Caller) -> list[str]:
    """All names that the caller may use."""
    pools = dependencies.pools(caller.tenant)
    fusion_names = FUSION[:1] if pools else ()
    models = usable_models(dependencies.settings, caller.rule)
    return [*fusion_names, *(POOL + pool for pool in pools), *models]


def _find_name(dependencies: Dependencies, caller: Caller, name: str) -> str:
    """The name under which a model is listed. Raises RefusedError or HttpError if there is none."""
    pools = dependencies.pools(caller.tenant)
    if name in FUSION and pools:
        return name
    if name.startswith(POOL):
        pool = name.removeprefix(POOL)
        if pool not in pools:
            raise HttpError(404, "unknown_pool", f"there is no pool '{pool[:63]}'")
        return name
    # All pools have the same names.
    names = next((pool.names for pool in pools.values()), ModelNames())
    return resolve_model(name, names, "model")


async def _prices(dependencies: Dependencies, name: str) -> tuple[str, str]:
    """OpenRouter's texts for the prices of prompt and completion, per token."""
    model = dependencies.settings.models.get(name)
    if model is None:
        return VARIES, VARIES
    if not isinstance(model, RemoteModel):
        return FREE, FREE
    rates = await pricing.rates(model, dependencies.clock())
    if not rates:
        return VARIES, VARIES
    return _price(rates[0]), _price(rates[1])


def _has_images(dependencies: Dependencies, name: str) -> bool:
    """Whether the model, or any model of the pool, takes images."""
    settings = dependencies.settings
    models = list(settings.models.values())
    if model := settings.models.get(name):
        models = [model]
    elif pool := settings.pools.get(name.removeprefix(POOL)):
        models = [settings.models[member.model] for member in pool.members]
    return any(isinstance(model, RemoteModel) and model.images for model in models)


async def _model(dependencies: Dependencies, name: str) -> replies.models.Model:
    """One entry. Unknown values are null."""
    prompt_price, completion_price = await _prices(dependencies, name)
    input_modalities = ["text"]
    if _has_images(dependencies, name):
        input_modalities.append("image")
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "fusewire",
        "name": name,
        "canonical_slug": name,
        "context_length": None,
        "architecture": {
            "input_modalities": input_modalities,
            "output_modalities": ["text"],
            "modality": None,
        },
        "pricing": {"prompt": prompt_price, "completion": completion_price},
        "supported_parameters": list(PARAMETERS),
        "default_parameters": None,
        "per_request_limits": None,
        "supported_voices": None,
        "top_provider": {"is_moderated": False},
        "links": {"details": f"/v1/models/{name}"},
    }


def _price(usd: float) -> str:
    return f"{usd:.12f}".rstrip("0").rstrip(".") or FREE
