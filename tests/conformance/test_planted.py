"""Planted outcomes are what the services would have stored, on both databases."""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Table, select

from fusewire.contracts import Candidate, Outcome, Plan, Prompt, Round
from fusewire.store import summaries, tables
from fusewire.store.engine import Store
from fusewire.store.summary_tables import (
    judge_days,
    latency_days,
    model_days,
    pair_days,
    pool_days,
)
from fusewire.testing.planted import (
    COLUMNS,
    JudgeTruth,
    MemberTruth,
    PoolTruth,
    Rows,
    Truth,
    fill,
    planted_rows,
)
from fusewire_ingest.repository.submissions import Submissions
from fusewire_judge.model import Ask, Case, Decided, ReceivedCandidate
from fusewire_judge.outcome import build
from fusewire_judge.recent import FusionRecord
from fusewire_judge.repository.rows import answer_row, outcome_row, verdict_row
from fusewire_judge.scoring.answers import flaw
from fusewire_judge.strategies.decide import decide

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
Row = dict[str, Any]

FOUR = (
    MemberTruth("a", strength=0.8, accuracy=0.8, family="f1", chars=900, failure_rate=0.3),
    MemberTruth("b", accuracy=0.5, family="f2", failure_rate=0.3, cost_usd=None),
    MemberTruth("c", strength=-0.3, accuracy=0.4, weight=2.0, chars=100, failure_rate=0.2),
    MemberTruth("d", accuracy=0.2, tier="edge", cost_usd=0.0, failure_rate=0.2, is_useless=True),
)
PARTIAL = JudgeTruth(
    family="f2", position_bias=1.5, length_bias=0.2, family_bias=0.5, insight=1.0, repeatability=0.5
)
TRUTHS = {
    "judged": Truth(NOW, {"default": PoolTruth(FOUR, PARTIAL)}, batch_share=0.3),
    "voted": Truth(
        NOW, {"default": PoolTruth(FOUR)}, shared_error_rate=0.5, correlation=0.5, open_share=0.2
    ),
    "three": Truth(
        NOW,
        {"default": PoolTruth(FOUR[:3], PARTIAL), "other": PoolTruth(FOUR[:2], PARTIAL)},
        tenants=("acme", "zoo"),
    ),
    "alone": Truth(NOW, {"default": PoolTruth(FOUR[:1])}, gold_share=1.0),
    "free": Truth(
        NOW,
        {"default": PoolTruth(FOUR[3:], JudgeTruth(cost_usd=None))},
    ),
}


def named(rows: Rows, table: str, fusion_id: str) -> list[Row]:
    """The rows of a fusion, by column."""
    names = COLUMNS[table].split()
    return [dict(zip(names, row, strict=True)) for row in rows[table] if row[0] == fusion_id]


def rounded(value: Any) -> Any:
    """A value whose sums of floats may differ in the last digits."""
    if isinstance(value, float):
        return round(value, 9)
    if isinstance(value, Mapping):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return value


class Replayed:
    """A planted fusion that the judge decides again."""

    def __init__(self, rows: Rows, fusion_id: str) -> None:
        (prompt,) = named(rows, "prompts", fusion_id)
        (fusion,) = named(rows, "fusions", fusion_id)
        (self.outcome_row,) = named(rows, "outcomes", fusion_id)
        self.outcome = Outcome.decode(self.outcome_row["body"])
        self.answer_rows = named(rows, "answers", fusion_id)
        self.verdict_rows = named(rows, "verdicts", fusion_id)
        self.rounds = named(rows, "rounds", fusion_id)
        self.candidates = named(rows, "candidates", fusion_id)
        self.record = FusionRecord(
            Prompt.decode(prompt["body"]), prompt["prompt_hash"], Plan.decode(fusion["plan"]), 0
        )
        self.verdicts = {verdict.call: verdict for verdict in self.outcome.verdicts}

    def decide(self) -> Outcome:
        """Let the judge decide on the same answers and verdicts."""
        self._receive(0)
        for row in self.rounds:
            ask = decide(self._case(), row["asked_at"])
            assert isinstance(ask, Ask)
            stored_round = Round.decode(row["body"])
            assert [call.name for call in ask.calls] == [call.name for call in stored_round.calls]
            calls = stored_round.model_copy(update={"calls": ask.calls})
            self.record = self.record.with_round(calls, 0, row["asked_at"])
            self._receive(row["round"])
        now = self.outcome.finished_at
        decision = decide(self._case(), now)
        assert isinstance(decision, Decided)
        return build(self._case(), decision, now, judged_since=self.record.asked_at)

    def _case(self) -> Case:
        record = self.record
        assert record.plan
        return Case(record.prompt, record.plan, record.rounds, record.received)

    def _receive(self, round_: int) -> None:
        for row in self.candidates:
            if row["round"] != round_:
                continue
            candidate = Candidate.decode(row["body"])
            assert row["after_rounds"] == len(self.record.rounds)
            assert (row["model"], row["tier"]) == (candidate.model, candidate.tier)
            assert row["error_code"] == (candidate.error.code if candidate.error else None)
            if round_:
                candidate = self._as_labelled(candidate)
            received = {
                **self.record.received,
                (round_, row["call"]): ReceivedCandidate(
                    candidate, row["received_at"], row["after_rounds"]
                ),
            }
            self.record = FusionRecord(
                **{**vars(self.record), "received": received},
            )

    def _as_labelled(self, candidate: Candidate) -> Candidate:
        """A verdict with the label that the judge drew, which a planted one does not know."""
        (call,) = [c for c in self.record.rounds[-1].calls if c.name == candidate.call]
        labels = re.findall(r"^\[\[\w+ (\w\w)\]\]$", call.messages[-1].content, re.MULTILINE)
        verdict = self.verdicts[call.name]
        label = labels[verdict.shown.index(verdict.winner or "")]
        content = json.loads(candidate.content or "")
        return candidate.model_copy(update={"content": json.dumps({**content, "winner": label})})


