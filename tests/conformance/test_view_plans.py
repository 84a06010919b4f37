"""What analysts ask of views of rows is looked up: no table is read from end to end for it."""

from datetime import UTC, datetime

import pytest

from fusewire.store.engine import Store
from fusewire.testing.planted import Truth, fill
from fusewire_console.pages import outcome

BATCH = (
    "SELECT r.* FROM {} r JOIN v_outcome o ON o.outcome_id = r.outcome_id WHERE o.batch_id = 'b'"
)
DAY = "SELECT COUNT(*) FROM {} WHERE day = '2026-03-01'"
QUESTIONS = [
    *(BATCH.format(view) for view in ("v_answer", "v_event", "v_verdict", "v_pair")),
    *(DAY.format(view) for view in ("v_outcome", "v_answer", "v_verdict", "v_pair")),
    "SELECT * FROM v_event WHERE outcome_id = 'f'",
    "SELECT * FROM v_outcome ORDER BY finished_at DESC LIMIT 1000",
    *(
        statement.replace(":id", "'f'").replace("{tenant}", "tenant = 't'")
        for statement in outcome.STATEMENTS
    ),
]


@pytest.fixture
async def full_store(store: Store) -> Store:
    await fill(store, Truth(datetime(2026, 3, 4, tzinfo=UTC)), 200, 1)
    return store


async def plan(store: Store, question: str) -> list[str]:
    async with store.read() as connection:
        if store.is_sqlite:
            explain = "EXPLAIN QUERY PLAN "
        else:
            # Small tables are read whole, unless that is forbidden.
            await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            explain = "EXPLAIN "
        rows = await connection.exec_driver_sql(explain + question)
        return [str(row[-1]).strip() for row in rows]


async def test_each_question_is_looked_up(full_store: Store) -> None:
    for question in QUESTIONS:
        steps = await plan(full_store, question)

        whole = [step for step in steps if "Seq Scan" in step or step.startswith("SCAN ")]
        # A function's rows, and an index in its order up to the limit, are no tables read whole.
        whole = [step for step in whole if "VIRTUAL TABLE" not in step]
        assert not [step for step in whole if "USING INDEX" not in step], question
        if " day = " in question:
            assert [step for step in steps if "ix_outcomes_day" in step], question


async def test_the_candidates_of_a_period_are_looked_up(full_store: Store) -> None:
    """Other events have far fewer rows, which are read through."""
    question = "SELECT COUNT(*) FROM v_event WHERE at >= '2026-03-01' AND at < '2026-03-02'"
    steps = await plan(full_store, question)

    assert [step for step in steps if "ix_candidates_received" in step]
    assert not [step for step in steps if step.endswith("SCAN candidates")]


async def test_costs_of_answers_are_added_up_without_their_texts(full_store: Store) -> None:
    steps = await plan(full_store, "SELECT model, SUM(cost_usd) FROM v_answer GROUP BY model")

    assert not [step for step in steps if "candidates" in step]
