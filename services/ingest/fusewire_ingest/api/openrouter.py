"""OpenRouter's own routes, which its clients use beside the chat."""

from datetime import timedelta

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from fusewire import replies
from fusewire_ingest.admission.budgets import period_start
from fusewire_ingest.api import schemas
from fusewire_ingest.api.dependencies import AuthenticatedCaller, Dependencies
from fusewire_ingest.api.errors import HttpError
from fusewire_ingest.openai import openrouter as openrouter_shape

DAY, WEEK, MONTH = timedelta(days=1), timedelta(days=7), timedelta(days=30)


def routes(dependencies: Dependencies) -> APIRouter:
    """`/generation`, `/key`, `/credits`."""
    router = APIRouter(tags=["openrouter"])

    @router.get(
        "/generation", summary="An outcome by its id", responses=schemas.reply("GenerationReply")
    )
    async def generation(id: str, caller: AuthenticatedCaller) -> Response:  # noqa: A002 - the parameter is called so
        fusion = await dependencies.outcomes.get(
            caller.tenant, id.removeprefix(openrouter_shape.PREFIX)
        )
        if fusion is None or fusion.outcome is None:
            raise HttpError(
                404, "unknown_generation", "there is no such generation, or it has not ended yet"
            )
        data = openrouter_shape.generation(fusion.outcome.model_dump(mode="json"))
        reply: replies.openrouter.GenerationReply = {"data": data}
        return JSONResponse(reply)

    @router.get("/key", summary="The caller's own key", responses=schemas.reply("KeyReply"))
    async def key(caller: AuthenticatedCaller) -> Response:
        now, rule = dependencies.clock(), caller.rule
        starts = {
            "day": now - DAY,
            "week": now - WEEK,
            "month": now - MONTH,
            "total": None,
            "period": period_start(rule.budget_period, now),
        }
        usd_by_period = {
            period: await dependencies.budgets.cost_since(caller.tenant, start)
            for period, start in starts.items()
        }
        label = caller.key_id or caller.tenant
        data = openrouter_shape.key(label, rule.budget_usd, usd_by_period, None)
        reply: replies.openrouter.KeyReply = {"data": data}
        return JSONResponse(reply)

    @router.get("/credits", summary="The tenant's budget", responses=schemas.reply("CreditsReply"))
    async def credits_(caller: AuthenticatedCaller) -> Response:
        spent_usd = await dependencies.budgets.cost_since(caller.tenant, None)
        data: replies.openrouter.Credits = {
            "total_credits": caller.rule.budget_usd or 0.0,
            "total_usage": spent_usd,
        }
        reply: replies.openrouter.CreditsReply = {"data": data}
        return JSONResponse(reply)

    return router