def fusions(truth: Truth, count: int) -> Iterator[Replayed]:
    for rows in planted_rows(truth, count, 7):
        for row in rows["prompts"]:
            yield Replayed(rows, row[0])


@pytest.mark.parametrize("name", TRUTHS)
def test_the_judge_decides_and_stores_the_same(name: str) -> None:
    statuses, turns = set(), set()
    for fusion in fusions(TRUTHS[name], 150):
        outcome = fusion.decide()
        assert rounded(fusion.outcome.model_dump()) == rounded(outcome.model_dump())

        expected = outcome_row(outcome, fusion.record)
        given = {column: fusion.outcome_row.get(column) for column in expected}
        assert rounded({**given, "body": ""}) == rounded({**expected, "body": ""})
        for row, answer in zip(fusion.answer_rows, outcome.answers, strict=True):
            expected = answer_row(answer, outcome, fusion.record)
            assert rounded({column: row.get(column) for column in expected}) == rounded(expected)
        for row, verdict in zip(fusion.verdict_rows, outcome.verdicts, strict=True):
            expected = verdict_row(verdict, outcome, fusion.record)
            assert {column: row.get(column) for column in expected} == expected
        statuses.add(outcome.status)
        turns |= {verdict.call for verdict in outcome.verdicts}
    if name == "judged":
        assert statuses == {"selected", "voted", "single", "failed"}
        assert {"verdict-1-2", "pair-1-2", "turn-1-1"} <= turns


def test_texts_are_answers() -> None:
    lengthy = PoolTruth((MemberTruth("a", chars=4000), MemberTruth("b", chars=1)))
    rows = next(planted_rows(Truth(NOW, {"default": lengthy}, open_share=1.0), 50, 1))
    for row in rows["candidates"]:
        content = Candidate.decode(row[-1]).content
        assert content
        assert flaw(content) is None


# -- in a database ----------------------------------------------------------------------------


async def stored(store: Store, table: Table) -> list[Row]:
    key = list(table.primary_key.columns)
    async with store.read() as connection:
        rows = await connection.execute(select(table).order_by(*key))
        return [dict(row) for row in rows.mappings()]


async def test_rows_in_a_database_are_those_in_memory(store: Store) -> None:
    truth = TRUTHS["three"]
    await fill(store, truth, 60, 7)

    (rows,) = planted_rows(truth, 60, 7)
    for table, columns in COLUMNS.items():
        found = await stored(store, tables.metadata.tables[table])
        names = columns.split()
        key = [column.name for column in tables.metadata.tables[table].primary_key]
        expected = [dict(zip(names, row, strict=True)) for row in rows[table]]
        expected.sort(key=lambda row: [row[name] for name in key])
        found.sort(key=lambda row: [row[name] for name in key])
        assert [{name: row[name] for name in names} for row in found] == expected
    batches = {row["batch_id"]: row["total"] for row in await stored(store, tables.batches)}
    lines = [row["batch_id"] for row in await stored(store, tables.outcomes) if row["batch_id"]]
    assert batches == {batch: lines.count(batch) for batch in lines}
    assert len(batches) == 4


async def test_prompts_are_what_ingest_stores(store: Store) -> None:
    (rows,) = planted_rows(TRUTHS["judged"], 20, 7)
    names = COLUMNS["prompts"].split()
    expected = {row[0]: dict(zip(names, row, strict=True)) for row in rows["prompts"]}
    prompts = [Prompt.decode(row["body"]) for row in expected.values()]

    await Submissions(store).add(prompts, [None] * len(prompts))

    for row in await stored(store, tables.prompts):
        for name in set(names) - {"body", "published_at"}:
            assert row[name] == expected[row["fusion_id"]][name], name
        assert Prompt.decode(row["body"]) == Prompt.decode(expected[row["fusion_id"]]["body"])


async def test_the_sums_are_those_of_the_outcomes(store: Store) -> None:
    await fill(store, TRUTHS["judged"], 300, 7)
    days = await stored(store, pool_days)
    assert sum(row["outcomes"] for row in days) == 300
    keys = [row["fusion_id"] for row in await stored(store, tables.outcomes)]

    await store.run(partial(summaries.subtract, fusion_ids=keys), write=True)

    for table in (pool_days, model_days, pair_days, judge_days, latency_days):
        rows = await stored(store, table)
        assert rows
        amounts = [column.name for column in table.columns if not column.primary_key]
        assert not [row for row in rows if any(abs(row[name]) > 1e-9 for name in amounts)]


async def test_days_are_those_before_now(store: Store) -> None:
    truth = Truth(NOW, days=3)
    await fill(store, truth, 40, 7)

    days = await store.run(partial(summaries.days), write=False)

    assert days == [date(2026, 3, day) for day in (1, 2, 3, 4)]
    newest = max(row["submitted_at"] for row in await stored(store, tables.prompts))
    assert newest <= NOW - timedelta(minutes=10)
