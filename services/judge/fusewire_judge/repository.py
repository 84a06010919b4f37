"""Results in SQL: written here and nowhere else."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from fusewire.contracts import Candidate, Outcome, Plan, Prompt, Round
from fusewire.store.engine import Store
from fusewire.store.tables import answers, candidates, fusions, outcomes, prompts, rounds
from fusewire_judge.fusion.case import Heard
from fusewire_judge.outcome import cost


@dataclass(frozen=True)
class Record:
    """Everything stored of one fusion that is not done."""

    prompt: Prompt
    prompt_hash: str
    plan: Plan | None
    rounds: tuple[Round, ...]
    asked_at: datetime | None
    """When the first round was asked."""
    heard: Mapping[tuple[int, str], Heard]
    due_at: datetime | None
    timer_at: datetime | None


@dataclass(frozen=True)
class Locked:
    """One fusion's row, held until the transaction ends."""

    plan: str | None
    is_done: bool
    due_at: datetime | None
    timer_at: datetime | None


class Results:
    """The judge's tables, inside one transaction."""

    def __init__(self, connection: AsyncConnection, store: Store) -> None:
        self._connection = connection
        self._insert = sqlite.insert if store.is_sqlite else postgresql.insert
        self.locked: dict[str, Locked] = {}

    async def lock(self, fusion_ids: Iterable[str]) -> None:
        """Hold the rows of these fusions, in sorted order so that two replicas never wait for each other."""
        query = (
            select(fusions.c.fusion_id, fusions.c.plan, fusions.c.is_done, fusions.c.due_at, fusions.c.timer_at)
            .where(fusions.c.fusion_id.in_(sorted(fusion_ids)))
            .order_by(fusions.c.fusion_id)
            .with_for_update()
        )
        for row in await self._connection.execute(query):
            self.locked[row.fusion_id] = Locked(row.plan, row.is_done, row.due_at, row.timer_at)

    async def add_plans(self, plans: Mapping[str, Plan]) -> None:
        """Store plans that are new; the first one stays."""
        fresh = [(key, plan.model_dump_json()) for key, plan in plans.items() if not self.locked[key].plan]
        if not fresh:
            return
        statement = update(fusions).where(fusions.c.fusion_id == bindparam("key")).values(plan=bindparam("body"))
        await self._connection.execute(statement, [{"key": key, "body": body} for key, body in fresh])
        for key, body in fresh:
            self.locked[key] = replace(self.locked[key], plan=body)

    async def add_candidates(self, batch: Sequence[Candidate], now: datetime) -> None:
        """Store candidates; one that is there already stays as it is."""
        if not batch:
            return
        asked: defaultdict[str, int] = defaultdict(int)
        found = await self._connection.execute(
            select(rounds.c.fusion_id).where(rounds.c.fusion_id.in_({c.fusion_id for c in batch}))
        )
        for (key,) in found:
            asked[key] += 1
        rows = {
            (c.fusion_id, c.round, c.call): {
                "fusion_id": c.fusion_id,
                "round": c.round,
                "call": c.call,
                "model": c.model,
                "tier": c.tier,
                "error_code": c.error.code if c.error else None,
                "is_late": self.locked[c.fusion_id].is_done,
                "after_rounds": asked[c.fusion_id],
                "received_at": now,
                "body": c.model_dump_json(),
            }
            for c in reversed(batch)
        }
        await self._connection.execute(
            self._insert(candidates).values([rows[k] for k in sorted(rows)]).on_conflict_do_nothing()
        )

    async def records(self, fusion_ids: Iterable[str]) -> dict[str, Record]:
        """All that is stored of these fusions."""
        keys = sorted(fusion_ids)
        if not keys:
            return {}
        asked: defaultdict[str, list[tuple[Round, datetime]]] = defaultdict(list)
        query = select(rounds).where(rounds.c.fusion_id.in_(keys)).order_by(rounds.c.fusion_id, rounds.c.round)
        for row in await self._connection.execute(query):
            asked[row.fusion_id].append((Round.decode(row.body), row.asked_at))
        heard: defaultdict[str, dict[tuple[int, str], Heard]] = defaultdict(dict)
        for row in await self._connection.execute(select(candidates).where(candidates.c.fusion_id.in_(keys))):
            candidate = Candidate.decode(row.body)
            heard[row.fusion_id][row.round, row.call] = Heard(candidate, row.received_at, row.after_rounds)
        query_prompts = select(prompts.c.fusion_id, prompts.c.body, prompts.c.prompt_hash)
        found = {}
        for row in await self._connection.execute(query_prompts.where(prompts.c.fusion_id.in_(keys))):
            lock = self.locked[row.fusion_id]
            found[row.fusion_id] = Record(
                prompt=Prompt.decode(row.body),
                prompt_hash=row.prompt_hash,
                plan=Plan.decode(lock.plan) if lock.plan else None,
                rounds=tuple(r for r, _ in asked[row.fusion_id]),
                asked_at=asked[row.fusion_id][0][1] if asked[row.fusion_id] else None,
                heard=heard[row.fusion_id],
                due_at=lock.due_at,
                timer_at=lock.timer_at,
            )
        return found

    async def add_rounds(self, asked: Sequence[Round], now: datetime) -> None:
        """Store rounds that are about to be published."""
        if asked:
            rows = [
                {"fusion_id": r.fusion_id, "round": r.round, "body": r.model_dump_json(), "asked_at": now}
                for r in asked
            ]
            await self._connection.execute(self._insert(rounds).values(rows))

    async def set_due(self, due: Mapping[str, tuple[datetime, datetime | None]]) -> None:
        """Store when each fusion must be looked at again, and which timer is set for it."""
        if due:
            statement = (
                update(fusions)
                .where(fusions.c.fusion_id == bindparam("key"))
                .values(due_at=bindparam("due"), timer_at=bindparam("timer"))
            )
            rows = [{"key": key, "due": at, "timer": timer} for key, (at, timer) in sorted(due.items())]
            await self._connection.execute(statement, rows)

    async def add_outcomes(self, made: Sequence[tuple[Outcome, Record]]) -> None:
        """Store outcomes and close their fusions. The primary key lets there be one."""
        if not made:
            return
        await self._connection.execute(self._insert(outcomes).values([_outcome_row(o, r) for o, r in made]))
        said = [_answer_row(o, r, i) for o, r in made for i in range(len(o.answers))]
        if said:
            await self._connection.execute(self._insert(answers).values(said))
        closed = [o.fusion_id for o, _ in made]
        await self._connection.execute(
            update(fusions).where(fusions.c.fusion_id.in_(closed)).values(is_done=True, due_at=None, timer_at=None)
        )

    async def outcomes(self, fusion_ids: Iterable[str]) -> list[Outcome]:
        """Stored outcomes, to be announced again."""
        query = select(outcomes.c.body).where(outcomes.c.fusion_id.in_(sorted(fusion_ids)))
        return [Outcome.decode(body) for (body,) in await self._connection.execute(query)]

    async def due(self, now: datetime, limit: int) -> list[str]:
        """Fusions whose time has come; rows that another replica holds are left to it."""
        query = (
            select(fusions.c.fusion_id)
            .where(fusions.c.is_done.is_(False), fusions.c.due_at <= now)
            .order_by(fusions.c.due_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        return list((await self._connection.execute(query)).scalars())


def _outcome_row(outcome: Outcome, record: Record) -> dict[str, Any]:
    calls = [h.candidate for h in record.heard.values()]
    panel = [c for c in calls if c.member is not None]
    judge = [c for c in calls if c.member is None]
    models = {a.member: a.model for a in outcome.answers}
    versions = {c.price_version for c in calls if c.price_version}
    return {
        "fusion_id": outcome.fusion_id,
        "is_degraded": outcome.is_degraded,
        "degraded_reasons": json.dumps(outcome.degraded_reasons),
        "status": outcome.status,
        "tenant": outcome.tenant,
        "batch_id": outcome.batch_id,
        "custom_id": outcome.custom_id,
        "pool": outcome.pool,
        "mode": outcome.mode,
        "config_hash": outcome.config_hash,
        "prompt_hash": record.prompt_hash,
        "content": outcome.content,
        "reason": outcome.reason,
        "winner": outcome.winner,
        "winner_model": models.get(outcome.winner) if outcome.winner else None,
        "judge_model": outcome.judge_model,
        "judge_rung": outcome.judge_rung,
        "agreement": outcome.agreement,
        "n_asked": len(outcome.answers),
        "n_answered": sum(a.status == "ok" for a in outcome.answers),
        "latency_ms": outcome.latency_ms,
        "panel_ms": outcome.panel_ms,
        "judge_ms": outcome.judge_ms,
        "tokens_in": outcome.usage.prompt_tokens,
        "tokens_out": outcome.usage.completion_tokens,
        "cost_panel_usd": cost(panel),
        "cost_judge_usd": cost(judge),
        "cost_usd": outcome.cost_usd,
        "price_version": min(versions, default=None),
        "error": outcome.error,
        "submitted_at": outcome.submitted_at,
        "finished_at": outcome.finished_at,
        "body": outcome.model_dump_json(),
    }


def _answer_row(outcome: Outcome, record: Record, place: int) -> dict[str, Any]:
    answer = outcome.answers[place]
    heard = record.heard.get((answer.round, answer.member)) if answer.round is not None else None
    return {
        "fusion_id": outcome.fusion_id,
        "member": answer.member,
        "round": answer.round,
        "model": answer.model,
        "tier": answer.tier,
        "provider": heard.candidate.provider if heard else None,
        "status": answer.status,
        "error_code": answer.error_code,
        "shown_position": answer.shown_position,
        "is_winner": answer.is_winner,
        "attempts": heard.candidate.attempts if heard else None,
        "latency_ms": answer.latency_ms,
        "tokens_in": answer.usage.prompt_tokens if heard else None,
        "tokens_out": answer.usage.completion_tokens if heard else None,
        "cost_usd": answer.cost_usd,
    }
