"""The addresses that only OpenRouter has, and that its clients ask beside the chat."""

from datetime import timedelta

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from fusewire import replies
from fusewire_ingest.api import schemas
from fusewire_ingest.api.dependencies import Dependencies, Who
from fusewire_ingest.api.errors import HttpError
from fusewire_ingest.openai import openrouter as openrouter_shape
from fusewire_ingest.repository.budgets import period_start

DAY, WEEK, MONTH = timedelta(days=1), timedelta(days=7), timedelta(days=30)


def routes(of: Dependencies) -> APIRouter:
    """`/generation`, `/key`, `/credits`."""
    router = APIRouter(tags=["openrouter"])

    @router.get(
        "/generation", summary="An outcome by its id", responses=schemas.reply("GenerationReply")
    )
    async def generation(id: str, who: Who) -> Response:  # noqa: A002 - the parameter is called so
        standing = await of.outcomes.get(who.tenant, id.removeprefix(openrouter_shape.PREFIX))
        if standing is None or standing.outcome is None:
            raise HttpError(
                404, "unknown_generation", "there is no such generation, or it has not ended yet"
            )
        found = openrouter_shape.generation(standing.outcome.model_dump(mode="json"))
        told: replies.openrouter.GenerationReply = {"data": found}
        return JSONResponse(told)

    @router.get("/key", summary="The caller's own key", responses=schemas.reply("KeyReply"))
    async def key(who: Who) -> Response:
        now, rule = of.clock(), who.rule
        since = {"day": now - DAY, "week": now - WEEK, "month": now - MONTH, "total": None}
        spent = {name: await of.budgets.cost_since(who.tenant, start) for name, start in since.items()}
        spent["period"] = await of.budgets.cost_since(who.tenant, period_start(rule.budget_period, now))
        found = openrouter_shape.key(who.key_id or who.tenant, rule.budget_usd, spent, None)
        told: replies.openrouter.KeyReply = {"data": found}
        return JSONResponse(told)

    @router.get("/credits", summary="The tenant's budget", responses=schemas.reply("CreditsReply"))
    async def credits_(who: Who) -> Response:
        spent = await of.budgets.cost_since(who.tenant, None)
        found: replies.openrouter.Credits = {
            "total_credits": who.rule.budget_usd or 0.0,
            "total_usage": spent,
        }
        told: replies.openrouter.CreditsReply = {"data": found}
        return JSONResponse(told)

    return router
