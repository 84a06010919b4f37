"""The judge's tables inside one transaction: locks, plans, rounds, candidates and outcomes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import chain
from typing import Any

from sqlalchemy import Connection, bindparam, false, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from fusewire.contracts import Candidate, Outcome, Plan, Round
from fusewire.store import summaries
from fusewire.store.sums import StoredOutcome
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
from fusewire_judge.recent import FusionRecord, RecentFusions
from fusewire_judge.repository.open_fusions import KEYS, LockedFusion, lock_fusions
from fusewire_judge.repository.rows import answer_row, outcome_row, verdict_row
from fusewire_judge.turn import EncodedRound, sendable_rounds

EncodedCandidate = tuple[Candidate, str]
"""A candidate, and its JSON."""
CandidateKey = tuple[str, int, str]
"""Fusion, round and call of a candidate."""

# Built once: to build a statement takes longer than to run it.
_CALLS = select(candidates.c.fusion_id, candidates.c.round, candidates.c.call).where(
    candidates.c.fusion_id.in_(KEYS)
)
_IS_DONE = select(fusions.c.is_done).where(fusions.c.fusion_id == bindparam("key"))
_CALLS_OF_ROUND = select(candidates.c.call).where(
    candidates.c.fusion_id == bindparam("key"), candidates.c.round == bindparam("round")
)
_OUTCOMES = select(outcomes.c.body).where(
    outcomes.c.fusion_id.in_(KEYS), outcomes.c.texts_deleted_at.is_(None)
)
_DUE = (
    select(fusions.c.fusion_id, fusions.c.due_at)
    # As the partial index says it: `IS false` would read every fusion that ever was.
    .where(fusions.c.is_done == false(), fusions.c.due_at <= bindparam("now"))
    .order_by(fusions.c.due_at)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
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
    .where(fusions.c.fusion_id.in_(KEYS))
    .values(is_done=True, due_at=None, timer_at=None, unpublished_since=bindparam("now"))
)
_SET_UNPUBLISHED = (
    update(fusions).where(fusions.c.fusion_id.in_(KEYS)).values(unpublished_since=bindparam("now"))
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
        rounds.c.fusion_id.in_(KEYS),
        fusions.c.is_done == false(),
        prompts.c.cancelled_at.is_(None),
    )
    .order_by(rounds.c.fusion_id, rounds.c.round)
)
_ADD_CANDIDATE = {
    "sqlite": sqlite.insert(candidates).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(candidates).on_conflict_do_nothing(),
}


class Results:
    """The judge's tables, inside one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.locked_fusions: dict[str, LockedFusion] = {}
        """By fusion id, with what this transaction has added so far."""

    # -- open fusions --------------------------------------------------------------------------

    def lock(self, fusion_ids: Iterable[str], recent: RecentFusions) -> None:
        """Lock the rows of fusions, and read those that are open: see `lock_fusions`."""
        self.locked_fusions |= lock_fusions(self._connection, fusion_ids, recent)

    def open_records(self) -> dict[str, FusionRecord]:
        """Return the locked fusions that are not done, with what this transaction has added."""
        return {key: fusion.record for key, fusion in self.locked_fusions.items() if fusion.record}

    def add_plans(self, plans: Mapping[str, Plan]) -> None:
        """Store the plans of open fusions that have none."""
        if not plans:
            return
        bodies = {key: plan.model_dump_json() for key, plan in sorted(plans.items())}
        self._connection.execute(
            _SET_PLAN, [{"key": key, "body": body} for key, body in bodies.items()]
        )
        for key, record in self.open_records().items():
            if key in plans:
                self._set_record(key, record.with_plan(plans[key], len(bodies[key])))

    def add_candidates(self, batch: Sequence[EncodedCandidate], now: datetime) -> None:
        """Store candidates; one that is there already stays as it is."""
        rows = self._new_candidate_rows(batch, now)
        self._add_late_costs([candidate for candidate, _ in batch if self._is_late_cost(candidate)])
        if rows:
            self._connection.execute(
                _ADD_CANDIDATE[self._connection.dialect.name], [rows[key] for key in sorted(rows)]
            )

    def _new_candidate_rows(
        self, batch: Sequence[EncodedCandidate], now: datetime
    ) -> dict[CandidateKey, dict[str, Any]]:
        """Add candidates to the records of their fusions, and return the rows to store."""
        rows: dict[CandidateKey, dict[str, Any]] = {}
        for candidate, body in batch:
            fusion = self.locked_fusions[candidate.fusion_id]
            key = _candidate_key(candidate)
            if key in rows or _is_received(candidate, fusion.record):
                continue
            rows[key] = _candidate_row(candidate, body, fusion, now)
            if fusion.record:
                record = fusion.record.with_candidate(candidate, len(body), now)
                self._set_record(candidate.fusion_id, record)
        return rows

    def _is_late_cost(self, candidate: Candidate) -> bool:
        return bool(candidate.cost_usd) and self.locked_fusions[candidate.fusion_id].is_done

    def _add_late_costs(self, late_candidates: Sequence[Candidate]) -> None:
        """Store the costs of late candidates that are not stored yet, for tenants' budgets."""
        if not late_candidates:
            return
        costs = {_candidate_key(candidate): candidate.cost_usd for candidate in late_candidates}
        keys = [candidate.fusion_id for candidate in late_candidates]
        stored_keys = {tuple(row) for row in self._connection.execute(_CALLS, {"keys": keys})}
        rows = [
            {"fusion_id": fusion_id, "round": round_, "call": call, "usd": usd}
            for (fusion_id, round_, call), usd in costs.items()
            if (fusion_id, round_, call) not in stored_keys
        ]
        if rows:
            self._connection.execute(insert(late_costs), rows)

    def _set_record(self, key: str, record: FusionRecord) -> None:
        self.locked_fusions[key] = replace(self.locked_fusions[key], record=record)

    def add_rounds(self, new_rounds: Sequence[EncodedRound], now: datetime) -> None:
        """Store rounds that are about to be published."""
        if not new_rounds:
            return
        rows = [
            {"fusion_id": round_.fusion_id, "round": round_.round, "body": body, "asked_at": now}
            for round_, body in new_rounds
        ]
        self._connection.execute(insert(rounds), rows)
        keys = [round_.fusion_id for round_, _ in new_rounds]
        self._connection.execute(_SET_UNPUBLISHED, {"keys": keys, "now": now})
        records = self.open_records()
        for round_, body in new_rounds:
            record = records[round_.fusion_id].with_round(round_, len(body), now)
            self._set_record(round_.fusion_id, record)

    def add_outcomes(
        self, new_outcomes: Sequence[tuple[Outcome, FusionRecord]], now: datetime
    ) -> None:
        """Store outcomes and close their fusions. The primary key lets there be one of each."""
        if not new_outcomes:
            return
        rows = [_stored_outcome(outcome, record) for outcome, record in new_outcomes]
        answer_rows = list(chain.from_iterable(row.answers for row in rows))
        verdict_rows = list(chain.from_iterable(row.verdicts for row in rows))
        self._connection.execute(insert(outcomes), [row.outcome for row in rows])
        if answer_rows:
            self._connection.execute(insert(answers), answer_rows)
        if verdict_rows:
            self._connection.execute(insert(verdicts), verdict_rows)
        keys = [outcome.fusion_id for outcome, _ in new_outcomes]
        self._connection.execute(_CLOSE, {"keys": keys, "now": now})
        summaries.add(self._connection, rows)

    # -- due times -----------------------------------------------------------------------------

    def set_due(self, due: Mapping[str, tuple[datetime, datetime | None]]) -> None:
        """Store when each fusion must be looked at again, and which timer is set for it."""
        if due:
            rows = [
                {"key": key, "due": due_at, "timer": timer_at}
                for key, (due_at, timer_at) in sorted(due.items())
            ]
            self._connection.execute(_SET_DUE, rows)

    def due(self, now: datetime, limit: int) -> dict[str, datetime]:
        """Return the fusions that are due, and since when; none that another replica has locked."""
        rows = self._connection.execute(_DUE, {"now": now, "most": limit})
        return {row.fusion_id: row.due_at for row in rows}

    # -- what may not be on the broker ---------------------------------------------------------

    def set_published(self, marks: Mapping[str, datetime]) -> None:
        """Remove marks: the broker has what was stored when they were set."""
        if marks:
            rows = [{"key": key, "since": since} for key, since in sorted(marks.items())]
            self._connection.execute(_SET_PUBLISHED, rows)

    def marks(self, before: datetime, limit: int) -> dict[str, datetime]:
        """Return the marks set until then, by fusion; none that another replica has locked."""
        rows = self._connection.execute(_UNPUBLISHED, {"before": before, "most": limit})
        return {row.fusion_id: row.unpublished_since for row in rows}

    def open_rounds(self, fusion_ids: Iterable[str]) -> list[EncodedRound]:
        """Return the rounds of those fusions that are neither done nor to be cancelled."""
        rows = self._connection.execute(_OPEN_ROUNDS, {"keys": sorted(fusion_ids)})
        return [(Round.decode(body), body) for (body,) in rows]

    def outcomes(self, fusion_ids: Iterable[str]) -> list[Outcome]:
        """Return stored outcomes, to publish them again; not those without their texts."""
        rows = self._connection.execute(_OUTCOMES, {"keys": sorted(fusion_ids)})
        return [Outcome.decode(body) for (body,) in rows]

    def messages_to_repeat(
        self, planned_ids: Iterable[str], records: Mapping[str, FusionRecord]
    ) -> list[Round | Outcome]:
        """Return what is stored of fusions whose plan came a second time, to publish it again.

        Such a plan may mean that the broker lost what followed the first one.

        Args:
            planned_ids: locked fusions that a plan came for.
            records: the open fusions, as they were before this turn decided them.
        """
        repeated_ids = {key for key in planned_ids if self.locked_fusions[key].is_planned}
        messages: list[Round | Outcome] = []
        for key in sorted(repeated_ids & records.keys()):
            record = records[key]
            if not record.is_cancelled:
                encoded_rounds = ((round_, round_.model_dump_json()) for round_ in record.rounds)
                messages += sendable_rounds(encoded_rounds)
        done_ids = repeated_ids - records.keys()
        if done_ids:
            messages += self.outcomes(done_ids)
        return messages

    # -- what workers ask for ------------------------------------------------------------------

    def is_open(self, fusion_id: str) -> bool:
        """Tell whether a fusion was accepted and has no outcome yet."""
        is_done = self._connection.execute(_IS_DONE, {"key": fusion_id}).scalar()
        return is_done is False

    def stored_calls(self, fusion_id: str, round_: int) -> set[str]:
        """Return the calls of a round whose candidates are stored."""
        rows = self._connection.execute(_CALLS_OF_ROUND, {"key": fusion_id, "round": round_})
        return set(rows.scalars())


def _stored_outcome(outcome: Outcome, record: FusionRecord) -> StoredOutcome:
    return StoredOutcome(
        outcome_row(outcome, record),
        [answer_row(answer, outcome, record) for answer in outcome.answers],
        [verdict_row(verdict, outcome, record) for verdict in outcome.verdicts],
    )


def _candidate_key(candidate: Candidate) -> CandidateKey:
    return candidate.fusion_id, candidate.round, candidate.call


def _is_received(candidate: Candidate, record: FusionRecord | None) -> bool:
    return record is not None and (candidate.round, candidate.call) in record.received


def _candidate_row(
    candidate: Candidate, body: str, fusion: LockedFusion, now: datetime
) -> dict[str, Any]:
    return {
        "fusion_id": candidate.fusion_id,
        "round": candidate.round,
        "call": candidate.call,
        "model": candidate.model,
        "tier": candidate.tier,
        "error_code": candidate.error.code if candidate.error else None,
        "is_late": fusion.is_done,
        # Counted and not timed, as a clock may jump back (docs/decisions/0002).
        "after_rounds": len(fusion.record.rounds) if fusion.record else fusion.rounds,
        "received_at": now,
        "body": body,
    }
