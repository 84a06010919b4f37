"""Outcomes that a route is learned from: those for which all members of a pool were asked."""

from collections import defaultdict
from collections.abc import Collection, Iterable

from sqlalchemy import Connection, bindparam, select

from fusewire.store.tables import answers, outcomes, prompts
from fusewire_judge.learning.comparisons import ComparedAnswer, ComparedOutcome
from fusewire_judge.repository.open_fusions import KEYS

PAGE = 200
"""How many prompts are read at once."""

# Built once: to build a statement takes longer than to run it.
_NEWEST = (
    select(
        outcomes.c.fusion_id,
        outcomes.c.answer_kind,
        outcomes.c.winner,
        outcomes.c.accepted,
        outcomes.c.cost_judge_usd,
        outcomes.c.judge_model,
        outcomes.c.finished_at,
    )
    .join(prompts, prompts.c.fusion_id == outcomes.c.fusion_id)
    .where(
        outcomes.c.pool == bindparam("pool"),
        outcomes.c.n_asked == bindparam("asked"),
        outcomes.c.is_replay.is_(False),
        outcomes.c.answer_kind.is_not(None),
        outcomes.c.texts_deleted_at.is_(None),
        # Which hosted member is asked must not depend on words of these.
        prompts.c.residency != "edge-only",
    )
    .order_by(outcomes.c.finished_at.desc())
    .limit(bindparam("newest"))
    .subquery()
)
_ANSWERS = (
    select(
        _NEWEST,
        answers.c.member,
        answers.c.model,
        answers.c.tier,
        answers.c.status,
        answers.c.is_right,
        answers.c.vote_group,
        answers.c.weight,
        answers.c.latency_ms,
        answers.c.cost_usd,
    )
    .join(answers, answers.c.fusion_id == _NEWEST.c.fusion_id)
    .order_by(_NEWEST.c.finished_at, _NEWEST.c.fusion_id)
)
_PROMPTS = select(prompts.c.fusion_id, prompts.c.body).where(prompts.c.fusion_id.in_(KEYS))


def newest_comparisons(
    connection: Connection, pool: str, models: Collection[tuple[str, str]], outcome_limit: int
) -> list[ComparedOutcome]:
    """Return the newest outcomes for which all members were asked, the oldest of them first.

    Args:
        connection: to the database.
        pool: its name.
        models: its members and their models, as configured; outcomes of others are left out.
        outcome_limit: the most that are looked at.
    """
    parameters = {"pool": pool, "asked": len(models), "newest": outcome_limit}
    rows_by_fusion: defaultdict[str, list[ComparedAnswer]] = defaultdict(list)
    heads = {}
    for fusion_id, kind, winner, accepted, judge_usd, judge, _, *answer in connection.execute(
        _ANSWERS, parameters
    ):
        heads[fusion_id] = (kind, winner, accepted, judge_usd, judge)
        rows_by_fusion[fusion_id].append(ComparedAnswer(*answer))
    return [
        ComparedOutcome(fusion_id, *heads[fusion_id], rows)
        for fusion_id, rows in rows_by_fusion.items()
        if _models(rows) == set(models)
    ]


def _models(rows: Iterable[ComparedAnswer]) -> set[tuple[str, str]]:
    return {(row.member, row.model) for row in rows}


def prompt_bodies(connection: Connection, fusion_ids: Collection[str]) -> dict[str, str]:
    """Return the JSON of prompts, by fusion."""
    keys = sorted(fusion_ids)
    bodies: dict[str, str] = {}
    for begin in range(0, len(keys), PAGE):
        rows = connection.execute(_PROMPTS, {"keys": keys[begin : begin + PAGE]})
        bodies |= {row.fusion_id: row.body for row in rows}
    return bodies
