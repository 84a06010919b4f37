"""What may be asked: the fusion, the pools, the models. In the shape that both OpenAI's and OpenRouter's SDK read."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from fusewire import pricing, replies
from fusewire.settings import RemoteModel
from fusewire_ingest.access import Caller
from fusewire_ingest.admission.admit import resolve
from fusewire_ingest.admission.model_names import ModelNames
from fusewire_ingest.api import schemas
from fusewire_ingest.api.dependencies import Dependencies, Who
from fusewire_ingest.api.errors import HttpError
from fusewire_ingest.openai.chat_request import FUSION, POOL

FREE, VARIES = "0", "-1"
"""OpenRouter's way to write prices: per token; -1 where it depends."""
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


def routes(of: Dependencies) -> APIRouter:
    """`/models`."""
    router = APIRouter(tags=["models"])

    @router.get("/models", summary="What may be asked", responses=schemas.reply("ModelList"))
    async def list_all(who: Who) -> Response:
        data = [await _model(of, name) for name in _names(of, who)]
        found: replies.models.ModelList = {
            "object": "list",
            "data": data,
            "total_count": len(data),
            "links": {"next": None},
        }
        return JSONResponse(found)

    @router.get(
        "/models/count", summary="How many there are", responses=schemas.reply("ModelCountReply")
    )
    async def count(who: Who) -> Response:
        told: replies.openrouter.ModelCountReply = {"data": {"count": len(_names(of, who))}}
        return JSONResponse(told)

    @router.get("/models/{model:path}", summary="One of them", responses=schemas.reply("Model"))
    async def get(model: str, who: Who) -> Response:
        return JSONResponse(await _model(of, _known(of, who, model)))

    # Where OpenRouter's SDK looks for one.
    @router.get("/model/{model:path}", include_in_schema=False)
    async def get_data(model: str, who: Who) -> Response:
        return JSONResponse({"data": await _model(of, _known(of, who, model))})

    return router


def _names(of: Dependencies, who: Caller) -> list[str]:
    pools = _pools(of, who)
    return [*(FUSION[:1] if pools else ()), *(POOL + name for name in pools), *of.settings.models]


def _pools(of: Dependencies, who: Caller) -> list[str]:
    return [name for name in of.pools if not who.rule.pools or name in who.rule.pools]


def _known(of: Dependencies, who: Caller, asked: str) -> str:
    """The name under which it is listed. Raises RefusedError or HttpError where there is none."""
    pools = _pools(of, who)
    if (asked in FUSION and pools) or (
        asked.startswith(POOL) and asked.removeprefix(POOL) in pools
    ):
        return asked
    if asked.startswith(POOL):
        raise HttpError(404, "unknown_pool", f"there is no pool '{asked.removeprefix(POOL)[:63]}'")
    names = next(iter(of.pools.values())).names if of.pools else ModelNames()
    return resolve(asked, names, "model")


async def _model(of: Dependencies, name: str) -> replies.models.Model:
    """One entry. What is not known is null."""
    models = of.settings.models
    found = models.get(name)
    prompt = answer = FREE
    if found is None or isinstance(found, RemoteModel):
        rates = await pricing.rates(found, of.clock()) if found else None
        prompt, answer = map(_price, rates) if rates else (VARIES, VARIES)
    pool = None if found else of.settings.pools.get(name.removeprefix(POOL))
    able = (
        [models[member.model] for member in pool.members]
        if pool
        else [found]
        if found
        else models.values()
    )
    has_eyes = any(isinstance(model, RemoteModel) and model.images for model in able)
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "fusewire",
        "name": name,
        "canonical_slug": name,
        "context_length": None,
        "architecture": {
            "input_modalities": ["text", *(["image"] if has_eyes else [])],
            "output_modalities": ["text"],
            "modality": None,
        },
        "pricing": {"prompt": prompt, "completion": answer},
        "supported_parameters": list(PARAMETERS),
        "default_parameters": None,
        "per_request_limits": None,
        "supported_voices": None,
        "top_provider": {"is_moderated": False},
        "links": {"details": f"/v1/models/{name}"},
    }


def _price(usd: float) -> str:
    return f"{usd:.12f}".rstrip("0").rstrip(".") or FREE
