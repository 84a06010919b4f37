"""Results in SQL: written here and nowhere else."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import BindParameter, Connection, bindparam, false, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from fusewire.contracts import CONTROL, Candidate, Outcome, Plan, Prompt, Round, Verdict
from fusewire.store.tables import (
    answers,
    candidates,
    fusions,
    late_costs,
    outcomes,
    prompts,
    rounds,
    verdicts,
)
from fusewire_judge.learning.statistics import StoredAnswer
from fusewire_judge.model import ReceivedCandidate
from fusewire_judge.outcome import cost
from fusewire_judge.panel.recorded import RECORDED
from fusewire_judge.recent import FusionRecord, RecentFusions
from fusewire_judge.turn import Written

Told = tuple[Candidate, str]
"""A candidate, and its JSON."""

# Built once: to build a statement takes longer than to run it.
_KEYS: BindParameter[list[str]] = bindparam("keys", expanding=True)
_LOCK = (
    select(
        fusions.c.fusion_id,
        fusions.c.plan.is_not(None).label("is_planned"),
        fusions.c.is_done,
        fusions.c.due_at,
        fusions.c.timer_at,
        prompts.c.cancelled_at,
    )
    .join(prompts, prompts.c.fusion_id == fusions.c.fusion_id)
    .where(fusions.c.fusion_id.in_(_KEYS))
    .order_by(fusions.c.fusion_id)
    .with_for_update(of=fusions)
)
# A statement of its own, once the rows are held: what another judge committed while this one waited for them counts.
_NUMBERS = select(
    fusions.c.fusion_id,
    select(func.count()).where(rounds.c.fusion_id == fusions.c.fusion_id).scalar_subquery(),
    select(func.count()).where(candidates.c.fusion_id == fusions.c.fusion_id).scalar_subquery(),
).where(fusions.c.fusion_id.in_(_KEYS))
_PROMPTS = (
    select(prompts.c.fusion_id, prompts.c.body, prompts.c.prompt_hash, fusions.c.plan)
    .join(fusions, prompts.c.fusion_id == fusions.c.fusion_id)
    .where(prompts.c.fusion_id.in_(_KEYS))
)
_ROUNDS = (
    select(rounds.c.fusion_id, rounds.c.body, rounds.c.asked_at)
    .where(rounds.c.fusion_id.in_(_KEYS))
    .order_by(rounds.c.fusion_id, rounds.c.round)
)
_HEARD = select(
    candidates.c.fusion_id,
    candidates.c.round,
    candidates.c.call,
    candidates.c.received_at,
    candidates.c.after_rounds,
    candidates.c.body,
).where(candidates.c.fusion_id.in_(_KEYS))
_NAMES = select(candidates.c.fusion_id, candidates.c.round, candidates.c.call).where(
    candidates.c.fusion_id.in_(_KEYS)
)
_IS_DONE = select(fusions.c.is_done).where(fusions.c.fusion_id == bindparam("key"))
_STORED = select(candidates.c.call).where(
    candidates.c.fusion_id == bindparam("key"), candidates.c.round == bindparam("round")
)
_OUTCOMES = select(outcomes.c.body).where(outcomes.c.fusion_id.in_(_KEYS))
_DUE = (
    select(fusions.c.fusion_id, fusions.c.due_at)
    # As the partial index says it: `IS false` would read every fusion that ever was.
    .where(fusions.c.is_done == false(), fusions.c.due_at <= bindparam("now"))
    .order_by(fusions.c.due_at)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
_NEWEST = (
    select(outcomes.c.fusion_id, outcomes.c.answer_kind)
    .where(
        outcomes.c.pool == bindparam("pool"),
        outcomes.c.is_replay.is_(False),
        outcomes.c.answer_kind.is_not(None),
    )
    .order_by(outcomes.c.finished_at.desc())
    .limit(bindparam("newest"))
    .subquery()
)
_SEEN = select(
    _NEWEST.c.fusion_id,
    _NEWEST.c.answer_kind,
    answers.c.member,
    answers.c.agreed,
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
_SET_PLAN = (
    update(fusions).where(fusions.c.fusion_id == bindparam("key")).values(plan=bindparam("body"))
)
_SET_DUE = (
    update(fusions)
    .where(fusions.c.fusion_id == bindparam("key"))
    .values(due_at=bindparam("due"), timer_at=bindparam("timer"))
)
_CLOSE = (
    update(fusions)
    .where(fusions.c.fusion_id.in_(_KEYS))
    .values(is_done=True, due_at=None, timer_at=None, unpublished_since=bindparam("now"))
)
_SET_UNPUBLISHED = (
    update(fusions).where(fusions.c.fusion_id.in_(_KEYS)).values(unpublished_since=bindparam("now"))
)
_SET_PUBLISHED = (
    update(fusions)
    # Not the mark that a later transaction has set.
    .where(
        fusions.c.fusion_id == bindparam("key"), fusions.c.unpublished_since == bindparam("since")
    )
    .values(unpublished_since=None)
)
_UNPUBLISHED = (
    select(fusions.c.fusion_id, fusions.c.unpublished_since)
    .where(fusions.c.unpublished_since <= bindparam("before"))
    .order_by(fusions.c.unpublished_since)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
_OPEN_ROUNDS = (
    select(rounds.c.body)
    .join(fusions, rounds.c.fusion_id == fusions.c.fusion_id)
    .join(prompts, rounds.c.fusion_id == prompts.c.fusion_id)
    .where(
        rounds.c.fusion_id.in_(_KEYS),
        fusions.c.is_done == false(),
        prompts.c.cancelled_at.is_(None),
    )
    .order_by(rounds.c.fusion_id, rounds.c.round)
)
_ADD_CANDIDATE = {
    "sqlite": sqlite.insert(candidates).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(candidates).on_conflict_do_nothing(),
}


@dataclass(frozen=True)
class LockedFusion:
    """One fusion's row, held until the transaction ends, with all that is stored of it."""

    is_planned: bool
    is_done: bool
    rounds: int
    """How many were asked."""
    record: FusionRecord | None
    """None where it is done."""


