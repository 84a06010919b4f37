"""What is learned from: how members did, and which judges picked controls."""

import json
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import Connection, bindparam, select

from fusewire.contracts import CONTROL
from fusewire.store.tables import answers, outcomes, verdicts
from fusewire_judge.learning.statistics import StoredAnswer, StoredCheck, StoredVerdict

# Built once: to build a statement takes longer than to run it.
_NEWEST = (
    select(outcomes.c.fusion_id, outcomes.c.answer_kind)
    .where(
        outcomes.c.pool == bindparam("pool"),
        # An evaluation must not learn from its own labels (docs/decisions/0012).
        outcomes.c.is_replay.is_(False),
        outcomes.c.answer_kind.is_not(None),
    )
    .order_by(outcomes.c.finished_at.desc())
    .limit(bindparam("newest"))
    .subquery()
)
_ANSWERS = select(
    _NEWEST.c.fusion_id,
    _NEWEST.c.answer_kind,
    answers.c.member,
    answers.c.is_right,
    answers.c.vote_group,
    answers.c.latency_ms,
).join(answers, answers.c.fusion_id == _NEWEST.c.fusion_id)
_CONTROLS = (
    select(verdicts.c.judge_model, verdicts.c.is_control_winner)
    .where(verdicts.c.control.is_not(None), verdicts.c.decided_at > bindparam("since"))
    .order_by(verdicts.c.decided_at.desc())
    .limit(10_000)
)


_VERDICTS = (
    select(
        _NEWEST.c.fusion_id,
        _NEWEST.c.answer_kind,
        verdicts.c.judge_model,
        verdicts.c.shown,
        verdicts.c.winner,
    )
    .join(verdicts, verdicts.c.fusion_id == _NEWEST.c.fusion_id)
    .where(
        _NEWEST.c.answer_kind == "open",
        verdicts.c.kind.in_(("listwise", "pair")),
        verdicts.c.is_by_margin.is_(False),
        verdicts.c.void.is_(None),
        verdicts.c.winner.is_not(None),
    )
)


_CHECKS = (
    select(
        _NEWEST.c.fusion_id,
        _NEWEST.c.answer_kind,
        verdicts.c.judge_model,
        verdicts.c.shown,
        verdicts.c.winner,
    )
    .join(verdicts, verdicts.c.fusion_id == _NEWEST.c.fusion_id)
    .where(verdicts.c.kind == "check", verdicts.c.void.is_(None), verdicts.c.control.is_(None))
)


def newest_checks(
    connection: Connection, pools: Iterable[str], outcome_limit: int
) -> list[StoredCheck]:
    """Return the checks of single answers in the newest outcomes of each pool."""
    checks: list[StoredCheck] = []
    for pool in pools:
        rows = connection.execute(_CHECKS, {"pool": pool, "newest": outcome_limit})
        for fusion_id, kind, judge, lineup, winner in rows:
            (member,) = json.loads(lineup)
            checks.append(StoredCheck(pool, fusion_id, kind, judge, member, winner is not None))
    return checks


def newest_verdicts(
    connection: Connection, pools: Iterable[str], outcome_limit: int
) -> list[StoredVerdict]:
    """Return the verdicts on open answers in the newest outcomes of each pool.

    Those of judges by margin are left out: they have weighed what is to be learned.
    """
    stored_verdicts: list[StoredVerdict] = []
    for pool in pools:
        rows = connection.execute(_VERDICTS, {"pool": pool, "newest": outcome_limit})
        for fusion_id, kind, judge, lineup, winner in rows:
            members = tuple(name for name in json.loads(lineup) if name != CONTROL)
            if winner in members:
                stored_verdicts.append(StoredVerdict(pool, fusion_id, kind, judge, members, winner))
    return stored_verdicts


def newest_answers(
    connection: Connection, pools: Iterable[str], outcome_limit: int
) -> list[StoredAnswer]:
    """Return the members' answers in the newest outcomes of each pool."""
    stored_answers: list[StoredAnswer] = []
    for pool in pools:
        rows = connection.execute(_ANSWERS, {"pool": pool, "newest": outcome_limit})
        stored_answers += [StoredAnswer(pool, *row) for row in rows]
    return stored_answers


def control_picks(connection: Connection, since: datetime) -> dict[str, list[bool]]:
    """Return, by judge, whether it picked the control that it was shown; the newest first."""
    picks: defaultdict[str, list[bool]] = defaultdict(list)
    for judge, is_control_winner in connection.execute(_CONTROLS, {"since": since}):
        picks[judge].append(is_control_winner)
    return picks
