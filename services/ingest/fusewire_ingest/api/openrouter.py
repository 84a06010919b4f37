"""OpenRouter's own routes, which its clients use beside the chat."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from fusewire import replies
from fusewire_ingest.access import Caller
from fusewire_ingest.admission.budgets import period_name
from fusewire_ingest.api import schemas
from fusewire_ingest.api.dependencies import AnyCaller, Dependencies, ReadCaller
from fusewire_ingest.api.errors import HttpError
from fusewire_ingest.openai import openrouter as openrouter_shape
from fusewire_ingest.openai.openrouter import KeyLimit
from fusewire_ingest.repository.budgets import Balance, Budgets
from fusewire_ingest.repository.tenant_costs import period_starts


def routes(dependencies: Dependencies) -> APIRouter:
    """`/generation`, `/key`, `/credits`."""
    router = APIRouter(tags=["openrouter"])
    budgets = dependencies.budgets

    @router.get(
        "/generation", summary="An outcome by its id", responses=schemas.reply("GenerationReply")
    )
    async def generation(id: str, caller: ReadCaller) -> Response:  # noqa: A002 - the parameter is called so
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
    async def key(caller: AnyCaller) -> Response:
        """Its budget where it has one, else its tenant's: of several limits the tightest."""
        now = dependencies.clock()
        balances = await _balances(budgets, caller, now)
        account = balances[0].limit.account if balances else caller.tenant
        usd_by_period = await _usage(budgets, account, caller.tenant, now)
        label = caller.key_id or caller.tenant
        data = openrouter_shape.key(label, _tightest(balances), usd_by_period, None)
        reply: replies.openrouter.KeyReply = {"data": data}
        return JSONResponse(reply)

    @router.get(
        "/credits", summary="What is left of a budget", responses=schemas.reply("CreditsReply")
    )
    async def credits_(caller: AnyCaller) -> Response:
        """The same limit as of `/key`."""
        limit = _tightest(await _balances(budgets, caller, dependencies.clock()))
        data: replies.openrouter.Credits
        if limit is not None:
            data = {"total_credits": limit.usd, "total_usage": limit.usd - limit.free_usd}
        else:
            usd_by_period = await budgets.tenant_costs.by_period(
                caller.tenant, dependencies.clock()
            )
            data = {"total_credits": 0.0, "total_usage": usd_by_period["total"]}
        reply: replies.openrouter.CreditsReply = {"data": data}
        return JSONResponse(reply)

    return router


async def _balances(budgets: Budgets, caller: Caller, now: datetime) -> list[Balance]:
    """What is left of the caller's key where it is limited, else of its tenant."""
    if caller.key_id is not None:
        account = await budgets.account_of_key(caller.key_id)
        balances = await budgets.balances(now, {account})
        if any(balance.limit.hard_usd is not None for balance in balances):
            return balances
    return await budgets.balances(now, {caller.tenant})


def _tightest(balances: Sequence[Balance]) -> KeyLimit | None:
    limits = [
        KeyLimit(balance.limit.hard_usd, balance.free_usd, balance.limit.period)
        for balance in balances
        if balance.limit.hard_usd is not None and balance.free_usd is not None
    ]
    return min(limits, key=lambda limit: limit.free_usd, default=None)


async def _usage(budgets: Budgets, account: str, tenant: str, now: datetime) -> dict[str, float]:
    """What a tenant has spent, or its key since that has a limit, USD: see `BudgetLimits`."""
    if account == tenant:
        return await budgets.tenant_costs.by_period(tenant, now)
    usd_by_day = await budgets.spent_by_day(account)
    return {name: _sum_since(usd_by_day, start) for name, start in period_starts(now).items()}


def _sum_since(usd_by_day: Mapping[str, float], start: datetime | None) -> float:
    first_day = period_name("day", start) if start else ""
    return sum(usd for day, usd in usd_by_day.items() if day >= first_day)