class Results:
    """The judge's tables, inside one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.locked: dict[str, LockedFusion] = {}

    def lock(self, fusion_ids: Iterable[str], recent: RecentFusions) -> None:
        """Hold the rows of these fusions, in sorted order so that two replicas never wait for each other.

        What is stored of those that are open is read where `recent` does not hold it.
        """
        keys = sorted(fusion_ids)
        rows = self._connection.execute(_LOCK, {"keys": keys}).all()
        numbers = {
            key: (n_rounds, n_candidates)
            for key, n_rounds, n_candidates in self._connection.execute(_NUMBERS, {"keys": keys})
        }
        known: dict[str, FusionRecord] = {}
        for row in rows:
            n_rounds, n_candidates = numbers[row.fusion_id]
            copy = recent.get(
                row.fusion_id, is_planned=row.is_planned, rounds=n_rounds, candidates=n_candidates
            )
            if copy and not row.is_done:
                known[row.fusion_id] = copy
        known |= self._read(
            [r.fusion_id for r in rows if not r.is_done and r.fusion_id not in known], numbers
        )
        for row in rows:
            record = known.get(row.fusion_id)
            if record:
                is_cancelled = row.cancelled_at is not None
                record = replace(
                    record, due_at=row.due_at, timer_at=row.timer_at, is_cancelled=is_cancelled
                )
            self.locked[row.fusion_id] = LockedFusion(
                row.is_planned, row.is_done, numbers[row.fusion_id][0], record
            )

    def _read(
        self, keys: Sequence[str], numbers: Mapping[str, tuple[int, int]]
    ) -> dict[str, FusionRecord]:
        """All that is stored of these fusions."""
        if not keys:
            return {}
        found = {
            key: FusionRecord(
                Prompt.decode(body),
                prompt_hash,
                Plan.decode(plan) if plan else None,
                len(body) + len(plan or ""),
            )
            for key, body, prompt_hash, plan in self._connection.execute(_PROMPTS, {"keys": keys})
        }
        if asked := [key for key in keys if numbers[key][0]]:
            for key, body, asked_at in self._connection.execute(_ROUNDS, {"keys": asked}):
                found[key] = found[key].asked(Round.decode(body), len(body), asked_at)
        if told := [key for key in keys if numbers[key][1]]:
            heard: defaultdict[str, dict[tuple[int, str], ReceivedCandidate]] = defaultdict(dict)
            chars: Counter[str] = Counter()
            for row in self._connection.execute(_HEARD, {"keys": told}):
                candidate = Candidate.decode(row.body)
                heard[row.fusion_id][row.round, row.call] = ReceivedCandidate(
                    candidate, row.received_at, row.after_rounds
                )
                chars[row.fusion_id] += len(row.body)
            for key in told:
                found[key] = replace(
                    found[key], received=heard[key], chars=found[key].chars + chars[key]
                )
        return found

    def open(self) -> dict[str, FusionRecord]:
        """The fusions that are held and not done, with what this transaction has added so far."""
        return {key: held.record for key, held in self.locked.items() if held.record}

    def add_plans(self, plans: Mapping[str, Plan]) -> None:
        """Store the plans of open fusions that have none."""
        if not plans:
            return
        bodies = {key: plan.model_dump_json() for key, plan in sorted(plans.items())}
        self._connection.execute(
            _SET_PLAN, [{"key": key, "body": body} for key, body in bodies.items()]
        )
        for key, record in self.open().items():
            if key in plans:
                self._set(key, record.planned(plans[key], len(bodies[key])))

    def add_candidates(self, batch: Sequence[Told], now: datetime) -> None:
        """Store candidates; one that is there already stays as it is."""
        rows: dict[tuple[str, int, str], dict[str, Any]] = {}
        for candidate, body in batch:
            held = self.locked[candidate.fusion_id]
            name = candidate.round, candidate.call
            if (candidate.fusion_id, *name) in rows or (
                held.record and name in held.record.received
            ):
                continue
            rows[candidate.fusion_id, *name] = {
                "fusion_id": candidate.fusion_id,
                "round": candidate.round,
                "call": candidate.call,
                "model": candidate.model,
                "tier": candidate.tier,
                "error_code": candidate.error.code if candidate.error else None,
                "is_late": held.is_done,
                "after_rounds": len(held.record.rounds) if held.record else held.rounds,
                "received_at": now,
                "body": body,
            }
            if held.record:
                self._set(candidate.fusion_id, held.record.told(candidate, len(body), now))
        self._add_late_costs(
            [c for c, _ in batch if c.cost_usd and self.locked[c.fusion_id].is_done]
        )
        if rows:
            self._connection.execute(
                _ADD_CANDIDATE[self._connection.dialect.name], [rows[key] for key in sorted(rows)]
            )

    def _add_late_costs(self, late: Sequence[Candidate]) -> None:
        """Note what late candidates cost that are not stored yet, for their tenants' budgets."""
        if not late:
            return
        found = self._connection.execute(_NAMES, {"keys": [c.fusion_id for c in late]})
        stored = {(row.fusion_id, row.round, row.call) for row in found}
        costs = {(c.fusion_id, c.round, c.call): c.cost_usd for c in late}
        rows = [
            {"fusion_id": fusion, "round": round_, "call": call, "usd": usd}
            for (fusion, round_, call), usd in costs.items()
            if (fusion, round_, call) not in stored
        ]
        if rows:
            self._connection.execute(insert(late_costs), rows)

    def _set(self, key: str, record: FusionRecord) -> None:
        self.locked[key] = replace(self.locked[key], record=record)

    def add_rounds(self, asked: Sequence[Written], now: datetime) -> None:
        """Store rounds that are about to be published."""
        if not asked:
            return
        rows = [
            {"fusion_id": r.fusion_id, "round": r.round, "body": body, "asked_at": now}
            for r, body in asked
        ]
        self._connection.execute(insert(rounds), rows)
        self._connection.execute(
            _SET_UNPUBLISHED, {"keys": [r.fusion_id for r, _ in asked], "now": now}
        )
        open_ = self.open()
        for r, body in asked:
            self._set(r.fusion_id, open_[r.fusion_id].asked(r, len(body), now))

    def set_due(self, due: Mapping[str, tuple[datetime, datetime | None]]) -> None:
        """Store when each fusion must be looked at again, and which timer is set for it."""
        if due:
            rows = [
                {"key": key, "due": at, "timer": timer} for key, (at, timer) in sorted(due.items())
            ]
            self._connection.execute(_SET_DUE, rows)

    def add_outcomes(self, made: Sequence[tuple[Outcome, FusionRecord]], now: datetime) -> None:
        """Store outcomes and close their fusions. The primary key lets there be one."""
        if not made:
            return
        self._connection.execute(insert(outcomes), [_outcome_row(o, r) for o, r in made])
        said = [_answer_row(o, r, i) for o, r in made for i in range(len(o.answers))]
        if said:
            self._connection.execute(insert(answers), said)
        if judged := [_verdict_row(v, o, r) for o, r in made for v in o.verdicts]:
            self._connection.execute(insert(verdicts), judged)
        self._connection.execute(_CLOSE, {"keys": [o.fusion_id for o, _ in made], "now": now})

    def set_published(self, marks: Mapping[str, datetime]) -> None:
        """Take marks off: the broker has what was stored when they were set."""
        if marks:
            rows = [{"key": key, "since": since} for key, since in sorted(marks.items())]
            self._connection.execute(_SET_PUBLISHED, rows)

    def unpublished(self, before: datetime, limit: int) -> dict[str, datetime]:
        """Fusions with a mark set by then, and it; rows that another replica holds are left to it."""
        found = self._connection.execute(_UNPUBLISHED, {"before": before, "most": limit})
        return {row.fusion_id: row.unpublished_since for row in found}

    def open_rounds(self, fusion_ids: Iterable[str]) -> list[Written]:
        """The rounds of those fusions that are not done, nor to be cancelled."""
        found = self._connection.execute(_OPEN_ROUNDS, {"keys": sorted(fusion_ids)})
        return [(Round.decode(body), body) for (body,) in found]

    def outcomes(self, fusion_ids: Iterable[str]) -> list[Outcome]:
        """Stored outcomes, to be announced again."""
        found = self._connection.execute(_OUTCOMES, {"keys": sorted(fusion_ids)})
        return [Outcome.decode(body) for (body,) in found]

    def is_open(self, fusion_id: str) -> bool:
        """Whether a fusion was accepted and has no outcome yet."""
        return (self._connection.execute(_IS_DONE, {"key": fusion_id})).scalar() is False

    def calls_stored(self, fusion_id: str, round_: int) -> set[str]:
        """The calls of a round whose candidates are stored."""
        return set(
            (self._connection.execute(_STORED, {"key": fusion_id, "round": round_})).scalars()
        )

    def seen(self, pool: str, newest: int) -> list[StoredAnswer]:
        """How the members of a pool did in its newest outcomes."""
        found = self._connection.execute(_SEEN, {"pool": pool, "newest": newest})
        return [StoredAnswer(pool, *row) for row in found]

    def controls(self, since: datetime) -> dict[str, list[bool]]:
        """By judge, whether it picked the control that it was shown; the newest first."""
        picks: defaultdict[str, list[bool]] = defaultdict(list)
        for judge, picked in self._connection.execute(_CONTROLS, {"since": since}):
            picks[judge].append(picked)
        return picks

    def due(self, now: datetime, limit: int) -> dict[str, datetime]:
        """Fusions whose time has come, and when it did; rows that another replica holds are left to it."""
        return {
            row.fusion_id: row.due_at
            for row in self._connection.execute(_DUE, {"now": now, "most": limit})
        }


