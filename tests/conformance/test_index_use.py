"""Every sweep and poll finds its rows by an index: none gets slower with stored outcomes."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, cast

import pytest
from sqlalchemy import Connection, delete, event, insert, update

from fusewire.bus import Bus
from fusewire.store.engine import Store
from fusewire.store.history import history
from fusewire.store.queries import standings
from fusewire.store.tables import fusions, outcomes
from fusewire.testing.factories import T0, FakeClock, make_prompt
from fusewire_ingest.repository.batches import Batches
from fusewire_ingest.repository.budgets import Budgets
from fusewire_ingest.repository.images import Images
from fusewire_ingest.repository.lines import BatchLines
from fusewire_ingest.repository.retention import OF_A_FUSION, Retention
from fusewire_ingest.repository.running_counts import running_counts
from fusewire_ingest.repository.submissions import Submissions
from fusewire_ingest.repository.votes import Vote, Votes
from fusewire_judge.handlers import Handlers
from fusewire_judge.repository.results import Results

PROMPT = make_prompt()


class Plans:
    """How the database finds the rows of each statement, as it says itself."""

    def __init__(self, store: Store) -> None:
        self._is_sqlite = store.is_sqlite
        self._is_asking = False
        self.found: list[tuple[str, list[str]]] = []

    def ask(
        self, connection: Connection, _cursor: Any, statement: str, parameters: Any, *_: Any
    ) -> None:
        if self._is_asking or not statement.startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
            return
        self._is_asking = True
        try:
            given = parameters[0] if isinstance(parameters, list) else parameters
            if not self._is_sqlite:
                # An empty table is always read whole, unless that is forbidden.
                connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            explain = "EXPLAIN QUERY PLAN " if self._is_sqlite else "EXPLAIN "
            rows = connection.exec_driver_sql(explain + statement, given).all()
            self.found.append((statement, [str(row[-1]).strip() for row in rows]))
        finally:
            self._is_asking = False

    def whole_reads(self) -> list[tuple[str, str]]:
        """Statements that read a table from its beginning to its end, and how they do it."""
        return [
            (statement[:200], step)
            for statement, steps in self.found
            for step in steps
            if ("Seq Scan" in step or step.startswith("SCAN ")) and _table(step)
        ]


SMALL = (
    "anon_1",  # what the statement has made itself, such as the newest hundred
    "(subquery",
    "CONSTANT ROW",
    "budget_holds",  # of fusions that have not ended
    "reservations",  # of older code, until ingest has taken them over
    "late_costs",  # until ingest has counted them, two seconds
    "ix_fusions_due",  # holds the open ones, and no others
    "ix_batch_lines_flying",  # holds the lines in flight, and no others
)


def _table(step: str) -> bool:
    return not any(name in step for name in SMALL)


@pytest.fixture
async def plans(store: Store) -> AsyncIterator[Plans]:
    await Submissions(store).add([PROMPT], [None])
    found = Plans(store)
    for engine in store.engines:
        event.listen(engine, "before_cursor_execute", found.ask)
    yield found
    for engine in store.engines:
        event.remove(engine, "before_cursor_execute", found.ask)


async def test_the_judges_sweep_and_memory(plans: Plans, store: Store) -> None:
    handlers = Handlers(cast("Bus", None), store, FakeClock(), {"default": {}})
    await handlers.update_statistics()
    assert await handlers.publish_again() == 0
    assert await handlers.sweep() == 0
    await store.run(
        lambda connection: Results(connection).outcomes([PROMPT.fusion_id]), write=False
    )
    await store.run(
        lambda connection: Results(connection).open_rounds([PROMPT.fusion_id]), write=False
    )

    assert len(plans.found) >= 5
    assert plans.whole_reads() == []


async def test_ingests_sweeps(plans: Plans, store: Store) -> None:
    submissions = Submissions(store, Budgets(store, [], cast("Any", None)))
    await submissions.find_unpublished(T0, 10)
    await submissions.find_cancelled(T0, 10)
    await submissions.newest("t", "h", T0 - timedelta(minutes=1), T0)
    await submissions.mark_published([PROMPT.fusion_id], T0, "s1")
    await submissions.forget_stalled(T0)
    await submissions.settle(T0)
    await Images(store).forget(T0)
    await Images(store).withdraw_one(T0, cast("Any", None))

    assert len(plans.found) >= 6
    assert plans.whole_reads() == []


async def test_what_deletes_by_age(plans: Plans, store: Store) -> None:
    kept = Retention(store)
    await kept.tenants()
    await kept.delete_batches("t", T0)
    await kept.delete_fusions("t", T0)
    await kept.delete_inputs("t", T0)
    await kept.delete_texts("t", T0, T0)
    # Which is asked by the primary key of each.
    async with store.write() as connection:
        for table in OF_A_FUSION:
            await connection.execute(delete(table).where(table.c.fusion_id.in_(["a", "b"])))

    assert len(plans.found) >= 5 + len(OF_A_FUSION)
    assert plans.whole_reads() == []


async def test_those_who_wait(plans: Plans, store: Store) -> None:
    await standings(store, PROMPT.tenant, [PROMPT.fusion_id])

    assert plans.found
    assert plans.whole_reads() == []


async def test_what_the_console_reads(plans: Plans, store: Store) -> None:
    others = [make_prompt(custom_id=f"ended-{number}") for number in range(300)]
    await Submissions(store).add(others, [None] * len(others))
    async with store.write() as connection:
        ids = [prompt.fusion_id for prompt in others]
        ended = update(fusions).where(fusions.c.fusion_id.in_(ids)).values(is_done=True)
        await connection.execute(ended)
        if not store.is_sqlite:
            # As the server does by itself in time.
            await connection.exec_driver_sql("ANALYZE prompts, fusions")
    plans.found.clear()

    counts = await running_counts(store, PROMPT.tenant)
    assert (counts.fusions, counts.oldest_at, counts.batches) == (1, T0, 0)
    of_fusions, of_batches = (str(steps) for _, steps in plans.found)
    assert await history(store, [PROMPT.fusion_id])
    assert await Images(store).sizes(PROMPT.tenant, ["a", "b"]) == {}

    assert len(plans.found) >= 6
    assert plans.whole_reads() == []
    # Of all that a tenant has, only what is open is read.
    assert "ix_fusions_due" in of_fusions
    assert "ix_prompts_batch" not in of_fusions
    assert "ix_batches_status" in of_batches


async def test_votes(plans: Plans, store: Store) -> None:
    row: dict[str, Any] = {
        "fusion_id": PROMPT.fusion_id,
        "tenant": PROMPT.tenant,
        "status": "fused",
        "is_degraded": False,
        **dict.fromkeys(("custom_id", "pool", "mode", "prompt_hash"), ""),
        **dict.fromkeys(("degraded_reasons", "body"), "[]"),
        **dict.fromkeys(("n_asked", "n_answered", "latency_ms"), 0),
        **dict.fromkeys(("submitted_at", "finished_at"), T0),
    }
    async with store.write() as connection:
        await connection.execute(insert(outcomes).values(row))
    votes = Votes(store)
    for choice in ("fused", "tie"):
        await votes.store(PROMPT.tenant, Vote(PROMPT.fusion_id, "v", choice, None, T0))
    assert await votes.counts(PROMPT.tenant, PROMPT.fusion_id)
    assert await votes.counts(PROMPT.tenant, "f0") is None

    assert len(plans.found) >= 10
    assert plans.whole_reads() == []


async def test_the_batch_runners_polls(plans: Plans, store: Store) -> None:
    lines = BatchLines(store)
    await Batches(store).find_open()
    await lines.in_flight()
    await lines.find_held(["b"], 10)
    await lines.is_due("b")
    await lines.flying_ids("b")

    assert len(plans.found) >= 5
    assert plans.whole_reads() == []


async def test_a_statement_that_reads_a_whole_table_is_seen(plans: Plans, store: Store) -> None:
    async with store.read() as connection:
        await connection.exec_driver_sql("SELECT fusion_id FROM prompts WHERE custom_id = 'x'")

    assert len(plans.whole_reads()) == 1