def _outcome_row(outcome: Outcome, record: FusionRecord) -> dict[str, Any]:
    calls = [h.candidate for h in record.received.values() if h.candidate.provider != RECORDED]
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
        "tool_calls": json.dumps([call.model_dump() for call in outcome.tool_calls])
        if outcome.tool_calls
        else None,
        "reason": outcome.reason,
        "winner": outcome.winner,
        "winner_model": models.get(outcome.winner) if outcome.winner else None,
        "judge_model": outcome.judge_model,
        "judge_rung": outcome.judge_rung,
        "agreement": outcome.agreement,
        "answer_kind": outcome.answer_kind,
        "closed_by": outcome.closed_by,
        "missing_weight": outcome.missing_weight,
        "guard": outcome.guard,
        "swap_consistent": outcome.swap_consistent,
        "hedges": outcome.hedges,
        "is_replay": outcome.is_replay,
        "accepted": outcome.accepted,
        "n_asked": sum(a.status != "unasked" for a in outcome.answers),
        "n_answered": sum(a.status == "ok" for a in outcome.answers),
        "latency_ms": outcome.latency_ms,
        "panel_ms": outcome.panel_ms,
        "judge_ms": outcome.judge_ms,
        "tokens_in": outcome.usage.prompt_tokens if outcome.usage else None,
        "tokens_out": outcome.usage.completion_tokens if outcome.usage else None,
        "tokens_cached": outcome.usage.cached_tokens if outcome.usage else None,
        "tokens_thought": outcome.usage.reasoning_tokens if outcome.usage else None,
        "cost_panel_usd": cost(panel),
        "cost_judge_usd": cost(judge),
        "cost_usd": outcome.cost_usd,
        "price_version": min(versions, default=None),
        "error": outcome.error,
        "submitted_at": outcome.submitted_at,
        "finished_at": outcome.finished_at,
        "body": outcome.model_dump_json(),
    }


def _answer_row(outcome: Outcome, record: FusionRecord, place: int) -> dict[str, Any]:
    answer = outcome.answers[place]
    heard = (
        record.received.get((answer.round, answer.call or "")) if answer.round is not None else None
    )
    return {
        "fusion_id": outcome.fusion_id,
        "member": answer.member,
        "round": answer.round,
        "call": answer.call,
        "content": answer.content,
        "weight": answer.weight,
        "agreed": answer.agreed,
        "vote_group": answer.vote_group,
        "is_right": answer.is_right,
        "model": answer.model,
        "tier": answer.tier,
        "provider": heard.candidate.provider if heard else None,
        "status": answer.status,
        "error_code": answer.error_code,
        "error_status": answer.error_status,
        "provider_code": answer.provider_code,
        "provider_param": answer.provider_param,
        "shown_position": answer.shown_position,
        "is_winner": answer.is_winner,
        "attempts": heard.candidate.attempts if heard else None,
        "latency_ms": answer.latency_ms,
        "tokens_in": answer.usage.prompt_tokens if heard and answer.usage else None,
        "tokens_out": answer.usage.completion_tokens if heard and answer.usage else None,
        "cost_usd": answer.cost_usd,
    }


def _verdict_row(verdict: Verdict, outcome: Outcome, record: FusionRecord) -> dict[str, Any]:
    families = {m.name: m.family for m in record.plan.members} if record.plan else {}
    jurors = record.plan.jurors if record.plan else ()
    own = next((j.family for j in jurors if j.model == verdict.judge_model), None)
    longest = max(verdict.chars, default=0)
    return {
        "fusion_id": outcome.fusion_id,
        "call": verdict.call,
        "kind": verdict.kind,
        "judge_model": verdict.judge_model,
        "n_shown": len(verdict.shown),
        "winner": verdict.winner,
        "winner_position": verdict.shown.index(verdict.winner) + 1 if verdict.winner else None,
        "longest_position": verdict.chars.index(longest) + 1
        if verdict.chars.count(longest) == 1
        else None,
        "n_own_family": sum(families.get(member) == own for member in verdict.shown),
        "is_own_family_winner": families.get(verdict.winner) == own if verdict.winner else None,
        "control": verdict.control,
        "is_control_winner": verdict.winner == CONTROL,
        "rung": verdict.rung,
        "void": verdict.void,
        "is_consistent": verdict.is_consistent,
        "decided_at": outcome.finished_at,
    }
